package data

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fingerprint"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/verification"
)

// fakeRunner stands for a cluster: each pod says a line and reports its number.
type fakeRunner struct {
	key    string
	errand platform.Errand
}

func (r *fakeRunner) Run(_ context.Context, key string, e platform.Errand) ([]json.RawMessage, error) {
	r.key, r.errand = key, e
	var out []json.RawMessage
	for i := range max(1, e.Shares) {
		e.Progress(fmt.Sprintf("share %d of %d, 10 rows: reads", i+1, e.Shares))
		out = append(out, json.RawMessage(fmt.Sprint(i)))
	}
	return out, nil
}

func (*fakeRunner) End(context.Context, string, string) error { return nil }
func (*fakeRunner) Pods() int                                 { return 3 }

// TestPodsShareMuchWork holds that a Job is told how its pods share the work, that its key says in how many shares, and that the
// reports come in their order.
func TestPodsShareMuchWork(t *testing.T) {
	planOf := func(rows int64) *fingerprint.Plan {
		var c database.Catalog
		for _, name := range []string{"a", "b", "c"} {
			c.Relations = append(c.Relations, database.Relation{Name: database.Name{Relation: name}, Rows: rows})
		}
		p, err := verification.Whole(c)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	both := []fingerprint.Role{fingerprint.Source, fingerprint.Target}
	for name, c := range map[string]struct {
		rows   int64
		sides  []fingerprint.Role
		key    string
		tables []int // nil: nothing is shared
		line   string
	}{
		"little":              {1000, both, "k", nil, "share 1 of 0, 10 rows: reads"},
		"much":                {1_000_000, both, "k/3", []int{0, 1, 0}, "share 3 of 3, 10 rows: reads; all shares: 30 of about 6000000 rows"},
		"much to fingerprint": {1_000_000, both[:1], "k/3", []int{0, 1, 2}, "share 3 of 3, 10 rows: reads; all shares: 30 of about 3000000 rows"},
	} {
		r := &fakeRunner{}
		p := planOf(c.rows)
		j, key := job{runner: r, errand: platform.Errand{Namespace: "n"}}.divide(p, "k", c.sides...)
		var lines []string
		got, err := run[int](t.Context(), j, step.Call{Delivery: "d", Progress: func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }},
			key, verification.CompareCommand)
		if err != nil {
			t.Fatal(err)
		}
		var task verification.Task
		if err := json.Unmarshal(r.errand.Input, &task); err != nil {
			t.Fatal(err)
		}
		if r.key != c.key || lines[len(lines)-1] != c.line || !slices.Equal(got, []int{0, 1, 2}[:max(1, r.errand.Shares)]) {
			t.Errorf("%s: key %s, results %v, lines %q", name, r.key, got, lines)
		}
		if d := task.Division; (d == nil) != (c.tables == nil) || d != nil && (d.Shares != r.errand.Shares || d.Plan != p.Digest() || !slices.Equal(d.Tables, c.tables)) {
			t.Errorf("%s: %+v for %d pods", name, d, r.errand.Shares)
		}
	}
}
