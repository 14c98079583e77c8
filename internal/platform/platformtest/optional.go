package platformtest

import (
	"bytes"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

func (h Harness) canary(t *testing.T) platform.Shifter {
	t.Helper()
	s, ok := h.Platform.(platform.Shifter)
	if !ok {
		t.Skip("the platform shifts no traffic")
	}
	h.apply(t, "a", append(objects(t, webService), objects(t, webDeployment, 2, h.Image, "one")...))
	h.until(t, web, "ready", ready)
	if _, err := s.StartCanary(t.Context(), "c", objects(t, webDeployment, 2, h.Image, "two"), opts); err != nil {
		t.Fatal(err)
	}
	h.until(t, web, "ready with the canary", func(s platform.State) bool { return s.Ready && s.Replicas == 3 })
	return s
}

// share asks a number of times and returns how many of them the canary answered.
func (h Harness) share(t *testing.T, n int) int {
	t.Helper()
	two := 0
	for range n {
		got, err := h.get(t, http.DefaultClient)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(got, "two ") {
			two++
		}
	}
	return two
}

func weights(t *testing.T, h Harness) {
	s := h.canary(t)
	for _, w := range []int{0, 25, 50, 100} {
		if err := s.SetWeight(t.Context(), "w"+string(rune('0'+w/10)), []manifest.Ref{web}, w); err != nil {
			t.Fatal(err)
		}
		h.until(t, web, "ready", ready)
		if got := h.share(t, 200); got < 2*w-6 || got > 2*w+6 {
			t.Errorf("at %d %% the canary answered %d of 200", w, got)
		}
	}
	if err := s.Promote(t.Context(), "p", []manifest.Ref{web}); err != nil {
		t.Fatal(err)
	}
	h.until(t, web, "promoted", func(s platform.State) bool { return s.Ready && s.Replicas == 2 })
	if got := h.share(t, 20); got != 20 {
		t.Errorf("after the promotion the new version answered %d of 20", got)
	}
}

func abort(t *testing.T, h Harness) {
	s := h.canary(t)
	if err := s.SetWeight(t.Context(), "w", []manifest.Ref{web}, 50); err != nil {
		t.Fatal(err)
	}
	stop := h.load(t)
	// The load takes its turns between these, so that the share of these alone is not exact.
	if got := h.share(t, 50); got < 5 {
		t.Errorf("the canary answered %d of 50", got)
	}
	if err := s.Abort(t.Context(), "x", []manifest.Ref{web}); err != nil {
		t.Fatal(err)
	}
	h.until(t, web, "back", func(s platform.State) bool { return s.Ready && s.Replicas == 2 })
	stop()
	if got := h.share(t, 20); got != 0 {
		t.Errorf("an aborted canary answered %d of 20", got)
	}
}

func fence(t *testing.T, h Harness) {
	f, ok := h.Platform.(platform.Fencer)
	if !ok {
		t.Skip("the platform has no fence")
	}
	h.apply(t, "a", objects(t, echo, h.Image))
	h.until(t, ech, "ready", ready)
	ctx := t.Context()
	for _, err := range []error{f.Close(ctx, "c", []manifest.Ref{echos}), f.Scale(ctx, "s0", ech, 0)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	h.until(t, ech, "stopped", func(s platform.State) bool { return s.Stopped })
	held, err := net.Dial("tcp", h.Address(ctx, echos))
	if err != nil {
		t.Fatalf("a connection to a closed Service was refused: %v", err)
	}
	defer held.Close()
	answer := make(chan string, 1)
	go func() { answer <- say(t, held) }()
	if err := f.Scale(ctx, "s1", ech, 1); err != nil {
		t.Fatal(err)
	}
	h.until(t, ech, "ready again", ready)
	behind, err := h.Platform.Dial(ctx, echos, "")
	if err != nil {
		t.Fatalf("Sluice cannot look behind its own fence: %v", err)
	}
	if got := say(t, behind); got != "one" {
		t.Errorf("got %q", got)
	}
	behind.Close()
	select {
	case a := <-answer:
		t.Fatalf("a closed Service let %q through", a)
	default:
	}
	if err := f.Open(ctx, "o", []manifest.Ref{echos}); err != nil {
		t.Fatal(err)
	}
	if got := <-answer; got != "one" {
		t.Errorf("the held connection got %q", got)
	}
}

func deleteOthers(t *testing.T, h Harness) {
	d, ok := h.Platform.(platform.Deleter)
	if !ok {
		t.Skip("the platform deletes nothing")
	}
	h.apply(t, "a", objects(t, webDeployment, 1, h.Image, "one"))
	h.until(t, web, "ready", ready)
	if err := d.Delete(t.Context(), "x", "another", []manifest.Ref{web}); !fault.Is(err, fault.Denied) {
		t.Errorf("deleting what another delivery made: %v", err)
	}
	if err := d.Delete(t.Context(), "y", "d1", []manifest.Ref{web}); err != nil {
		t.Fatal(err)
	}
	h.until(t, web, "gone", func(s platform.State) bool { return !s.Exists })
}

func logs(t *testing.T, h Harness) {
	l, ok := h.Platform.(platform.Logger)
	if !ok {
		t.Skip("the platform keeps no logs")
	}
	h.apply(t, "a", objects(t, echo, h.Image))
	h.until(t, ech, "ready", ready)
	var b bytes.Buffer
	if err := l.Logs(t.Context(), ech, 10, &b); err != nil || !strings.Contains(b.String(), "echo-0") {
		t.Errorf("logs %q, %v", b.String(), err)
	}
}
