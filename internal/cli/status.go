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

// status is a delivery as programs read it.
type status struct {
	ID          string         `json:"id"`
	Application string         `json:"application"`
	Status      string         `json:"status"` // the words of 5.1: RUNNING, AWAITING_APPROVAL …
	Reason      string         `json:"reason,omitempty"`
	Started     time.Time      `json:"startedAtIso8601"`
	Completed   time.Time      `json:"completedAtIso8601,omitzero"`
	InitiatedBy string         `json:"initiatedBy,omitempty"`
	Targets     []targetStatus `json:"targets"`
	Steps       []stepStatus   `json:"steps"`
}

type targetStatus struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Reason string `json:"reason,omitempty"`
}

type stepStatus struct {
	Path     string           `json:"path"`
	Kind     string           `json:"type"`
	Phase    delivery.Phase   `json:"status"`
	Verdict  delivery.Verdict `json:"verdict,omitempty"`
	Message  string           `json:"message,omitempty"`
	Evidence any              `json:"evidence,omitempty"`
	Started  time.Time        `json:"startedAt,omitzero"`
	Ended    time.Time        `json:"endedAt,omitzero"`
}

// word returns the status in the words that Armory's programs know.
func word(d store.Delivery) string {
	s := d.Status
	switch {
	case s.State == "" || s.State == delivery.Queued:
		return "QUEUED"
	case s.State == delivery.Succeeded, s.State == delivery.Failed, s.State == delivery.Cancelled:
		return strings.ToUpper(string(s.State))
	case s.Paused:
		return "PAUSED"
	}
	for _, n := range d.Spec.Graph.Nodes {
		if st := s.Nodes[n.Path]; st.Phase == delivery.StepWaiting && (n.Kind == plan.KindApproval || st.Held) {
			return "AWAITING_APPROVAL"
		}
	}
	return "RUNNING"
}

func statusOf(d store.Delivery) status {
	s := status{ID: d.Spec.ID, Application: d.Spec.Application, Status: word(d), Reason: d.Status.Reason, Started: d.Status.Started,
		Completed: d.Status.Ended, InitiatedBy: d.Spec.By}
	for _, t := range d.Spec.Graph.Targets {
		ts := d.Status.Targets[t.Name]
		s.Targets = append(s.Targets, targetStatus{Name: t.Name, Status: string(ts.State), Reason: ts.Reason})
	}
	for _, n := range d.Spec.Graph.Nodes {
		st := d.Status.Nodes[n.Path]
		e := stepStatus{Path: n.Path, Kind: n.Kind, Phase: st.Phase, Verdict: st.Verdict, Message: st.Message, Started: st.Started, Ended: st.Ended}
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
	}
	return "○"
}

func writeStatus(w io.Writer, d store.Delivery) error {
	s := statusOf(d)
	fmt.Fprintf(w, "application: %s, started: %s\nstatus: %s\n", s.Application, s.Started.Format(time.RFC3339), s.Status)
	if s.Reason != "" {
		fmt.Fprintf(w, "reason: %s\n", s.Reason)
	}
	for _, t := range s.Targets {
		fmt.Fprintf(w, "\n%s: %s\n", t.Name, t.Status)
		for _, n := range d.Spec.Graph.Nodes {
			if n.Target == t.Name {
				fmt.Fprintln(w, " ", stepLine(n, d.Status.Nodes[n.Path]))
			}
		}
	}
	return nil
}

func stepLine(n plan.Node, st delivery.NodeStatus) string {
	line := fmt.Sprintf("%s %-34s", mark(st.Phase), n.Title)
	if st.Message != "" {
		line += " " + st.Message
	}
	if !st.Started.IsZero() && !st.Ended.IsZero() {
		line += fmt.Sprintf(" (%s)", st.Ended.Sub(st.Started).Round(10*time.Millisecond))
	}
	return line
}

// changed returns the lines that tell what differs between two states of a delivery, for plain output.
func changed(before, after store.Delivery) []string {
	var lines []string
	nodes := slices.Clone(after.Spec.Graph.Nodes)
	slices.SortStableFunc(nodes, func(x, y plan.Node) int {
		return after.Status.Nodes[x.Path].Ended.Compare(after.Status.Nodes[y.Path].Ended)
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
