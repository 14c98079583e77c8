package engine_test

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/store"
)

// lock is one application's. As a store it notes who has it when the end of a delivery is kept.
type lock struct {
	engine.Store

	mu     sync.Mutex
	holder string
	ended  map[string]string
	away   bool // nothing is given back
	again  time.Duration
}

func (l *lock) Take(_ context.Context, spec delivery.Spec) (time.Time, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holder != "" && l.holder != spec.ID {
		return time.Time{}, &store.ErrRunning{ID: l.holder, Application: spec.Application}
	}
	l.holder = spec.ID
	return time.Now().Add(cmp.Or(l.again, time.Hour)), nil
}

func (l *lock) Release(_ context.Context, spec delivery.Spec) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away {
		return fault.Newf(fault.Transient, "the cluster is away")
	}
	if l.holder == spec.ID {
		l.holder = ""
	}
	return nil
}

func (l *lock) Swap(ctx context.Context, id string, at store.Revision, s delivery.Status, r []store.Record) (store.Revision, error) {
	l.mu.Lock()
	if s.Done {
		l.ended[id] = l.holder
	}
	l.mu.Unlock()
	return l.Store.Swap(ctx, id, at, s, r)
}

// TestLockOfAnEndedDelivery holds that the lock is given back before the end of a delivery is kept: an engine that dies in
// between is asked again, and one that dies afterwards leaves nothing.
func TestLockOfAnEndedDelivery(t *testing.T) {
	l := &lock{ended: map[string]string{}}
	r := run(t, &fake{}, func(s engine.Store) engine.Store { l.Store = s; return l })
	r.start("a", false, "approve")
	r.until("a", waiting("approve"))
	l.mu.Lock()
	if l.holder != "a" {
		t.Errorf("while a runs the lock is held by %q", l.holder)
	}
	l.mu.Unlock()
	r.signal("a", delivery.Signal{Kind: delivery.Approve, Key: "approve/approve", Path: "approve"})
	r.until("a", done)
	r.start("b", false, "x")
	r.until("b", done)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range []string{"a", "b"} {
		if holder, ok := l.ended[id]; !ok || holder != "" {
			t.Errorf("when the end of %s was kept (%t) the lock was held by %q", id, ok, holder)
		}
	}
}

// TestLockOfOneThatCouldNotGiveItBack starts a delivery after one whose cluster was away when it ended.
func TestLockOfOneThatCouldNotGiveItBack(t *testing.T) {
	l := &lock{ended: map[string]string{}, away: true}
	r := run(t, &fake{}, func(s engine.Store) engine.Store { l.Store = s; return l })
	r.start("a", false, "x")
	r.until("a", done)
	l.mu.Lock()
	if l.holder != "a" {
		t.Errorf("the lock is held by %q", l.holder)
	}
	l.away = false
	l.mu.Unlock()
	r.start("b", false, "x")
	r.until("b", done)
}

// vanishing is a lock, and a store from which one delivery is taken away.
type vanishing struct {
	*lock
	gone atomic.Pointer[string]
}

func (v *vanishing) is(id string) error {
	if gone := v.gone.Load(); gone != nil && *gone == id {
		return fault.Newf(fault.NotFound, "there is no delivery %q", id)
	}
	return nil
}

func (v *vanishing) Load(ctx context.Context, id string) (store.Delivery, error) {
	if err := v.is(id); err != nil {
		return store.Delivery{}, err
	}
	return v.lock.Load(ctx, id)
}

func (v *vanishing) Head(ctx context.Context, id string) (store.Head, error) {
	if err := v.is(id); err != nil {
		return store.Head{}, err
	}
	return v.lock.Head(ctx, id)
}

func (v *vanishing) Heads(ctx context.Context, open bool) ([]store.Head, error) {
	all, err := v.lock.Heads(ctx, open)
	return slices.DeleteFunc(all, func(h store.Head) bool { return v.is(h.ID) != nil }), err
}

// stays is a step that runs until it is told to end, and tells of both. Afterwards it passes at once.
type stays struct {
	fake
	told  chan string
	after atomic.Bool
}

func (s *stays) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	if c.Path != "stay" || s.after.Load() {
		return s.fake.Run(ctx, c)
	}
	s.told <- "begun"
	<-ctx.Done()
	s.after.Store(true)
	s.told <- "ended"
	return step.Outcome{}, ctx.Err()
}

// TestGone takes a delivery away while a step of it runs: the step is ended, and the next of the application begins.
func TestGone(t *testing.T) {
	v := &vanishing{lock: &lock{ended: map[string]string{}}}
	f := &stays{told: make(chan string)}
	r := run(t, f, func(s engine.Store) engine.Store { v.Store = s; return v })
	r.start("a", false, "stay")
	if got := <-f.told; got != "begun" {
		t.Fatal(got)
	}
	r.start("b", true, "x")
	id := "a"
	v.gone.Store(&id)
	if _, err := v.Signal(t.Context(), "a", delivery.Signal{Kind: delivery.Pause, Key: "pause"}); err != nil {
		t.Fatal(err)
	}
	if got := <-f.told; got != "ended" {
		t.Fatal(got)
	}
	if s := r.until("b", done); s.State != delivery.Succeeded {
		t.Errorf("b is %s (%s)", s.State, s.Reason)
	}
}

// hasty is a lock with a clock that goes a hundred times as fast.
type hasty struct {
	*lock
	began time.Time
}

