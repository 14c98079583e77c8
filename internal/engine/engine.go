// Package engine carries deliveries out: it performs what package delivery decides, keeps what it saw, and goes on from
// the same place after a crash.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/store"
)

// Store is what an engine needs of a store.
type Store interface {
	store.Store
	store.Lister
}

// Clock gives the time. After returns a channel that receives once d has passed, and a function that gives it up.
type Clock interface {
	Now() time.Time
	After(d time.Duration) (<-chan time.Time, func())
}

// Wall is the clock of this machine.
type Wall struct{}

// Now returns the time in UTC.
func (Wall) Now() time.Time { return time.Now().UTC() }

// After returns a timer's channel.
func (Wall) After(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(d)
	return t.C, func() { t.Stop() }
}

// Progress is one line for people who watch; it is not kept.
type Progress struct {
	Delivery string    `json:"delivery"`
	Path     string    `json:"path"`
	Line     string    `json:"line"`
	At       time.Time `json:"at"`
}

// Options are what an engine is made of. Steps are by kind.
type Options struct {
	Store    Store
	Steps    map[string]step.Step
	Clock    Clock
	Log      *slog.Logger
	Progress func(Progress) // must not block; nil shows nothing
	Locks    Locks          // nil: nobody else delivers to the same places
}

// turns is how many deliveries are read from the store, or kept, at the same time. The others wait in the order in which
// they came: a thousand that are approved at once are a queue here, and not a thousand requests.
const turns = 32

// Engine carries out the deliveries of one store. Only one may run per store.
type Engine struct {
	o       Options
	turn    chan struct{}
	changed chan struct{} // what the queue depends on has changed
	mu      sync.Mutex
	workers map[string]*worker
	wg      sync.WaitGroup
}

// New makes an engine.
func New(o Options) *Engine {
	if o.Clock == nil {
		o.Clock = Wall{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	return &Engine{o: o, turn: make(chan struct{}, turns), changed: make(chan struct{}, 1), workers: map[string]*worker{}}
}

// Start keeps a delivery; the running engine carries it out. It refuses a graph with a kind of step that is not built.
func (e *Engine) Start(ctx context.Context, spec delivery.Spec) error {
	for _, n := range spec.Graph.Nodes {
		s, ok := e.o.Steps[n.Kind]
		if !ok {
			return fault.Newf(fault.Invalid, "step %s needs %s, not built yet", n.Path, n.Kind)
		}
		if _, err := s.Plan(n); err != nil {
			return fmt.Errorf("step %s: %w", n.Path, err)
		}
	}
	if e.o.Locks != nil && !spec.EnqueueOne {
		// Whoever starts it is told at once.
		if _, err := e.take(ctx, spec); err != nil {
			return err
		}
	}
	_, err := e.o.Store.Create(ctx, spec)
	if _, running := errors.AsType[*store.ErrRunning](err); running && e.o.Locks != nil && !spec.EnqueueOne {
		err = errors.Join(err, e.o.Locks.Release(ctx, spec))
	}
	return err
}

// Signal checks and keeps a signal. It reports false where an earlier signal of the key has won.
func (e *Engine) Signal(ctx context.Context, id string, s delivery.Signal) (bool, error) {
	d, err := e.o.Store.Load(ctx, id)
	if err != nil {
		return false, err
	}
	if err := delivery.Check(d.Spec, d.Status, s); err != nil {
		return false, err
	}
	if s.At.IsZero() {
		s.At = e.o.Clock.Now()
	}
	return e.o.Store.Signal(ctx, id, s)
}

// Run carries out every open delivery, and those that come, until ctx ends and every step has returned. One that cannot be
// read stops no other.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer e.wg.Wait()
	defer cancel()
	events, err := e.o.Store.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch the store: %w", err)
	}
	e.wg.Go(func() { e.queue(ctx) })
	for ev := range events {
		if !e.poke(ev.ID) {
			e.admit(ctx, ev.ID)
		}
	}
	return ctx.Err()
}

// poke wakes the worker of a delivery and reports whether there is one.
func (e *Engine) poke(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	w, ok := e.workers[id]
	if ok {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	return ok
}

func (e *Engine) work(ctx context.Context, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.workers[id]; ok {
		return
	}
	w := &worker{e: e, id: id, wake: make(chan struct{}, 1), seen: make(chan seen), running: map[string]*entry{}, gone: make(chan struct{})}
	e.workers[id] = w
	e.wg.Go(func() {
		err := w.run(ctx)
		e.mu.Lock()
		delete(e.workers, id)
		e.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			e.o.Log.Error("a delivery is not carried on", "delivery", id, "error", err)
		}
		e.look() // the application is free: one that was queued may start
	})
}
