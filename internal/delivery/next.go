package delivery

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sluice-cd/sluice/internal/plan"
)

// MaxAttempts is how many errors in a row count as the verdict error.
const MaxAttempts = 5

// HoldFor is how long a verdict other than pass waits for a person before it rolls back.
const HoldFor = 24 * time.Hour

// machine is one call of Next.
type machine struct {
	spec Spec
	s    Status
	now  time.Time
}

// Next takes in what was observed and returns the status that follows with every entry that is to be in flight. It is a
// function of its arguments alone and does not change them. A delivery that is done stays as it is.
func Next(spec Spec, status Status, now time.Time, obs []Observation) (Status, []Action) {
	if status.Done {
		return status, nil
	}
	m := &machine{spec: spec, s: clone(status), now: now}
	m.begin()
	for _, o := range obs {
		m.observe(o)
	}
	m.deadlines()
	m.settle()
	return m.s, m.inFlight()
}

// Wake returns the earliest instant at which Next would do something by itself, zero if there is none.
func (s Status) Wake() time.Time {
	var at time.Time
	for _, n := range s.Nodes {
		if n.Deadline.IsZero() {
			continue
		}
		if at.IsZero() || n.Deadline.Before(at) {
			at = n.Deadline
		}
	}
	return at
}

func clone(s Status) Status {
	nodes := make(map[string]NodeStatus, len(s.Nodes))
	for p, n := range s.Nodes {
		n.Signals = slices.Clone(n.Signals)
		nodes[p] = n
	}
	s.Nodes, s.Targets = nodes, maps.Clone(s.Targets)
	return s
}

func (m *machine) begin() {
	if m.s.Targets == nil {
		m.s.Targets = map[string]TargetStatus{}
	}
	if m.s.Started.IsZero() {
		m.s.State, m.s.Started = Running, m.now
	}
	for _, t := range m.spec.Graph.Targets {
		if _, ok := m.s.Targets[t.Name]; !ok {
			m.s.Targets[t.Name] = TargetStatus{State: Pending}
		}
	}
	for _, n := range m.spec.Graph.Nodes {
		if _, ok := m.s.Nodes[n.Path]; !ok {
			m.s.Nodes[n.Path] = NodeStatus{Phase: StepPending}
		}
		if _, ok := m.s.Targets[n.Target]; !ok {
			m.s.Targets[n.Target] = TargetStatus{State: Pending}
		}
	}
}

func (m *machine) node(path string) (plan.Node, bool) {
	i := slices.IndexFunc(m.spec.Graph.Nodes, func(n plan.Node) bool { return n.Path == path })
	if i < 0 {
		return plan.Node{}, false
	}
	return m.spec.Graph.Nodes[i], true
}

func (m *machine) observe(o Observation) {
	if o.Kind == Signalled {
		if o.Seq > m.s.Seen {
			m.s.Seen = o.Seq
			m.signal(*o.Signal)
		}
		return
	}
	if o.Kind == Blocked {
		m.s.Waits = o.Error
		return
	}
	n, ok := m.node(o.Path)
	st := m.s.Nodes[o.Path]
	if !ok || o.Entry != st.Entry {
		return
	}
	if o.Kind == SavedSome {
		st.Saved = json.RawMessage(o.Saved)
		m.s.Nodes[o.Path] = st
		return
	}
	if st.Stopping {
		// Whatever an ended step still returned, it no longer counts; only that it has returned does.
		st.Stopping = false
		m.s.Nodes[o.Path] = st
		return
	}
	if o.Kind == Stopped {
		return
	}
	switch {
	case st.Cleaning:
		m.cleaned(o, st)
	case st.Phase == StepUndoing:
		m.undone(n, o, st)
	case st.Phase == StepRunning:
		m.ran(n, o, st)
	}
}

// backOff is how long to wait after the given number of errors in a row.
func backOff(attempt int) time.Duration { return time.Second << max(0, min(attempt-1, 6)) }

func (m *machine) ran(n plan.Node, o Observation, st NodeStatus) {
	if o.Kind == Erred {
		st.Attempt++
		st.Message = o.Error
		if o.Transient && st.Attempt < MaxAttempts {
			st.Phase, st.Deadline, st.Awaits = StepWaiting, m.now.Add(backOff(st.Attempt)), nil
			m.s.Nodes[n.Path] = st
			return
		}
		o.Result = &Result{Verdict: Error, Message: o.Error}
	} else {
		st.Attempt = 0
	}
	r := o.Result
	if r.Verdict == "" && len(r.Wait) == 0 && r.Deadline.IsZero() {
		r = &Result{Verdict: Error, Message: "the step waits for nothing that could come"}
	}
	st.Message, st.Deadline, st.Awaits = r.Message, time.Time{}, nil
	if len(r.Expose) > 0 {
		st.Expose = r.Expose
	}
	if len(r.Evidence) > 0 {
		st.Evidence = r.Evidence
	}
	if r.Verdict == "" {
		st.Phase, st.Deadline, st.Awaits = StepWaiting, r.Deadline, r.Wait
		if st.pendingSignal() {
			st.enter(StepRunning)
		}
		m.s.Nodes[n.Path] = st
		return
	}
	st.Verdict = r.Verdict
	m.s.Nodes[n.Path] = st
	if r.Ask {
		m.hold(n.Path)
		return
	}
	m.judge(n)
}

