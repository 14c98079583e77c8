package fingerprint

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// ablation takes one part of the method away. Tests use it to show that the suite needs every part; it is the zero
// value everywhere else.
type ablation struct {
	noKey      bool // the key is left out of the hashes
	xor        bool // buckets are combined with XOR
	noPrefix   bool // values are concatenated without tags and lengths
	noCount    bool // rows are not counted
	noMultiset bool // equal keys overwrite each other
}

// hasher makes the hashes of one table's rows. It keeps scratch space and serves one goroutine.
type hasher struct {
	keySeed, columnSeed, rowSeed uint64
	keyless                      bool
	width                        int
	paths                        []string
	columns                      []Hash // c_j of the last row
	values                       [][]byte
	scratch, stripped            []byte
	ablated                      ablation
	keyColumn                    []bool
}

func newHasher(t *Table, seed Seed, ablated ablation) *hasher {
	name := t.Name.String()
	h := &hasher{
		keySeed: seed.derive(name, "key"), columnSeed: seed.derive(name, "column"), rowSeed: seed.derive(name, "row"),
		keyless: len(t.Key) == 0, width: len(t.Columns), paths: t.Paths, columns: make([]Hash, len(t.Columns)),
		ablated: ablated, keyColumn: make([]bool, len(t.Columns)),
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
	if h.ablated.noPrefix {
		return h.concatenated(r, key)
	}
	h.columnHashes(r, key)
	if h.width == 1 {
		row = h.columns[0]
	} else {
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
	if h.ablated.noKey {
		key = Hash{}
	}
	for j, v := range r.Values {
		b := key.appendTo(h.scratch[:0])
		b = binary.BigEndian.AppendUint32(b, uint32(j))
		if !h.ablated.noKey || !h.keyColumn[j] {
			b = append(b, v...)
		}
		u := xxh3.Hash128Seed(b, h.columnSeed)
		h.columns[j] = Hash{u.Hi, u.Lo}
		h.scratch = b[:0]
	}
}

func (h *hasher) rowHash(key Hash) Hash {
	if h.ablated.noKey {
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

// concatenated is the ablation of length prefixes: what a checksum over joined values sees.
func (h *hasher) concatenated(r database.Row, key Hash) (Hash, Hash, database.Row, error) {
	b := h.scratch[:0]
	if parts, ok := database.KeyValues(r.Key); ok && !h.keyless {
		for _, p := range parts {
			b = append(b, database.Payload(p)...)
		}
		key = h.keyHash(b)
	}
	b = key.appendTo(b[:0])
	for j, v := range r.Values {
		if !h.keyColumn[j] {
			b = append(b, database.Payload(v)...)
		}
	}
	u := xxh3.Hash128Seed(b, h.rowSeed)
	h.scratch = b[:0]
	row := Hash{u.Hi, u.Lo}
	if h.keyless {
		key = row
	}
	return key, row, r, nil
}
