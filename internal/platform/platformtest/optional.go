package platformtest

import (
	"bytes"
	"fmt"
	"math"
	"net"
	"strings"
	"testing"
	"time"

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
	h.apply(t, "a", append(h.objects(t, webService), h.deployment(t, h.replicas(), h.Image, "one")...))
	h.until(t, web, "ready", ready)
	if _, err := s.StartCanary(t.Context(), "d1/c", h.deployment(t, h.replicas(), h.Image, "two"), opts); err != nil {
		t.Fatal(err)
	}
	h.until(t, web, "ready with the canary", func(s platform.State) bool { return s.Ready && s.Replicas == h.replicas()+1 })
	return s
}

// replicas are as many as the shares of the suite need.
func (h Harness) replicas() int {
	if h.Chance {
		return 4
	}
	return 2
}

// spread is how far the answers of the canary may be off, of 200 requests: four standard deviations of a fair coin where
// chance decides.
func (h Harness) spread(percent int) int {
	switch {
	case percent == 0 || percent == 100:
		return 0
	case h.Chance:
		return int(4 * math.Sqrt(200*float64(percent)*float64(100-percent)/10000))
	}
	return 6
}

// share waits until a number of requests are answered and the canary's share of them fits.
func (h Harness) share(t *testing.T, what string, n int, fits func(two int) bool) {
	t.Helper()
	h.eventually(t, what, func() (string, bool) {
		two, err := h.twos(t, n)
		return fmt.Sprintf("%d of %d, %v", two, n, err), err == nil && fits(two)
	})
}

// twos asks a number of times and returns how many of them the canary answered.
func (h Harness) twos(t *testing.T, n int) (int, error) {
	t.Helper()
	two := 0
	for range n {
		got, err := h.get(t, h.client())
		if err != nil {
			return two, err
		}
		if strings.HasPrefix(got, "two ") {
			two++
		}
	}
	return two, nil
}

func weights(t *testing.T, h Harness) {
	s := h.canary(t)
	for _, w := range []int{0, 25, 50, 100} {
		if err := s.SetWeight(t.Context(), fmt.Sprintf("d1/w%d", w), []manifest.Ref{web}, w); err != nil {
			t.Fatal(err)
		}
		h.until(t, web, "ready", ready)
		h.share(t, fmt.Sprintf("%d %% from the canary", w), 200, func(got int) bool { return got >= 2*w-h.spread(w) && got <= 2*w+h.spread(w) })
	}
	if err := s.Promote(t.Context(), "d1/p", []manifest.Ref{web}); err != nil {
		t.Fatal(err)
	}
	h.until(t, web, "promoted", func(s platform.State) bool { return s.Ready && s.Replicas == h.replicas() })
	h.share(t, "all from the promoted version", 20, func(got int) bool { return got == 20 })
}

func abort(t *testing.T, h Harness) {
	s := h.canary(t)
	if err := s.SetWeight(t.Context(), "d1/w", []manifest.Ref{web}, 50); err != nil {
		t.Fatal(err)
	}
	stop := h.load(t)
	// The load takes its turns between these, so that the share of these alone is not exact.
	h.share(t, "some from the canary", 50, func(got int) bool { return got >= 5 })
	if err := s.Abort(t.Context(), "d1/x", []manifest.Ref{web}); err != nil {
		t.Fatal(err)
	}
	h.until(t, web, "back", func(s platform.State) bool { return s.Ready && s.Replicas == h.replicas() })
	stop()
	h.share(t, "none from an aborted canary", 20, func(got int) bool { return got == 0 })
}

func fence(t *testing.T, h Harness) {
	f, ok := h.Platform.(platform.Fencer)
	if !ok {
		t.Skip("the platform has no fence")
	}
	h.apply(t, "a", h.objects(t, echo, h.Image))
	h.until(t, ech, "ready", ready)
	ctx := t.Context()
	for _, err := range []error{f.Close(ctx, "c", []manifest.Ref{echos}), f.Scale(ctx, "s0", ech, 0)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	h.until(t, ech, "stopped", func(s platform.State) bool { return s.Stopped })
	answer := make(chan string, 1)
	if h.Refuses {
		h.refused(t)
	} else {
		held, err := net.Dial("tcp", h.Address(ctx, echos))
		if err != nil {
			t.Fatalf("a connection to a closed Service was refused: %v", err)
		}
		defer held.Close()
		go func() { answer <- say(t, held) }()
	}
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
	if h.Refuses {
		h.refused(t)
		go func() { answer <- h.answer(t) }()
	}
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

// refused fails unless a closed Service lets nobody in.
func (h Harness) refused(t *testing.T) {
	t.Helper()
	h.eventually(t, "a refusal", func() (string, bool) {
		c, err := net.DialTimeout("tcp", h.Address(t.Context(), echos), time.Second)
		if err == nil {
			c.Close()
		}
		return "a connection", err != nil
	})
}

// answer comes back with what the Service says as soon as it is open.
func (h Harness) answer(t *testing.T) string {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(within); time.Now().Before(end); <-tick.C {
		if c, err := net.DialTimeout("tcp", h.Address(t.Context(), echos), time.Second); err == nil {
			defer c.Close()
			return say(t, c)
		}
	}
	return "nothing"
}

func deleteOthers(t *testing.T, h Harness) {
	d, ok := h.Platform.(platform.Deleter)
	if !ok {
		t.Skip("the platform deletes nothing")
	}
	h.apply(t, "a", h.deployment(t, 1, h.Image, "one"))
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
	h.apply(t, "a", h.objects(t, echo, h.Image))
	h.until(t, ech, "ready", ready)
	var b bytes.Buffer
	if err := l.Logs(t.Context(), ech, 10, &b); err != nil || !strings.Contains(b.String(), "echo-0") {
		t.Errorf("logs %q, %v", b.String(), err)
	}
}
