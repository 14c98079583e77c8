package delivery_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
)

// drawGraph draws up to three targets with up to three steps in each phase.
func drawGraph(t *rapid.T) plan.Graph {
	var g plan.Graph
	kinds := []string{"fake", plan.KindAnalysis, plan.KindApproval, plan.KindSetWeight, plan.KindPromote, plan.KindWebhook}
	for i := range rapid.IntRange(1, 3).Draw(t, "targets") {
		target := plan.Target{Name: fmt.Sprintf("t%d", i)}
		for j := range i {
			if rapid.Bool().Draw(t, "depends") {
				target.DependsOn = append(target.DependsOn, fmt.Sprintf("t%d", j))
			}
		}
		var before []string // every foreground step of the phase before
		for _, ph := range []plan.Phase{plan.Before, plan.Deploy, plan.After} {
			var own []string
			for k := range rapid.IntRange(0, 3).Draw(t, "steps") {
				n := plan.Node{Path: fmt.Sprintf("%s/%s/%d", target.Name, ph, k), Target: target.Name, Phase: ph,
					Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), Background: rapid.IntRange(0, 5).Draw(t, "background") == 0,
					OnInconclusive: rapid.SampledFrom([]string{"", "wait", "rollback", "continue"}).Draw(t, "inconclusive")}
				if n.After = slices.Clone(before); len(own) > 0 && rapid.Bool().Draw(t, "sequence") {
					n.After = []string{rapid.SampledFrom(own).Draw(t, "after")}
				}
				g.Nodes = append(g.Nodes, n)
				if !n.Background {
					own = append(own, n.Path)
				}
			}
			if len(own) > 0 {
				before = own
			}
		}
		g.Targets = append(g.Targets, target)
	}
	return g
}

// watcher holds what must never happen against each status that follows another.
type watcher struct {
	*machine
	t     *rapid.T
	order map[string][]int // target → Order of the steps in the order of their undo
}

func (w *watcher) next(obs ...delivery.Observation) {
	was := w.s
	w.machine.next(obs...)
	if was.Done && frozen(w.t, was) != frozen(w.t, w.s) {
		w.t.Fatal("a delivery that had ended has changed")
	}
	undoing := map[string]int{}
	for _, n := range w.spec.Graph.Nodes {
		a, b := was.Nodes[n.Path], w.s.Nodes[n.Path]
		if b.Order > 0 && a.Order == 0 {
			w.begun(n)
		}
		if b.Entry < a.Entry || b.Entry > a.Entry+2 {
			w.t.Fatalf("%s went from entry %d to %d", n.Path, a.Entry, b.Entry)
		}
		switch b.Phase {
		case delivery.StepUndoing, delivery.StepUndone, delivery.StepUndoFailed:
			if n.Phase != plan.Deploy || w.s.Targets[n.Target].Failed != plan.Deploy {
				w.t.Fatalf("%s is %s: only the deploy phase of a target that failed in it is undone", n.Path, b.Phase)
			}
			if a.Phase != delivery.StepUndoing && a.Phase != delivery.StepUndone && a.Phase != delivery.StepUndoFailed {
				w.order[n.Target] = append(w.order[n.Target], b.Order)
			}
		}
		if b.Phase == delivery.StepUndoing {
			undoing[n.Target]++
		}
	}
	for target, n := range undoing {
		if n > 1 {
			w.t.Fatalf("%d steps of target %s are undone at once", n, target)
		}
		for _, a := range w.acts {
			if node := w.node(a.Path); node.Target == target && a.Kind != delivery.Undo {
				w.t.Fatalf("%s %s is in flight beside an undo", a.Kind, a.Path)
			}
		}
		if o := w.order[target]; !slices.IsSortedFunc(o, func(a, b int) int { return b - a }) {
			w.t.Fatalf("target %s was undone in the order %v of their begin", target, o)
		}
	}
}

func (w *watcher) node(path string) plan.Node {
	i := slices.IndexFunc(w.spec.Graph.Nodes, func(n plan.Node) bool { return n.Path == path })
	return w.spec.Graph.Nodes[i]
}

// begun holds that a step was free to begin.
func (w *watcher) begun(n plan.Node) {
	if w.s.Paused || w.s.Cancel != "" {
		w.t.Fatalf("%s began in a delivery that is paused or cancelled", n.Path)
	}
	var passed func(p string) bool
	passed = func(p string) bool {
		st := w.s.Nodes[p]
		// A step that was skipped has what it waited for still before it.
		skipped := st.Phase == delivery.StepSkipped && !slices.ContainsFunc(w.node(p).After, func(a string) bool { return !passed(a) })
		return (st.Phase == delivery.StepPassed || skipped) && !st.Stopping
	}
	for _, a := range n.After {
		if !passed(a) {
			w.t.Fatalf("%s began before %s had passed", n.Path, a)
		}
	}
	phases := []plan.Phase{plan.Before, plan.Deploy, plan.After}
	for _, o := range w.spec.Graph.Nodes {
		earlier := o.Target == n.Target && slices.Index(phases, o.Phase) < slices.Index(phases, n.Phase)
		for _, target := range w.spec.Graph.Targets {
			earlier = earlier || target.Name == n.Target && slices.Contains(target.DependsOn, o.Target)
		}
		if earlier && !passed(o.Path) {
			w.t.Fatalf("%s began before %s had passed", n.Path, o.Path)
		}
	}
}

