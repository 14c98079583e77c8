package delivery

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
)

// The kinds of signals.
const (
	Approve     = "approve"
	Reject      = "reject"
	Callback    = "callback"
	CancelAll   = "cancel"
	Rollback    = "rollback"
	Pause       = "pause"
	Resume      = "resume"
	Retry       = "retry"
	Promote     = "promote"
	Acknowledge = "acknowledge"
	Stay        = "stay"
)

// Check says whether a signal can be taken in by a delivery as it is; it is asked before a signal is stored.
func Check(spec Spec, s Status, sig Signal) error {
	m := &machine{spec: spec, s: s}
	switch sig.Kind {
	case Pause, Resume, CancelAll:
		if s.State.Final() {
			return fault.Newf(fault.Conflict, "delivery %s has ended: %s", spec.ID, s.Reason)
		}
	case Retry, Acknowledge:
		if len(m.repairable(sig)) == 0 {
			return fault.Newf(fault.Conflict, "delivery %s has no undo that failed or waits and no step that an error holds, which could be retried or acknowledged", spec.ID)
		}
	case Stay:
		if len(m.repairable(sig)) == 0 {
			return fault.Newf(fault.Conflict, "delivery %s asks nobody whether a checkpoint may be restored, so there is nothing to stay on instead", spec.ID)
		}
	case Rollback, Promote:
		t := sig.target()
		if _, ok := s.Targets[t]; !ok {
			return fault.Newf(fault.NotFound, "delivery %s has no target %q", spec.ID, t)
		}
		if !m.deploying(t) {
			return fault.Newf(fault.Conflict, "target %s of delivery %s is not being deployed", t, spec.ID)
		}
	case Approve, Reject, Callback:
		return m.checkStep(sig)
	default:
		return fault.Newf(fault.Invalid, "signal kind %q is not known", sig.Kind)
	}
	return nil
}

// checkStep says whether a step can take a signal in. A decision that nobody has asked for is refused rather than kept:
// the first of a key wins, so the step could never be decided later.
func (m *machine) checkStep(sig Signal) error {
	n, ok := m.node(sig.Path)
	if !ok {
		return fault.Newf(fault.NotFound, "delivery %s has no step %q", m.spec.ID, sig.Path)
	}
	st := m.s.Nodes[sig.Path]
	switch {
	case st.Phase == StepPending || st.Phase == "":
		return fault.Newf(fault.Conflict, "step %s has not begun", sig.Path)
	case !st.open():
		return fault.Newf(fault.Conflict, "step %s is %s and no longer waits", sig.Path, st.Phase)
	case sig.Kind == Callback:
		return nil
	case !st.Held && n.Kind != plan.KindApproval && !slices.Contains(st.Awaits, sig.Key):
		return fault.Newf(fault.Conflict, "step %s asks nobody to decide: it is %s", sig.Path, st.Phase)
	case !allowed(n, sig):
		return fault.Newf(fault.Denied, "%s has none of the roles that may decide step %s", person(sig), sig.Path)
	}
	return nil
}

// Candidates returns the steps, or for rollback and promote the targets, that a signal of the kind could mean now.
func Candidates(spec Spec, s Status, kind string) []string {
	var out []string
	if kind == Rollback || kind == Promote {
		for _, t := range spec.Graph.Targets {
			if Check(spec, s, Signal{Kind: kind, Path: t.Name}) == nil {
				out = append(out, t.Name)
			}
		}
		return out
	}
	for _, n := range spec.Graph.Nodes {
		// Who may decide is not the question here.
		sig := Signal{Key: kind + "/" + n.Path, Kind: kind, Path: n.Path, Data: map[string]string{"roles": "owner"}}
		if Check(spec, s, sig) == nil {
			out = append(out, n.Path)
		}
	}
	return out
}

// repairable returns the steps whose undo a person may try again or acknowledge: it has failed, or it waits. A step that has not
// come to a verdict because something else was broken may be tried again, too. Staying on the
// new version is for the opening of a database alone, whose undo restores a checkpoint.
func (m *machine) repairable(sig Signal) []string {
	var out []string
	for _, n := range m.spec.Graph.Nodes {
		st := m.s.Nodes[n.Path]
		broken := st.Phase == StepUndoFailed && !m.s.Accepted
		waits := st.Phase == StepUndoing && (!st.Deadline.IsZero() || sig.Path == n.Path)
		if sig.Kind == Stay && n.Kind != plan.KindOpen {
			continue
		}
		again := sig.Kind == Retry && st.stuck()
		if (broken || waits || again) && (sig.Path == "" || sig.Path == n.Path) {
			out = append(out, n.Path)
		}
	}
	return out
}

// target returns the target that a signal means: its path is the target's name.
func (s Signal) target() string {
	if s.Path != "" {
		return s.Path
	}
	_, name, _ := strings.Cut(s.Key, "/")
	return name
}

// allowed reports whether the sender has one of the roles that the approval names; owner may always.
func allowed(n plan.Node, sig Signal) bool {
	var a plan.ApprovalArgs
	if n.Kind != plan.KindApproval || json.Unmarshal(n.Args, &a) != nil || len(a.Roles) == 0 {
		return true
	}
	for r := range strings.SplitSeq(sig.Data["roles"], ",") {
		if r = strings.TrimSpace(r); r == "owner" || slices.Contains(a.Roles, r) {
			return true
		}
	}
	return false
}

