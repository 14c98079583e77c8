package fingerprint

import (
	"github.com/zeebo/xxh3"
)

// DefaultCells decode about 7,000 changed rows.
const DefaultCells = 20_000

const (
	// shortKey is how many canonical bytes of a key fit into two limbs of 15.
	shortKey = 30
	// hashedKey in place of the length says that the limbs hold the key's hash.
	hashedKey = 31
)

// cell sums what fell into it; every field but the count is modulo 2^127-1.
type cell struct {
	count      int64
	row, check element
	key        [2]element
}

func (c *cell) add(count int64, row, check element, key [2]element) {
	c.count += count
	switch count {
	case 1:
		c.row, c.check = c.row.plus(row), c.check.plus(check)
		c.key[0], c.key[1] = c.key[0].plus(key[0]), c.key[1].plus(key[1])
	default:
		n := small(count)
		c.row, c.check = c.row.plus(row.times(n)), c.check.plus(check.times(n))
		c.key[0], c.key[1] = c.key[0].plus(key[0].times(n)), c.key[1].plus(key[1].times(n))
	}
}

// cells is an invertible Bloom table keyed by the row. Keyed by the key, a changed row would cancel and could not be
// decoded; keyed by the row it is two elements.
type cells struct {
	third int
	seed  uint64
	cells []cell
}

func newCells(n int, seed uint64) *cells {
	third := max(1, n/3)
	return &cells{third: third, seed: seed, cells: make([]cell, 3*third)}
}

// place returns the check of a row and its three cells, one in each third.
func (t *cells) place(row element) (check element, at [3]int) {
	var b [16]byte
	Hash{row.hi, row.lo}.appendTo(b[:0])
	u := xxh3.Hash128Seed(b[:], t.seed)
	third := uint64(t.third)
	at[0] = int((u.Hi >> 32) * third >> 32)
	at[1] = t.third + int((u.Hi&0xffffffff)*third>>32)
	at[2] = 2*t.third + int((u.Lo>>32)*third>>32)
	v := xxh3.Hash128Seed(b[:], ^t.seed)
	return reduce(v.Hi, v.Lo), at
}

// add puts a row into its three cells.
func (t *cells) add(row Hash, key [2]element) {
	r := reduce(row.Hi, row.Lo)
	check, at := t.place(r)
	for _, i := range at {
		t.cells[i].add(1, r, check, key)
	}
}

func (t *cells) merge(o *cells) {
	for i := range o.cells {
		a, b := &t.cells[i], &o.cells[i]
		a.count += b.count
		a.row, a.check = a.row.plus(b.row), a.check.plus(b.check)
		a.key[0], a.key[1] = a.key[0].plus(b.key[0]), a.key[1].plus(b.key[1])
	}
}

// subtract returns target minus source.
func subtract(target, source *cells) *cells {
	d := &cells{third: target.third, seed: target.seed, cells: make([]cell, len(target.cells))}
	for i := range d.cells {
		a, b := &target.cells[i], &source.cells[i]
		d.cells[i] = cell{a.count - b.count, a.row.minus(b.row), a.check.minus(b.check),
			[2]element{a.key[0].minus(b.key[0]), a.key[1].minus(b.key[1])}}
	}
	return d
}

// peeled is a row that one side has more often: count is positive where it is the target.
type peeled struct {
	count int64
	row   element
	key   [2]element
}

// peel empties the difference of two tables. It reports false where more rows differ than the cells can tell apart.
func (t *cells) peel() ([]peeled, bool) {
	var out []peeled
	queue := make([]int, len(t.cells))
	for i := range queue {
		queue[i] = i
	}
	for len(queue) > 0 && len(out) <= len(t.cells) {
		i := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		p, ok := t.pure(i)
		if !ok {
			continue
		}
		out = append(out, p)
		check, at := t.place(p.row)
		for _, j := range at {
			t.cells[j].add(-p.count, p.row, check, p.key)
			queue = append(queue, j)
		}
	}
	for i := range t.cells {
		if t.cells[i] != (cell{}) {
			return nil, false
		}
	}
	return out, true
}

// pure tells whether a cell holds one row only, however many times.
func (t *cells) pure(i int) (peeled, bool) {
	c := t.cells[i]
	if c.count == 0 {
		return peeled{}, false
	}
	p := peeled{c.count, c.row, c.key}
	check := c.check
	switch c.count {
	case 1:
	case -1:
		p.row, check, p.key = c.row.negated(), c.check.negated(), [2]element{c.key[0].negated(), c.key[1].negated()}
	default:
		inv := small(c.count).inverse()
		p.row, check, p.key = c.row.times(inv), c.check.times(inv), [2]element{c.key[0].times(inv), c.key[1].times(inv)}
	}
	want, at := t.place(p.row)
	return p, check == want && at[i/t.third] == i
}

// limbs writes a key of up to 30 bytes, else the key's hash, as two elements.
func limbs(key []byte, hash Hash, keyless bool) [2]element {
	if keyless || len(key) > shortKey {
		return [2]element{{uint64(hashedKey) << 56, hash.Hi}, {0, hash.Lo}}
	}
	var b [32]byte
	b[0] = byte(len(key))
	n := copy(b[1:16], key)
	copy(b[17:], key[n:])
	x, y := hashAt(b[:]), hashAt(b[16:])
	return [2]element{{x.Hi, x.Lo}, {y.Hi, y.Lo}}
}

// fromLimbs returns the key, or its hash where the key was too long.
func fromLimbs(l [2]element) (key []byte, hash Hash, short bool) {
	n := l[0].hi >> 56
	if n == hashedKey {
		return nil, Hash{l[0].lo, l[1].lo}, false
	}
	b := Hash{l[0].hi, l[0].lo}.appendTo(nil)
	b = Hash{l[1].hi, l[1].lo}.appendTo(b)
	key = append(b[1:16:16], b[17:]...)
	if int(n) > len(key) {
		return nil, Hash{}, false
	}
	return key[:n], Hash{}, true
}
