package step

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
)

// noted is a platform that notes what it was asked for, and refuses or breaks as it is told.
type noted struct {
	calls  []string
	refuse error
	half   []platform.Change // what was changed before it refused
}

func (n *noted) changes(key string, objects []manifest.Object) ([]platform.Change, error) {
	n.calls = append(n.calls, key)
	if n.refuse != nil {
		return n.half, n.refuse
	}
	var out []platform.Change
	for _, o := range objects {
		out = append(out, platform.Change{Ref: o.Ref(), Created: true})
	}
	return out, nil
}

func (n *noted) Apply(_ context.Context, key string, objects []manifest.Object, _ platform.Options) ([]platform.Change, error) {
	return n.changes(key, objects)
}

func (n *noted) StartCanary(_ context.Context, key string, objects []manifest.Object, _ platform.Options) ([]platform.Change, error) {
	return n.changes(key, objects)
}

func (n *noted) Revert(_ context.Context, key string, changes []platform.Change) error {
	var names []string
	for _, c := range changes {
		names = append(names, c.Ref.Name)
	}
	n.calls = append(n.calls, fmt.Sprintf("%s of [%s]", key, strings.Join(names, " ")))
	return nil
}

func (n *noted) SetWeight(_ context.Context, key string, _ []manifest.Ref, percent int) error {
	n.calls = append(n.calls, fmt.Sprintf("%s %d", key, percent))
	return nil
}

func (n *noted) Promote(ctx context.Context, key string, refs []manifest.Ref) error {
	return n.SetWeight(ctx, key, refs, 100)
}

func (n *noted) Abort(_ context.Context, key string, _ []manifest.Ref) error {
	n.calls = append(n.calls, key)
	return nil
}

func (n *noted) Watch(ctx context.Context, refs []manifest.Ref) (<-chan platform.State, error) {
	out := make(chan platform.State, len(refs))
	for _, r := range refs {
		out <- platform.State{Ref: r, Exists: true, Ready: true}
	}
	context.AfterFunc(ctx, func() { close(out) })
	return out, nil
}

func (n *noted) Dial(context.Context, manifest.Ref, string) (net.Conn, error) {
	return nil, fault.Newf(fault.NotFound, "nothing listens")
}

func applying() plan.ApplyArgs {
	object := func(name string) manifest.Object {
		return manifest.Object{Unstructured: unstructured.Unstructured{Object: map[string]any{"kind": "Deployment", "metadata": map[string]any{"name": name}}}}
	}
	return plan.ApplyArgs{Account: "here", Namespace: "shop", Timeout: time.Minute, Objects: []manifest.Object{object("a"), object("b")}}
}

// TestUndoKnowsWhatWasChanged ends the steps that change objects at each point, and undoes them: what the platform has
// done is taken back even where its answer was never kept.
func TestUndoKnowsWhatWasChanged(t *testing.T) {
	const key = "d/p/deploy/1/1"
	refused := fault.Newf(fault.Invalid, "refused")
	for _, c := range []struct {
		name     string
		killedAt int // save
		refuse   error
		half     []platform.Change
		apply    []string // what apply asks for
		canary   []string // what startCanary asks for
	}{
		{"it was done", 0, nil, nil, []string{"apply", "revert of [a b]"}, []string{"start", "abort", "revert of [a b]"}},
		{"it had not begun", 1, nil, nil, []string{"revert of []"}, []string{"abort", "revert of []"}},
		{"nobody kept the answer", 2, nil, nil, []string{"apply", "apply", "revert of [a b]"}, []string{"start", "start", "abort", "revert of [a b]"}},
		{"it was refused", 0, refused, nil, []string{"apply", "revert of []"}, []string{"start", "abort", "revert of []"}},
		{"it was refused half-way", 0, refused, []platform.Change{{Ref: manifest.Ref{Name: "a"}}}, []string{"apply", "revert of [a]"},
			[]string{"start", "abort", "revert of [a]"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i, want := range [][]string{c.apply, c.canary} {
				n := &noted{refuse: c.refuse, half: c.half}
				po := ports()
				po.Platform = func(string) (platform.Platform, error) { return n, nil }
				st := []Step{apply{forgetting{po}}, startCanary{forgetting{po}}}[i]
				r := newRunner(t, st, applying())
				r.failAt = c.killedAt
				out, err := st.Run(t.Context(), r.call)
				if (err != nil) != (c.killedAt > 0) {
					t.Fatalf("%+v %v", out, err)
				}
				if c.refuse != nil && out.Verdict != delivery.Fail {
					t.Fatalf("%+v", out)
				}
				if out, err := st.Undo(t.Context(), r.call); err != nil || out.Verdict != delivery.Pass {
					t.Fatalf("%+v %v", out, err)
				}
				var got []string
				for _, call := range n.calls {
					got = append(got, strings.TrimPrefix(call, key+"/"))
				}
				if !slices.Equal(got, want) {
					t.Errorf("asked for %q, want %q", got, want)
				}
			}
		})
	}
}

