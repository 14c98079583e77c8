package deployfile

import (
	"math"
	"regexp"
	"time"
)

func analysisConfig(a *AnalysisConfig) value {
	return object("analysisConfig", "Metric queries for the steps `analysis`.", func(o *fields) {
		o.key("defaultMetricProviderName", textOf(&a.DefaultMetricProviderName), "The provider of queries that name none: a name in the configuration.").
			alias("defaultMetricProvider")
		o.key("queries", listOf(&a.Queries, query), "The queries.")
		o.old("defaultAccount", "providers are named")
		o.old("defaultType", "providers are named")
	})
}

// absenceIsZero matches what people append to a query so that no data becomes 0.
var absenceIsZero = regexp.MustCompile(`(?i)\bor\s+(on\s*\(\s*\)\s*)?vector\s*\(\s*0(\.0*)?\s*\)`)

func query(q *Query) value {
	return object("query", "A metric query with inclusive limits.", func(o *fields) {
		o.key("name", declares(&q.Name, queryNames), "Its name.").required()
		template := o.key("queryTemplate", templateOf(&q.QueryTemplate, inQuery), "The query; it must give one number.").required()
		upper := o.key("upperLimit", number(func(f float64) { q.UpperLimit = &f }), "The verdict is fail above it.")
		lower := o.key("lowerLimit", number(func(f float64) { q.LowerLimit = &f }), "The verdict is fail below it.")
		o.key("metricProviderName", textOf(&q.MetricProviderName), "A provider in the configuration.")
		o.old("aggregationMethod", "the verdict is the mean over the runs")
		o.check(func(r *reader) {
			q.Pos = o.at
			if q.UpperLimit != nil && q.LowerLimit != nil && *q.UpperLimit < *q.LowerLimit {
				r.errorf(upper.at, "exchange them", "upperLimit %v is below lowerLimit %v: no number would pass", *q.UpperLimit, *q.LowerLimit)
			}
			if !upper.seen() && !lower.seen() {
				r.limitless = append(r.limitless, *q) // refused if a step uses it
			}
			if m := absenceIsZero.FindString(q.QueryTemplate); m != "" && q.passes(0) {
				r.warnf(r.locate(m, template.node), "leave it away: no data is then inconclusive, not 0",
					"%s makes the absence of all data a 0, and 0 passes", m)
			}
		})
	})
}

// passes reports whether a number is within the limits.
func (q Query) passes(v float64) bool {
	return (q.UpperLimit == nil || v <= *q.UpperLimit) && (q.LowerLimit == nil || v >= *q.LowerLimit)
}

func analysis(a *Analysis) value {
	return object("analysis", "Runs metric queries and judges their results.", func(o *fields) {
		var every int64
		var unit string
		queries := o.key("queries", references(&a.Queries, queryNames, ""), "Names of queries; all must pass.")
		interval := o.key("interval", whole(&every, 1, math.MaxInt32), "How long between two runs, in `units`.")
		units := o.key("units", oneOf(&unit, "seconds", "minutes", "hours", "(none)"), "The unit of interval.").alias("unit")
		runs := o.key("numberOfJudgmentRuns", whole(&a.NumberOfJudgmentRuns, 1, math.MaxInt32), "How many runs; the verdict is their mean.")
		o.key("rollBackMode", oneOf(&a.RollBackMode, "automatic", "manual"), "What a fail does: go back at once, or ask.")
		o.key("rollForwardMode", oneOf(&a.RollForwardMode, "automatic", "manual"), "What a pass does: go on at once, or ask.")
		lookback := o.key("lookbackMethod", oneOf(&a.LookbackMethod, "growing", "sliding", "(unset)"),
			"The window of the queries: since the step began, or the last interval.")
		o.key("abortOnFailedJudgment", boolOf(&a.AbortOnFailedJudgment), "Fail at the first run that fails.")
		o.key("metricProviderName", textOf(&a.MetricProviderName), "The provider of queries that name none.")
		o.key("context", dictionary(&a.Context), "Values for {{context.…}}, stronger than the file's.")
		o.key("counts", optional(&a.Counts, counts), "Compare counters of the new version and the running one, all the time, with one false-alarm budget.")
		o.key("initialDelay", duration(&a.InitialDelay), "How long before the first run.")
		o.key("background", boolOf(&a.Background), "Judge while the steps after it go on; a fail ends them.")
		o.key("onInconclusive", oneOf(&a.OnInconclusive, "wait", "rollback", "continue"), "What no data, or a verdict that is neither pass nor fail, does.")
		o.check(func(r *reader) {
			if a.LookbackMethod == "unset" {
				a.LookbackMethod = ""
				r.notef(lookback.at, "write sliding", "lookbackMethod is not set; it is sliding")
			}
			a.Interval = r.interval(o, interval, units, every, unit)
			if len(a.Queries) == 0 && a.Counts == nil && !o.complained {
				at := o.at
				if queries.seen() {
					at = queries.at
				}
				r.errorf(at, "add `queries: [NAME]`", "this analysis has no query")
			}
			if !runs.seen() {
				r.errorf(o.at, "add `numberOfJudgmentRuns: 1`", "analysis needs numberOfJudgmentRuns")
			}
			r.judged = append(r.judged, judged{a: a, at: o.at, strategy: r.strategy})
		})
	})
}

