// Package store is the port to where deliveries are kept.
//
// A store is the truth: what it has acknowledged survives a crash at any instant. Errors carry a kind (package fault).
package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
)

// Revision is a version of a delivery's status.
type Revision int64

// First is the revision of a delivery that has been taken in and of which nothing else is kept yet.
const First Revision = 1

// Delivery is a delivery as it is kept.
type Delivery struct {
	Spec     delivery.Spec
	Status   delivery.Status
	Revision Revision
	Signals  []Signal // those that the status has not taken in yet, in the order they came
}

// Signal is a stored signal with its sequence number.
type Signal struct {
	Seq int64
	delivery.Signal
}

// Record is one line of a delivery's journal. Hash covers the record and the hash before it.
type Record struct {
	Seq   int64           `json:"seq"`
	Kind  string          `json:"kind"` // created, intent, outcome, signal
	Path  string          `json:"path,omitempty"`
	Entry int             `json:"entry,omitempty"`
	At    time.Time       `json:"at"`
	Data  json.RawMessage `json:"data,omitempty"`
	Prev  string          `json:"prev"`
	Hash  string          `json:"hash"`
}

// Refused is the kind of the record of a signal that a delivery did not take in; its data is a Refusal.
const Refused = "refused"

// Refusal says why a signal was not taken in.
type Refusal struct {
	Signal delivery.Signal `json:"signal"`
	Why    string          `json:"why"`
}

// Event says that something of a delivery has changed: load it.
type Event struct {
	ID string
}

// ErrRunning says that another delivery of the application has not ended.
type ErrRunning struct{ ID, Application string } //nolint:errname // it is used like a sentinel: errors.AsType[*store.ErrRunning]

// Error says which delivery is in the way.
func (e *ErrRunning) Error() string {
	return fmt.Sprintf("delivery %s of application %q is still running", e.ID, e.Application)
}

// Store keeps deliveries.
type Store interface {
	// Create keeps a new delivery. While another one of the application is not done it returns ErrRunning, or with
	// EnqueueOne keeps it as queued and cancels the one that was queued before. An id that exists is an error of kind
	// conflict, whatever has become of its delivery.
	Create(ctx context.Context, spec delivery.Spec) (Revision, error)
	// Load returns one delivery; an unknown one is an error of kind not found.
	Load(ctx context.Context, id string) (Delivery, error)
	// Swap puts a new status in place of the one of the given revision and appends to the journal, in one commit. A
	// revision that is no longer the present one is an error of kind conflict, and nothing is written.
	Swap(ctx context.Context, id string, at Revision, s delivery.Status, records []Record) (Revision, error)
	// Signal is durable when it returns. It reports false where an earlier signal of the key has won.
	Signal(ctx context.Context, id string, s delivery.Signal) (bool, error)
	// Watch sends an event after every change of a delivery until ctx ends, and then closes the channel.
	Watch(ctx context.Context) (<-chan Event, error)
}

// Head is what is known of a delivery without its plan.
type Head struct {
	ID, Application string
	State           delivery.State
	Done            bool
}

// Lister lists deliveries, newest first. With open, only those that are not done.
type Lister interface {
	List(ctx context.Context, open bool) ([]Delivery, error)
	// Head costs little, however large the plan is. An unknown delivery is an error of kind not found.
	Head(ctx context.Context, id string) (Head, error)
	// Heads are in the order of List.
	Heads(ctx context.Context, open bool) ([]Head, error)
}

// Journaler returns the journal of one delivery, verified against its hash chain; a broken chain is an error of kind lost.
type Journaler interface {
	Journal(ctx context.Context, id string) ([]Record, error)
}
