package engine_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
)

// lock is one application's. As a store it notes who has it when the end of a delivery is kept.
type lock struct {
	engine.Store

	mu     sync.Mutex
	holder string
	ended  map[string]string
	away   bool // nothing is given back
}

func (l *lock) Take(_ context.Context, spec delivery.Spec) (time.Time, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holder != "" && l.holder != spec.ID {
		return time.Time{}, &store.ErrRunning{ID: l.holder, Application: spec.Application}
	}
	l.holder = spec.ID
	return time.Now().Add(time.Hour), nil
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
