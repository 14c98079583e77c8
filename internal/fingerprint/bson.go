package fingerprint

import (
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// stripDocument appends a canonical document without the fields of the paths. A path goes through arrays as MongoDB's
// own paths do: items.price names the price of every item.
func stripDocument(dst, canon []byte, paths []string) ([]byte, error) {
	if f, ok := database.FamilyOf(canon); !ok || f != database.Document {
		return append(dst, canon...), nil
	}
	split := make([][]string, len(paths))
	for i, p := range paths {
		split[i] = strings.Split(p, ".")
	}
	return stripFields(append(dst, canon[0]), canon[1:], split, false)
}

// stripFields copies the elements of a document, or of an array, that no path names.
func stripFields(dst, raw []byte, paths [][]string, array bool) ([]byte, error) {
	if len(raw) < 5 || int(int32(binary.LittleEndian.Uint32(raw))) != len(raw) || raw[len(raw)-1] != 0 {
		return nil, badDocument()
	}
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	rest := raw[4 : len(raw)-1]
	for len(rest) > 0 {
		end := bytes.IndexByte(rest[1:], 0)
		if end < 0 {
			return nil, badDocument()
		}
		kind, name, head := rest[0], string(rest[1:1+end]), rest[:end+2]
		size, ok := bsonSize(kind, rest[end+2:])
		if !ok {
			return nil, badDocument()
		}
		value := rest[end+2 : end+2+size]
		rest = rest[end+2+size:]
		inner, drop := follow(paths, name, array)
		if drop {
			continue
		}
		dst = append(dst, head...)
		if len(inner) > 0 && (kind == 0x03 || kind == 0x04) {
			var err error
			if dst, err = stripFields(dst, value, inner, kind == 0x04); err != nil {
				return nil, err
			}
			continue
		}
		dst = append(dst, value...)
	}
	dst = append(dst, 0)
	binary.LittleEndian.PutUint32(dst[start:], uint32(len(dst)-start))
	return dst, nil
}

// follow returns what is left of the paths below a field, and whether one ends at it. Elements of an array are also
// passed through by paths that do not name an index.
func follow(paths [][]string, name string, array bool) (inner [][]string, drop bool) {
	for _, p := range paths {
		switch {
		case p[0] == name && len(p) == 1:
			return nil, true
		case p[0] == name:
			inner = append(inner, p[1:])
		case array:
			inner = append(inner, p)
		}
	}
	return inner, false
}

// bsonSize returns how many bytes a value of a BSON type takes.
func bsonSize(kind byte, b []byte) (int, bool) {
	n := 0
	switch kind {
	case 0x06, 0x0a, 0x7f, 0xff: // undefined, null, max key, min key
	case 0x08:
		n = 1
	case 0x10:
		n = 4
	case 0x01, 0x09, 0x11, 0x12:
		n = 8
	case 0x07:
		n = 12
	case 0x13:
		n = 16
	case 0x0b: // two C strings
		first := bytes.IndexByte(b, 0)
		if first < 0 {
			return 0, false
		}
		second := bytes.IndexByte(b[first+1:], 0)
		if second < 0 {
			return 0, false
		}
		n = first + second + 2
	case 0x02, 0x03, 0x04, 0x05, 0x0c, 0x0d, 0x0e, 0x0f:
		if len(b) < 4 {
			return 0, false
		}
		n = int(int32(binary.LittleEndian.Uint32(b)))
		if n < 0 {
			return 0, false
		}
		switch kind {
		case 0x02, 0x0d, 0x0e:
			n += 4
		case 0x05:
			n += 5
		case 0x0c:
			n += 16
		}
	default:
		return 0, false
	}
	return n, n <= len(b)
}

func badDocument() error {
	return fault.Newf(fault.Invalid, "a document is not valid BSON; run the engine's own check on this database")
}
