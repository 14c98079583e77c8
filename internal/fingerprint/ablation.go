package fingerprint

import (
	"bytes"
	"context"
	"encoding/binary"

	"github.com/zeebo/xxh3"

	"github.com/sluice-cd/sluice/internal/database"
)

// Part is a part of the method that can be taken away, to show what would be missed without it.
type Part string

// The parts. Each is what tells some class of damage from no damage.
const (
	PartKey      Part = "the key in the hashes"   // rows count by their other values alone
	PartSums     Part = "sums where XOR would do" // hashes are combined with XOR
	PartLengths  Part = "lengths and tags"        // values are joined as they are
	PartCount    Part = "the count"               // rows are not counted
	PartMultiset Part = "the multiset rule"       // equal keys overwrite each other
	whole        Part = ""                        // nothing is taken away
)

// Parts returns every part.
func Parts() []Part { return []Part{PartKey, PartSums, PartLengths, PartCount, PartMultiset} }

// CompareWithout is Compare by a method that lacks a part. It is for the mutation suites of the engines, which must fail
// with it; its verdicts say nothing about the databases, and the linter refuses it outside tests.
func CompareWithout(ctx context.Context, o Options, part Part) (*Report, error) {
	return compare(ctx, o, part)
}

// ScanWithout is Scan by a method that lacks a part; CompareWithout takes what it makes.
func ScanWithout(ctx context.Context, view database.View, plan *Plan, o ScanOptions, part Part) (*Digest, error) {
	return scan(ctx, view, plan, o, part)
}

// combine adds a hash to what stands for many.
func combine(a, b Hash, without Part) Hash {
	if without == PartSums {
		return Hash{a.Hi ^ b.Hi, a.Lo ^ b.Lo}
	}
	return a.plus(b)
}

// leafOf returns the bucket of a row. Without the key it is chosen by what is left.
func leafOf(key, row Hash, without Part) int {
	if without == PartKey {
		key = row
	}
	return bucketOf(key)
}

// appendAblated appends the value of a column as a method sees it that lacks a part.
func (h *hasher) appendAblated(b []byte, j int, v []byte) []byte {
	switch {
	case h.without == PartLengths:
		return appendJoined(b, v)
	case h.without == PartKey && h.document:
		if rest, err := stripDocument(nil, v, []string{"_id"}); err == nil {
			v = rest
		}
	case h.without == PartKey && h.keyColumn[j]:
		return b
	}
	return append(b, v...)
}

// joined returns the hashes of key and row where values are joined without their lengths and tags.
func (h *hasher) joined(r database.Row) (key, row Hash) {
	b := h.scratch[:0]
	switch parts, ok := database.KeyValues(r.Key); {
	case h.keyless:
	case h.document:
		b = appendField(b, r.Values[0], "_id")
	case ok:
		for _, p := range parts {
			b = appendJoined(b, p)
		}
	}
	key = h.keyHash(b)
	b = key.appendTo(b[:0])
	for j, v := range r.Values {
		if h.document || !h.keyColumn[j] {
			b = appendJoined(b, v)
		}
	}
	u := xxh3.Hash128Seed(b, h.rowSeed)
	h.scratch = b[:0]
	return key, Hash{u.Hi, u.Lo}
}

// appendJoined appends a canonical value without its tag, and a document as the bytes of its values alone.
func appendJoined(b, canon []byte) []byte {
	if f, ok := database.FamilyOf(canon); ok && f == database.Document {
		return appendDocument(b, database.Payload(canon), "")
	}
	return append(b, database.Payload(canon)...)
}

// appendField appends the value of one field of a document.
func appendField(b, canon []byte, name string) []byte {
	return appendDocument(b, database.Payload(canon), name)
}

// appendDocument appends the values of a document, or of its one field of a name. What is no BSON is appended as it is.
func appendDocument(b, raw []byte, only string) []byte {
	if len(raw) < 5 {
		return append(b, raw...)
	}
	for rest := raw[4 : len(raw)-1]; len(rest) > 0; {
		end := bytes.IndexByte(rest[1:], 0)
		if end < 0 {
			return append(b, rest...)
		}
		kind, name, value := rest[0], string(rest[1:1+end]), rest[end+2:]
		size, ok := bsonSize(kind, value)
		if !ok {
			return append(b, rest...)
		}
		value, rest = value[:size], value[size:]
		if only == "" || name == only {
			b = appendBSON(b, kind, value)
		}
	}
	return b
}

func appendBSON(b []byte, kind byte, value []byte) []byte {
	switch kind {
	case 0x03, 0x04: // documents and arrays
		return appendDocument(b, value, "")
	case 0x02: // strings, which end with a zero
		n := int(binary.LittleEndian.Uint32(value))
		return append(b, value[4:4+max(n-1, 0)]...)
	case 0x05: // binaries, whose subtype is a tag
		return append(b, value[5:]...)
	}
	return append(b, value...)
}
