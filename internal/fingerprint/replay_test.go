package fingerprint

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluice-cd/sluice/internal/database"
)

// TestReplay holds that the differing rows, taken away from and added to the source, make the target: nothing is left
// out and nothing is told twice, with a key, with keys that come twice, and without a key.
func TestReplay(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		keyed := rapid.Bool().Draw(rt, "keyed")
		draw := func(name string) (rows [][][]byte) {
			for range rapid.IntRange(0, 15).Draw(rt, name) {
				rows = append(rows, drawRow(rt, rapid.IntRange(0, 9).Draw(rt, "id")))
			}
			return rows
		}
		source, target := draw("source"), draw("target")
		a, b := newFake(), newFake()
		var key []string
		if keyed {
			key = []string{"id"}
		}
		a.table("t", key, smallColumns, source)
		b.table("t", key, smallColumns, target)
		copies := map[string]int64{}
		for _, r := range multiset(source) {
			copies[r]++
		}
		r := verify(t, a, b, func(o *Options, _ *PlanOptions) {
			o.Cells = rapid.SampledFrom([]int{3, 300}).Draw(rt, "cells")
			o.Rows = func(d RowDifference) error {
				if d.Old != nil {
					copies[string(database.AppendKey(nil, d.Old.Values...))] -= d.Count
				}
				if d.New != nil {
					copies[string(database.AppendKey(nil, d.New.Values...))] += d.Count
				}
				return nil
			}
		})
		var got []string
		for row, n := range copies {
			for range n {
				got = append(got, row)
			}
			if n < 0 {
				rt.Fatalf("%q was taken away too often", row)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, multiset(target)) {
			rt.Fatalf("replayed %q, want %q; %+v", got, multiset(target), r.Tables[0])
		}
	})
}
