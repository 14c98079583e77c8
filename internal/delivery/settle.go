package delivery

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/plan"
)

// settle draws every conclusion that the present status allows.
func (m *machine) settle() {
	for m.background() || m.cancelDependants() || m.cancelUnreachable() || m.start() || m.undo() {
	}
	m.targets()
	m.whole()
	if m.s.CleaningUp() {
		m.clean()
	}
}

func (m *machine) passed(path string) bool {
	p := m.s.Nodes[path].Phase
	return p == StepPassed || p == StepSkipped
}

// satisfied reports whether a step need not be waited for: it has passed and its last entry has returned, or it runs in
// the background. A step that was skipped passes on what it would have waited for.
func (m *machine) satisfied(path string) bool {
	n, _ := m.node(path)
	st := m.s.Nodes[path]
	if n.Background && st.open() {
		return true
	}
	if st.Phase == StepSkipped && slices.ContainsFunc(n.After, func(a string) bool { return !m.satisfied(a) }) {
		return false
	}
	return m.passed(path) && !st.Stopping
}

// over reports whether every step of a target that comes before the phase has passed, those in the background too: the
// verdict of one that a person still decides on belongs to its own phase. With "" it is about the whole target.
func (m *machine) over(target string, before plan.Phase) bool {
	for _, n := range m.spec.Graph.Nodes {
		if n.Target == target && (before == "" || rank(n.Phase) < rank(before)) && (!m.passed(n.Path) || m.s.Nodes[n.Path].Stopping) {
			return false
		}
	}
	return true
}

// rank orders the phases of a target.
func rank(p plan.Phase) int {
	return slices.Index([]plan.Phase{plan.Before, plan.Deploy, plan.After}, p)
}

// ready reports whether a phase of a target may begin: the phases before it are over, and the targets that it depends on
// have succeeded.
func (m *machine) ready(n plan.Node) bool {
	if !m.over(n.Target, n.Phase) {
		return false
	}
	return !slices.ContainsFunc(m.dependencies(n.Target), func(d string) bool { return !m.succeeded(d) })
}

// succeeded reports whether a target and all that it depends on are deployed, with every step after that.
func (m *machine) succeeded(target string) bool {
	return m.over(target, "") && !slices.ContainsFunc(m.dependencies(target), func(d string) bool { return !m.succeeded(d) })
}

func (m *machine) dependencies(target string) []string {
	for _, t := range m.spec.Graph.Targets {
		if t.Name == target {
			return t.DependsOn
		}
	}
	return nil
}

// phaseOver reports whether every step of the phase that is not in the background has passed.
func (m *machine) phaseOver(target string, ph plan.Phase) bool {
	for _, n := range m.spec.Graph.Nodes {
		if n.Target == target && n.Phase == ph && !n.Background && !m.passed(n.Path) {
			return false
		}
	}
	return true
}

func (m *machine) has(target string, ph plan.Phase) bool {
	return slices.ContainsFunc(m.spec.Graph.Nodes, func(n plan.Node) bool {
		return n.Target == target && n.Phase == ph && !n.Background
	})
}

func (m *machine) background() bool {
	did := false
	for _, n := range m.spec.Graph.Nodes {
		st := m.s.Nodes[n.Path]
		if !n.Background || !m.has(n.Target, n.Phase) || !m.phaseOver(n.Target, n.Phase) || st.Held {
			continue
		}
		if st.open() {
			running := st.Phase == StepRunning
			message := "ended with the last step of its phase"
			if st.Message != "" {
				message += "; until then: " + st.Message
			}
			m.end(n.Path, StepPassed, message)
			st = m.s.Nodes[n.Path]
			st.Stopping = running
			m.s.Nodes[n.Path] = st
			did = true
		} else if st.Phase == StepPending {
			m.end(n.Path, StepSkipped, "its phase was over before it could start")
			did = true
		}
	}
	return did
}

// cancelDependants cancels the targets that wait for one that did not succeed. Targets are in an order in which each
// comes after those that it depends on.
func (m *machine) cancelDependants() bool {
	did := false
	for _, t := range m.spec.Graph.Targets {
		ts := m.s.Targets[t.Name]
		if ts.Failed != "" || ts.State == Cancelled {
			continue
		}
		for _, d := range t.DependsOn {
			if dep := m.s.Targets[d]; dep.Failed != "" || dep.State == Cancelled {
				ts.State, ts.Reason = Cancelled, "target "+d+" did not succeed"
				m.s.Targets[t.Name] = ts
				m.stopTarget(t.Name, ts.Reason)
				did = true
				break
			}
		}
	}
	return did
}

