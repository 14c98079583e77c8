package verification

import (
	"fmt"
	"slices"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// planOf plans tables of so many rows.
func planOf(t *testing.T, rows ...int64) *fingerprint.Plan {
	t.Helper()
	var c database.Catalog
	for i, n := range rows {
		c.Relations = append(c.Relations, database.Relation{Name: database.Name{Database: "shop", Relation: fmt.Sprintf("t%d", i)}, Rows: n,
			Columns: []database.Column{{Name: "id", Family: database.Integer}}})
	}
	p, err := Whole(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOnlyMuchWorkIsSharedOut(t *testing.T) {
	for name, c := range map[string]struct {
		rows   []int64 // a side
		checks bool
		most   int
		shares int // 0: it is not shared out
		tables []int
	}{
		"too little":             {[]int64{400_000, 400_000}, true, 4, 0, nil},
		"nothing":                {nil, true, 4, 0, nil},
		"rows that nobody knows": {[]int64{-1, -1}, true, 4, 0, nil},
		"enough for two":         {[]int64{600_000, 600_000}, true, 4, 3, []int{0, 1}},
		"a fingerprint":          {[]int64{600_000, 600_000}, false, 4, 2, []int{0, 1}},
		"one table":              {[]int64{9_000_000}, true, 4, 2, []int{0}},
		"one table, no checks":   {[]int64{9_000_000}, false, 4, 0, nil},
		"as many as there may be": {[]int64{5_000_000, 4_000_000, 3_000_000, 2_000_000, 1_000_000}, true, 4,
			4, []int{0, 1, 2, 2, 1}},
		"one pod, as the account says":  {[]int64{5_000_000, 4_000_000}, true, 1, 0, nil},
		"two pods, as the account says": {[]int64{5_000_000, 4_000_000}, true, 2, 2, []int{0, 0}},
	} {
		d := Divide(planOf(t, c.rows...), c.checks, c.most)
		if d == nil && c.shares == 0 {
			continue
		}
		if d == nil || d.Shares != c.shares || !slices.Equal(d.Tables, c.tables) {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestAShareIsOfItsPlan(t *testing.T) {
	p := planOf(t, 5_000_000, 4_000_000)
	d := Divide(p, true, 4)
	for share, want := range []string{"t0", "t1", ""} {
		q, err := d.Of(p, share)
		if err != nil || q.Digest() != p.Digest() {
			t.Fatalf("%v", err)
		}
		if want == "" != d.checks(share) || want == "" != (len(q.Tables) == 0) || want != "" && q.Tables[0].Name.Relation != want {
			t.Errorf("share %d: %+v", share, q.Tables)
		}
	}
	if _, err := d.Of(p, 3); !fault.Is(err, fault.Invalid) {
		t.Errorf("a share that there is not: %v", err)
	}
	if _, err := d.Of(planOf(t, 5_000_000), 0); !fault.Is(err, fault.Conflict) {
		t.Errorf("a share of another plan: %v", err)
	}
}

func TestAnswersOfSharesAreOne(t *testing.T) {
	p := planOf(t, 5, 4)
	table := func(name string, rows int64) *fingerprint.Report {
		return &fingerprint.Report{Plan: p.Digest(), Source: fingerprint.SideReport{Rows: rows}, Target: fingerprint.SideReport{Rows: rows},
			Tables: []fingerprint.TableReport{{Name: database.Name{Database: "shop", Relation: name}, Verdict: fingerprint.Equal}}}
	}
	checks := Answer{Findings: []database.Finding{{Object: "index i", Message: "is damaged"}}}
	got, err := Merge(p, []Answer{{Report: table("t1", 4)}, {Report: table("t0", 5)}, checks})
	if err != nil || got.Report.Verdict != fingerprint.Equal || got.Report.Source.Rows != 9 || got.Report.Tables[0].Name.Relation != "t0" ||
		!slices.Equal(got.Findings, checks.Findings) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, answers := range map[string][]Answer{"nobody": nil, "the checks alone": {checks}, "a table too few": {{Report: table("t1", 4)}, checks}} {
		if _, err := Merge(p, answers); !fault.Is(err, fault.Lost) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLinesOfSharesTellTheWhole holds that what the shares say is understood, and that a pod that begins again takes nothing away.
func TestLinesOfSharesTellTheWhole(t *testing.T) {
	var shown []string
	show := Gather(1000, func(line string) { shown = append(shown, line) })
	d := &Division{Shares: 2}
	say := func(share int, source, target int64, text string) {
		o := Options{Share: share, Progress: func(format string, args ...any) { show(fmt.Sprintf(format, args...)) }}.of(d)
		o.counts(fingerprint.Source).Store(source)
		o.counts(fingerprint.Target).Store(target)
		o.Progress("%s", text)
	}
	say(0, 100, 50, "orders, 100% of it")
	say(1, 10, 0, "lines")
	say(0, 20, 0, "orders again")
	show("error: what a pod says besides")
	want := []string{
		"share 1 of 2, 150 rows: orders, 100% of it; all shares: 150 of about 1000 rows",
		"share 2 of 2, 10 rows: lines; all shares: 160 of about 1000 rows",
		"share 1 of 2, 20 rows: orders again; all shares: 160 of about 1000 rows",
		"error: what a pod says besides",
	}
	if !slices.Equal(shown, want) {
		t.Errorf("shown\n%q, not\n%q", shown, want)
	}
}