func (r *reader) interval(o *fields, interval, units *field, every int64, unit string) time.Duration {
	switch {
	case !interval.seen():
		r.errorf(o.at, "add `interval: 10` and `units: seconds`", "analysis needs interval")
	case !units.seen() || unit == "none":
		r.errorf(interval.at, "add `units: seconds`, minutes or hours", "an interval needs its units")
	}
	return time.Duration(every) * unitSize(unit)
}

func counts(c *Counts) value {
	return object("counts", "Four counters as queries, each a number that only grows.", func(o *fields) {
		for _, k := range []struct {
			name string
			dst  *string
			doc  string
		}{
			{"canaryTotal", &c.CanaryTotal, "Requests of the new version."},
			{"canaryBad", &c.CanaryBad, "Failed ones of the new version."},
			{"stableTotal", &c.StableTotal, "Requests of the running version."},
			{"stableBad", &c.StableBad, "Failed ones of the running version."},
		} {
			o.key(k.name, templateOf(k.dst, inQuery), k.doc).required()
		}
		alpha := o.key("alpha", number(func(f float64) { c.Alpha = f }), "How likely a false alarm may be in the whole canary; 0.02.")
		margin := o.key("margin", number(func(f float64) { c.Margin = f }), "How many times worse the new version may be; 1.")
		o.key("minRequests", whole(&c.MinRequests, 1, 1<<53), "No pass below so many requests; 100.")
		o.check(func(r *reader) {
			if alpha.seen() && (c.Alpha <= 0 || c.Alpha >= 1) && !o.complained {
				r.errorf(alpha.at, "write 0.02", "alpha is a probability between 0 and 1")
			}
			if margin.seen() && c.Margin <= 0 && !o.complained {
				r.errorf(margin.at, "write 1 for no worse, 2 for twice as bad", "margin is how many times worse the new version may be; it is above 0")
			}
		})
	})
}

// judged is an analysis as it stands in the file.
type judged struct {
	a        *Analysis
	at       Pos
	strategy string
}

// checkQueries refuses analyses that could not be carried out: queries without limits or without a provider. In strategies
// that no target uses they do no harm.
func (r *reader) checkQueries(f *File) {
	strategies, used, queries := f.usedStrategies(), map[string]bool{}, f.queries()
	for _, j := range r.judged {
		if j.strategy != "" && !strategies[j.strategy] {
			continue
		}
		for _, name := range j.a.Queries {
			if used[name] {
				continue
			}
			used[name] = true
			q, ok := queries[name]
			if ok && q.MetricProviderName == "" && j.a.MetricProviderName == "" && f.Analysis.DefaultMetricProviderName == "" {
				r.errorf(q.Pos, "add `metricProviderName: …` here, or `defaultMetricProviderName: …` to analysis", "query %s has no metric provider", name)
			}
		}
		if j.a.Counts != nil && j.a.MetricProviderName == "" && f.Analysis.DefaultMetricProviderName == "" {
			r.errorf(j.at, "add `metricProviderName: …` here, or `defaultMetricProviderName: …` to analysis", "this analysis has no metric provider")
		}
	}
	for _, q := range r.limitless {
		severity := Warning
		if used[q.Name] {
			severity = Error
		}
		r.add(severity, q.Pos, "add `upperLimit: …` or `lowerLimit: …`", "query %s has no limit: every number would pass", q.Name)
	}
}

// queries are the declared queries by name; of those with the same name the first counts.
func (f *File) queries() map[string]Query {
	out := map[string]Query{}
	for _, q := range f.Analysis.Queries {
		if _, twice := out[q.Name]; !twice {
			out[q.Name] = q
		}
	}
	return out
}
