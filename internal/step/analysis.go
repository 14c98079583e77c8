package step

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/judge"
	"github.com/sluice-cd/sluice/internal/plan"
)

// analysis judges metrics: queries against limits, and counters of the canary against those of the stable version.
//
// Its runs have fixed instants, start + delay + k·interval, and ask for the numbers of those instants. So a run that a
// restart has delayed asks for what it would have asked for, and the same runs are judged as without the restart.
type analysis struct{ ports Ports }

// analysed is what analysis keeps after each run.
type analysed struct {
	Start   time.Time    `json:"start"` // when the windows begin, the initial delay over
	Series  []series     `json:"series,omitempty"`
	Counts  judge.Counts `json:"counts,omitzero"`
	Looks   int          `json:"looks,omitempty"`   // at the counters, done
	Blind   int          `json:"blind,omitempty"`   // of those, how many found no requests counted
	Unknown []string     `json:"unknown,omitempty"` // counters that have never been a number
}

// Plan says what is asked and refuses what cannot be judged.
func (analysis) Plan(n plan.Node) (plan.Description, error) {
	a, err := read[plan.AnalysisArgs](n.Args)
	if err != nil {
		return plan.Description{}, err
	}
	switch {
	case len(a.Queries) == 0 && a.Counts == nil:
		return plan.Description{}, fault.Newf(fault.Invalid, "the analysis names neither queries nor counts")
	case a.Interval <= 0:
		return plan.Description{}, fault.WithRemedy(fault.Newf(fault.Invalid, "the analysis has no interval"), "add interval and units")
	case a.Runs <= 0:
		return plan.Description{}, fault.WithRemedy(fault.Newf(fault.Invalid, "the analysis has no runs"), "add numberOfJudgmentRuns")
	}
	var does []string
	for _, q := range a.Queries {
		if q.Provider == "" {
			return plan.Description{}, fault.WithRemedy(fault.Newf(fault.Invalid, "query %q has no metric provider", q.Name),
				"name one in the query, in the step, or as defaultMetricProviderName")
		}
		does = append(does, fmt.Sprintf("%s is %s", q.Name, limits(q)))
	}
	if a.Counts != nil {
		if a.Counts.Provider == "" {
			return plan.Description{}, fault.WithRemedy(fault.Newf(fault.Invalid, "counts has no metric provider"), "add metricProviderName to the step")
		}
		o, err := countsOptions(*a.Counts)
		if err != nil {
			return plan.Description{}, err
		}
		does = append(does, fmt.Sprintf("the canary's requests fail no more than %g times as often as the stable version's (%g %% false alarms)", o.Margin, 100*o.Alpha))
	}
	d := plan.Description{Does: "judges: " + strings.Join(does, "; "),
		WaitsFor: fmt.Sprintf("%s, one each %s", times(a.Runs, "run"), a.Interval)}
	if a.InitialDelay > 0 {
		d.WaitsFor += fmt.Sprintf(", after a delay of %s", a.InitialDelay)
	}
	if n.Background {
		d.WaitsFor = "nothing: it watches in the background until its phase is over, " + d.WaitsFor
	}
	if a.RollForward == manual || a.RollBack == manual {
		d.WaitsFor += "; then a person's decision"
	}
	return d, nil
}

// manual is the mode in which a person decides.
const manual = "manual"

func limits(q plan.Query) judge.Limits { return judge.Limits{Upper: q.Upper, Lower: q.Lower} }

// countsOptions fills the defaults in: 2 % false alarms over the whole canary, no worse than stable, 100 requests.
func countsOptions(a plan.CountsArgs) (judge.CountsOptions, error) {
	o := judge.CountsOptions{Alpha: a.Alpha, Margin: a.Margin, MinRequests: a.MinRequests}
	if o.Alpha == 0 {
		o.Alpha = 0.02
	}
	if o.Margin == 0 {
		o.Margin = 1
	}
	if o.MinRequests == 0 {
		o.MinRequests = 100
	}
	if o.Alpha < 0 || o.Alpha >= 1 || o.Margin < 0 || o.MinRequests < 0 {
		return o, fault.WithRemedy(fault.Newf(fault.Invalid, "counts has alpha %g, margin %g and minRequests %d", o.Alpha, o.Margin, o.MinRequests),
			"alpha lies between 0 and 1, the other two are positive")
	}
	return o, nil
}

// Run does every run that is due and waits for the next one.
func (st analysis) Run(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.AnalysisArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	s, err := read[analysed](c.Saved)
	if err != nil {
		return Outcome{}, err
	}
	if s.Start.IsZero() {
		s.Start = c.Now.Add(a.InitialDelay)
		s.Series = make([]series, len(a.Queries))
		if a.Counts != nil {
			s.Unknown = slices.Clone(counterNames())
		}
		if err := c.Save(ctx, s); err != nil {
			return Outcome{}, err
		}
	}
	for {
		// First of all: a crash may have come between the run that decided and the word of it.
		if out := s.conclude(a, false); out.Verdict != "" {
			return out, nil
		}
		at, more := s.next(a)
		switch {
		case !more:
			return s.conclude(a, true), nil
		case at.After(c.Now):
			return Wait(at, s.progress(a)), nil
		}
		if err := st.once(ctx, c, a, &s, at); err != nil {
			return Outcome{}, err
		}
	}
}

