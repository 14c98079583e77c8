package kubernetes

import (
	"net/http"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
)

// guard says from now on which requests are forbidden.
func (f *fake) guard(mayNot func(user, method, resource string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mayNot = mayNot
}

// TestUnreadableStates shows deliveries to those who may not read their Secrets, and one whose Secrets are gone.
func TestUnreadableStates(t *testing.T) {
	f := newFake(t)
	s := f.open(t, f.config(t, "controller"))
	for _, id := range []string{"small", "large", "lost"} {
		if _, err := s.Create(t.Context(), asking(t, id)); err != nil {
			t.Fatal(err)
		}
		st := delivery.Status{State: delivery.Running, Reason: "it goes on"}
		if id != "small" {
			st, _ = large(t, "it is large")
			st.Nodes = map[string]delivery.NodeStatus{approval: {Phase: delivery.StepWaiting, Order: 1}}
		}
		if _, err := s.Swap(t.Context(), id, 1, st, nil); err != nil {
			t.Fatal(err)
		}
	}
	lost, err := get[v1alpha1.Delivery](t.Context(), s.c, deliveries, "lost")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.c.remove(t.Context(), secrets, lost.Status.StateSecrets[0], ""); err != nil {
		t.Fatal(err)
	}
	f.guard(func(user, method, resource string) bool {
		return user == "approver" && method == http.MethodGet && resource == secrets
	})
	for _, user := range []string{"approver", "admin"} {
		all, err := f.remote(t, user).List(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", user, err)
		}
		got := map[string]string{}
		for _, d := range all {
			got[d.Spec.ID] = string(d.Status.State) + ": " + d.Status.Reason
		}
		if len(all) != 3 || got["small"] != "Running: it goes on" || got["large"] != "Running: it is large" || got["lost"] != "Running: it is large" {
			t.Errorf("to %s are shown %q", user, got)
		}
	}
	approver := f.remote(t, "approver")
	d, err := approver.Get(t.Context(), "large")
	if err != nil || !slices.Equal(delivery.Candidates(d.Spec, d.Status, delivery.Approve), []string{approval}) {
		t.Errorf("an approver sees %+v (%v)", d.Status, err)
	}
	known, err := get[v1alpha1.Delivery](t.Context(), s.c, deliveries, "large")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := approver.c.state(t.Context(), known); !fault.Is(err, fault.Denied) {
		t.Errorf("a state that may not be read: %v", err)
	}
	if _, _, err := s.c.current(t.Context(), lost); !fault.Is(err, fault.Lost) {
		t.Errorf("a state that is gone: %v", err)
	}
	f.mu.Lock()
	f.answered = func(*http.Request) int { return http.StatusGatewayTimeout }
	f.mu.Unlock()
	if _, err := s.c.state(t.Context(), known); !fault.Is(err, fault.Transient) {
		t.Errorf("a state that cannot be read just now: %v", err)
	}
}

// TestWatchGoesOn has a delivery go on while somebody who watches reads the Secrets of its state.
func TestWatchGoesOn(t *testing.T) {
	f := newFake(t)
	s := f.open(t, f.config(t, "controller"))
	if _, err := s.Create(t.Context(), asking(t, "d")); err != nil {
		t.Fatal(err)
	}
	swap := func(at store.Revision, done bool) {
		st, records := large(t, "large")
		if st.Done = done; done {
			st.State = delivery.Succeeded
		}
		if _, err := s.Swap(t.Context(), "d", at, st, records); err != nil {
			t.Error(err)
		}
	}
	var reads atomic.Int64
	var seen []store.Revision
	err := f.remote(t, "watcher").Watch(t.Context(), "d", func(d store.Delivery) {
		if seen = append(seen, d.Revision); d.Revision > 1 {
			return
		}
		swap(1, false)
		f.guard(func(user, method, resource string) bool {
			if user == "watcher" && resource == secrets && reads.Add(1) == 1 {
				swap(2, true)
			}
			return false
		})
	})
	if err != nil || !slices.Equal(seen, []store.Revision{1, 3}) {
		t.Errorf("seen are the revisions %v (%v)", seen, err)
	}
}
