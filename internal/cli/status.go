package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/store"
)

// status is a delivery as programs read it. The names are those of Armory's programs wherever they have one.
type status struct {
	ID           string            `json:"id"`
	Application  string            `json:"application"`
	Status       string            `json:"status"` // RUNNING, AWAITING_APPROVAL …
	Reason       string            `json:"reason,omitempty"`
	CleaningUp   bool              `json:"cleaningUp,omitempty"` // it has ended; the next delivery waits until this is over
	Started      time.Time         `json:"startedAtIso8601,omitzero"`
	Completed    time.Time         `json:"completedAtIso8601,omitzero"`
	InitiatedBy  string            `json:"initiatedBy,omitempty"`
	Context      map[string]string `json:"context,omitempty"`
	Source       source            `json:"source"`
	Environments []string          `json:"environments"`
	Targets      []targetStatus    `json:"targets"`
	Steps        []stepStatus      `json:"steps"`
}

type source struct {
	Product string `json:"product"`
	Version string `json:"version"`
}

type targetStatus struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Reason string `json:"reason,omitempty"`
}

type stepStatus struct {
	Ref           string           `json:"ref"` // the step's path
	Status        string           `json:"status"`
	Type          string           `json:"type"`
	Title         string           `json:"title"`
	DependsOn     []string         `json:"dependsOn,omitempty"`
	ConstraintFor string           `json:"constraintFor,omitempty"` // the target whose gate it is in
	Deployment    *deployment      `json:"deployment,omitempty"`
	Phase         delivery.Phase   `json:"phase"`
	Verdict       delivery.Verdict `json:"verdict,omitempty"`
	Message       string           `json:"message,omitempty"`
	Ran           *delivery.Ran    `json:"ran,omitempty"` // how it had ended, where it is or was undone since
	Evidence      any              `json:"evidence,omitempty"`
	Started       time.Time        `json:"startedAtIso8601,omitzero"`
	Ended         time.Time        `json:"completedAtIso8601,omitzero"`
}

// deployment says which of a target's steps of deploying a step is.
type deployment struct {
	ID          string `json:"id"`
	Environment string `json:"environment"`
	Step        int    `json:"step"`
	TotalSteps  int    `json:"totalSteps"`
}

// The statuses of Armory's programs.
const (
	notStarted       = "NOT_STARTED"
	queued           = "QUEUED"
	running          = "RUNNING"
	paused           = "PAUSED"
	awaitingApproval = "AWAITING_APPROVAL"
	succeeded        = "SUCCEEDED"
	failed           = "FAILED"
	cancelled        = "CANCELLED"
)

// word returns the status of a delivery in the words that Armory's programs know.
func word(d store.Delivery) string {
	s := d.Status
	switch {
	case s.State == "" || s.State == delivery.Queued:
		return queued
	case s.State.Final():
		return strings.ToUpper(string(s.State))
	case s.Paused:
		return paused
	case len(awaiting(d)) > 0:
		return awaitingApproval
	}
	return running
}

// awaiting returns the steps that wait for a person.
func awaiting(d store.Delivery) []plan.Node {
	var out []plan.Node
	for _, n := range d.Spec.Graph.Nodes {
		if stepWord(n, d.Status.Nodes[n.Path]) == awaitingApproval {
			out = append(out, n)
		}
	}
	return out
}

func stepWord(n plan.Node, st delivery.NodeStatus) string {
	switch st.Phase {
	case delivery.StepRunning, delivery.StepUndoing:
		return running
	case delivery.StepWaiting:
		switch {
		case st.Held || n.Kind == plan.KindApproval:
			return awaitingApproval
		case n.Kind == plan.KindPause:
			return paused
		}
		return running
	case delivery.StepPassed:
		return succeeded
	case delivery.StepFailed, delivery.StepUndoFailed:
		return failed
	case delivery.StepUndone:
		if st.Ran != nil && st.Ran.Phase == delivery.StepFailed {
			return failed
		}
		return cancelled
	case delivery.StepCancelled, delivery.StepSkipped:
		return cancelled
	default:
		return notStarted
	}
}

func targetWord(t delivery.TargetStatus) string {
	switch t.State {
	case "", delivery.Pending:
		return notStarted
	case delivery.RollingBack:
		return running
	case delivery.RolledBack:
		return failed
	default:
		return strings.ToUpper(string(t.State))
	}
}

func statusOf(d store.Delivery) status {
	s := status{ID: d.Spec.ID, Application: d.Spec.Application, Status: word(d), Reason: d.Status.Reason, CleaningUp: d.Status.CleaningUp(), Started: d.Status.Started,
		Completed: d.Status.Ended, InitiatedBy: d.Spec.By, Context: d.Spec.Context, Source: source{"Sluice", version()},
		Environments: []string{}, Targets: []targetStatus{}, Steps: []stepStatus{}}
	totals := map[string]int{}
	for _, n := range d.Spec.Graph.Nodes {
		if n.Phase == plan.Deploy {
			totals[n.Target]++
		}
	}
	for _, t := range d.Spec.Graph.Targets {
		ts := d.Status.Targets[t.Name]
		s.Environments = append(s.Environments, t.Name)
		s.Targets = append(s.Targets, targetStatus{Name: t.Name, Status: targetWord(ts), Reason: ts.Reason})
	}
	at := map[string]int{}
	for _, n := range d.Spec.Graph.Nodes {
		st := d.Status.Nodes[n.Path]
		e := stepStatus{Ref: n.Path, Status: stepWord(n, st), Type: n.Kind, Title: n.Title, DependsOn: n.After, Phase: st.Phase, Verdict: st.Verdict,
			Message: st.Message, Ran: st.Ran, Started: st.Started, Ended: st.Ended}
		if e.Phase == "" {
			e.Phase = delivery.StepPending
		}
		if n.Phase == plan.Deploy {
			at[n.Target]++
			e.Deployment = &deployment{ID: d.Spec.ID + "/" + n.Target, Environment: n.Target, Step: at[n.Target], TotalSteps: totals[n.Target]}
		} else {
			e.ConstraintFor = n.Target
		}
		if len(st.Evidence) > 0 {
			e.Evidence = st.Evidence
		}
		s.Steps = append(s.Steps, e)
	}
	return s
}