// recovering is a platform whose application crashes for a moment.
type recovering struct {
	*noted
	ready, early bool
}

func (r *recovering) Watch(ctx context.Context, refs []manifest.Ref) (<-chan platform.State, error) {
	out := make(chan platform.State)
	go func() {
		defer close(out)
		for _, ready := range []bool{false, true} {
			r.ready = ready
			for _, ref := range refs {
				select {
				case out <- platform.State{Ref: ref, Exists: true, Ready: ready, Failed: !ready && len(r.calls) == 0}:
				case <-ctx.Done():
					return
				}
			}
		}
		<-ctx.Done()
	}()
	return out, nil
}

func (r *recovering) StartCanary(ctx context.Context, key string, objects []manifest.Object, o platform.Options) ([]platform.Change, error) {
	r.early = !r.ready
	return r.noted.StartCanary(ctx, key, objects, o)
}

// TestCanaryWaitsUntilTheApplicationHasRecovered: while its database was away its pods may have crashed, and what is not ready has no canary.
// Where no database was away nothing is waited for.
func TestCanaryWaitsUntilTheApplicationHasRecovered(t *testing.T) {
	for _, recovers := range []bool{true, false} {
		p := &recovering{noted: &noted{}}
		po := ports()
		po.Platform = func(string) (platform.Platform, error) { return p, nil }
		a := applying()
		a.Recovers = recovers
		out, err := startCanary{forgetting{po}}.Run(t.Context(), newRunner(t, startCanary{forgetting{po}}, a).call)
		if err != nil || out.Verdict != delivery.Pass || len(p.calls) != 1 {
			t.Errorf("it ends with %+v, %v after %v", out, err, p.calls)
		}
		if p.early == recovers {
			t.Errorf("recovers %t: the canary was started before the application was ready: %t", recovers, p.early)
		}
	}
}

func TestWeights(t *testing.T) {
	n := &noted{}
	po := ports()
	po.Platform = func(string) (platform.Platform, error) { return n, nil }
	args := plan.WeightArgs{Account: "here", Deployments: []manifest.Ref{{Kind: "Deployment", Name: "web"}}, Weight: 25, Timeout: time.Minute}
	r := newRunner(t, setWeight{po}, args)
	if out := r.enter(); out.Verdict != delivery.Pass || out.Message != "the new version gets 25 %" {
		t.Errorf("%+v", out)
	}
	if _, err := r.step.Undo(t.Context(), r.call); err != nil {
		t.Error(err)
	}
	if out := newRunner(t, promote{po}, args).enter(); out.Verdict != delivery.Pass {
		t.Errorf("%+v", out)
	}
	if want := []string{"d/p/deploy/1/1/weight 25", "d/p/deploy/1/1/undo 0", "d/p/deploy/1/1/promote 100"}; !slices.Equal(n.calls, want) {
		t.Errorf("asked for %q", n.calls)
	}
	po.Platform = func(string) (platform.Platform, error) { return still{n}, nil }
	if _, err := (setWeight{po}).Run(t.Context(), r.call); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "cannot shift traffic") {
		t.Errorf("a platform without traffic: %v", err)
	}
}

// hanging is a platform that waits for pods which never come.
type hanging struct{ *noted }

func (hanging) SetWeight(ctx context.Context, _ string, _ []manifest.Ref, _ int) error {
	<-ctx.Done()
	return fault.Newf(fault.Invalid, "web is not ready: %w", ctx.Err())
}

func (h hanging) Promote(ctx context.Context, key string, refs []manifest.Ref) error {
	return h.SetWeight(ctx, key, refs, 100)
}

func (h hanging) Abort(ctx context.Context, key string, refs []manifest.Ref) error {
	return h.SetWeight(ctx, key, refs, 0)
}

// TestWaitsOfThePlatformEnd: what shifts traffic waits for pods itself, and no longer than the step may.
func TestWaitsOfThePlatformEnd(t *testing.T) {
	po := ports()
	po.Platform = func(string) (platform.Platform, error) { return hanging{&noted{}}, nil }
	args := plan.WeightArgs{Account: "here", Deployments: []manifest.Ref{{Kind: "Deployment", Name: "web"}}, Timeout: 10 * time.Millisecond}
	for _, st := range []Step{setWeight{po}, promote{po}} {
		if out := newRunner(t, st, args).enter(); out.Verdict != delivery.Fail || !strings.Contains(out.Message, "web is not ready") {
			t.Errorf("%T: %+v", st, out)
		}
	}
	a := applying()
	a.Timeout = args.Timeout
	for _, r := range []*runner{newRunner(t, setWeight{po}, args), newRunner(t, startCanary{forgetting{po}}, a)} {
		if _, err := r.step.Undo(t.Context(), r.call); !fault.Is(err, fault.Invalid) {
			t.Errorf("the undo of %T: %v", r.step, err)
		}
	}
}

// still is a platform that cannot shift traffic.
type still struct{ platform.Platform }