func (h *hasty) Now() time.Time { return h.began.Add(100 * time.Since(h.began)) }

func (h *hasty) After(d time.Duration) (<-chan time.Time, func()) {
	return engine.Wall{}.After(d / 100)
}

func (h *hasty) Take(ctx context.Context, spec delivery.Spec) (time.Time, error) {
	again, err := h.lock.Take(ctx, spec)
	return h.Now().Add(time.Until(again)), err
}

// give makes somebody hold the lock, whoever has it.
func (l *lock) give(holder string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holder = holder
}

// TestLosesItsLock takes the lock away from a delivery while a step of it runs, as another engine does once it has run out: the
// step is told to end, what it returns does not count, and it is entered again when the lock is the delivery's.
func TestLosesItsLock(t *testing.T) {
	l := &lock{ended: map[string]string{}, again: 10 * time.Second}
	f := &stays{told: make(chan string)}
	r := run(t, f, func(s engine.Store) engine.Store { l.Store = s; return &hasty{lock: l, began: time.Now()} })
	r.start("a", false, "stay")
	if got := <-f.told; got != "begun" {
		t.Fatal(got)
	}
	l.give("another engine's")
	if got := <-f.told; got != "ended" {
		t.Fatal(got)
	}
	if s := r.until("a", func(s delivery.Status) bool { return s.Waits != "" }); s.Nodes["stay"].Phase != delivery.StepRunning {
		t.Errorf("the step is %+v", s.Nodes["stay"])
	}
	l.give("")
	s := r.until("a", done)
	if n := s.Nodes["stay"]; s.State != delivery.Succeeded || n.Entry != 2 || n.Verdict != delivery.Pass {
		t.Errorf("it is %s (%s), the step %+v", s.State, s.Reason, n)
	}
}

// TestNotNamed changes a delivery behind its engine, so that the step which runs is over: it is told to end.
func TestNotNamed(t *testing.T) {
	f := &stays{told: make(chan string)}
	r := run(t, f, nil)
	r.start("a", false, "stay", "x")
	if got := <-f.told; got != "begun" {
		t.Fatal(got)
	}
	d, err := r.store.Load(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	n := d.Status.Nodes["stay"]
	n.Phase, n.Verdict = delivery.StepPassed, delivery.Pass
	d.Status.Nodes["stay"] = n
	if _, err := r.store.Swap(t.Context(), "a", d.Revision, d.Status, nil); err != nil {
		t.Fatal(err)
	}
	if got := <-f.told; got != "ended" {
		t.Fatal(got)
	}
	if s := r.until("a", done); s.State != delivery.Succeeded {
		t.Errorf("it is %s (%s)", s.State, s.Reason)
	}
}

// TestWaitsForALock keeps a delivery past Start, as a controller finds it, while somebody else has the lock: no step of it is
// entered, and it says why, until the lock is free.
func TestWaitsForALock(t *testing.T) {
	l := &lock{ended: map[string]string{}, holder: "another engine's"}
	f := &fake{}
	r := run(t, f, func(s engine.Store) engine.Store { l.Store = s; return &hasty{lock: l, began: time.Now()} })
	if _, err := r.store.Create(t.Context(), delivery.Spec{ID: "a", Application: "app", Graph: graph("x")}); err != nil {
		t.Fatal(err)
	}
	s := r.until("a", func(s delivery.Status) bool { return s.Waits != "" })
	if want := `it waits: delivery another engine's of application "app" is still running`; s.Reason != want || s.State != delivery.Running {
		t.Errorf("it is %s: %s", s.State, s.Reason)
	}
	f.mu.Lock()
	if len(f.did) > 0 {
		t.Errorf("meanwhile it did %v", f.did)
	}
	f.mu.Unlock()
	l.mu.Lock()
	l.holder = ""
	l.mu.Unlock()
	if s = r.until("a", done); s.State != delivery.Succeeded || s.Waits != "" || s.Reason != "every step passed" {
		t.Errorf("it is %s: %s, waits: %s", s.State, s.Reason, s.Waits)
	}
}

// TestRefusedSignals keeps signals past Signal, as a controller finds them: what cannot be taken in is in the journal, and why.
func TestRefusedSignals(t *testing.T) {
	r := run(t, &fake{}, nil)
	r.start("a", false, "approve", "x")
	r.until("a", waiting("approve"))
	for _, s := range []delivery.Signal{
		{Key: "1", Kind: delivery.Approve, Path: "x", By: "eve"},
		{Key: "2", Kind: "dance", By: "eve"},
		{Key: "approve/approve", Kind: delivery.Approve, Path: "approve", By: "alice"},
	} {
		if _, err := r.store.Signal(t.Context(), "a", s); err != nil {
			t.Fatal(err)
		}
	}
	if s := r.until("a", done); s.State != delivery.Succeeded {
		t.Errorf("it is %s: %s", s.State, s.Reason)
	}
	records, err := r.store.(store.Journaler).Journal(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, record := range records {
		if record.Kind != store.Refused {
			continue
		}
		var not store.Refusal
		if err := json.Unmarshal(record.Data, &not); err != nil {
			t.Fatal(err)
		}
		got = append(got, not.Signal.By+": "+not.Why)
	}
	if want := []string{"eve: step x has not begun", `eve: signal kind "dance" is not known`}; !slices.Equal(got, want) {
		t.Errorf("refused were %q, want %q", got, want)
	}
}