// hold leaves a verdict to a person. A pass that was asked to be approved waits like any approval; everything else has
// the deadline at which it rolls back.
func (m *machine) hold(path string) {
	st := m.s.Nodes[path]
	st.Phase, st.Held, st.Deadline = StepWaiting, true, m.now.Add(HoldFor)
	if st.Verdict == Pass {
		st.Deadline = time.Time{}
	}
	m.s.Nodes[path] = st
}

// judge acts on the verdict of a step.
func (m *machine) judge(n plan.Node) {
	st := m.s.Nodes[n.Path]
	switch {
	case st.Verdict == Pass:
		m.end(n.Path, StepPassed, st.Message)
	case st.Verdict == Fail || n.OnInconclusive == "rollback":
		m.fail(n, fmt.Sprintf("%s: %s", st.Verdict, st.Message))
	case n.OnInconclusive == "continue":
		m.end(n.Path, StepPassed, st.Message)
	default:
		m.hold(n.Path)
	}
}

// enter makes a step's next entry be in flight.
func (st *NodeStatus) enter(p Phase) {
	st.Phase, st.Deadline, st.Awaits = p, time.Time{}, nil
	st.Entry++
	st.Given = len(st.Signals)
}

// pendingSignal reports whether a signal has come since the last entry began.
func (st *NodeStatus) pendingSignal() bool { return len(st.Signals) > st.Given }

// end ends a step. One with an entry in flight is stopping until that has returned.
func (m *machine) end(path string, p Phase, message string) {
	st := m.s.Nodes[path]
	if st.Phase == StepRunning && p != StepPassed && p != StepFailed {
		st.Stopping = true
	}
	st.Phase, st.Message, st.Held, st.Deadline, st.Awaits, st.Ended = p, message, false, time.Time{}, nil, m.now
	st.Attempt = 0
	m.s.Nodes[path] = st
}

func (st NodeStatus) open() bool { return st.Phase == StepRunning || st.Phase == StepWaiting }

func (m *machine) deadlines() {
	for _, n := range m.spec.Graph.Nodes {
		st := m.s.Nodes[n.Path]
		if st.Deadline.IsZero() || st.Deadline.After(m.now) {
			continue
		}
		switch {
		case st.Cleaning, st.Phase == StepUndoing:
			st.enter(st.Phase)
			m.s.Nodes[n.Path] = st
		case st.Held:
			m.fail(n, fmt.Sprintf("nobody decided within %s what %q means: %s", HoldFor, st.Verdict, st.Message))
		case st.Phase == StepWaiting:
			st.enter(StepRunning)
			m.s.Nodes[n.Path] = st
		}
	}
}

// fail fails a step and with it its target.
func (m *machine) fail(n plan.Node, why string) {
	m.end(n.Path, StepFailed, m.s.Nodes[n.Path].Message)
	m.failTarget(n.Target, n.Phase, fmt.Sprintf("step %s of target %s: %s", n.Path, n.Target, why))
}

// failTarget ends everything of the target that is open and cancels the rest of it.
func (m *machine) failTarget(name string, ph plan.Phase, why string) {
	t := m.s.Targets[name]
	if t.Failed != "" {
		return
	}
	t.Failed, t.Reason, t.State, t.Undo = ph, why, Failed, ph == plan.Deploy
	m.s.Targets[name] = t
	m.stopTarget(name, "another step of the target failed")
}

func (m *machine) stopTarget(name, why string) {
	for _, n := range m.spec.Graph.Nodes {
		if st := m.s.Nodes[n.Path]; n.Target == name && (st.open() || st.Phase == StepPending) {
			m.end(n.Path, StepCancelled, why)
		}
	}
}

func (m *machine) undone(n plan.Node, o Observation, st NodeStatus) {
	switch {
	case o.Kind == Returned && o.Result.Verdict == Pass:
		st.Phase, st.Attempt, st.Ended, st.Message, st.Kept = StepUndone, 0, m.now, o.Result.Message, o.Result.Kept
	case o.Kind == Returned && o.Result.Verdict == "":
		st.Deadline, st.Message, st.Awaits = o.Result.Deadline, o.Result.Message, o.Result.Wait
		st.Attempt = 0
		if st.Deadline.IsZero() {
			st.Deadline = m.now.Add(HoldFor)
		}
		if st.pendingSignal() {
			st.enter(StepUndoing)
		}
	default:
		st.Attempt++
		st.Message = o.Error
		if o.Result != nil {
			st.Message = o.Result.Message
		}
		st.Deadline = m.now.Add(backOff(st.Attempt))
		if !o.Transient || st.Attempt >= MaxAttempts {
			st.Phase, st.Deadline, st.Ended = StepUndoFailed, time.Time{}, m.now
		}
	}
	m.s.Nodes[n.Path] = st
}

func (m *machine) cleaned(o Observation, st NodeStatus) {
	if o.Kind == Erred && o.Transient && st.Attempt+1 < MaxAttempts {
		st.Attempt++
		st.Deadline = m.now.Add(backOff(st.Attempt))
	} else if o.Kind == Returned && o.Result.Verdict == "" {
		st.Deadline = o.Result.Deadline
		if st.Deadline.IsZero() {
			st.Deadline = m.now.Add(time.Minute)
		}
	} else {
		st.Cleaning, st.Cleaned, st.Attempt = false, true, 0
		if o.Kind == Erred {
			st.Message += " (what it left behind could not be cleaned up: " + o.Error + ")"
		}
	}
	m.s.Nodes[o.Path] = st
}
