package kubernetes

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
)

// random is text that does not become smaller.
func random(size int) string {
	b := make([]byte, size)
	_, _ = rand.Read(b)
	return base64.StdEncoding.EncodeToString(b)
}

// large is a state that does not fit into a status, and records that move the journal to a Secret.
func large(t *testing.T, what string) (delivery.Status, []store.Record) {
	t.Helper()
	data, err := json.Marshal(random(tailLimit))
	if err != nil {
		t.Fatal(err)
	}
	return delivery.Status{State: delivery.Running, Reason: what, Cancel: random(2 * stateLimit)},
		[]store.Record{{Kind: "outcome", Path: what, At: time.Unix(100, 0), Data: data}}
}

// TestLostAnswer keeps a status whose answer is lost, and tries again from what was known before it.
func TestLostAnswer(t *testing.T) {
	f := newFake(t)
	s := f.open(t, f.config(t, "controller"))
	if _, err := s.Create(t.Context(), asking(t, "d")); err != nil {
		t.Fatal(err)
	}
	release := f.hold()
	lost := false
	f.mu.Lock()
	f.answered = func(r *http.Request) int {
		if lost || r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, "/status") {
			return 0
		}
		lost = true
		return http.StatusGatewayTimeout
	}
	f.mu.Unlock()
	state, records := large(t, "kept")
	if _, err := s.Swap(t.Context(), "d", 1, state, records); !fault.Is(err, fault.Transient) || !lost {
		t.Fatalf("the answer is lost: %v", err)
	}
	if d, err := s.Load(t.Context(), "d"); err != nil || d.Revision != 1 {
		t.Fatalf("what is known is revision %d (%v)", d.Revision, err)
	}
	other, more := large(t, "tried again")
	if _, err := s.Swap(t.Context(), "d", 1, other, more); !fault.Is(err, fault.Conflict) {
		t.Fatalf("a second status in place of the first: %v", err)
	}
	release()
	check := func(rev store.Revision, state delivery.Status, paths ...string) {
		t.Helper()
		d, err := s.Load(t.Context(), "d")
		if err != nil || d.Revision != rev || d.Status.Reason != state.Reason || d.Status.Cancel != state.Cancel {
			t.Fatalf("kept is %q at revision %d, not %q at %d (%v)", d.Status.Reason, d.Revision, state.Reason, rev, err)
		}
		all, err := s.Journal(t.Context(), "d")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range all {
			got = append(got, r.Path)
		}
		if !slices.Equal(got, append([]string{""}, paths...)) {
			t.Fatalf("the journal tells of %q", got)
		}
	}
	check(2, state, "kept")
	next, more := large(t, "next")
	if _, err := s.Swap(t.Context(), "d", 2, next, more); err != nil {
		t.Fatal(err)
	}
	check(3, next, "kept", "next")
	d, err := get[v1alpha1.Delivery](t.Context(), s.c, deliveries, "d")
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(d.Spec.Plan.Secrets, partsOf(d))
	if slices.Sort(want); !slices.Equal(f.names(secrets), want) {
		t.Errorf("after a commit there are the Secrets %q, and the delivery goes by %q", f.names(secrets), want)
	}
}
