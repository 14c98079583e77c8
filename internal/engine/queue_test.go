package engine_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/store"
	"github.com/sluice-cd/sluice/internal/store/sqlite"
)

// running is an engine with one kind of step, and what is needed to follow it.
type running struct {
	*engine.Engine
	t      *testing.T
	store  engine.Store
	events <-chan store.Event
}

// run starts an engine on a new store; wrap may put something before the store, which may be locks as well, or a clock.
func run(t *testing.T, s step.Step, wrap func(engine.Store) engine.Store) *running {
	t.Helper()
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	events, err := db.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, store: db, events: events}
	if wrap != nil {
		r.store = wrap(db)
	}
	locks, _ := r.store.(engine.Locks)
	clock, _ := r.store.(engine.Clock)
	r.Engine = engine.New(engine.Options{Store: r.store, Steps: map[string]step.Step{"fake": s}, Locks: locks, Clock: clock})
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the engine ended with %v", err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *running) start(id string, enqueue bool, paths ...string) {
	r.t.Helper()
	if err := r.Start(r.t.Context(), delivery.Spec{ID: id, Application: "app", Graph: graph(paths...), EnqueueOne: enqueue}); err != nil {
		r.t.Fatal(err)
	}
}

// until waits until a delivery is as asked.
func (r *running) until(id string, is func(delivery.Status) bool) delivery.Status {
	r.t.Helper()
	for {
		d, err := r.store.Load(r.t.Context(), id)
		if err != nil {
			r.t.Fatal(err)
		}
		if is(d.Status) {
			return d.Status
		}
		if _, ok := <-r.events; !ok {
			r.t.Fatalf("delivery %s stays %s (%s)", id, d.Status.State, d.Status.Reason)
		}
	}
}

func done(s delivery.Status) bool { return s.Done }

func waiting(path string) func(delivery.Status) bool {
	return func(s delivery.Status) bool { return s.Nodes[path].Phase == delivery.StepWaiting }
}

func (r *running) signal(id string, s delivery.Signal) {
	r.t.Helper()
	if _, err := r.Signal(r.t.Context(), id, s); err != nil {
		r.t.Fatal(err)
	}
}

func TestQueue(t *testing.T) {
	r := run(t, &fake{}, nil)
	r.start("a", false, "approve")
	r.until("a", waiting("approve"))
	err := r.Start(t.Context(), delivery.Spec{ID: "refused", Application: "app", Graph: graph("x")})
	if e, ok := errors.AsType[*store.ErrRunning](err); !ok || e.ID != "a" {
		t.Fatalf("a second delivery beside the first: %v", err)
	}
	r.start("b", true, "x")
	if s := r.until("b", func(delivery.Status) bool { return true }); s.State != delivery.Queued {
		t.Fatalf("b is %s", s.State)
	}
	r.start("c", true, "x")
	if s := r.until("b", done); s.State != delivery.Cancelled {
		t.Errorf("b, which c replaced, is %s", s.State)
	}
	// One that is cancelled in the queue does not wait for its turn.
	r.signal("c", delivery.Signal{Kind: delivery.CancelAll, Key: "cancel", By: "ann"})
	if s := r.until("c", done); s.State != delivery.Cancelled || s.Begun != 0 {
		t.Errorf("c is %s (%s) and began %d steps", s.State, s.Reason, s.Begun)
	}
	r.start("d", true, "x")
	r.signal("a", delivery.Signal{Kind: delivery.Approve, Key: "approve/approve", Path: "approve"})
	if s := r.until("a", done); s.State != delivery.Succeeded {
		t.Errorf("a is %s", s.State)
	}
	if s := r.until("d", done); s.State != delivery.Succeeded {
		t.Errorf("d, whose turn it was, is %s", s.State)
	}
}

// damaged is a store one delivery of which cannot be read for a while.
type damaged struct {
	engine.Store
	id     string
	mended atomic.Bool
}

func (d *damaged) Load(ctx context.Context, id string) (store.Delivery, error) {
	if id == d.id && !d.mended.Load() {
		return store.Delivery{}, fault.Newf(fault.Lost, "a part of its plan is gone")
	}
	return d.Store.Load(ctx, id)
}