func TestPause(t *testing.T) {
	r := newRunner(t, pause{}, plan.PauseArgs{For: time.Minute})
	for _, late := range []time.Duration{0, 20 * time.Second, 59 * time.Second} {
		r.call.Now = epoch.Add(late)
		if out := r.enter(); !out.Deadline.Equal(epoch.Add(time.Minute)) {
			t.Errorf("entered after %s it waits until %s", late, out.Deadline)
		}
	}
	r.call.Now = epoch.Add(time.Minute)
	if out := r.enter(); out.Verdict != delivery.Pass {
		t.Errorf("%+v", out)
	}
}

func TestApproval(t *testing.T) {
	r := newRunner(t, approval{}, plan.ApprovalArgs{})
	out := r.enter()
	if !out.Deadline.IsZero() || !slices.Equal(out.Wait, []string{"approve/p/deploy/1", "reject/p/deploy/1"}) {
		t.Errorf("without an expiration it waits until %s for %q", out.Deadline, out.Wait)
	}
	for kind, want := range map[string]delivery.Verdict{delivery.Approve: delivery.Pass, delivery.Reject: delivery.Fail} {
		r := newRunner(t, approval{}, plan.ApprovalArgs{Expires: time.Hour})
		r.enter()
		r.call.Now = epoch.Add(30 * time.Minute)
		if out := r.enter(); !out.Deadline.Equal(epoch.Add(time.Hour)) {
			t.Errorf("entered again it waits until %s", out.Deadline)
		}
		r.signal(kind, nil)
		if out := r.enter(); out.Verdict != want || !strings.HasSuffix(out.Message, "by somebody") {
			t.Errorf("%s: %+v", kind, out)
		}
	}
	r = newRunner(t, approval{}, plan.ApprovalArgs{Expires: time.Hour})
	if out := r.end(); out.Verdict != delivery.Fail || out.Message != "nobody approved within 1h0m0s" {
		t.Errorf("%+v", out)
	}
}

// TestWhatJobsLeave: of what lies beside a Job, only what there was not before goes with it, and no claim.
func TestWhatJobsLeave(t *testing.T) {
	var objects []manifest.Object
	var changes []platform.Change
	for _, o := range []struct {
		kind, name string
		created    bool
	}{{"Job", "tests", true}, {"Job", "again", false}, {"ConfigMap", "made", true}, {"ConfigMap", "theirs", false}, {"PersistentVolumeClaim", "data", true}, {"ClusterRole", "all", true}} {
		m := manifest.Object{Unstructured: unstructured.Unstructured{Object: map[string]any{"kind": o.kind, "metadata": map[string]any{"name": o.name}}}}
		objects = append(objects, m)
		ref := manifest.Ref{Kind: o.kind, Namespace: "shop", Name: o.name}
		if o.kind == "ClusterRole" {
			ref.Namespace = ""
		}
		changes = append(changes, platform.Change{Ref: ref, Created: o.created})
	}
	a := plan.JobArgs{To: plan.Site{Account: "here", Namespace: "shop"}, Objects: objects}
	for want, s := range map[string]Applied{
		"Job/tests Job/again ConfigMap/made": {Begun: true, Ended: true, Changes: changes},
		"Job/tests Job/again":                {Begun: true},
	} {
		var got []string
		for _, r := range made(s, a) {
			got = append(got, r.Kind+"/"+r.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("it deletes %v and not %s", got, want)
		}
	}
}

// TestPlansOfSimpleSteps holds that every kind of step says what it does, and says so from its planned arguments alone.
func TestPlansOfSimpleSteps(t *testing.T) {
	args := map[string]any{
		plan.KindPause: plan.PauseArgs{For: time.Minute}, plan.KindApproval: plan.ApprovalArgs{Roles: []string{"dba"}, Expires: time.Hour},
		plan.KindWebhook: plan.WebhookArgs{Name: "h", URI: "http://h"}, plan.KindAnalysis: counting(),
		plan.KindExpose: plan.ExposeArgs{Services: []string{"web"}, TTL: time.Minute}, plan.KindApply: applying(), plan.KindStartCanary: applying(),
		plan.KindSetWeight: plan.WeightArgs{Weight: 10}, plan.KindRedirect: plan.WeightArgs{Weight: 100}, plan.KindPromote: plan.WeightArgs{Weight: 100},
		plan.KindRunJob: plan.JobArgs{Name: "t"}, plan.KindWaitFor: plan.WaitForArgs{Ref: manifest.Ref{Kind: "Service", Name: "web"}},
	}
	for kind, s := range Simple(Ports{}) {
		body, err := json.Marshal(args[kind])
		if err != nil || args[kind] == nil {
			t.Fatalf("%s has no arguments here (%v)", kind, err)
		}
		if d, err := s.Plan(plan.Node{Kind: kind, Args: body}); err != nil || d.Does == "" {
			t.Errorf("%s: %+v %v", kind, d, err)
		}
		if _, err := s.Plan(plan.Node{Kind: kind, Args: json.RawMessage(`[]`)}); err == nil {
			t.Errorf("%s planned with arguments that cannot be read", kind)
		}
	}
}
