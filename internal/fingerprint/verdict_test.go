package fingerprint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// twins makes two equal databases with one table.
func twins(n int, key ...string) (a, b *fake) {
	a, b = newFake(), newFake()
	a.table("orders", key, orderColumns(), orders(n))
	b.table("orders", key, orderColumns(), orders(n))
	return a, b
}

func wantVerdict(t *testing.T, r *Report, want Verdict, reason string) {
	t.Helper()
	if r.Verdict != want || !strings.Contains(r.Reason, reason) {
		t.Errorf("%s: %q, want %s: %q", r.Verdict, r.Reason, want, reason)
	}
}

func TestUndamagedTwins(t *testing.T) {
	for range 50 {
		a, b := twins(500, "id")
		b.rows["shop.orders"] = slices.Clone(a.rows["shop.orders"])
		slices.Reverse(b.rows["shop.orders"])
		r := verify(t, a, b, nil)
		if r.Verdict != Equal || len(r.Tables[0].Classes)+len(r.Schema) > 0 {
			t.Fatalf("%+v", r)
		}
	}
}

func TestNothingToCompare(t *testing.T) {
	wantVerdict(t, verify(t, newFake(), newFake(), nil), Unknown, "nothing to compare")
	a, b := twins(0, "id")
	wantVerdict(t, verify(t, a, b, nil), Unknown, "nothing to compare")
}

func TestRowCountIsNotTheServers(t *testing.T) {
	a, b := twins(500, "id")
	a.cut, b.cut = 100, 100
	wantVerdict(t, verify(t, a, b, nil), Unknown, "the server counted")
}

func TestScanBreaks(t *testing.T) {
	a, b := twins(10, "id")
	b.rows["shop.orders"][5].Values = b.rows["shop.orders"][5].Values[:6]
	broken := errors.New("connection reset")
	r, err := Compare(context.Background(), Options{Source: Side{View: a}, Target: Side{View: &failing{b, broken}}, Seed: NewSeed(), Plan: planOf(t, a, b, PlanOptions{})})
	if !errors.Is(err, broken) {
		t.Fatalf("the cause is lost: %v", err)
	}
	wantVerdict(t, r, Unknown, "connection reset")
}

type failing struct {
	*fake
	err error
}

func (f *failing) Scan(ctx context.Context, r database.Range, p *database.Projection, each func(database.Row) error) (int64, error) {
	n := 0
	_, err := f.fake.Scan(ctx, r, p, func(row database.Row) error {
		if n++; n > 3 {
			return f.err
		}
		return each(row)
	})
	return 0, err
}

