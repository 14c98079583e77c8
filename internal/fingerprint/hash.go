package fingerprint

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// hasher makes the hashes of one table's rows. It keeps scratch space and serves one goroutine.
type hasher struct {
	keySeed, columnSeed, rowSeed uint64
	keyless                      bool
	width                        int
	paths                        []string
	columns                      []Hash // c_j of the last row
	values                       [][]byte
	scratch, stripped            []byte
	without                      Part
	document                     bool
	keyColumn                    []bool
}

func newHasher(t *Table, seed Seed, without Part) *hasher {
	name := t.Name.String()
	h := &hasher{
		keySeed: seed.derive(name, "key"), columnSeed: seed.derive(name, "column"), rowSeed: seed.derive(name, "row"),
		keyless: len(t.Key) == 0, width: len(t.Columns), paths: t.Paths, columns: make([]Hash, len(t.Columns)),
		without: without, document: t.document(), keyColumn: make([]bool, len(t.Columns)),
	}
	for _, k := range t.Key {
		h.keyColumn[k] = true
	}
	return h
}

// row returns the hashes of key and row, and the row as it is compared: without excluded paths of documents. The
// returned row lives until the next call. The key of a row without a key is its own hash.
func (h *hasher) row(r database.Row) (key, row Hash, seen database.Row, err error) {
	if len(r.Values) != h.width {
		return key, row, r, fault.Newf(fault.Invalid, "the engine gave %d values for %d planned columns; this is a bug in the engine's Scan", len(r.Values), h.width)
	}
	if len(h.paths) > 0 && len(r.Values) == 1 {
		if r, err = h.strip(r); err != nil {
			return key, row, r, err
		}
	}
	if !h.keyless {
		key = h.keyHash(r.Key)
	}
	h.columnHashes(r, key)
	switch {
	case h.without == PartLengths:
		key, row = h.joined(r)
	case h.width == 1:
		row = h.columns[0]
	default:
		row = h.rowHash(key)
	}
	if h.keyless {
		key = row
	}
	return key, row, r, nil
}

func (h *hasher) keyHash(key []byte) Hash {
	u := xxh3.Hash128Seed(key, h.keySeed)
	return Hash{u.Hi, u.Lo}
}

// columnHashes binds every value to the row's key and to its column, so that no exchange of values cancels.
func (h *hasher) columnHashes(r database.Row, key Hash) {
	if h.without == PartKey {
		key = Hash{}
	}
	for j, v := range r.Values {
		b := key.appendTo(h.scratch[:0])
		b = binary.BigEndian.AppendUint32(b, uint32(j))
		if h.without == whole {
			b = append(b, v...)
		} else {
			b = h.appendAblated(b, j, v)
		}
		u := xxh3.Hash128Seed(b, h.columnSeed)
		h.columns[j] = Hash{u.Hi, u.Lo}
		h.scratch = b[:0]
	}
}

func (h *hasher) rowHash(key Hash) Hash {
	if h.without == PartKey {
		key = Hash{}
	}
	b := key.appendTo(h.scratch[:0])
	for _, c := range h.columns {
		b = c.appendTo(b)
	}
	u := xxh3.Hash128Seed(b, h.rowSeed)
	h.scratch = b[:0]
	return Hash{u.Hi, u.Lo}
}

func (h *hasher) strip(r database.Row) (database.Row, error) {
	b, err := stripDocument(h.stripped[:0], r.Values[0], h.paths)
	if err != nil {
		return r, err
	}
	h.stripped = b[:0]
	if h.values == nil {
		h.values = make([][]byte, 1)
	}
	h.values[0] = b
	return database.Row{Key: r.Key, Values: h.values}, nil
}