// cancelUnreachable cancels the steps that can no longer start because something before them did not pass.
func (m *machine) cancelUnreachable() bool {
	did := false
	for _, n := range m.spec.Graph.Nodes {
		if m.s.Nodes[n.Path].Phase != StepPending {
			continue
		}
		for _, a := range n.After {
			switch m.s.Nodes[a].Phase {
			case StepFailed, StepCancelled, StepUndoing, StepUndone, StepUndoFailed:
			default:
				continue
			}
			why := "step " + a + " did not pass"
			m.end(n.Path, StepCancelled, why)
			if t := m.s.Targets[n.Target]; !t.Undo && t.Failed == "" {
				t.State, t.Reason = Cancelled, why
				m.s.Targets[n.Target] = t
			}
			did = true
			break
		}
	}
	return did
}

func (m *machine) start() bool {
	did := false
	for _, n := range m.spec.Graph.Nodes {
		st := m.s.Nodes[n.Path]
		if st.Phase != StepPending || m.s.Paused || m.s.Cancel != "" {
			continue
		}
		if !m.ready(n) || slices.ContainsFunc(n.After, func(a string) bool { return !m.satisfied(a) }) {
			continue
		}
		m.s.Begun++
		st.Order, st.Started = m.s.Begun, m.now
		st.enter(StepRunning)
		m.s.Nodes[n.Path] = st
		did = true
	}
	return did
}

// undo undoes what a failed target's deploy phase began, last first, one step at a time, once nothing of the target is
// still in flight.
func (m *machine) undo() bool {
	did := false
	for name, t := range m.s.Targets {
		if !t.Undo {
			continue
		}
		last, order := "", 0
		for _, n := range m.spec.Graph.Nodes {
			st := m.s.Nodes[n.Path]
			if n.Target != name {
				continue
			}
			if st.Stopping || st.Phase == StepUndoing || st.Phase == StepUndoFailed {
				last, order = "", 1<<30
				continue
			}
			if n.Phase == plan.Deploy && st.Order > order && st.Phase != StepUndone {
				last, order = n.Path, st.Order
			}
		}
		if last == "" {
			continue
		}
		st := m.s.Nodes[last]
		st.Attempt, st.Ran = 0, &Ran{Phase: st.Phase, Message: st.Message}
		st.enter(StepUndoing)
		m.s.Nodes[last] = st
		did = true
	}
	return did
}

func (m *machine) targets() {
	for name, t := range m.s.Targets {
		open, begun, undoing, broken, all := false, false, false, false, true
		kept := len(m.kept(name)) > 0
		for _, n := range m.spec.Graph.Nodes {
			if n.Target != name {
				continue
			}
			st := m.s.Nodes[n.Path]
			open = open || st.open() || st.Phase == StepPending || st.Stopping
			begun = begun || st.Order > 0
			undoing = undoing || st.Phase == StepUndoing
			broken = broken || st.Phase == StepUndoFailed
			all = all && m.passed(n.Path)
		}
		switch {
		case broken:
			t.State = Failed
		case undoing || (t.Undo && open):
			t.State = RollingBack
		case t.Undo && kept:
			t.State = Failed
		case t.Undo:
			t.State = RolledBack
		case t.Failed != "" || t.State == Cancelled:
		case all && !open:
			t.State = Succeeded
		case begun:
			t.State = Running
		}
		m.s.Targets[name] = t
	}
}

// whole derives the state of the delivery from its targets.
func (m *machine) whole() {
	open, undoing, kept := false, false, false
	for _, n := range m.spec.Graph.Nodes {
		st := m.s.Nodes[n.Path]
		kept = kept || st.Kept != ""
		open = open || st.open() || st.Phase == StepPending || st.Stopping
		undoing = undoing || st.Phase == StepUndoing
	}
	switch {
	case undoing:
		m.proceed(RollingBack)
	case open && m.s.Paused:
		m.proceed(Paused)
	case open:
		m.proceed(Running)
	case m.broken() != "" || kept:
		m.finish(Failed)
	case m.s.Cancel != "":
		m.finish(Cancelled)
	default:
		end := Succeeded
		for _, t := range m.s.Targets {
			if t.Failed != "" || t.State == Cancelled {
				end = Failed
			}
		}
		m.finish(end)
	}
}