func planOf(t testing.TB, a, b *fake, o PlanOptions) *Plan {
	t.Helper()
	p, err := NewPlan(a.catalog(), b.catalog(), o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLiveViews(t *testing.T) {
	value := func(f *fake, i int, s string) {
		row := &f.rows["shop.orders"][i]
		row.Values = slices.Clone(row.Values)
		row.Values[5] = text(s)
	}
	t.Run("a difference that stays is one", func(t *testing.T) {
		a, b := twins(500, "id")
		a.live = true
		value(b, 7, "damaged")
		r := verify(t, a, b, nil)
		wantVerdict(t, r, Different, "")
		if got := summary(r); !slices.Equal(got, []string{"value/note=1"}) {
			t.Errorf("found %v", got)
		}
	})
	t.Run("a row on its way is none", func(t *testing.T) {
		a, b := twins(500, "id")
		a.live = true
		value(a, 7, "new")
		reads := 0
		b.onFetch = func(int) {
			if reads++; reads == 2 {
				value(b, 7, "new")
			}
		}
		wantVerdict(t, verify(t, a, b, nil), Equal, "")
	})
	t.Run("a row that never rests", func(t *testing.T) {
		a, b := twins(500, "id")
		a.live = true
		reads := 0
		a.onFetch = func(int) { reads++; value(a, 7, strings.Repeat("x", reads)) }
		value(a, 7, "y")
		wantVerdict(t, verify(t, a, b, nil), Unknown, "source is being written")
	})
	t.Run("without a key", func(t *testing.T) {
		a, b := twins(500)
		a.live = true
		scans := 0
		a.onScan = func(string) { scans++; value(a, 7, strings.Repeat("x", scans)) }
		wantVerdict(t, verify(t, a, b, nil), Unknown, "source is being written")
		a.onScan = nil
		r := verify(t, a, b, nil)
		wantVerdict(t, r, Different, "")
		if got := summary(r); !slices.Equal(got, []string{"extra/=1", "missing/=1"}) {
			t.Errorf("found %v", got)
		}
	})
	t.Run("a view that promised to hold still", func(t *testing.T) {
		a, b := twins(500, "id")
		value(a, 7, "y")
		a.onFetch = func(int) { value(a, 7, "note 7") }
		wantVerdict(t, verify(t, a, b, nil), Unknown, "although the views promised")
	})
}

func TestDigestIsReused(t *testing.T) {
	a, b := twins(500, "id")
	b.rows["shop.orders"][3].Values[5] = text("damaged")
	plan, seed := planOf(t, a, b, PlanOptions{}), NewSeed()
	d, err := Scan(context.Background(), a, plan, ScanOptions{Role: Source, Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	kept := marshal(t, d)
	d, err = ReadDigest(strings.NewReader(kept))
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Source: Side{View: a}, Target: Side{View: b}, Plan: plan, Seed: seed, SourceDigest: d, SpillDir: t.TempDir()}
	a.onScan = func(string) { t.Error("the source was scanned although its fingerprint is known") }
	r, err := Compare(context.Background(), o)
	if err != nil || !r.Source.Reused || !slices.Equal(summary(r), []string{"value/note=1"}) {
		t.Fatalf("%v, %v", summary(r), err)
	}
	o.Source.View = nil
	r, err = Compare(context.Background(), o)
	if err != nil || r.Verdict != Different || r.Tables[0].NotClassified != 1 {
		t.Fatalf("without the source: %+v, %v", r, err)
	}
	for name, change := range map[string]func(*Options){
		"another seed": func(o *Options) { o.Seed = NewSeed() },
		"another side": func(o *Options) { o.SourceDigest, o.TargetDigest = nil, d },
		"another plan": func(o *Options) {
			o.Plan = planOf(t, a, b, PlanOptions{Contract: []Exclusion{{Relation: "orders", Column: "note"}}})
		},
		"another cells": func(o *Options) { o.Cells = 99 },
		"damaged": func(o *Options) {
			c := *d
			c.Tables = slices.Clone(d.Tables)
			c.Tables[0].Root = "x"
			o.SourceDigest = &c
		},
	} {
		changed := o
		changed.Source.View = b
		change(&changed)
		if _, err := Compare(context.Background(), changed); fault.KindOf(err) != fault.Conflict && fault.KindOf(err) != fault.Lost {
			t.Errorf("%s: %v", name, err)
		}
	}
	if different := d.Differing(d); len(different) > 0 {
		t.Errorf("a digest differs from itself: %v", different)
	}
	other := *d
	other.Tables = append([]TableDigest{{Name: database.Name{Relation: "new"}}}, d.Tables...)
	if got := d.Differing(&other); !slices.Equal(got, []string{"new"}) {
		t.Errorf("a table more: %v", got)
	}
	other = *d
	other.Seed = "another"
	if got := d.Differing(&other); !slices.Equal(got, []string{"shop.orders"}) {
		t.Errorf("another seed: %v", got)
	}
}

func TestStoppedEarlier(t *testing.T) {
	a, b := twins(2000, "id")
	for i := range 300 {
		b.rows["shop.orders"][i].Values[5] = text("damaged")
	}
	for _, test := range []struct {
		passes, cells int
		atLeast       bool
		n             int64
	}{{1, DefaultCells, false, 300}, {2, 64, false, 300}, {1, 64, true, 0}} {
		r := verify(t, a, b, func(o *Options, _ *PlanOptions) { o.Passes, o.Cells = test.passes, test.cells })
		x := r.Tables[0]
		if r.Verdict != Different || x.AtLeast != test.atLeast || test.n > 0 && x.NotClassified != test.n || x.NotClassified == 0 {
			t.Errorf("passes %d, %d cells: not classified %d, at least %v", test.passes, test.cells, x.NotClassified, x.AtLeast)
		}
	}
}

func TestSpillFolder(t *testing.T) {
	a, b := twins(5000, "id")
	for i := range 4000 {
		b.rows["shop.orders"][i].Values[5] = text("damaged")
	}
	dir := t.TempDir()
	var announced int64
	r := verify(t, a, b, func(o *Options, _ *PlanOptions) {
		o.SpillDir, o.MemoryBytes, o.Cells = dir, 64<<10, 64
		o.Progress = func(p Progress) { announced = max(announced, p.SpillNeeded) }
	})
	if r.Cost.SpillBytes == 0 || announced < r.Cost.SpillBytes/4 || r.Tables[0].Changed != 4000 {
		t.Errorf("spilled %d, announced %d, changed %d", r.Cost.SpillBytes, announced, r.Tables[0].Changed)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	err = spaceFor(dir, 1<<62)
	if fault.KindOf(err) != fault.Transient || !strings.Contains(err.Error(), "another spill folder") {
		t.Errorf("a full disk: %v", err)
	}
}

func TestDifferencesAreStreamed(t *testing.T) {
	a, b := twins(500, "id")
	for i := range 100 {
		b.rows["shop.orders"][i].Values[5] = text("damaged")
	}
	b.rows["shop.orders"] = b.rows["shop.orders"][:499]
	var out bytes.Buffer
	verify(t, a, b, func(o *Options, _ *PlanOptions) { o.Differences = &out })
	changed := 0
	for d := json.NewDecoder(&out); d.More(); {
		var line Difference
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		switch line.Class {
		case ClassChanged:
			changed++
			if len(line.Changes) != 1 || line.Changes[0].Path != "note" || line.Changes[0].Old.Text != "note "+line.Key || line.Changes[0].New.Text != "damaged" {
				t.Errorf("%+v", line)
			}
		case ClassMissing:
			if line.Key != "499" || len(line.Row) != 6 {
				t.Errorf("%+v", line)
			}
		default:
			t.Errorf("%+v", line)
		}
	}
	if changed != 100 {
		t.Errorf("%d changed rows were written", changed)
	}
}

func TestExcludedPaths(t *testing.T) {
	doc := func(i int, seen time.Time, price int) bson.D {
		return bson.D{{Key: "_id", Value: i}, {Key: "seen", Value: seen}, {Key: "items", Value: bson.A{bson.D{{Key: "price", Value: price}, {Key: "n", Value: 1}}}},
			{Key: "meta", Value: bson.D{{Key: "v", Value: price}, {Key: "w", Value: "x"}}}}
	}
	make := func(contract ...Exclusion) []string {
		a, b := newFake(), newFake()
		a.documents(t, "orders", []bson.D{doc(1, day, 1), doc(2, day, 2)})
		b.documents(t, "orders", []bson.D{doc(1, day, 1), doc(2, day.Add(time.Hour), 3)})
		return summary(verify(t, a, b, func(_ *Options, o *PlanOptions) { o.Contract = contract }))
	}
	exclude := func(paths ...string) (out []Exclusion) {
		for _, p := range paths {
			out = append(out, Exclusion{Relation: "orders", Column: p})
		}
		return out
	}
	if got := make(); !slices.Equal(got, []string{"value/items.0.price=1", "value/meta.v=1", "value/seen=1"}) {
		t.Errorf("found %v", got)
	}
	if got := make(exclude("seen", "meta.v")...); !slices.Equal(got, []string{"value/items.0.price=1"}) {
		t.Errorf("found %v", got)
	}
	if got := make(exclude("seen", "meta", "items.price")...); len(got) > 0 {
		t.Errorf("found %v", got)
	}
}

func TestReportText(t *testing.T) {
	a, b := twins(100, "id")
	for i := range 10 {
		b.rows["shop.orders"][i].Values[2] = instant(day.Add(time.Duration(i)*time.Minute + time.Hour))
	}
	b.rows["shop.orders"][50].Values[1], b.rows["shop.orders"][51].Values[1] = text("user51@example.com"), text("user50@example.com")
	b.rows["shop.orders"] = b.rows["shop.orders"][:99]
	r := verify(t, a, b, func(o *Options, _ *PlanOptions) { o.Seed = Seed{} })
	var out strings.Builder
	if err := r.WriteText(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"DIFFERENT: 1 of 1 tables differ", "shop.orders: different; 99 rows, was 100", "1 missing, 12 changed",
		"missing: 1", "99: id=99, email=user99@example.com", "value in placed: 10, each by +1h0m0s",
		"0: 2025-03-30 12:00:00Z → 2025-03-30 13:00:00Z", "value in email: 2", "50: user50@example.com → user51@example.com", "seed sha256:",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

func TestClip(t *testing.T) {
	long := strings.Repeat("é", 4_000_000) + "X"
	got := clip(long, firstDifference(long, strings.Repeat("é", 4_000_000)+"Y"), shownText)
	if !strings.HasSuffix(got, "éX") || len(got) > 2*shownText || !strings.HasPrefix(got, "…(") {
		t.Errorf("clip gave %d bytes: %.80s … %s", len(got), got, got[len(got)-10:])
	}
	if got := clip("a\x00\xff", 0, shownText); got != `a\x00\xff` {
		t.Errorf("unreadable text became %q", got)
	}
}
