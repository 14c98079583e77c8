package delivery_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
)

// graphOf reads a graph, one target or node a line:
//
//	target NAME [< DEPENDENCY…]
//	TARGET/PHASE/NAME [background] [kind=KIND] [roles=A,B] [inconclusive=WHAT] [< PATH…]
func graphOf(t rapid.TB, text string) plan.Graph {
	t.Helper()
	var g plan.Graph
	for line := range strings.Lines(text) {
		head, after, _ := strings.Cut(strings.TrimSpace(line), "<")
		words := strings.Fields(head)
		switch {
		case len(words) == 0:
		case words[0] == "target":
			g.Targets = append(g.Targets, plan.Target{Name: words[1], DependsOn: strings.Fields(after)})
		default:
			parts := strings.SplitN(words[0], "/", 3)
			n := plan.Node{Path: words[0], Target: parts[0], Phase: plan.Phase(parts[1]), Kind: "fake", After: strings.Fields(after)}
			for _, w := range words[1:] {
				key, value, _ := strings.Cut(w, "=")
				switch key {
				case "background":
					n.Background = true
				case "kind":
					n.Kind = value
				case "inconclusive":
					n.OnInconclusive = value
				case "roles":
					args, err := json.Marshal(plan.ApprovalArgs{Roles: strings.Split(value, ",")})
					if err != nil {
						t.Fatal(err)
					}
					n.Args = args
				default:
					t.Fatalf("graph: %q is not known", w)
				}
			}
			g.Nodes = append(g.Nodes, n)
		}
	}
	return g
}

// machine plays the engine: it hands observations to Next and holds what every step of any delivery must hold.
type machine struct {
	t    rapid.TB
	spec delivery.Spec
	s    delivery.Status
	acts []delivery.Action
	now  time.Time
	seq  int64
}