// next returns the instant of the next run, and false when all are done. The counters are looked at once more, at the
// start, to know where counting begins.
func (s *analysed) next(a plan.AnalysisArgs) (time.Time, bool) {
	first := a.Runs
	for _, q := range s.Series {
		first = min(first, q.done())
	}
	if a.Counts != nil {
		first = min(first, s.Looks-1)
	}
	if first >= a.Runs {
		return time.Time{}, false
	}
	return s.Start.Add(time.Duration(first+1) * a.Interval), true
}

// once asks every query for which this instant's number is still missing. Each answer is kept before the next is asked
// for, so that the errors of one query do not repeat another.
func (st analysis) once(ctx context.Context, c Call, a plan.AnalysisArgs, s *analysed, at time.Time) error {
	run := int(at.Sub(s.Start) / a.Interval)
	if a.Counts != nil && s.Looks <= run {
		if err := st.look(ctx, c, a, s, at); err != nil {
			return err
		}
		s.Looks++
	}
	for i, q := range a.Queries {
		if run == 0 || s.Series[i].done() >= run {
			continue
		}
		window := a.Interval
		if a.Lookback == "growing" {
			window = at.Sub(s.Start)
		}
		v, ok, err := st.ask(ctx, c, a, question{name: q.Name, template: q.Template, provider: q.Provider, at: at, window: window})
		if err != nil {
			// What the others have answered is kept, the error of this one goes first.
			if kept := c.Save(ctx, s); kept != nil {
				return kept
			}
			return err
		}
		s.Series[i].add(v, ok)
	}
	c.Progress("run %d of %d: %s", run, a.Runs, s.progress(a))
	return c.Save(ctx, s)
}

// look asks for the four counters of one instant.
func (st analysis) look(ctx context.Context, c Call, a plan.AnalysisArgs, s *analysed, at time.Time) error {
	o, err := countsOptions(*a.Counts)
	if err != nil {
		return err
	}
	var l judge.Look
	blind := false
	for i, k := range []struct {
		template string
		into     *float64
	}{{a.Counts.CanaryTotal, &l.CanaryTotal}, {a.Counts.CanaryBad, &l.CanaryBad}, {a.Counts.StableTotal, &l.StableTotal}, {a.Counts.StableBad, &l.StableBad}} {
		name := counterNames()[i]
		v, ok, err := st.ask(ctx, c, a, question{name: name, template: k.template, provider: a.Counts.Provider, at: at, window: a.Interval})
		if err != nil {
			return err
		}
		if ok {
			*k.into = v
			s.Unknown = slices.DeleteFunc(s.Unknown, func(u string) bool { return u == name })
		}
		// A counter of bad requests may not exist before the first bad one; one of all requests that is missing means that
		// this look sees nothing.
		blind = blind || !ok && (i == 0 || i == 2)
	}
	if blind {
		s.Blind++
		return nil
	}
	s.Counts.Look(o, l)
	return nil
}

func counterNames() []string { return []string{"canaryTotal", "canaryBad", "stableTotal", "stableBad"} }

// question is one query at one instant.
type question struct {
	name, template, provider string
	at                       time.Time
	window                   time.Duration
}

// ask returns the one number that a query has at an instant, false where it has none.
func (st analysis) ask(ctx context.Context, c Call, a plan.AnalysisArgs, q question) (float64, bool, error) {
	p, err := st.ports.Metrics(q.provider)
	if err != nil {
		return 0, false, fmt.Errorf("query %q: %w", q.name, err)
	}
	v := variablesOf(c, st.ports, a.Where, a.Context)
	v.window(q.at, q.window)
	text := v.render(q.template)
	if v.err != nil {
		return 0, false, fmt.Errorf("query %q: %w", q.name, v.err)
	}
	v.warn()
	samples, err := p.Query(ctx, text, q.at)
	switch {
	case ctx.Err() != nil:
		return 0, false, ctx.Err()
	case err != nil:
		return 0, false, fault.Newf(fault.KindOf(err), "query %q: %s", q.name, v.scrub(err.Error()))
	case len(samples) > 1:
		// Series come and go, so this is asked again like any error.
		return 0, false, fault.WithRemedy(fault.Newf(fault.Transient, "query %q returns %d numbers, not one", q.name, len(samples)),
			"aggregate it, for example with sum(…)")
	case len(samples) == 0 || samples[0].Value != samples[0].Value:
		return 0, false, nil // nothing, or nothing divided by nothing
	}
	return samples[0].Value, true, nil
}

// window sets the variables that only queries have.
func (v *variables) window(end time.Time, length time.Duration) {
	for name, t := range map[string]time.Time{"startTime": end.Add(-length).UTC(), "endTime": end.UTC()} {
		v.armory[name+"Iso8601"] = t.Format("2006-01-02T15:04:05.000Z07:00")
		v.armory[name+"EpochSeconds"] = strconv.FormatInt(t.Unix(), 10)
		v.armory[name+"EpochMillis"] = strconv.FormatInt(t.UnixMilli(), 10)
	}
	seconds := max(1, int64(length.Round(time.Second)/time.Second))
	v.armory["intervalSeconds"] = strconv.FormatInt(seconds, 10)
	v.armory["intervalMillis"] = strconv.FormatInt(length.Milliseconds(), 10)
	v.armory["promQlStepInterval"] = v.armory["intervalSeconds"] + "s"
	if length%time.Second != 0 {
		v.armory["promQlStepInterval"] = v.armory["intervalMillis"] + "ms"
	}
}

// Undo has nothing to take back.
func (analysis) Undo(context.Context, Call) (Outcome, error) {
	return Done(delivery.Pass, "nothing was changed"), nil
}