// TestUnreadableInTheQueue starts an engine that finds a queued delivery which it cannot read: the others go on, those that come
// to their turn as well, and it is read again.
func TestUnreadableInTheQueue(t *testing.T) {
	s := &damaged{id: "b"}
	r := run(t, &fake{}, func(under engine.Store) engine.Store {
		s.Store = under
		for _, spec := range []delivery.Spec{
			{ID: "a", Application: "app", Graph: graph("approve")},
			{ID: "b", Application: "app", Graph: graph("x"), EnqueueOne: true},
			{ID: "c", Application: "other", Graph: graph("approve")},
			{ID: "d", Application: "other", Graph: graph("x"), EnqueueOne: true},
		} {
			if _, err := s.Create(t.Context(), spec); err != nil {
				t.Fatal(err)
			}
		}
		return s
	})
	r.until("a", waiting("approve"))
	r.until("c", waiting("approve"))
	if _, err := s.Signal(t.Context(), "b", delivery.Signal{Kind: delivery.CancelAll, Key: "cancel", By: "ann"}); err != nil {
		t.Fatal(err)
	}
	r.signal("c", delivery.Signal{Kind: delivery.Approve, Key: "approve/approve", Path: "approve"})
	if s := r.until("d", done); s.State != delivery.Succeeded {
		t.Errorf("d, whose turn it was, is %s", s.State)
	}
	s.mended.Store(true)
	if s := r.until("b", done); s.State != delivery.Cancelled {
		t.Errorf("b, which was cancelled while it could not be read, is %s", s.State)
	}
}

// full is a store that cannot write for a while.
type full struct {
	engine.Store
	fails atomic.Int64 // swaps that are still to fail
}

func (f *full) Swap(ctx context.Context, id string, at store.Revision, s delivery.Status, r []store.Record) (store.Revision, error) {
	if f.fails.Add(-1) >= 0 {
		return 0, errors.New("database or disk is full")
	}
	return f.Store.Swap(ctx, id, at, s, r)
}

// TestFullStore holds that a delivery goes on when its store can write again, with what its steps returned meanwhile.
func TestFullStore(t *testing.T) {
	f := &full{}
	steps := &fake{}
	r := run(t, steps, func(s engine.Store) engine.Store { f.Store = s; return f })
	r.start("a", false, "one", "approve", "two")
	r.until("a", waiting("approve"))
	f.fails.Store(3)
	r.signal("a", delivery.Signal{Kind: delivery.Approve, Key: "approve/approve", Path: "approve"})
	if s := r.until("a", done); s.State != delivery.Succeeded {
		t.Errorf("it is %s (%s)", s.State, s.Reason)
	}
	steps.mu.Lock()
	defer steps.mu.Unlock()
	entered := 0
	for _, what := range steps.did {
		if what == "run two" {
			entered++
		}
	}
	if left := f.fails.Load(); left >= 0 || entered != 1 {
		t.Errorf("%d failures are left, step two was entered %d times", left, entered)
	}
}

// TestRefused holds that what cannot be carried out is refused before anything is kept.
func TestRefused(t *testing.T) {
	r := run(t, &fake{}, nil)
	g := graph("x")
	g.Nodes[0].Kind = "maskData"
	if err := r.Start(t.Context(), delivery.Spec{ID: "a", Application: "app", Graph: g}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a step that is not built: %v", err)
	}
	if _, err := r.Signal(t.Context(), "a", delivery.Signal{Kind: delivery.CancelAll, Key: "cancel"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("a signal to nothing: %v", err)
	}
	r.start("b", false, "x")
	r.until("b", done)
	if _, err := r.Signal(t.Context(), "b", delivery.Signal{Kind: delivery.CancelAll, Key: "cancel"}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a signal to what has ended: %v", err)
	}
}

// panics is a step whose code is wrong.
type panics struct{ fake }

func (*panics) Run(context.Context, step.Call) (step.Outcome, error) { panic("index out of range") }

// TestPanic holds that a step which breaks is the verdict error of that step, and no end of the server.
func TestPanic(t *testing.T) {
	r := run(t, &panics{}, nil)
	r.start("a", false, "x")
	s := r.until("a", waiting("x"))
	if n := s.Nodes["x"]; n.Verdict != delivery.Error || !n.Held {
		t.Errorf("%+v", n)
	}
}