// answer draws what an entry in flight returns.
func (w *watcher) answer(a delivery.Action) delivery.Observation {
	if a.Kind == delivery.Stop {
		return delivery.Observation{Kind: delivery.Stopped, Path: a.Path, Entry: a.Entry}
	}
	switch rapid.IntRange(0, 6).Draw(w.t, "answer") {
	case 0:
		return delivery.Observation{Kind: delivery.Erred, Path: a.Path, Entry: a.Entry, Error: "no", Transient: rapid.Bool().Draw(w.t, "transient")}
	case 1:
		r := delivery.Result{Wait: []string{"approve/" + a.Path}}
		if rapid.Bool().Draw(w.t, "deadline") {
			r.Deadline = w.now.Add(time.Minute)
		}
		return w.returned(a.Path, r)
	case 2:
		v := rapid.SampledFrom([]delivery.Verdict{delivery.Fail, delivery.Inconclusive, delivery.NoData, delivery.Error}).Draw(w.t, "verdict")
		return w.returned(a.Path, delivery.Result{Verdict: v, Ask: rapid.Bool().Draw(w.t, "ask")})
	}
	return w.returned(a.Path, delivery.Result{Verdict: delivery.Pass, Ask: rapid.IntRange(0, 9).Draw(w.t, "askpass") == 0})
}

// anything lets something happen.
func (w *watcher) anything() {
	switch rapid.IntRange(0, 5).Draw(w.t, "what") {
	case 0:
		w.now = w.now.Add(rapid.SampledFrom([]time.Duration{time.Second, time.Minute, 25 * time.Hour}).Draw(w.t, "tick"))
		w.next()
	case 1:
		kind := rapid.SampledFrom([]string{delivery.Approve, delivery.Reject, delivery.Callback, delivery.CancelAll, delivery.Rollback,
			delivery.Pause, delivery.Resume, delivery.Retry, delivery.Promote, delivery.Acknowledge, delivery.Stay}).Draw(w.t, "signal")
		path := ""
		switch kind {
		case delivery.Rollback, delivery.Promote:
			path = rapid.SampledFrom(w.spec.Graph.Targets).Draw(w.t, "target").Name
		case delivery.Approve, delivery.Reject, delivery.Callback:
			if len(w.spec.Graph.Nodes) == 0 {
				return
			}
			path = rapid.SampledFrom(w.spec.Graph.Nodes).Draw(w.t, "node").Path
		}
		// Checked or not: what has become outdated between the check and the intake must do no harm.
		w.next(w.signalled(delivery.Signal{Kind: kind, Path: path}))
	default:
		if len(w.acts) > 0 {
			w.next(w.answer(rapid.SampledFrom(w.acts).Draw(w.t, "action")))
		}
	}
}

// finish has everything return: entries pass, people go on, time passes. It reports whether the delivery ended.
func (w *watcher) finish() bool {
	for range 40 * (len(w.spec.Graph.Nodes) + 1) {
		if w.s.Done {
			return true
		}
		switch {
		case len(w.acts) > 0 && w.acts[0].Kind == delivery.Stop:
			w.next(delivery.Observation{Kind: delivery.Stopped, Path: w.acts[0].Path, Entry: w.acts[0].Entry})
		case len(w.acts) > 0:
			w.next(w.returned(w.acts[0].Path, delivery.Result{Verdict: delivery.Pass}))
		case w.s.Paused && !w.s.State.Final():
			w.next(w.signalled(delivery.Signal{Kind: delivery.Resume}))
		case len(delivery.Candidates(w.spec, w.s, delivery.Acknowledge)) > 0:
			w.next(w.signalled(delivery.Signal{Kind: delivery.Acknowledge}))
		case !w.s.Wake().IsZero():
			w.now = w.s.Wake()
			w.next()
		case len(delivery.Candidates(w.spec, w.s, delivery.Approve)) > 0:
			w.next(w.signalled(delivery.Signal{Kind: delivery.Approve, Path: delivery.Candidates(w.spec, w.s, delivery.Approve)[0]}))
		default:
			return false
		}
	}
	return w.s.Done
}

// TestAnySequenceEnds holds that whatever happens to any delivery, in any order, it ends once everything returns, that
// nothing begins too early, that what is undone is undone last first, and that an ended delivery never changes.
func TestAnySequenceEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &watcher{machine: newMachine(t, drawGraph(t)), t: t, order: map[string][]int{}}
		w.next()
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			w.anything()
		}
		if !w.finish() {
			t.Fatalf("it does not end: %s, in flight: %s\n%s", w.ended(), w.flight(), frozen(t, w.s))
		}
		w.outcome()
		for range 5 {
			w.anything()
		}
	})
}

// outcome holds that the end says what happened.
func (w *watcher) outcome() {
	all := true
	for _, n := range w.spec.Graph.Nodes {
		st := w.s.Nodes[n.Path]
		all = all && (st.Phase == delivery.StepPassed || st.Phase == delivery.StepSkipped)
		if st.Phase == delivery.StepRunning || st.Phase == delivery.StepWaiting || st.Phase == delivery.StepPending || st.Order > 0 && !st.Cleaned {
			w.t.Fatalf("the delivery has ended and step %s is %s, cleaned up: %v", n.Path, st.Phase, st.Cleaned)
		}
		if ts := w.s.Targets[n.Target]; ts.Undo && n.Phase == plan.Deploy && st.Order > 0 && ts.State == delivery.RolledBack && st.Phase != delivery.StepUndone {
			w.t.Fatalf("target %s is rolled back and step %s is %s", n.Target, n.Path, st.Phase)
		}
	}
	if succeeded := w.s.State == delivery.Succeeded; succeeded != all {
		w.t.Fatalf("it ended %s (%s); every step passed: %v", w.s.State, w.s.Reason, all)
	}
	if !w.s.State.Final() || w.s.Reason == "" || w.s.Ended.IsZero() {
		w.t.Fatalf("it ended %q, reason %q, at %s", w.s.State, w.s.Reason, w.s.Ended)
	}
}
