package step

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/metrics"
	"github.com/sluice-cd/sluice/internal/plan"
)

func p(v float64) *float64 { return &v }

// judging returns the step with one provider, and the queries that it was asked, with their instants since the start.
func judging(answer provider) (analysis, *[]string) {
	var asked []string
	po := ports()
	po.Metrics = func(name string) (metrics.Provider, error) {
		if name != "prom" {
			return nil, fault.Newf(fault.NotFound, "there is no metric provider %q; configured are: prom", name)
		}
		return provider(func(q string, at time.Time) ([]metrics.Sample, error) {
			asked = append(asked, fmt.Sprintf("%s @%s", q, at.Sub(epoch)))
			return answer(q, at)
		}), nil
	}
	return analysis{po}, &asked
}

func oneQuery(q plan.Query) plan.AnalysisArgs {
	q.Name, q.Provider = "errors", "prom"
	return plan.AnalysisArgs{Judge: "threshold", Queries: []plan.Query{q}, Interval: 10 * time.Second, Runs: 3, RollBack: "automatic", RollForward: "automatic"}
}

func TestAnalysisWindows(t *testing.T) {
	template := "{{armory.startTimeEpochSeconds}}-{{armory.endTimeEpochSeconds}} {{armory.intervalSeconds}} {{armory.intervalMillis}} {{armory.promQlStepInterval}} {{context.x}}"
	e := epoch.Unix()
	line := func(from, to int64) string {
		return fmt.Sprintf("%d-%d %d %d000 %ds y @%ds", e+from, e+to, to-from, to-from, to-from, to)
	}
	for lookback, want := range map[string][]string{
		"sliding": {line(5, 15), line(15, 25), line(25, 35)},
		"":        {line(5, 15), line(15, 25), line(25, 35)},
		"growing": {line(5, 15), line(5, 25), line(5, 35)},
	} {
		st, asked := judging(func(string, time.Time) ([]metrics.Sample, error) { return number(1), nil })
		a := oneQuery(plan.Query{Template: template, Upper: p(1)})
		a.Lookback, a.InitialDelay, a.Context = lookback, 5*time.Second, map[string]string{"x": "y"}
		r := newRunner(t, st, a)
		if out := r.end(); out.Verdict != delivery.Pass || out.Ask {
			t.Errorf("%+v", out)
		}
		if !slices.Equal(*asked, want) {
			t.Errorf("%q asked\n%s\nwant\n%s", lookback, strings.Join(*asked, "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestAnalysisTimes(t *testing.T) {
	st, asked := judging(func(string, time.Time) ([]metrics.Sample, error) { return number(1), nil })
	a := oneQuery(plan.Query{Upper: p(1), Template: "{{armory.startTimeIso8601}} {{armory.endTimeEpochMillis}} {{armory.promQlStepInterval}}"})
	a.Interval, a.Runs = 1500*time.Millisecond, 1
	newRunner(t, st, a).end()
	if want := "2026-03-01T12:00:00.000Z 1772366401500 1500ms @1.5s"; (*asked)[0] != want {
		t.Errorf("asked %s, want %s", (*asked)[0], want)
	}
}

func TestAnalysisVerdicts(t *testing.T) {
	series := func(values ...float64) provider {
		return func(_ string, at time.Time) ([]metrics.Sample, error) {
			v := values[int(at.Sub(epoch)/(10*time.Second))-1]
			if v < 0 {
				return nil, nil
			}
			return number(v), nil
		}
	}
	for _, c := range []struct {
		name    string
		answer  provider
		change  func(*plan.AnalysisArgs)
		want    delivery.Verdict
		ask     bool
		runs    int
		message string
	}{
		{"the mean decides", series(0, 6, 0), nil, delivery.Pass, false, 3, "the mean of 3 runs is 2"},
		{"the mean is too high", series(0, 6, 3.1), nil, delivery.Fail, false, 3, "allowed is at most 3"},
		{"abort at the first failing run", series(0, 6, 0), func(a *plan.AnalysisArgs) { a.AbortOnFail = true }, delivery.Fail, false, 2, "run 2 is 6"},
		{"nothing at all", series(-1, -1, -1), nil, delivery.NoData, false, 3, ""},
		{"nothing once", series(1, -1, 1), nil, delivery.Inconclusive, false, 3, "1 runs returned no number"},
		{"nothing divided by nothing is nothing", series(math.NaN(), math.NaN(), math.NaN()), nil, delivery.NoData, false, 3, ""},
		{"something divided by nothing is too much", series(1, math.Inf(1), 1), nil, delivery.Fail, false, 3, "+Inf"},
		{"a person may roll forward", series(1, 1, 1), func(a *plan.AnalysisArgs) { a.RollForward = manual }, delivery.Pass, true, 3, ""},
		{"a person may roll back", series(9, 9, 9), func(a *plan.AnalysisArgs) { a.RollBack = manual }, delivery.Fail, true, 3, ""},
		{"the modes are independent", series(9, 9, 9), func(a *plan.AnalysisArgs) { a.RollForward = manual }, delivery.Fail, false, 3, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			st, asked := judging(c.answer)
			a := oneQuery(plan.Query{Upper: p(3)})
			if c.change != nil {
				c.change(&a)
			}
			out := newRunner(t, st, a).end()
			if out.Verdict != c.want || out.Ask != c.ask || !strings.Contains(out.Message, c.message) {
				t.Errorf("%s (ask %v): %s", out.Verdict, out.Ask, out.Message)
			}
			if len(*asked) != c.runs {
				t.Errorf("%d runs, want %d", len(*asked), c.runs)
			}
			if _, err := json.Marshal(out.Evidence); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAnalysisOfSeveral holds that one failing query fails the whole, and goes first in the message.
func TestAnalysisOfSeveral(t *testing.T) {
	st, _ := judging(func(q string, _ time.Time) ([]metrics.Sample, error) {
		switch q {
		case "bad":
			return number(9), nil
		case "none":
			return nil, nil
		}
		return number(1), nil
	})
	query := func(name string) plan.Query {
		return plan.Query{Name: name, Template: name, Provider: "prom", Upper: p(3)}
	}
	for _, c := range []struct {
		names []string
		want  delivery.Verdict
		first string
	}{
		{[]string{"good", "good"}, delivery.Pass, "good"},
		{[]string{"good", "none"}, delivery.NoData, "none"},
		{[]string{"good", "none", "bad"}, delivery.Fail, "bad"},
	} {
		a := plan.AnalysisArgs{Interval: time.Second, Runs: 2}
		for _, n := range c.names {
			a.Queries = append(a.Queries, query(n))
		}
		if out := newRunner(t, st, a).end(); out.Verdict != c.want || !strings.HasPrefix(out.Message, c.first) {
			t.Errorf("%v: %s %s", c.names, out.Verdict, out.Message)
		}
	}
}

// TestAnalysisErrors holds that an error is the engine's to retry, that the run which had it is repeated, and that what
// other queries of that run have answered is kept.
func TestAnalysisErrors(t *testing.T) {
	broken := true
	st, asked := judging(func(q string, _ time.Time) ([]metrics.Sample, error) {
		if q == "b" && broken {
			return nil, fault.Newf(fault.Transient, "cannot reach http://u:s3cr+t/value@prom")
		}
		return number(1), nil
	})
	a := plan.AnalysisArgs{Interval: 10 * time.Second, Runs: 1, Queries: []plan.Query{{Name: "a", Template: "a", Provider: "prom", Upper: p(1)},
		{Name: "b", Template: "b", Provider: "prom", Upper: p(1)}}}
	r := newRunner(t, st, a)
	r.call.Now = r.enter().Deadline
	for range 2 {
		if _, err := r.step.Run(t.Context(), r.call); !fault.Is(err, fault.Transient) {
			t.Fatalf("want a transient error, got %v", err)
		}
		r.call.Now = r.call.Now.Add(time.Second)
	}
	broken = false
	if out := r.enter(); out.Verdict != delivery.Pass {
		t.Errorf("%+v", out)
	}
	if want := []string{"a @10s", "b @10s", "b @10s", "b @10s"}; !slices.Equal(*asked, want) {
		t.Errorf("asked %q", *asked)
	}
	for name, answer := range map[string]provider{
		"two series": func(string, time.Time) ([]metrics.Sample, error) { return make([]metrics.Sample, 2), nil }} {
		st, _ := judging(answer)
		r := newRunner(t, st, a)
		r.call.Now = r.enter().Deadline
		if _, err := r.step.Run(t.Context(), r.call); !fault.Is(err, fault.Transient) || !strings.Contains(err.Error(), "returns 2 numbers") {
			t.Errorf("%s: %v", name, err)
		}
	}
	a.Queries[0].Provider = "other"
	r = newRunner(t, st, a)
	r.call.Now = r.enter().Deadline
	if _, err := r.step.Run(t.Context(), r.call); !fault.Is(err, fault.NotFound) {
		t.Errorf("an unknown provider: %v", err)
	}
}

// TestAnalysisHidesSecrets holds that a provider which repeats the query does not make a secret known.
func TestAnalysisHidesSecrets(t *testing.T) {
	st, asked := judging(func(q string, _ time.Time) ([]metrics.Sample, error) {
		return nil, fault.Newf(fault.Invalid, "no such metric: %s", q)
	})
	r := newRunner(t, st, oneQuery(plan.Query{Template: "up{token='{{secrets.token}}'}", Upper: p(1)}))
	r.call.Now = r.enter().Deadline
	_, err := r.step.Run(t.Context(), r.call)
	if !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), "s3cr") || !strings.Contains((*asked)[0], "s3cr+t/value") {
		t.Errorf("asked %q, %v", *asked, err)
	}
}

func counting() plan.AnalysisArgs {
	return plan.AnalysisArgs{Judge: "counts", Interval: 5 * time.Second, Runs: 12, Counts: &plan.CountsArgs{CanaryTotal: "ct", CanaryBad: "cb", StableTotal: "st",
		StableBad: "sb", Provider: "prom", MinRequests: 50}}
}

// traffic are counters of 10 canary and 90 stable requests a second, of which shares fail. A counter of bad requests does
// not exist before it has counted.
func traffic(canary, stable float64) provider {
	return func(q string, at time.Time) ([]metrics.Sample, error) {
		s := at.Sub(epoch).Seconds() + 1000
		v := map[string]float64{"ct": 10 * s, "st": 90 * s, "cb": math.Floor(10 * (s - 1000) * canary), "sb": 0.001 + math.Floor(90*s*stable)}[q]
		if q == "cb" && v == 0 && canary > 0 || v == -1 {
			return nil, nil
		}
		return number(v), nil
	}
}

func TestCounts(t *testing.T) {
	without := func(names string) provider {
		return func(q string, at time.Time) ([]metrics.Sample, error) {
			if strings.Contains(names, q) {
				return nil, nil
			}
			return traffic(0, 0.01)(q, at)
		}
	}
	for _, c := range []struct {
		name    string
		answer  provider
		min     int64
		want    delivery.Verdict
		looks   int // at most
		message string
	}{
		{"as good", traffic(0.01, 0.01), 50, delivery.Pass, 13, ""},
		{"worse: at once, also before the first bad request was counted", traffic(0.3, 0.01), 50, delivery.Fail, 3, "the canary is worse"},
		{"too few requests", traffic(0, 0.01), 10000, delivery.Inconclusive, 13, "too few"},
		{"nothing counted", without("ct cb st sb"), 50, delivery.NoData, 13, "no request was counted; 13 of 13 looks saw no counters"},
		{"a counter that never was", without("cb"), 50, delivery.NoData, 13, "canaryBad never had a number"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st, asked := judging(c.answer)
			a := counting()
			a.Counts.MinRequests = c.min
			out := newRunner(t, st, a).end()
			if out.Verdict != c.want || !strings.Contains(out.Message, c.message) || len(*asked) > 4*c.looks {
				t.Errorf("%s after %d looks: %s", out.Verdict, len(*asked)/4, out.Message)
			}
		})
	}
}

// TestCountsGoesOn holds that a judgement that is killed at each save, and goes on much later, sees and says the same as
// one that was not.
func TestCountsGoesOn(t *testing.T) {
	st, asked := judging(traffic(0.02, 0.01))
	want := newRunner(t, st, counting()).end()
	looked := slices.Clone(*asked)
	*asked = nil
	r := newRunner(t, st, counting())
	r.call.Now = epoch
	var got Outcome
	for i := 1; got.Verdict == ""; i++ {
		r.failAt = r.saves + 2 // the first one of each entry is kept
		out, err := r.step.Run(t.Context(), r.call)
		if err == nil {
			got = out
		}
		r.call.Now = epoch.Add(time.Duration(i) * 17 * time.Second)
		if i > 100 {
			t.Fatal("it does not get on")
		}
	}
	if got.Verdict != want.Verdict || got.Message != want.Message || !reflect.DeepEqual(got.Evidence, want.Evidence) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if kept := slices.Compact(slices.Sorted(slices.Values(*asked))); !slices.Equal(kept, slices.Sorted(slices.Values(looked))) {
		t.Errorf("it looked at other instants:\n%q\n%q", kept, looked)
	}
}

// TestCountsManual holds that the modes mean the same for both judges.
func TestCountsManual(t *testing.T) {
	st, _ := judging(traffic(0.3, 0.01))
	a := counting()
	a.RollBack = manual
	if out := newRunner(t, st, a).end(); out.Verdict != delivery.Fail || !out.Ask {
		t.Errorf("%+v", out)
	}
}

func TestAnalysisPlan(t *testing.T) {
	good := oneQuery(plan.Query{Upper: p(1)})
	for name, c := range map[string]struct {
		change func(*plan.AnalysisArgs)
		want   string
	}{
		"good":        {func(*plan.AnalysisArgs) {}, ""},
		"counts":      {func(a *plan.AnalysisArgs) { *a = counting() }, ""},
		"nothing":     {func(a *plan.AnalysisArgs) { a.Queries = nil }, "neither queries nor counts"},
		"no interval": {func(a *plan.AnalysisArgs) { a.Interval = 0 }, "no interval"},
		"no runs":     {func(a *plan.AnalysisArgs) { a.Runs = 0 }, "no runs"},
		"no provider": {func(a *plan.AnalysisArgs) { a.Queries[0].Provider = "" }, "no metric provider"},
		"alpha":       {func(a *plan.AnalysisArgs) { *a = counting(); a.Counts.Alpha = 2 }, "alpha 2"},
	} {
		a := good
		a.Queries = slices.Clone(good.Queries)
		c.change(&a)
		body, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		d, err := analysis{}.Plan(plan.Node{Args: body})
		if c.want == "" && (err != nil || d.Does == "") || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %+v %v", name, d, err)
		}
	}
}

func TestNumbers(t *testing.T) {
	in := numbers{1.5, math.Inf(1), math.Inf(-1), 0, 1e300}
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out numbers
	if err := json.Unmarshal(body, &out); err != nil || !slices.Equal(in, out) {
		t.Errorf("%s became %v (%v)", body, out, err)
	}
}
