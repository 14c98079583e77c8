package delivery

import (
	"encoding/json"
	"time"

	"github.com/sluice-cd/sluice/internal/plan"
)

// Spec is what a delivery is to do. It never changes and holds names of secrets, never their values.
type Spec struct {
	ID          string            `json:"id"`
	Application string            `json:"application"`
	Graph       plan.Graph        `json:"graph"`
	Context     map[string]string `json:"context,omitempty"`
	CreatedAt   time.Time         `json:"createdAt"`
	By          string            `json:"by,omitempty"`
	File        string            `json:"file,omitempty"` // the deploy file as written, for redeploy
	EnqueueOne  bool              `json:"enqueueOne,omitempty"`
}

// Key is the idempotency key of a step of a delivery. It is the same for its run, its undo and its clean-up.
func Key(id, path string) string { return id + "/" + path + "/1" }

// State is how the whole delivery, or one target of it, is doing.
type State string

// The states. Skipped and RolledBack are of targets only.
const (
	Queued      State = "Queued"
	Pending     State = "Pending"
	Running     State = "Running"
	Paused      State = "Paused"
	RollingBack State = "RollingBack"
	RolledBack  State = "RolledBack"
	Succeeded   State = "Succeeded"
	Failed      State = "Failed"
	Cancelled   State = "Cancelled"
)

// Final reports whether a delivery in this state has ended.
func (s State) Final() bool { return s == Succeeded || s == Failed || s == Cancelled }

// Phase is where one step is.
type Phase string

// The phases of a step.
const (
	StepPending    Phase = "pending"
	StepRunning    Phase = "running"
	StepWaiting    Phase = "waiting"
	StepPassed     Phase = "passed"
	StepFailed     Phase = "failed"
	StepCancelled  Phase = "cancelled"
	StepSkipped    Phase = "skipped"
	StepUndoing    Phase = "undoing"
	StepUndone     Phase = "undone"
	StepUndoFailed Phase = "undoFailed"
)

// Status is how far a delivery is. It holds digests, never rows.
type Status struct {
	State    State                   `json:"state"`
	Reason   string                  `json:"reason,omitempty"` // one sentence
	Waits    string                  `json:"waits,omitempty"`  // why no step is entered: somebody else has what it goes to
	Paused   bool                    `json:"paused,omitempty"`
	Cancel   string                  `json:"cancel,omitempty"` // who cancelled and why, "" if nobody did
	Accepted bool                    `json:"accepted,omitempty"`
	Done     bool                    `json:"done,omitempty"` // ended and cleaned up; the application is free again
	Begun    int                     `json:"begun"`          // how many steps have begun
	Seen     int64                   `json:"seen"`           // sequence number of the last signal taken in
	Nodes    map[string]NodeStatus   `json:"nodes"`
	Targets  map[string]TargetStatus `json:"targets"`
	Started  time.Time               `json:"started"`
	Ended    time.Time               `json:"ended,omitzero"`
}

// CleaningUp reports whether a delivery has ended, and only what its steps used is still being cleaned up. A failed undo keeps
// what it needs until a person has tried again or acknowledged it.
func (s Status) CleaningUp() bool {
	if !s.State.Final() || s.Done {
		return false
	}
	for _, n := range s.Nodes {
		if n.Phase == StepUndoFailed && !s.Accepted {
			return false
		}
	}
	return true
}

// TargetStatus is how one target is doing.
type TargetStatus struct {
	State  State      `json:"state"`
	Reason string     `json:"reason,omitempty"`
	Failed plan.Phase `json:"failed,omitempty"` // the phase that failed
	Undo   bool       `json:"undo,omitempty"`   // what its deploy phase began is being undone
}

// NodeStatus is how one step is doing.
type NodeStatus struct {
	Phase    Phase             `json:"phase"`
	Verdict  Verdict           `json:"verdict,omitempty"`
	Message  string            `json:"message,omitempty"`
	Ran      *Ran              `json:"ran,omitempty"`   // how it had ended, where it is or was undone since
	Order    int               `json:"order,omitempty"` // it was the Order-th step to begin; 0 if it never did
	Entry    int               `json:"entry,omitempty"` // how often it was entered
	Attempt  int               `json:"attempt,omitempty"`
	Saved    json.RawMessage   `json:"saved,omitempty"`
	Kept     string            `json:"kept,omitempty"` // what undoing it has left on the new version, and why: a sentence
	Awaits   []string          `json:"awaits,omitempty"`
	Signals  []Signal          `json:"signals,omitempty"`
	Given    int               `json:"given,omitempty"`    // how many signals the last entry was given
	Held     bool              `json:"held,omitempty"`     // a person decides what its verdict means
	Stopping bool              `json:"stopping,omitempty"` // it has ended but its last entry has not returned
	Cleaning bool              `json:"cleaning,omitempty"`
	Cleaned  bool              `json:"cleaned,omitempty"`
	Deadline time.Time         `json:"deadline,omitzero"`
	Expose   map[string]string `json:"expose,omitempty"`
	Evidence json.RawMessage   `json:"evidence,omitempty"`
	Started  time.Time         `json:"started,omitzero"`
	Ended    time.Time         `json:"ended,omitzero"`
}

// Ran is how a step ended before it was undone.
type Ran struct {
	Phase   Phase  `json:"phase"`
	Message string `json:"message,omitempty"`
}

// Kinds of observations.
const (
	Signalled = "signal"
	Returned  = "outcome"
	Erred     = "error"
	SavedSome = "saved"
	Stopped   = "stopped"
	Blocked   = "blocked" // no step is entered, its error says why; without one they are again
)

// Observation is something that the engine has seen.
type Observation struct {
	Kind      string  `json:"kind"`
	Path      string  `json:"path,omitempty"`
	Entry     int     `json:"entry,omitempty"` // the entry that it answers; an older one is ignored
	Seq       int64   `json:"seq,omitempty"`   // of a signal
	Signal    *Signal `json:"signal,omitempty"`
	Result    *Result `json:"result,omitempty"`
	Error     string  `json:"error,omitempty"`
	Transient bool    `json:"transient,omitempty"`
	Saved     []byte  `json:"saved,omitempty"`
}

// Result is what an entry into a step returned.
type Result struct {
	Verdict  Verdict           `json:"verdict,omitempty"`
	Ask      bool              `json:"ask,omitempty"` // a person decides what the verdict means
	Message  string            `json:"message,omitempty"`
	Kept     string            `json:"kept,omitempty"` // of an undo that passes: what it has left on the new version, and why
	Wait     []string          `json:"wait,omitempty"`
	Deadline time.Time         `json:"deadline,omitzero"`
	Expose   map[string]string `json:"expose,omitempty"`
	Evidence json.RawMessage   `json:"evidence,omitempty"`
}

// Kinds of actions.
const (
	Run   = "run"
	Undo  = "undo"
	Clean = "clean"
	Stop  = "stop" // end the entry that is open and observe Stopped
)

// Action is an entry into a step that is to be in flight. Next returns all of them each time, so an engine that has
// lost its memory starts what is missing and ends what is not named.
type Action struct {
	Kind  string `json:"kind"`
	Key   string `json:"key"`
	Path  string `json:"path"`
	Entry int    `json:"entry"`
}