func newMachine(t rapid.TB, g plan.Graph) *machine {
	return &machine{t: t, spec: delivery.Spec{ID: "d", Application: "app", Graph: g}, s: delivery.Status{State: delivery.Pending},
		now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

func frozen(t rapid.TB, s delivery.Status) string {
	t.Helper()
	body, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func (m *machine) next(obs ...delivery.Observation) {
	m.t.Helper()
	before := frozen(m.t, m.s)
	s, acts := delivery.Next(m.spec, m.s, m.now, obs)
	if frozen(m.t, m.s) != before {
		m.t.Fatal("Next changed the status that it was given")
	}
	// What is kept is JSON: a status must survive being written and read.
	var read delivery.Status
	if err := json.Unmarshal([]byte(frozen(m.t, s)), &read); err != nil {
		m.t.Fatal(err)
	}
	again, same := delivery.Next(m.spec, read, m.now, nil)
	if frozen(m.t, again) != frozen(m.t, s) || !reflect.DeepEqual(acts, same) {
		m.t.Fatalf("Next without observations is not idempotent:\n%s %v\n%s %v", frozen(m.t, s), acts, frozen(m.t, again), same)
	}
	for path, n := range read.Nodes {
		undone := n.Phase == delivery.StepUndoing || n.Phase == delivery.StepUndone || n.Phase == delivery.StepUndoFailed
		if undone != (n.Ran != nil) {
			m.t.Fatalf("%s is %s, and how it had ended is %v", path, n.Phase, n.Ran)
		}
	}
	m.s, m.acts = read, acts
}

// action returns the action in flight for a step.
func (m *machine) action(path string) delivery.Action {
	m.t.Helper()
	i := slices.IndexFunc(m.acts, func(a delivery.Action) bool { return a.Path == path })
	if i < 0 {
		m.t.Fatalf("nothing is in flight for %s: %s", path, m.flight())
	}
	return m.acts[i]
}

func (m *machine) flight() string {
	var out []string
	for _, a := range m.acts {
		out = append(out, a.Kind+" "+a.Path)
	}
	return strings.Join(out, ", ")
}

func (m *machine) returned(path string, r delivery.Result) delivery.Observation {
	m.t.Helper()
	return delivery.Observation{Kind: delivery.Returned, Path: path, Entry: m.action(path).Entry, Result: &r}
}

func (m *machine) signalled(sig delivery.Signal) delivery.Observation {
	m.seq++
	if sig.Key == "" {
		sig.Key = sig.Kind + "/" + sig.Path
	}
	return delivery.Observation{Kind: delivery.Signalled, Seq: m.seq, Signal: &sig}
}

// signals that a script may send, with the word that they are written as.
func signalNamed(words []string) (delivery.Signal, bool) {
	kinds := []string{delivery.Approve, delivery.Reject, delivery.Callback, delivery.CancelAll, delivery.Rollback, delivery.Pause,
		delivery.Resume, delivery.Retry, delivery.Promote, delivery.Acknowledge, delivery.Stay}
	if !slices.Contains(kinds, words[0]) {
		return delivery.Signal{}, false
	}
	s := delivery.Signal{Kind: words[0], By: "ann", Data: map[string]string{}}
	for _, w := range words[1:] {
		if key, value, ok := strings.Cut(w, "="); ok {
			s.Data[key] = value
		} else {
			s.Path = w
		}
	}
	s.Key = s.Kind + "/" + s.Path
	return s, true
}

// event turns one word of a script into an observation, or lets time pass.
func (m *machine) event(text string) []delivery.Observation {
	m.t.Helper()
	words := strings.Fields(text)
	if s, ok := signalNamed(words); ok {
		if err := delivery.Check(m.spec, m.s, s); err != nil {
			m.t.Fatalf("%s: %v", text, err)
		}
		return []delivery.Observation{m.signalled(s)}
	}
	if words[0] == "start" {
		return nil
	}
	if words[0] == "tick" {
		d, err := time.ParseDuration(words[1])
		if err != nil {
			m.t.Fatal(err)
		}
		m.now = m.now.Add(d)
		return nil
	}
	path := words[1]
	result := func(r delivery.Result) []delivery.Observation { return []delivery.Observation{m.returned(path, r)} }
	switch words[0] {
	case "pass", "fail", "inconclusive", "error":
		return result(delivery.Result{Verdict: delivery.Verdict(words[0]), Message: words[0] + "ed"})
	case "nodata":
		return result(delivery.Result{Verdict: delivery.NoData})
	case "keep":
		return result(delivery.Result{Verdict: delivery.Pass, Kept: strings.Join(words[2:], " ")})
	case "ask-pass", "ask-fail":
		return result(delivery.Result{Verdict: delivery.Verdict(strings.TrimPrefix(words[0], "ask-")), Ask: true, Message: "asks"})
	case "wait": // wait PATH DURATION KEY…
		d, err := time.ParseDuration(words[2])
		if err != nil {
			m.t.Fatal(err)
		}
		r := delivery.Result{Wait: words[3:], Message: "waits"}
		if d > 0 {
			r.Deadline = m.now.Add(d)
		}
		return result(r)
	case "transient", "broken":
		return []delivery.Observation{{Kind: delivery.Erred, Path: path, Entry: m.action(path).Entry, Error: words[0], Transient: words[0] == "transient"}}
	case "stopped":
		return []delivery.Observation{{Kind: delivery.Stopped, Path: path, Entry: m.action(path).Entry}}
	case "saved":
		return []delivery.Observation{{Kind: delivery.SavedSome, Path: path, Entry: m.action(path).Entry, Saved: []byte(words[2])}}
	}
	m.t.Fatalf("script: %q is not known", text)
	return nil
}

// cleaned answers every clean-up until the delivery is done, and returns their order.
func (m *machine) cleaned() string {
	m.t.Helper()
	var order []string
	for !m.s.Done {
		if len(m.acts) != 1 || m.acts[0].Kind != delivery.Clean {
			m.t.Fatalf("want one clean-up in flight, have: %s (%s)", m.flight(), m.s.State)
		}
		order = append(order, m.acts[0].Path)
		m.next(m.returned(m.acts[0].Path, delivery.Result{Verdict: delivery.Pass}))
	}
	return strings.Join(order, ", ")
}

// play runs a script. A line is EVENT [& EVENT…] -> ACTIONS: what happens in one call of Next, and everything that must be
// in flight after it. "refused SIGNAL -> KIND" asks Check, "clean -> STEPS" cleans up to the end.
func (m *machine) play(script string) {
	m.t.Helper()
	for line := range strings.Lines(script) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		what, want, ok := strings.Cut(line, "->")
		if !ok {
			m.t.Fatalf("script: %q has no ->", line)
		}
		what, want = strings.TrimSpace(what), strings.TrimSpace(want)
		var got string
		switch {
		case what == "clean":
			got = m.cleaned()
		case strings.HasPrefix(what, "refused "):
			s, _ := signalNamed(strings.Fields(what)[1:])
			got = string(fault.KindOf(delivery.Check(m.spec, m.s, s)))
		default:
			var obs []delivery.Observation
			for e := range strings.SplitSeq(what, "&") {
				obs = append(obs, m.event(strings.TrimSpace(e))...)
			}
			m.next(obs...)
			got = m.flight()
		}
		if got != want {
			m.t.Fatalf("%s\n got: %s\nwant: %s\n(%s: %s)", what, got, want, m.s.State, m.s.Reason)
		}
	}
}

// ended describes how everything stands: the state, each target's state, the steps by phase where asked for.
func (m *machine) ended() string {
	parts := []string{string(m.s.State)}
	for _, t := range m.spec.Graph.Targets {
		parts = append(parts, fmt.Sprintf("%s=%s", t.Name, m.s.Targets[t.Name].State))
	}
	return strings.Join(parts, " ")
}