// marks are the signs before steps.
func mark(p delivery.Phase) string {
	switch p {
	case delivery.StepPassed:
		return "✔"
	case delivery.StepFailed, delivery.StepUndoFailed:
		return "✖"
	case delivery.StepRunning:
		return "●"
	case delivery.StepWaiting:
		return "◐"
	case delivery.StepUndoing, delivery.StepUndone:
		return "↩"
	case delivery.StepCancelled, delivery.StepSkipped:
		return "–"
	default:
		return "○"
	}
}

func writeStatus(w io.Writer, d store.Delivery) error {
	s := statusOf(d)
	var b strings.Builder
	started := "not yet"
	if !s.Started.IsZero() {
		started = s.Started.Format(time.RFC3339)
	}
	fmt.Fprintf(&b, "application: %s, started: %s\nstatus: %s\n", s.Application, started, s.Status)
	if s.Reason != "" {
		fmt.Fprintf(&b, "reason: %s\n", oneLine(s.Reason))
	}
	if s.CleaningUp {
		fmt.Fprintf(&b, "what its steps used is being cleaned up; the next delivery of %s starts when that is over\n", s.Application)
	}
	if s.Status == paused {
		fmt.Fprintf(&b, "no further step starts until: sluice deploy resume %s\n", s.ID)
	}
	for _, n := range awaiting(d) {
		if st := d.Status.Nodes[n.Path]; st.Held && st.Verdict == delivery.Error {
			fmt.Fprintf(&b, "%s is held by an error: sluice deploy retry %s tries it again, sluice deploy approve %[2]s %[3]s goes on without it\n", n.Title, s.ID, quoted(n.Path))
			continue
		}
		fmt.Fprintf(&b, "%s waits for a person: sluice deploy approve %s %s\n", n.Title, s.ID, quoted(n.Path))
	}
	for _, t := range s.Targets {
		fmt.Fprintf(&b, "\n%s: %s\n", t.Name, t.Status)
		for _, n := range d.Spec.Graph.Nodes {
			if n.Target == t.Name {
				for _, line := range stepLines(n, d.Status.Nodes[n.Path]) {
					fmt.Fprintln(&b, " ", line)
				}
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// quoted writes an argument so that a shell takes it as one.
func quoted(arg string) string {
	if !strings.ContainsFunc(arg, func(r rune) bool {
		return !(r == '/' || r == '-' || r == '_' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}) {
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}

// oneLine takes the line breaks out of a message: the output of a program may be part of it.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// stepLines tell how a step is doing; what was undone first says how it had ended.
func stepLines(n plan.Node, st delivery.NodeStatus) []string {
	if st.Ran == nil {
		return []string{stepLine(n, st)}
	}
	ran := stepLine(n, delivery.NodeStatus{Phase: st.Ran.Phase, Message: st.Ran.Message})
	n.Title = "undo: " + n.Title
	st.Started = time.Time{} // its time is that of the run and of all that came between
	return []string{ran, stepLine(n, st)}
}

func stepLine(n plan.Node, st delivery.NodeStatus) string {
	line := fmt.Sprintf("%s %-40s", mark(st.Phase), n.Title)
	if st.Message != "" {
		line += " " + oneLine(st.Message)
	}
	line = strings.TrimRight(line, " ")
	if !st.Started.IsZero() && !st.Ended.IsZero() {
		line += fmt.Sprintf(" (%s)", st.Ended.Sub(st.Started).Round(10*time.Millisecond))
	}
	return line
}

// changed returns the lines that tell what differs between two states of a delivery, for plain output.
func changed(before, after store.Delivery) []string {
	var lines []string
	if w := after.Status.Waits; w != "" && w != before.Status.Waits {
		lines = append(lines, "waits: "+w)
	}
	nodes := slices.Clone(after.Spec.Graph.Nodes)
	// What has ended comes in the order in which it did, before what that has started.
	slices.SortStableFunc(nodes, func(x, y plan.Node) int {
		a, b := after.Status.Nodes[x.Path].Ended, after.Status.Nodes[y.Path].Ended
		switch {
		case a.IsZero() == b.IsZero():
			return a.Compare(b)
		case a.IsZero():
			return 1
		}
		return -1
	})
	for _, n := range nodes {
		b, a := before.Status.Nodes[n.Path], after.Status.Nodes[n.Path]
		if a.Phase == b.Phase && a.Message == b.Message || a.Phase == delivery.StepPending || a.Phase == "" {
			continue
		}
		if a.Phase == delivery.StepRunning && a.Entry > 1 && b.Phase == delivery.StepWaiting {
			continue
		}
		lines = append(lines, n.Target+": "+stepLine(n, a))
	}
	return lines
}
