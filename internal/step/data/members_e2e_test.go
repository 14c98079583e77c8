//go:build e2e

package data_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/store"
)

const (
	allOld = "pg-0=primary/old pg-1=follower/old pg-2=follower/old"
	stage  = "production/deploy/orders/members/"
)

func weight(percent int) deployfile.Step {
	return deployfile.Step{SetWeight: &deployfile.SetWeight{Weight: percent}}
}

// judged has the judge sit between the ordinals: no member may show data that is more than three seconds behind.
func judged() []deployfile.Step {
	judge := deployfile.Step{Analysis: &deployfile.Analysis{Queries: []string{"behind"}, Interval: 2 * time.Second, NumberOfJudgmentRuns: 3}}
	return []deployfile.Step{weight(1), judge, weight(34), judge}
}

// approved stops before the last ordinal, until a person has decided.
func approved() []deployfile.Step {
	return []deployfile.Step{weight(34), {Pause: &deployfile.Pause{UntilApproved: true}}}
}

func (r *replicated) file(steps []deployfile.Step) *deployfile.File {
	limit := 3.0
	return &deployfile.File{Application: "shop", Targets: []deployfile.Target{{Name: "production", Account: "lab", Namespace: r.ns}},
		Strategies: []deployfile.Strategy{{Name: "one-by-one", Canary: &deployfile.Canary{Steps: steps}}},
		Analysis: deployfile.AnalysisConfig{DefaultMetricProviderName: "prometheus",
			Queries: []deployfile.Query{{Name: "behind", QueryTemplate: "max(last_over_time(newest_write_age_seconds[5s]))", UpperLimit: &limit}}},
		Data: deployfile.Data{Databases: []deployfile.Database{{Name: "orders", Engine: "postgres", Target: "production", Workload: "statefulset/pg",
			Connection: "postgres://postgres@pg:5432/postgres", Upgrade: deployfile.Upgrade{Strategy: "one-by-one"}}}}}
}

func (r *replicated) deliver(id string, steps []deployfile.Step, text string) {
	r.t.Helper()
	g, err := plan.Compile(plan.Input{File: r.file(steps), Delivery: id, Objects: map[string][]manifest.Object{"production": objects(r.t, text)}})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.engine.Start(r.t.Context(), delivery.Spec{ID: id, Application: "shop", Graph: g, CreatedAt: time.Now()}); err != nil {
		r.t.Fatal(err)
	}
}

// want asks the members themselves, until they are as they should be: one that is ready may begin to follow a moment later.
func (r *replicated) want(what, want string) {
	r.t.Helper()
	var got string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		var out []string
		for i := range 3 {
			var c *pgx.Conn
			a, err := r.ask(r.t.Context(), member(i), &c)
			if err == nil {
				c.Close(r.t.Context())
			}
			out = append(out, fmt.Sprintf("%s=%s", member(i), a))
		}
		if got = strings.Join(out, " "); got == want {
			return
		}
	}
	r.t.Errorf("%s: the members are %s, not %s", what, got, want)
}

