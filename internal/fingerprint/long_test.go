package fingerprint

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
)

// generated is a table whose rows are made as they are scanned: key of 60 bytes, a number and a text.
type generated struct {
	rows   int
	target bool
}

var generatedColumns = []database.Column{
	{Name: "key", Type: "text", Family: database.Text}, {Name: "n", Type: "int8", Family: database.Integer}, {Name: "note", Type: "text", Family: database.Text},
}

func (g *generated) relation() database.Relation {
	return database.Relation{Name: database.Name{Relation: "big"}, Columns: generatedColumns, Key: []string{"key"}, KeyUnique: true, Rows: int64(g.rows)}
}

func (g *generated) Live() bool   { return false }
func (g *generated) Close() error { return nil }

func (g *generated) Ranges(_ context.Context, r database.Relation, n int) ([]database.Range, error) {
	var out []database.Range
	for i := range n {
		out = append(out, database.Range{Relation: r, Part: [2]int{i * g.rows / n, (i + 1) * g.rows / n}})
	}
	return out, nil
}

// Of 20 rows 4 change and 3 are missing; 3 more are extra: 400,000, 300,000 and 300,000 of 2,000,000.
func (g *generated) Scan(_ context.Context, r database.Range, _ *database.Projection, each func(database.Row) error) (int64, error) {
	part := r.Part.([2]int)
	n := int64(0)
	row := database.Row{Values: make([][]byte, 3)}
	for i := part[0]; i < part[1]; i++ {
		mod := i % 20
		if g.target && mod >= 4 && mod < 7 {
			continue
		}
		n++
		if err := each(g.row(&row, 'k', i, g.target && mod < 4)); err != nil {
			return 0, err
		}
		if g.target && mod >= 7 && mod < 10 {
			n++
			if err := each(g.row(&row, 'x', i, false)); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// row fills row without allocating.
func (g *generated) row(row *database.Row, kind byte, i int, changed bool) database.Row {
	key := append(row.Values[0][:0], 0x05)
	key = append(key, "customer/with-a-rather-long-prefix-0123456789/abcdef"[:51]...)
	key = append(key, kind)
	key = append(key, fmt.Appendf(key[len(key):], "%08d", i)...)
	number := int64(i)
	if changed {
		number += 3600
	}
	note := append(row.Values[2][:0], 0x05)
	note = append(note, kind)
	note = binary.AppendUvarint(append(note, " a note of some length "...), uint64(i))
	row.Values[0], row.Values[2] = key, note
	row.Values[1] = database.AppendInteger(row.Values[1][:0], number)
	row.Key = database.AppendKey(row.Key[:0], key)
	return *row
}

func (g *generated) Fetch(context.Context, database.Relation, *database.Projection, [][]byte, func(database.Row) error) error {
	return fmt.Errorf("keys of 60 bytes are not fetched")
}

func (g *generated) Fields(database.Relation, *database.Projection, database.Row) ([]database.Field, error) {
	return nil, nil
}

// TestMillionsOfRows runs the comparison of two million rows in a process of its own and looks at how much memory that took.
func TestMillionsOfRows(t *testing.T) {
	if os.Getenv("SLUICE_LONG_CHILD") != "" {
		compareGenerated(t, os.Getenv("SLUICE_LONG_CHILD"))
		return
	}
	rows := 20_000
	if os.Getenv("SLUICE_LONG") != "" {
		rows = 2_000_000
	}
	var reports [][]TableReport
	for _, cells := range []int{64, DefaultCells} {
		file := t.TempDir() + "/report.json"
		cmd := exec.Command(os.Args[0], "-test.run=^TestMillionsOfRows$", "-test.v")
		cmd.Env = append(os.Environ(), fmt.Sprintf("SLUICE_LONG_CHILD=%s %d %d", file, rows, cells))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var result struct {
			Report Report
			HWM    int64
		}
		if err := json.Unmarshal(b, &result); err != nil {
			t.Fatal(err)
		}
		x := result.Report.Tables[0]
		t.Logf("%d cells: %.1f s, %.0f rows/s, %s spilled, VmHWM %s", cells, result.Report.Cost.Seconds, result.Report.Cost.RowsPerSecond,
			byteText(result.Report.Cost.SpillBytes), byteText(result.HWM))
		if n := int64(rows / 20); x.Changed != 4*n || x.Missing != 3*n || x.Extra != 3*n || x.Differences() != 10*n {
			t.Errorf("changed %d, missing %d, extra %d", x.Changed, x.Missing, x.Extra)
		}
		if result.HWM > 200<<20 {
			t.Errorf("took %s of memory", byteText(result.HWM))
		}
		reports = append(reports, result.Report.Tables)
	}
	a, b := marshal(t, reports[0]), marshal(t, reports[1])
	if a != b {
		i := firstDifference(a, b)
		t.Errorf("64 cells and %d give different reports:\n%s\n%s", DefaultCells, clip(a, i, shownText), clip(b, i, shownText))
	}
}

func marshal(t *testing.T, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// compareGenerated is the child.
func compareGenerated(t *testing.T, args string) {
	var file string
	var rows, cells int
	if _, err := fmt.Sscan(args, &file, &rows, &cells); err != nil {
		t.Fatal(err)
	}
	a, b := &generated{rows: rows}, &generated{rows: rows, target: true}
	catalog := func(g *generated) database.Catalog {
		return database.Catalog{Relations: []database.Relation{g.relation()}}
	}
	plan, err := NewPlan(catalog(a), catalog(b), PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Compare(context.Background(), Options{Source: Side{View: a}, Target: Side{View: b}, Plan: plan, Seed: Seed{7}, Workers: 2, Cells: cells, SpillDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	out := marshal(t, struct {
		Report *Report
		HWM    int64
	}{r, highWater(t)})
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
}

// highWater returns the most memory this process has held.
func highWater(t *testing.T) int64 {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) == 3 && fields[0] == "VmHWM:" {
			kb, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// BenchmarkScan shows that a row costs no allocation.
func BenchmarkScan(b *testing.B) {
	g := &generated{rows: 200_000}
	catalog := database.Catalog{Relations: []database.Relation{g.relation()}}
	plan, err := NewPlan(catalog, catalog, PlanOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Scan(context.Background(), g, plan, ScanOptions{Seed: Seed{1}}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(g.rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

// TestNoAllocationPerRow holds the scan to it.
func TestNoAllocationPerRow(t *testing.T) {
	g := &generated{rows: 1}
	catalog := database.Catalog{Relations: []database.Relation{g.relation()}}
	plan, err := NewPlan(catalog, catalog, PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h := newHasher(&plan.Tables[0], Seed{}, whole)
	l := newLeaves(&plan.Tables[0], Seed{}, 300, whole)
	row := g.row(&database.Row{Values: make([][]byte, 3)}, 'k', 1, false)
	n := testing.AllocsPerRun(1000, func() {
		key, hash, seen, err := h.row(row)
		if err != nil {
			t.Fatal(err)
		}
		l.add(h, key, hash, seen)
	})
	if n != 0 {
		t.Errorf("%v allocations per row", n)
	}
	if !slices.ContainsFunc(l.buckets, func(b bucket) bool { return b.count > 1000 }) {
		t.Error("nothing was counted")
	}
}