// deploying reports whether the target's deploy phase has begun and is not over.
func (m *machine) deploying(target string) bool {
	begun := false
	for _, n := range m.spec.Graph.Nodes {
		begun = begun || n.Target == target && n.Phase == plan.Deploy && m.s.Nodes[n.Path].Order > 0
	}
	return begun && m.s.Targets[target].Failed == "" && !m.over(target, plan.After)
}

func (m *machine) signal(sig Signal) {
	switch sig.Kind {
	case Pause, Resume:
		m.s.Paused = sig.Kind == Pause && !m.s.State.Final()
	case CancelAll:
		m.cancel(sig)
	case Rollback:
		if t := sig.target(); m.deploying(t) {
			m.failTarget(t, plan.Deploy, "rolled back by "+person(sig))
		}
	case Promote:
		m.promote(sig.target(), person(sig))
	case Retry, Acknowledge, Stay:
		m.repair(sig)
	default:
		m.deliver(sig)
	}
}

// stuck reports whether an error holds the step: neither pass nor fail, and nobody has decided yet.
func (st *NodeStatus) stuck() bool { return st.Held && st.Verdict == Error }

// repair goes on with undos that have failed or wait, and with steps that an error holds: a retry enters them again, an acknowledgement is handed to those that
// asked for it and leaves those that failed as they are, and the decision to stay is handed to either.
func (m *machine) repair(sig Signal) {
	accept := false
	for _, p := range m.repairable(sig) {
		st := m.s.Nodes[p]
		broken := st.Phase == StepUndoFailed
		if broken && sig.Kind == Acknowledge {
			accept = true
			continue
		}
		st.Signals = append(st.Signals, sig)
		if st.stuck() {
			st.Attempt, st.Held, st.Verdict = 0, false, ""
			st.enter(StepRunning)
		} else if broken || !st.Deadline.IsZero() {
			st.Attempt = 0
			st.enter(StepUndoing)
		}
		m.s.Nodes[p] = st
	}
	m.s.Accepted = m.s.Accepted || accept
}

func person(s Signal) string {
	if s.By == "" {
		return "a person"
	}
	return s.By
}

func (m *machine) cancel(sig Signal) {
	if m.s.State.Final() || m.s.Cancel != "" {
		return
	}
	for _, t := range slices.Sorted(maps.Keys(m.s.Targets)) {
		ts := m.s.Targets[t]
		if ts.Failed != "" || m.over(t, "") || !m.unfinished(t) {
			continue
		}
		m.s.Cancel = "cancelled by " + person(sig)
		switch {
		case m.deploying(t):
			m.failTarget(t, plan.Deploy, "its deployment was under way")
			continue
		case m.has(t, plan.Deploy) && m.over(t, plan.After):
			ts.Failed, ts.State, ts.Reason = plan.After, Failed, "the steps after its deployment were cancelled"
		default:
			ts.State = Cancelled
		}
		m.s.Targets[t] = ts
		m.stopTarget(t, m.s.Cancel)
	}
}

// unfinished reports whether something of the target has yet to end.
func (m *machine) unfinished(target string) bool {
	return slices.ContainsFunc(m.spec.Graph.Nodes, func(n plan.Node) bool {
		st := m.s.Nodes[n.Path]
		return n.Target == target && (st.open() || st.Phase == StepPending)
	})
}

// promote skips what is left of the canary's steps: all that come before a promotion and change no version.
func (m *machine) promote(target, by string) {
	if !m.deploying(target) {
		return
	}
	before := map[string]bool{}
	for _, n := range slices.Backward(m.spec.Graph.Nodes) {
		if n.Kind == plan.KindPromote || n.Kind == plan.KindRedirect || before[n.Path] {
			for _, a := range n.After {
				before[a] = true
			}
		}
	}
	for _, n := range m.spec.Graph.Nodes {
		st := m.s.Nodes[n.Path]
		if n.Target != target || n.Phase != plan.Deploy || !before[n.Path] {
			continue
		}
		switch n.Kind {
		case plan.KindPause, plan.KindApproval, plan.KindAnalysis, plan.KindWebhook, plan.KindExpose, plan.KindSetWeight:
			if st.Phase == StepPending || st.open() && n.Kind != plan.KindSetWeight {
				m.end(n.Path, StepSkipped, "skipped by "+by)
			}
		}
	}
}

// deliver hands a signal to the step that it means.
func (m *machine) deliver(sig Signal) {
	for _, n := range m.spec.Graph.Nodes {
		st := m.s.Nodes[n.Path]
		undoing := st.Phase == StepUndoing
		if !st.open() && !undoing || sig.Path != n.Path && !slices.Contains(st.Awaits, sig.Key) {
			continue
		}
		if sig.Kind != Callback && !allowed(n, sig) {
			continue
		}
		if st.Held {
			switch sig.Kind {
			case Approve:
				m.end(n.Path, StepPassed, st.Message+" (continued by "+person(sig)+")")
			case Reject:
				m.fail(n, "rejected by "+person(sig))
			}
			continue
		}
		st.Signals = append(st.Signals, sig)
		if waits := st.Phase == StepWaiting || undoing && !st.Deadline.IsZero(); waits && st.Attempt == 0 {
			phase := StepRunning
			if undoing {
				phase = StepUndoing
			}
			st.enter(phase)
		}
		m.s.Nodes[n.Path] = st
	}
}
