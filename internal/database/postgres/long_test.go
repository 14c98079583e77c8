package postgres

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

const longChild = "SLUICE_POSTGRES_LONG_CHILD"

// TestMillionsOfRows compares two tables of two million rows with keys of 60 bytes in a process of its own, and looks at
// how much memory that took. Of 20 rows 4 are changed and 3 are missing, and 3 more are extra. Everyday tests take a
// hundredth of it.
func TestMillionsOfRows(t *testing.T) {
	if args := os.Getenv(longChild); args != "" {
		compareLong(t, args)
		return
	}
	rows := 20_000
	if os.Getenv("SLUICE_LONG") != "" {
		rows = 2_000_000
	}
	h := newHarness(t, "-c", "fsync=off", "-c", "max_wal_size=4GB", "-c", "full_page_writes=off")
	s := h.start(t, h.bin.new, []string{freshData(t, h.bin)}, nil)
	const row = `SELECT '%s/with-a-rather-long-prefix-0123456789/abcdefghijk' || lpad(i::text, 10, '0'), i %s, 'a note of some length ' || i
		FROM generate_series(0, %d) AS i WHERE %s`
	for db, parts := range map[string][]string{
		"control": {fmt.Sprintf(row, "k", "", rows-1, "true")},
		"target": {fmt.Sprintf(row, "k", "+ CASE WHEN i % 20 < 4 THEN 3600 ELSE 0 END", rows-1, "i % 20 NOT IN (4, 5, 6)"),
			fmt.Sprintf(row, "x", "", rows-1, "i % 20 IN (7, 8, 9)")},
	} {
		s.exec(t, "postgres", "CREATE DATABASE "+db)
		s.exec(t, db, "CREATE TABLE big (key text NOT NULL, n int8, note text)")
		for _, p := range parts {
			s.exec(t, db, "INSERT INTO big "+p)
		}
		s.exec(t, db, "ALTER TABLE big ADD PRIMARY KEY (key)", "VACUUM ANALYZE big")
	}
	if n := s.ask(t, "control", "SELECT min(length(key)) || ' ' || max(length(key)) FROM big"); n != "60 60" {
		t.Fatalf("keys of %s bytes", n)
	}
	var reports []string
	for _, cells := range []int{64, fingerprint.DefaultCells} {
		result := inChild(t, s, cells)
		x, hwm := result.Report, result.HWM
		t.Logf("%d cells: %.1f s, %.0f rows/s, %d MiB spilled, VmHWM %d MiB, %d passes", cells, x.Cost.Seconds, x.Cost.RowsPerSecond, x.Cost.SpillBytes>>20,
			hwm>>20, x.Cost.Passes)
		table := x.Tables[0]
		if n := int64(rows / 20); table.Changed != 4*n || table.Missing != 3*n || table.Extra != 3*n || table.Differences() != 10*n {
			t.Errorf("changed %d, missing %d, extra %d of %d", table.Changed, table.Missing, table.Extra, table.Differences())
		}
		if result.Lines != table.Differences() {
			t.Errorf("%d rows were streamed, %d differ", result.Lines, table.Differences())
		}
		if hwm > 200<<20 {
			t.Errorf("the client took %d MiB", hwm>>20)
		}
		b, err := json.Marshal(x.Tables)
		if err != nil {
			t.Fatal(err)
		}
		reports = append(reports, string(b))
	}
	if reports[0] != reports[1] {
		t.Errorf("64 cells and %d give different reports:\n%.2000s\n%.2000s", fingerprint.DefaultCells, reports[0], reports[1])
	}
}

// longResult is what the child writes.
type longResult struct {
	Report *fingerprint.Report
	HWM    int64
	Lines  int64
}

// lineCounter counts the differing rows that are streamed.
type lineCounter int64

func (l *lineCounter) Write(b []byte) (int, error) {
	*l += lineCounter(bytes.Count(b, []byte("\n")))
	return len(b), nil
}

func inChild(t *testing.T, s *instance, cells int) longResult {
	t.Helper()
	file := t.TempDir() + "/report.json"
	cmd := exec.Command(os.Args[0], "-test.run=^TestMillionsOfRows$", "-test.v", "-test.timeout=30m")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %d", longChild, file, s.url("control"), s.url("target"), cells))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r longResult
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// compareLong is the child. The seed is the same in all of them, so that reports can be compared.
func compareLong(t *testing.T, args string) {
	var file, a, b string
	var cells int
	if _, err := fmt.Sscan(args, &file, &a, &b, &cells); err != nil {
		t.Fatal(err)
	}
	e := New(OneDatabase())
	var servers [2]database.Server
	var catalogs [2]database.Catalog
	for i, u := range []string{a, b} {
		db, err := e.Open(t.Context(), database.URL{Value: u})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if catalogs[i], err = db.Catalog(t.Context()); err != nil {
			t.Fatal(err)
		}
		servers[i] = db
	}
	plan, err := fingerprint.NewPlan(catalogs[0], catalogs[1], fingerprint.PlanOptions{Databases: map[string]string{"control": "target"},
		Tables: []string{"big"}})
	if err != nil {
		t.Fatal(err)
	}
	var lines lineCounter
	r, err := fingerprint.Compare(t.Context(), fingerprint.Options{Differences: &lines, Source: fingerprint.Side{Server: servers[0]},
		Target: fingerprint.Side{Server: servers[1]},
		Plan:   plan, Seed: fingerprint.Seed{7}, Workers: 2, Cells: cells, SpillDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(longResult{r, highWater(t), int64(lines)})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, out, 0o600); err != nil {
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