// proceed gives a delivery that has not ended its state, also one that had ended until a failed undo was tried again.
func (m *machine) proceed(s State) {
	m.s.State, m.s.Ended = s, time.Time{}
	m.s.Reason = m.reason()
	if m.s.Waits != "" {
		m.s.Reason = strings.TrimSuffix("it waits: "+m.s.Waits+"; "+m.s.Reason, "; ")
	}
}

func (m *machine) finish(s State) {
	if m.s.Ended.IsZero() || m.s.State != s {
		m.s.Ended = m.now
	}
	m.s.State = s
	m.s.Reason = m.reason() // which reads the state
}

// broken returns the step whose undo failed, "" if there is none.
func (m *machine) broken() string {
	for _, n := range m.spec.Graph.Nodes {
		if m.s.Nodes[n.Path].Phase == StepUndoFailed {
			return n.Path
		}
	}
	return ""
}

// kept returns what undoing a target has left on the new version.
func (m *machine) kept(target string) []string {
	var out []string
	for _, n := range m.spec.Graph.Nodes {
		if k := m.s.Nodes[n.Path].Kept; k != "" && n.Target == target {
			out = append(out, k)
		}
	}
	return out
}

// reason says in one sentence how it ended and what state each target is in.
func (m *machine) reason() string {
	var parts []string
	if m.s.Cancel != "" {
		parts = append(parts, m.s.Cancel)
	}
	for _, t := range m.spec.Graph.Targets {
		ts := m.s.Targets[t.Name]
		kept := m.kept(t.Name)
		switch {
		case ts.Undo && ts.State == Failed && len(kept) > 0 && m.broken() == "":
			parts = append(parts, fmt.Sprintf("%s; %s; what else the delivery changed in %s is taken back", ts.Reason, strings.Join(kept, "; "), t.Name))
		case ts.State == RolledBack || ts.State == RollingBack:
			verb := "is taken back"
			if ts.State == RollingBack {
				verb = "is being taken back"
			}
			parts = append(parts, fmt.Sprintf("%s; what the delivery changed in %s %s", ts.Reason, t.Name, verb))
		case ts.State == Cancelled:
			parts = append(parts, t.Name+" was not deployed")
		case ts.Failed == plan.Before:
			parts = append(parts, ts.Reason+"; "+t.Name+" was not changed")
		case ts.Failed == plan.After:
			parts = append(parts, ts.Reason+"; "+t.Name+" keeps the new version")
		}
	}
	if p := m.broken(); p != "" {
		n, _ := m.node(p)
		parts = append(parts, fmt.Sprintf("target %s is between two versions because undoing %s failed: %s; "+
			"retry tries again, acknowledge leaves it as it is", n.Target, p, m.s.Nodes[p].Message))
	}
	if len(parts) == 0 && m.s.State == Succeeded {
		return "every step passed"
	}
	return strings.Join(parts, "; ")
}

// clean enters the clean-up of every begun step, last first.
func (m *machine) clean() {
	last, order := "", 0
	for _, n := range m.spec.Graph.Nodes {
		st := m.s.Nodes[n.Path]
		if st.Cleaning {
			return
		}
		if !st.Cleaned && st.Order > order {
			last, order = n.Path, st.Order
		}
	}
	if last == "" {
		m.s.Done, m.s.Waits = true, ""
		return
	}
	st := m.s.Nodes[last]
	st.Cleaning, st.Attempt = true, 0
	st.Entry++
	m.s.Nodes[last] = st
}

func (m *machine) inFlight() []Action {
	var acts []Action
	for _, n := range m.spec.Graph.Nodes {
		st := m.s.Nodes[n.Path]
		a := Action{Key: Key(m.spec.ID, n.Path), Path: n.Path, Entry: st.Entry}
		switch {
		case st.Stopping:
			a.Kind = Stop
		case !st.Deadline.IsZero():
			continue
		case st.Cleaning:
			a.Kind = Clean
		case st.Phase == StepUndoing:
			a.Kind = Undo
		case st.Phase == StepRunning:
			a.Kind = Run
		default:
			continue
		}
		acts = append(acts, a)
	}
	return acts
}
