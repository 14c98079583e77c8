// Package storetest is the conformance suite that every store runs.
package storetest

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
)

// Full is a store with everything that a server uses.
type Full interface {
	store.Store
	store.Lister
	store.Journaler
}

func spec(id string) delivery.Spec {
	return delivery.Spec{ID: id, Application: "app", CreatedAt: time.Unix(100, 0).UTC()}
}

// Run runs the suite. Each call of open gives a new, empty store that the test closes.
func Run(t *testing.T, open func(*testing.T) Full) {
	t.Run("create, load, swap", func(t *testing.T) { swap(t, open(t)) })
	t.Run("one running per application", func(t *testing.T) { running(t, open(t)) })
	t.Run("the newest queued replaces", func(t *testing.T) { queue(t, open(t)) })
	t.Run("the first signal of a key wins", func(t *testing.T) { signals(t, open(t)) })
	t.Run("watch tells of every change", func(t *testing.T) { watch(t, open(t)) })
	t.Run("an id exists once", func(t *testing.T) { twice(t, open(t)) })
	t.Run("a status is read as it was written", func(t *testing.T) { wholeStatus(t, open(t)) })
	t.Run("of concurrent swaps one wins", func(t *testing.T) { race(t, open(t)) })
	t.Run("of concurrent deliveries of an application one runs", func(t *testing.T) { raceOfCreates(t, open(t)) })
	t.Run("of concurrent signals of a key one wins", func(t *testing.T) { raceOfSignals(t, open(t)) })
	t.Run("signals beside swaps come once and in order", func(t *testing.T) { signalsBesideSwaps(t, open(t)) })
	t.Run("deliveries beside each other keep to themselves", func(t *testing.T) { besideEachOther(t, open(t)) })
}

func create(t *testing.T, s Full, d delivery.Spec) {
	t.Helper()
	if _, err := s.Create(t.Context(), d); err != nil {
		t.Fatal(err)
	}
}

func swap(t *testing.T, s Full) {
	ctx := t.Context()
	if _, err := s.Load(ctx, "none"); !fault.Is(err, fault.NotFound) {
		t.Fatalf("load of nothing: %v", err)
	}
	create(t, s, spec("a"))
	rev, err := s.Swap(ctx, "a", 1, delivery.Status{State: delivery.Running}, []store.Record{{Kind: "intent", Path: "p"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Swap(ctx, "a", 1, delivery.Status{State: delivery.Failed}, []store.Record{{Kind: "lost"}}); !fault.Is(err, fault.Conflict) {
		t.Fatalf("stale swap: %v", err)
	}
	d, err := s.Load(ctx, "a")
	if err != nil || d.Revision != rev || d.Status.State != delivery.Running || d.Spec.Application != "app" {
		t.Fatalf("%+v %v", d, err)
	}
	j, err := s.Journal(ctx, "a")
	if err != nil || len(j) != 2 || j[0].Kind != "created" || j[1].Kind != "intent" || j[1].Prev != j[0].Hash {
		t.Fatalf("%+v %v", j, err)
	}
}

func running(t *testing.T, s Full) {
	create(t, s, spec("a"))
	_, err := s.Create(t.Context(), spec("b"))
	if r, ok := errors.AsType[*store.ErrRunning](err); !ok || r.ID != "a" {
		t.Fatalf("want ErrRunning a, got %v", err)
	}
	if _, err := s.Swap(t.Context(), "a", 1, delivery.Status{State: delivery.Succeeded, Done: true}, nil); err != nil {
		t.Fatal(err)
	}
	create(t, s, spec("b"))
	open, err := s.List(t.Context(), true)
	all, err2 := s.List(t.Context(), false)
	if err != nil || err2 != nil || len(open) != 1 || open[0].Spec.ID != "b" || len(all) != 2 {
		t.Fatalf("%v %v %v %v", open, all, err, err2)
	}
	heads, err := s.Heads(t.Context(), true)
	if want := (store.Head{ID: "b", Application: "app", State: delivery.Pending}); err != nil || len(heads) != 1 || heads[0] != want {
		t.Fatalf("heads of the open ones: %v (%v)", heads, err)
	}
	if head, err := s.Head(t.Context(), "b"); err != nil || head != heads[0] {
		t.Errorf("the head of b: %v (%v)", head, err)
	}
	if _, err := s.Head(t.Context(), "none"); !fault.Is(err, fault.NotFound) {
		t.Errorf("the head of nothing: %v", err)
	}
	heads, err = s.Heads(t.Context(), false)
	if want := (store.Head{ID: "a", Application: "app", State: delivery.Succeeded, Done: true}); err != nil || len(heads) != 2 || !slices.Contains(heads, want) {
		t.Errorf("heads of all: %v (%v)", heads, err)
	}
}

func queue(t *testing.T, s Full) {
	create(t, s, spec("a"))
	for _, id := range []string{"b", "c"} {
		d := spec(id)
		d.EnqueueOne = true
		create(t, s, d)
	}
	for id, want := range map[string]delivery.State{"a": delivery.Pending, "b": delivery.Cancelled, "c": delivery.Queued} {
		if d, err := s.Load(t.Context(), id); err != nil || d.Status.State != want {
			t.Errorf("%s is %s, want %s (%v)", id, d.Status.State, want, err)
		}
	}
}

func signals(t *testing.T, s Full) {
	create(t, s, spec("a"))
	for i, want := range []bool{true, false} {
		by := string(rune('x' + i))
		if first, err := s.Signal(t.Context(), "a", delivery.Signal{Key: "approve/p", Kind: delivery.Approve, By: by}); err != nil || first != want {
			t.Fatalf("signal %d: %v %v", i, first, err)
		}
	}
	d, err := s.Load(t.Context(), "a")
	if err != nil || len(d.Signals) != 1 || d.Signals[0].By != "x" {
		t.Fatalf("%+v %v", d.Signals, err)
	}
	if _, err := s.Swap(t.Context(), "a", d.Revision, delivery.Status{Seen: d.Signals[0].Seq}, nil); err != nil {
		t.Fatal(err)
	}
	if d, err = s.Load(t.Context(), "a"); err != nil || len(d.Signals) != 0 {
		t.Fatalf("a signal that was taken in came again: %+v %v", d.Signals, err)
	}
	if _, err := s.Signal(t.Context(), "none", delivery.Signal{Key: "k"}); !fault.Is(err, fault.NotFound) {
		t.Fatalf("signal to nothing: %v", err)
	}
}

func watch(t *testing.T, s Full) {
	events, err := s.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	expect := func(what string) {
		t.Helper()
		select {
		case e := <-events:
			if e.ID != "a" {
				t.Fatalf("%s: event of %q", what, e.ID)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: no event", what)
		}
	}
	create(t, s, spec("a"))
	expect("create")
	if _, err := s.Signal(t.Context(), "a", delivery.Signal{Key: "k"}); err != nil {
		t.Fatal(err)
	}
	expect("signal")
	if _, err := s.Swap(t.Context(), "a", 1, delivery.Status{}, nil); err != nil {
		t.Fatal(err)
	}
	expect("swap")
}

func race(t *testing.T, s Full) {
	create(t, s, spec("a"))
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() { _, errs[i] = s.Swap(t.Context(), "a", 1, delivery.Status{Begun: i}, nil) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !fault.Is(err, fault.Conflict) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d swaps of the same revision won", won)
	}
}
