package fingerprint

import (
	"fmt"
	"slices"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
)

// inOneBucket finds two rows that fall into one bucket, so that only what the bucket holds can tell them apart.
func inOneBucket(t *testing.T, f *fake, seed Seed) (i, j int) {
	t.Helper()
	plan, err := NewPlan(f.catalog(), f.catalog(), PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h := newHasher(&plan.Tables[0], seed, whole)
	seen := map[int]int{}
	for i, row := range f.rows["shop.orders"] {
		key, _, _, err := h.row(project(f.relations[0], &plan.Tables[0].sides[Source].projection, row))
		if err != nil {
			t.Fatal(err)
		}
		if j, ok := seen[bucketOf(key)]; ok {
			return j, i
		}
		seen[bucketOf(key)] = i
	}
	t.Fatal("no two rows share a bucket")
	return 0, 0
}

// TestAblations takes one part of the method away at a time. Each class must be found by the whole method and missed
// without the part, which shows that the suite would notice if the part were lost.
func TestAblations(t *testing.T) {
	seed := Seed{1, 2, 3}
	texts := []database.Column{{Name: "a", Family: database.Text}, {Name: "b", Family: database.Text}, {Name: "v", Family: database.Integer}}
	shift := func(r [][][]byte) [][][]byte {
		r[3][1], r[3][5] = text("user3@example.comx"), text("")
		r[3][2], r[3][3], r[3][4] = null(), null(), null()
		return r
	}
	keylessPair := func(r [][][]byte) (i, j int) {
		f := newFake()
		f.table("orders", nil, orderColumns(), r)
		return inOneBucket(t, f, seed)
	}
	ki, kj := keylessPair(orders(manyRows))
	tests := []struct {
		without Part
		damage  damage
		cut     int
	}{
		{without: PartKey, damage: damage{name: "2 values of two rows swapped", plant: func(r [][][]byte) [][][]byte {
			for c := 1; c < len(r[16]); c++ {
				r[16][c], r[24][c] = r[24][c], r[16][c]
			}
			return r
		}, want: []string{"value/email=2", "value/note=2", "value/placed=2", "value/total=2", "value/weight=2"}}},
		{without: PartSums, damage: damage{name: "8 keyless 2 to 0 and another 1 to 3", keyless: true,
			rows: append(orders(manyRows), order(ki)),
			plant: func(r [][][]byte) [][][]byte {
				r[manyRows], r[ki] = order(kj), order(kj)
				return r
			}, want: []string{"duplicate/=2", "missing/=2"}}},
		{without: PartLengths, damage: damage{name: "14 delimiter shift between columns",
			rows: func() [][][]byte {
				r := shift(orders(manyRows))
				r[3][1], r[3][5] = text("user3@example.com"), text("x")
				return r
			}(), plant: shift, want: []string{"value/email=1", "value/note=1"}}},
		{without: PartLengths, damage: damage{name: "12 ('a','bc') to ('ab','c')", columns: texts, key: []string{"a", "b"},
			rows:  [][][]byte{{text("a"), text("bc"), integer(1)}},
			plant: func([][][]byte) [][][]byte { return [][][]byte{{text("ab"), text("c"), integer(1)}} }, want: []string{"key changed/=1"}}},
		{without: PartMultiset, damage: damage{name: "8 keyless 1 to 3", keyless: true,
			plant: func(r [][][]byte) [][][]byte { return append(r, r[5], r[5]) }, want: []string{"duplicate/=2"}}},
		{without: PartCount, cut: 100, damage: damage{name: "40 connection ends after N rows",
			plant: func(r [][][]byte) [][][]byte { r[4000][5] = text("damaged"); return r }}},
	}
	for _, test := range tests {
		t.Run(string(test.without)+": "+test.damage.name, func(t *testing.T) {
			a, b := test.damage.fakes()
			a.cut, b.cut = test.cut, test.cut
			with := func(without Part) (Verdict, []string) {
				r, err := tryVerify(t, a, b, without, func(o *Options, _ *PlanOptions) { o.Seed = seed })
				if err != nil {
					t.Fatal(err)
				}
				return r.Verdict, summary(r)
			}
			verdict, found := with(whole)
			wanted := Different
			if test.cut > 0 {
				wanted = Unknown
			}
			if verdict != wanted || !slices.Equal(found, test.damage.want) {
				t.Fatalf("the whole method says %s %v, want %v", verdict, found, test.damage.want)
			}
			if ablated, less := with(test.without); ablated == verdict && slices.Equal(less, found) {
				t.Errorf("without %s the class is still found: %s", test.without, fmt.Sprint(less))
			}
		})
	}
}
