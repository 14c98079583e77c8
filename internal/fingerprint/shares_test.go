package fingerprint

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// found is what a report says as it arrives from another process, without when it was made and how long it took.
func found(t rapid.TB, r *Report) string {
	t.Helper()
	c := *r
	c.Started, c.Cost.Seconds, c.Cost.RowsPerSecond = time.Time{}, 0, 0
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// arrived is a value after its way between two processes.
func arrived[T any](t rapid.TB, v *T) *T {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out := new(T)
	if err := json.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// drawSides draws two databases of a few tables that differ in some of them, and some of which cannot be compared.
func drawSides(t *rapid.T) (a, b *fake) {
	a, b = newFake(), newFake()
	for i := range rapid.IntRange(1, 6).Draw(t, "tables") {
		name, key := fmt.Sprintf("t%d", i), []string{"id"}
		if rapid.IntRange(0, 3).Draw(t, "keyless") == 0 {
			key = nil
		}
		var rows [][][]byte
		for n := range rapid.IntRange(0, 12).Draw(t, "rows") {
			rows = append(rows, drawRow(t, n))
		}
		other := cloneRows(rows)
		if len(rows) > 0 && rapid.Bool().Draw(t, "differ") {
			other[0] = drawRow(t, 0)
			other = append(other, drawRow(t, 20))
		}
		columns := smallColumns
		if rapid.IntRange(0, 5).Draw(t, "schema") == 0 {
			columns = append(slices.Clone(columns), database.Column{Name: "new", Family: database.Text})
			for n := range other {
				other[n] = append(other[n], null())
			}
		}
		a.table(name, key, smallColumns, rows)
		b.table(name, key, columns, other)
		if rapid.IntRange(0, 9).Draw(t, "skip") == 0 {
			a.relations[i].Skip = "it is foreign"
		}
	}
	if rapid.IntRange(0, 5).Draw(t, "cut") == 0 {
		b.cut = 3 // larger tables than that are in doubt
	}
	return a, b
}

// TestSharesMakeTheWhole holds that the reports of shares, however the tables are given to them, make the report of one comparison,
// and so do fingerprints.
func TestSharesMakeTheWhole(t *testing.T) {
	verdicts := map[Verdict]int{}
	rapid.Check(t, func(rt *rapid.T) {
		a, b := drawSides(rt)
		plan, err := NewPlan(a.catalog(), b.catalog(), PlanOptions{})
		if err != nil {
			rt.Fatal(err)
		}
		seed := Seed{byte(rapid.IntRange(0, 255).Draw(rt, "seed"))}
		cells := rapid.SampledFrom([]int{3, 300}).Draw(rt, "cells")
		under := func(p *Plan) *Report {
			r, err := tryVerify(t, a, b, whole, func(o *Options, _ *PlanOptions) { o.Plan, o.Seed, o.Cells = p, seed, cells })
			if err != nil {
				rt.Fatal(err)
			}
			return arrived(rt, r)
		}
		want := under(plan)
		shares := rapid.IntRange(1, 4).Draw(rt, "shares")
		of := make([]int, len(plan.Tables))
		for i := range of {
			of[i] = rapid.IntRange(0, shares-1).Draw(rt, "share")
		}
		var reports []*Report
		var digests []*Digest
		for i := range shares {
			p, err := plan.Share(of, i)
			if err != nil {
				rt.Fatal(err)
			}
			reports = append(reports, under(p))
			d, err := Scan(t.Context(), a, p, ScanOptions{Seed: seed, Cells: cells})
			if err != nil {
				rt.Fatal(err)
			}
			digests = append(digests, arrived(rt, d))
		}
		got, err := plan.Merge(reports)
		if err != nil {
			rt.Fatal(err)
		}
		if x, y := found(rt, want), found(rt, got); x != y {
			rt.Fatalf("one comparison: %s\n%d shares: %s", x, shares, y)
		}
		verdicts[want.Verdict]++
		one, err := Scan(t.Context(), a, plan, ScanOptions{Seed: seed, Cells: cells})
		if err != nil {
			rt.Fatal(err)
		}
		d, err := plan.MergeDigests(digests)
		if err != nil {
			rt.Fatal(err)
		}
		one.Seconds, d.Seconds = 0, 0
		if one = arrived(rt, one); !reflect.DeepEqual(one, d) {
			rt.Fatalf("one fingerprint: %+v\n%d shares: %+v", one, shares, d)
		}
	})
	if len(verdicts) < 3 && !testing.Short() { // the everyday tests try too few for that
		t.Errorf("not every verdict was tried: %v", verdicts)
	}
}

// TestSharesThatAreNotOfOneWholeAreRefused loses, doubles and mixes shares.
func TestSharesThatAreNotOfOneWholeAreRefused(t *testing.T) {
	a := newFake()
	a.table("t0", []string{"id"}, smallColumns, [][][]byte{{integer(1), text("x"), integer(1)}})
	a.table("t1", []string{"id"}, smallColumns, nil)
	plan, err := NewPlan(a.catalog(), a.catalog(), PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	seed := NewSeed()
	share := func(of []int, i int, seed Seed) (*Report, *Digest) {
		p, err := plan.Share(of, i)
		if err != nil {
			t.Fatal(err)
		}
		d, err := Scan(t.Context(), a, p, ScanOptions{Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		return verify(t, a, a, func(o *Options, _ *PlanOptions) { o.Plan, o.Seed = p, seed }), d
	}
	first, firstDigest := share([]int{0, 1}, 0, seed)
	second, secondDigest := share([]int{0, 1}, 1, seed)
	both, bothDigest := share([]int{0, 0}, 0, seed)
	foreign, foreignDigest := share([]int{0, 1}, 1, NewSeed())
	other := arrived(t, second)
	other.Plan = "sha256:other"
	moved := arrived(t, second)
	moved.Schema = []database.Finding{{Object: "index i"}}
	if r, err := plan.Merge([]*Report{second, first}); err != nil || r.Verdict != Equal || r.Tables[0].Name.Relation != "t0" || r.Source.Rows != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	for name, c := range map[string]struct {
		reports []*Report
		digests []*Digest
		kind    fault.Kind
		want    string
	}{
		"none":                {nil, nil, fault.Lost, "no share"},
		"one lost":            {[]*Report{first}, []*Digest{firstDigest}, fault.Lost, "table shop.t1 is in no share"},
		"one twice":           {[]*Report{first, second, second}, []*Digest{firstDigest, secondDigest, secondDigest}, fault.Conflict, "in two shares"},
		"a table twice":       {[]*Report{first, both}, []*Digest{firstDigest, bothDigest}, fault.Conflict, "in two shares"},
		"of another seed":     {[]*Report{first, foreign}, []*Digest{firstDigest, foreignDigest}, fault.Conflict, "another seed"},
		"of another plan":     {[]*Report{first, other}, nil, fault.Conflict, "another plan"},
		"of a changed schema": {[]*Report{first, moved}, nil, fault.Conflict, "different schemas"},
	} {
		if _, err := plan.Merge(c.reports); !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("shares, %s: %v", name, err)
		}
		if _, err := plan.MergeDigests(c.digests); (c.digests != nil || c.reports == nil) && (!fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("fingerprints, %s: %v", name, err)
		}
	}
	if _, err := plan.Share([]int{0}, 0); !fault.Is(err, fault.Conflict) {
		t.Errorf("shares of another number of tables: %v", err)
	}
	// Both shares have one table, but not the same.
	p, err := plan.Share([]int{0, 1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tryVerify(t, a, a, whole, func(o *Options, _ *PlanOptions) { o.Plan, o.Seed, o.SourceDigest = p, seed, firstDigest })
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "another share") {
		t.Errorf("the fingerprint of another share is used: %v", err)
	}
}

// TestTablesAreSharedOutEvenly holds what Divide promises.
func TestTablesAreSharedOutEvenly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFake()
		for i := range rapid.IntRange(0, 30).Draw(t, "tables") {
			f.table(fmt.Sprintf("t%d", i), nil, smallColumns, nil)
			f.relations[i].Rows = int64(rapid.OneOf(rapid.IntRange(-1, 3), rapid.IntRange(0, 1_000_000)).Draw(t, "rows"))
		}
		plan, err := NewPlan(f.catalog(), f.catalog(), PlanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		most := rapid.IntRange(1, 8).Draw(t, "most")
		shares, of := plan.Divide(most)
		if shares < 1 || shares > most || len(of) != len(plan.Tables) {
			t.Fatalf("%d shares of at most %d, of %d tables %d", shares, most, len(plan.Tables), len(of))
		}
		load, heaviest := map[int]int64{}, int64(0)
		for i, s := range of {
			w := plan.Tables[i].weight()
			load[s] += w
			heaviest = max(heaviest, w)
		}
		if len(plan.Tables) > 0 && len(load) != shares {
			t.Fatalf("%d of %d shares have a table", len(load), shares)
		}
		// No share could be relieved by more than a table.
		for s, n := range load {
			if n > plan.Weight()/int64(shares)+heaviest {
				t.Fatalf("share %d has %d of %d in %d shares; the heaviest table has %d", s, n, plan.Weight(), shares, heaviest)
			}
		}
		if again, same := plan.Divide(most); again != shares || !slices.Equal(of, same) {
			t.Fatal("dividing twice gave two answers")
		}
	})
	f := newFake()
	for i, rows := range []int64{10, 900, 40, 50} {
		f.table(fmt.Sprintf("t%d", i), nil, smallColumns, nil)
		f.relations[i].Rows = rows
	}
	plan, err := NewPlan(f.catalog(), f.catalog(), PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if shares, of := plan.Divide(8); shares != 2 || !slices.Equal(of, []int{1, 0, 1, 1}) {
		t.Errorf("beside one large table the others are one share: %d, %v", shares, of)
	}
	if n := plan.Estimate(Source); n != 1000 {
		t.Errorf("%d rows", n)
	}
}
