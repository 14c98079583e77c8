// Package metricstest is the conformance suite that every metrics provider runs.
package metricstest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/metrics"
)

// Harness is a provider with queries in its language.
type Harness struct {
	Provider metrics.Provider
	Dead     metrics.Provider // of the same kind, where nobody answers
	At       time.Time        // an instant at which the queries have their numbers
	One      string           // exactly one number: Value
	Value    float64
	Many     string // more than one, with labels that tell them apart
	None     string // no number at all
	Nonsense string // cannot be understood
	Instant  string // the instant that is asked about, in seconds since 1970
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	ask := func(t *testing.T, q string, at time.Time) []metrics.Sample {
		t.Helper()
		s, err := h.Provider.Query(t.Context(), q, at)
		if err != nil {
			t.Fatalf("%s: %v", q, err)
		}
		return s
	}
	t.Run("one number", func(t *testing.T) {
		if s := ask(t, h.One, h.At); len(s) != 1 || s[0].Value != h.Value || s[0].Time.IsZero() {
			t.Errorf("%+v, want %g", s, h.Value)
		}
	})
	t.Run("several are told apart", func(t *testing.T) {
		s := ask(t, h.Many, h.At)
		if len(s) < 2 || len(s[0].Labels) == 0 {
			t.Fatalf("%+v", s)
		}
		for name, value := range s[0].Labels {
			if s[1].Labels[name] != value {
				return
			}
		}
		t.Errorf("%+v have the same labels", s)
	})
	t.Run("no number is no error", func(t *testing.T) {
		if s := ask(t, h.None, h.At); len(s) != 0 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("numbers are of the instant that is asked about", func(t *testing.T) {
		for _, ago := range []time.Duration{0, time.Minute, 90 * time.Minute} {
			at := h.At.Add(-ago).Truncate(time.Second)
			if s := ask(t, h.Instant, at); len(s) != 1 || s[0].Value != float64(at.Unix()) {
				t.Errorf("%s ago: %+v, want %d", ago, s, at.Unix())
			}
		}
	})
	t.Run("what cannot be understood is invalid", func(t *testing.T) {
		if _, err := h.Provider.Query(t.Context(), h.Nonsense, h.At); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v is %q", err, fault.KindOf(err))
		}
	})
	t.Run("who does not answer may answer later", func(t *testing.T) {
		if _, err := h.Dead.Query(t.Context(), h.One, h.At); !fault.Is(err, fault.Transient) {
			t.Errorf("%v is %q", err, fault.KindOf(err))
		}
	})
	t.Run("a query ends with its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := h.Provider.Query(ctx, h.One, h.At); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}
