package step

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/metrics"
	"github.com/sluice-cd/sluice/internal/platform"
)

// runner enters one step as the engine would: again at each deadline, with what it saved last as it would be read.
type runner struct {
	t      *testing.T
	step   Step
	call   Call
	saves  int
	failAt int      // the save that fails, as if Sluice had been killed; 0 for none
	lines  []string // progress
}

var errKilled = errors.New("killed")

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newRunner(t *testing.T, s Step, args any) *runner {
	t.Helper()
	body, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	r := &runner{t: t, step: s}
	r.call = Call{Key: "d/p/deploy/1/1", Delivery: "d", Target: "p", Path: "p/deploy/1", Args: body, Now: epoch,
		Progress: func(format string, _ ...any) { r.lines = append(r.lines, format) },
		Siblings: func(string) json.RawMessage { return nil },
		Save: func(_ context.Context, v any) error {
			if r.saves++; r.saves == r.failAt {
				return errKilled
			}
			body, err := json.Marshal(v)
			if err != nil {
				return err
			}
			r.call.Saved = body
			return nil
		}}
	return r
}

// enter enters the step once.
func (r *runner) enter() Outcome {
	r.t.Helper()
	out, err := r.step.Run(r.t.Context(), r.call)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// end enters the step again at each deadline until it has a verdict.
func (r *runner) end() Outcome {
	r.t.Helper()
	for range 1000 {
		out := r.enter()
		if out.Verdict != "" {
			return out
		}
		if out.Deadline.IsZero() {
			r.t.Fatalf("it waits for ever: %s", out.Message)
		}
		r.call.Now = out.Deadline
	}
	r.t.Fatal("it does not end")
	return Outcome{}
}

// signal hands a signal to the next entry.
func (r *runner) signal(kind string, data map[string]string) {
	r.call.Signals = append(r.call.Signals, delivery.Signal{Kind: kind, Path: r.call.Path, Key: kind + "/" + r.call.Path, Data: data})
}

// ports are what the steps of these tests work with: one secret, one account, and callbacks that name their key.
func ports() Ports {
	return Ports{
		Secret: func(name string) (string, error) {
			if name != "token" {
				return "", fault.Newf(fault.NotFound, "there is no secret %q; configured are: token", name)
			}
			return "s3cr+t/value", nil
		},
		Callback: func(key string) string { return "http://sluice/callbacks/of-" + key },
		Platform: func(account string) (platform.Platform, error) {
			if account == "here" {
				return nil, nil //nolint:nilnil // only whether the account is known is asked
			}
			return nil, fault.Newf(fault.NotFound, "there is no account %q; configured are: here", account)
		},
	}
}

// provider answers queries by a function of the query and the instant.
type provider func(query string, at time.Time) ([]metrics.Sample, error)

func (p provider) Query(_ context.Context, query string, at time.Time) ([]metrics.Sample, error) {
	return p(query, at)
}

func number(v float64) []metrics.Sample { return []metrics.Sample{{Value: v}} }