// ended holds which pods were ended since an instant, by whom and how.
func (r *replicated) ended(since time.Time, want ...string) {
	r.t.Helper()
	if got := r.ends(since); !slices.Equal(got, want) {
		r.t.Errorf("pods were ended like this:\n\t%s\nand not like this:\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// reaches waits for a delivery's end, and holds which one that is.
func (r *replicated) reaches(id string, end delivery.State, because ...string) store.Delivery {
	r.t.Helper()
	d := r.until(id, "done", done)
	r.t.Logf("%s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
	if d.Status.State != end || strings.Contains(steps(d), "undo failed") {
		r.t.Fatalf("it ended %s", d.Status.State)
	}
	for _, part := range because {
		if !strings.Contains(d.Status.Reason, part) {
			r.t.Errorf("it ended because of %q, without %q", d.Status.Reason, part)
		}
	}
	return d
}

// TestMembersBad: an image that nobody has sticks at the last ordinal, the other two serve, and the way back ends exactly the
// pod that sticks. One that starts but shows old data is taken back by the judge, who sits between the ordinals.
func TestMembersBad(t *testing.T) {
	r := newReplicated(t, "k-members-bad")
	r.want("before", allOld)
	w := r.write()
	for _, c := range []struct {
		id, text string
		reason   []string
		ends     string // how the pod ends that has the new version
	}{
		{"sticks", replicas(noImage), []string{"ImagePullBackOff: pod pg-2", noImage}, "sluice deletes pg-2"},
		{"late", replicas(newImage, "cluster_name=late", "recovery_min_apply_delay=10s"), []string{"behind"}, "sluice evicts pg-2"},
	} {
		before, ids, began := r.object(), r.ids(), time.Now()
		r.deliver(c.id, judged(), c.text)
		r.reaches(c.id, delivery.Failed, c.reason...)
		if got := r.witness.between(began, time.Now()); !strings.HasPrefix(got, "pg-0=primary/old pg-1=follower/old pg-2=") {
			t.Errorf("in the meantime the members were %s", got)
		}
		after := r.ids()
		if after["pg-0"] != ids["pg-0"] || after["pg-1"] != ids["pg-1"] || after["pg-2"] == ids["pg-2"] {
			t.Errorf("the pods were %v and are %v", ids, after)
		}
		r.ended(began, "statefulset-controller deletes pg-2", c.ends)
		if got := r.object(); got != before {
			t.Errorf("the StatefulSet is\n%s\nand was\n%s", got, before)
		}
		r.want("after", allOld)
	}
	w.end()
	if w.longest > 15*time.Second {
		t.Errorf("a client waited %s for a write", w.longest)
	}
}

// TestMembersGood: the judge sits between the members of a PostgreSQL that gets a newer minor version, the primary goes last and
// steps down before, and none has its turn while the budget allows no disruption; the next delivery meets the primary at the last ordinal, is taken back half-way, and no write is lost by
// any of it.
func TestMembersGood(t *testing.T) {
	r := newReplicated(t, "k-members-good")
	r.want("before", allOld)
	w, began := r.write(), time.Now()
	r.budget(0)
	r.deliver("good", judged(), strings.Replace(replicas(newImage), disruptions, "", 1)) // somebody else says what may be away
	r.says("good", "pausing: pod "+r.ns+"/pg-2 may not be ended now: ")
	r.want("while the budget allows no disruption", allOld)
	r.budget(1)
	d := r.reaches("good", delivery.Succeeded)
	r.witness.during(d.Status.Nodes[stage+"2-analysis"], "pg-0=primary/old pg-1=follower/old pg-2=follower/new")
	r.witness.during(d.Status.Nodes[stage+"4-analysis"], "pg-0=primary/old pg-1=follower/new pg-2=follower/new")
	r.want("promoted", "pg-0=follower/new pg-1=follower/new pg-2=primary/new")
	r.ended(began, "statefulset-controller deletes pg-2", "statefulset-controller deletes pg-1", "sluice evicts pg-0", "statefulset-controller deletes pg-0")
	before := r.object()
	if strings.Contains(before, `"partition":3`) {
		t.Errorf("the partition is left behind: %s", before)
	}

	began = time.Now()
	r.deliver("back", approved(), replicas(newImage, "cluster_name=third"))
	r.until("back", "after the second member", waits(stage+"2-approval"))
	r.want("after the second member", "pg-0=primary/new pg-1=follower/third pg-2=follower/third")
	if _, err := r.engine.Signal(t.Context(), "back", delivery.Signal{Kind: delivery.Rollback, Key: "rollback/production", Path: "production"}); err != nil {
		t.Fatal(err)
	}
	r.reaches("back", delivery.Failed)
	r.want("taken back", "pg-0=primary/new pg-1=follower/new pg-2=follower/new")
	r.ended(began, "sluice evicts pg-2", "statefulset-controller deletes pg-2", "statefulset-controller deletes pg-1", "sluice evicts pg-2", "sluice evicts pg-1")
	if got := r.object(); got != before {
		t.Errorf("the StatefulSet is\n%s\nand was\n%s", got, before)
	}
	w.end()
}
