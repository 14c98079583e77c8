package fingerprint

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluice-cd/sluice/internal/database"
)

var smallColumns = []database.Column{{Name: "id", Family: database.Integer}, {Name: "a", Family: database.Text}, {Name: "b", Family: database.Integer}}

// drawRow draws a row of a small table; few values, so that equal ones are common.
func drawRow(t *rapid.T, id int) [][]byte {
	a := rapid.SampledFrom([][]byte{null(), text(""), text("NULL"), text("x"), text("y")}).Draw(t, "a")
	return [][]byte{integer(int64(id)), a, integer(int64(rapid.IntRange(0, 3).Draw(t, "b")))}
}

// rootOf digests rows as one table.
func rootOf(t rapid.TB, seed Seed, keyed bool, rows [][][]byte, workers int) string {
	f := newFake()
	var key []string
	if keyed {
		key = []string{"id"}
	}
	f.table("t", key, smallColumns, rows)
	f.relations[0].Rows = parallelRows * 2 // so that all workers are used
	plan, err := NewPlan(f.catalog(), f.catalog(), PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := Scan(context.Background(), f, plan, ScanOptions{Seed: seed, Workers: workers, Cells: 30})
	if err != nil {
		t.Fatal(err)
	}
	return d.Tables[0].Root + string(d.Tables[0].Leaves)
}

// TestOrderAndPartitionDoNotMatter holds that a digest depends on the rows alone, and that any other multiset of rows
// has another one.
func TestOrderAndPartitionDoNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := Seed{byte(rapid.IntRange(0, 255).Draw(t, "seed"))}
		keyed := rapid.Bool().Draw(t, "keyed")
		var rows [][][]byte
		for i := range rapid.IntRange(1, 20).Draw(t, "rows") {
			rows = append(rows, drawRow(t, i/2*2)) // keys come twice
		}
		want := rootOf(t, seed, keyed, rows, 1)
		if got := rootOf(t, seed, keyed, shuffled(rows, rapid.Uint64().Draw(t, "shuffle")), rapid.IntRange(1, 4).Draw(t, "workers")); got != want {
			t.Fatal("another order, or other ranges, gave another digest")
		}
		other := cloneRows(rows)
		i := rapid.IntRange(0, len(rows)-1).Draw(t, "i")
		switch rapid.IntRange(0, 3).Draw(t, "change") {
		case 0:
			other[i] = drawRow(t, rapid.IntRange(0, 9).Draw(t, "id"))
		case 1:
			other = slices.Delete(other, i, i+1)
		case 2:
			other = append(other, other[i])
		case 3:
			j := rapid.IntRange(0, len(rows)-1).Draw(t, "j")
			other[i][1], other[j][1] = other[j][1], other[i][1]
		}
		same := slices.Equal(multiset(rows), multiset(other))
		if got := rootOf(t, seed, keyed, other, 1); (got == want) != same {
			t.Fatalf("the rows are the same: %v, their digests: %v", same, got == want)
		}
	})
}

// multiset is the slow way to compare rows.
func multiset(rows [][][]byte) []string {
	var out []string
	for _, r := range rows {
		out = append(out, string(database.AppendKey(nil, r...)))
	}
	slices.Sort(out)
	return out
}

// TestReportIsExact compares what is reported with a slow model, for random damage and few or many cells.
func TestReportIsExact(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		source := map[int][][]byte{}
		target := map[int][][]byte{}
		n := 0
		next := func() []byte { n++; return text(fmt.Sprint("unique ", n)) } // nothing equal but the key: no key changes
		want := map[string]int64{}
		for i := range rapid.IntRange(1, 60).Draw(rt, "rows") {
			source[i] = [][]byte{integer(int64(i)), next(), integer(1)}
			switch target[i] = slices.Clone(source[i]); rapid.IntRange(0, 5).Draw(rt, "change") {
			case 0:
				delete(source, i)
				want["extra"]++
			case 1:
				delete(target, i)
				want["missing"]++
			case 2:
				target[i][1] = next()
				want["changed"]++
			case 3:
				target[i][2] = integer(7)
				want["changed"]++
			}
		}
		a, b := newFake(), newFake()
		a.table("t", []string{"id"}, smallColumns, valuesOf(source))
		b.table("t", []string{"id"}, smallColumns, valuesOf(target))
		r := verify(t, a, b, func(o *Options, _ *PlanOptions) {
			o.Cells = rapid.SampledFrom([]int{3, 30, 300}).Draw(rt, "cells")
			o.MemoryBytes = rapid.SampledFrom([]int64{1 << 10, 1 << 20}).Draw(rt, "memory")
		})
		x := r.Tables[0]
		got := map[string]int64{"missing": x.Missing, "extra": x.Extra, "changed": x.Changed}
		for k := range got {
			if got[k] != want[k] {
				rt.Fatalf("%s: %d, want %d", k, got[k], want[k])
			}
		}
		if x.Duplicate+x.KeyChanged+x.KeyRespelled+x.NotClassified != 0 {
			rt.Fatalf("too much: %+v", x)
		}
	})
}

