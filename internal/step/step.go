// Package step is what each kind of step does, one file each.
package step

import (
	"context"
	"encoding/json"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
)

// Step is one kind of step. Run is entered again with the same key after a crash or when one of the awaited signals has
// come; it finds in Call.Saved what it saved last and must go on from there. An error of kind transient enters the step
// again after a back-off; the fifth in a row, and any other error, is the verdict error.
type Step interface {
	// Plan says what the step will do. It is pure and refuses what cannot be done, by name.
	Plan(n plan.Node) (plan.Description, error)
	// Run does the step, or goes on with it.
	Run(ctx context.Context, c Call) (Outcome, error)
	// Undo takes back what Run did. It is entered for every begun step of the deploy phase, last first.
	Undo(ctx context.Context, c Call) (Outcome, error)
}

// Cleaner is a Step that leaves things behind for later steps; it is entered once the delivery has ended, for every
// begun step, last first, whatever the end was.
type Cleaner interface {
	Clean(ctx context.Context, c Call) (Outcome, error)
}

// Call is one entry into a step.
type Call struct {
	Key      string          // (delivery, path, ordinal): the same after a crash
	Delivery string          // id of the delivery
	Target   string          // "" outside a target
	Path     string          // the step's path in the plan
	Args     json.RawMessage // as planned
	Saved    json.RawMessage // what Save kept last, nil at first
	Signals  []delivery.Signal
	Now      time.Time
	Attempt  int // consecutive errors of this step so far
	// Save keeps a value durably; it is called before each effect.
	Save func(ctx context.Context, v any) error
	// Progress shows one line to people watching; it is not kept.
	Progress func(format string, args ...any)
	// Siblings returns what another step of this delivery saved, by path, nil if it never did.
	Siblings func(path string) json.RawMessage
}

// Outcome is how an entry ended: a verdict, or what is awaited.
type Outcome struct {
	Verdict  delivery.Verdict  // "" while waiting
	Ask      bool              // a person decides what the verdict means: approve goes on, reject fails
	Message  string            // one sentence, shown with the step
	Kept     string            // of an undo that passes: what it has left on the new version, and why
	Wait     []string          // keys of signals that wake the step
	Deadline time.Time         // also wakes it; zero: none
	Expose   map[string]string // values for later templates: "preview.web" → url
	Evidence any               // kept with the delivery as JSON, never rows
}

// Done ends a step with a verdict.
func Done(v delivery.Verdict, message string) Outcome { return Outcome{Verdict: v, Message: message} }

// Wait leaves a step waiting for one of the signals or the deadline.
func Wait(deadline time.Time, message string, signals ...string) Outcome {
	return Outcome{Wait: signals, Deadline: deadline, Message: message}
}
