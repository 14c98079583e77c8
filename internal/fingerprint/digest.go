package fingerprint

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// Digest is the fingerprint of one side. It is kept as JSON; the leaves inside are packed.
type Digest struct {
	Plan    string        `json:"plan"` // digests: unequal ones are refused, not compared
	Seed    string        `json:"seed"`
	Role    Role          `json:"role"`
	Cells   int           `json:"cells"`
	Info    database.Info `json:"info"`
	Tables  []TableDigest `json:"tables"`
	Seconds float64       `json:"seconds"`
}

// TableDigest is the fingerprint of one table. Root is what evidence carries.
type TableDigest struct {
	Name   database.Name `json:"name"`
	Rows   int64         `json:"rows"`
	Bytes  int64         `json:"bytes"`
	Root   string        `json:"root"`
	Leaves []byte        `json:"leaves,omitempty"`
}

// fits refuses a digest that was made under another plan or seed.
func (d *Digest) fits(plan *Plan, seed Seed, role Role, cells int) error {
	switch {
	case d.Plan != plan.Digest():
		return fault.Newf(fault.Conflict, "the fingerprint of the %s was made under another plan (%s, now %s); scan it again", role, d.Plan, plan.Digest())
	case d.Seed != seed.Digest():
		return fault.Newf(fault.Conflict, "the fingerprint of the %s was made with another seed; scan it again", role)
	case d.Role != role:
		return fault.Newf(fault.Conflict, "the fingerprint is of the %s, not of the %s", d.Role, role)
	case d.Cells != cells || len(d.Tables) != len(plan.Tables):
		return fault.Newf(fault.Conflict, "the fingerprint of the %s has %d cells and %d tables, the comparison %d and %d; scan it again",
			role, d.Cells, len(d.Tables), cells, len(plan.Tables))
	}
	for i := range d.Tables {
		if d.Tables[i].Name != plan.Tables[i].Name {
			return fault.Newf(fault.Conflict, "the fingerprint of the %s is of another share: it has %s, the comparison %s; scan it again", role, d.Tables[i].Name, plan.Tables[i].Name)
		}
	}
	return nil
}

// pack keeps the leaves of a table in as many bytes as are not zero.
func pack(t *Table, l *leaves) (TableDigest, error) {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	head := binary.BigEndian.AppendUint32(nil, uint32(len(l.columns)))
	for _, c := range l.columns {
		head = c.appendTo(head)
	}
	used := uint32(0)
	for _, c := range l.cells.cells {
		if c != (cell{}) {
			used++
		}
	}
	head = binary.BigEndian.AppendUint32(head, used)
	for i, c := range l.cells.cells {
		if c == (cell{}) {
			continue
		}
		head = binary.BigEndian.AppendUint32(head, uint32(i))
		head = binary.BigEndian.AppendUint64(head, uint64(c.count))
		for _, e := range []element{c.row, c.check, c.key[0], c.key[1]} {
			head = Hash{e.hi, e.lo}.appendTo(head)
		}
	}
	_, err := z.Write(head)
	if err == nil {
		err = l.writeBuckets(z)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return TableDigest{}, fmt.Errorf("packing the fingerprint of %s: %w", t.Name, err)
	}
	return TableDigest{Name: t.Name, Rows: l.rows, Bytes: l.bytes, Root: l.root(), Leaves: out.Bytes()}, nil
}

// unpack is the inverse of pack; the root proves that nothing was lost.
func (d *TableDigest) unpack(t *Table, seed Seed, n int, without Part) (*leaves, error) {
	damaged := func(why any) error {
		return fault.Newf(fault.Lost, "the kept fingerprint of %s cannot be read (%v); scan it again", d.Name, why)
	}
	z, err := gzip.NewReader(bytes.NewReader(d.Leaves))
	if err != nil {
		return nil, damaged(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		return nil, damaged(err)
	}
	l := newLeaves(t, seed, n, without)
	l.rows, l.bytes = d.Rows, d.Bytes
	take := func(size int) []byte {
		if len(b) < size {
			b, err = nil, io.ErrUnexpectedEOF
			return make([]byte, size)
		}
		head := b[:size]
		b = b[size:]
		return head
	}
	if columns := binary.BigEndian.Uint32(take(4)); int(columns) != len(l.columns) {
		return nil, damaged("other columns")
	}
	for j := range l.columns {
		l.columns[j] = hashAt(take(16))
	}
	for range binary.BigEndian.Uint32(take(4)) {
		r := take(76)
		i := binary.BigEndian.Uint32(r)
		if err != nil || int(i) >= len(l.cells.cells) {
			return nil, damaged("cells")
		}
		c := cell{count: int64(binary.BigEndian.Uint64(r[4:]))}
		for j, e := range []*element{&c.row, &c.check, &c.key[0], &c.key[1]} {
			x := hashAt(r[12+16*j:])
			*e = element{x.Hi, x.Lo}
		}
		l.cells.cells[i] = c
	}
	for len(b) > 0 {
		r := take(28)
		if i := binary.BigEndian.Uint32(r); err == nil && i < Buckets {
			l.buckets[i] = bucket{binary.BigEndian.Uint64(r[4:]), hashAt(r[12:])}
		}
	}
	if err != nil || l.root() != d.Root {
		return nil, damaged("its root differs")
	}
	return l, nil
}

// MarshalText names the side in JSON.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the side.
func (r *Role) UnmarshalText(b []byte) error {
	switch string(b) {
	case "source":
		*r = Source
	case "target":
		*r = Target
	default:
		return fault.Newf(fault.Invalid, "a side is source or target, not %q", b)
	}
	return nil
}

// ReadDigest reads a digest that was written as JSON.
func ReadDigest(r io.Reader) (*Digest, error) {
	var d Digest
	if err := json.NewDecoder(r).Decode(&d); err != nil {
		return nil, fault.Newf(fault.Lost, "a kept fingerprint cannot be read: %w", err)
	}
	return &d, nil
}

// Roots is the digest without its leaves: small enough to be kept anywhere, and all that Differing needs.
func (d *Digest) Roots() *Digest {
	small := *d
	small.Tables = slices.Clone(d.Tables)
	for i := range small.Tables {
		small.Tables[i].Leaves = nil
	}
	return &small
}

// Differing names the tables that two digests of one seed do not have alike, among them those that only one of them has.
// It needs no database: what a restored or rehearsed database holds is compared with what was recorded before. Digests
// of different seeds have no table alike.
func (d *Digest) Differing(o *Digest) []string {
	others := map[database.Name]TableDigest{}
	for _, t := range o.Tables {
		others[t.Name] = t
	}
	var out []string
	for _, t := range d.Tables {
		u, ok := others[t.Name]
		delete(others, t.Name)
		if !ok || t.Root != u.Root || t.Rows != u.Rows || d.Seed != o.Seed {
			out = append(out, t.Name.String())
		}
	}
	for n := range others {
		out = append(out, n.String())
	}
	slices.Sort(out)
	return out
}