func valuesOf(m map[int][][]byte) (out [][][]byte) {
	for _, r := range m {
		out = append(out, r)
	}
	return out
}

// TestCellsDecode holds how many changed rows 20,000 cells tell apart: about 7,000.
func TestCellsDecode(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3} {
		rng := rand.New(rand.NewPCG(seed, seed))
		for _, changed := range []int{1, 100, 7000} {
			a, b := newCells(DefaultCells, seed), newCells(DefaultCells, seed)
			for i := range changed + 500 {
				key := limbs(database.AppendKey(nil, integer(int64(i))), Hash{}, false)
				row := Hash{rng.Uint64(), rng.Uint64()}
				a.add(row, key)
				if i < changed {
					row = Hash{rng.Uint64(), rng.Uint64()}
				}
				b.add(row, key)
			}
			list, ok := subtract(b, a).peel()
			if !ok || len(list) != 2*changed {
				t.Fatalf("%d changed rows: %d peeled, complete: %v", changed, len(list), ok)
			}
			for _, p := range list {
				key, _, short := fromLimbs(p.key)
				if values, ok := database.KeyValues(key); !short || !ok || len(values) != 1 || p.count != 1 && p.count != -1 {
					t.Fatalf("a peeled row has the key %x, %d times", key, p.count)
				}
			}
		}
		if _, ok := overfull(rng, seed).peel(); ok {
			t.Fatal("20,000 cells cannot hold 20,000 changed rows")
		}
	}
}

func overfull(rng *rand.Rand, seed uint64) *cells {
	c := newCells(DefaultCells, seed)
	for range 40_000 {
		c.add(Hash{rng.Uint64(), rng.Uint64()}, [2]element{})
	}
	return c
}

// TestMultiplicities holds that a row that is there many times peels by its count.
func TestMultiplicities(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := newCells(300, 9), newCells(300, 9)
		want := map[element]int64{}
		for i := range rapid.IntRange(1, 30).Draw(t, "rows") {
			h := Hash{rapid.Uint64().Draw(t, "hi"), uint64(i)}
			key := limbs(bytes.Repeat([]byte{255}, i), h, false)
			n, m := rapid.IntRange(0, 70).Draw(t, "n"), rapid.IntRange(0, 70).Draw(t, "m")
			for range n {
				a.add(h, key)
			}
			for range m {
				b.add(h, key)
			}
			if n != m {
				want[reduce(h.Hi, h.Lo)] += int64(m - n)
			}
		}
		list, ok := subtract(b, a).peel()
		got := map[element]int64{}
		for _, p := range list {
			got[p.row] += p.count
		}
		if !ok || !reflect.DeepEqual(got, want) {
			t.Fatalf("complete: %v; peeled %v, want %v", ok, got, want)
		}
	})
}

// TestElements holds the arithmetic modulo 2^127-1 to the laws that peeling uses.
func TestElements(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.OneOf(rapid.Uint64(), rapid.SampledFrom([]uint64{0, 1, 1 << 63, 1<<63 - 1, 1<<64 - 1}))
		draw := func(name string) element { return reduce(word.Draw(t, name), word.Draw(t, name)) }
		a, b, c := draw("a"), draw("b"), draw("c")
		one := element{0, 1}
		switch {
		case a.plus(b) != b.plus(a) || a.times(b) != b.times(a):
			t.Fatal("not commutative")
		case a.plus(b).plus(c) != a.plus(b.plus(c)) || a.times(b).times(c) != a.times(b.times(c)):
			t.Fatal("not associative")
		case a.times(b.plus(c)) != a.times(b).plus(a.times(c)):
			t.Fatal("not distributive")
		case a.minus(a) != element{} || a.minus(b).plus(b) != a:
			t.Fatal("no difference")
		case a != element{} && a.times(a.inverse()) != one:
			t.Fatal("no inverse")
		case a.times(small(-3)) != a.plus(a).plus(a).negated():
			t.Fatal("small numbers")
		}
	})
}

func TestLimbs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "key")
		hash := Hash{rapid.Uint64().Draw(t, "hi"), rapid.Uint64().Draw(t, "lo")}
		got, h, short := fromLimbs(limbs(key, hash, false))
		if short != (len(key) <= shortKey) || short && !bytes.Equal(got, key) || !short && h != hash {
			t.Fatalf("%x became %x", key, got)
		}
	})
}
