package step

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/judge"
	"github.com/sluice-cd/sluice/internal/plan"
)

// series are the answers of one query so far.
type series struct {
	Numbers numbers `json:"numbers,omitempty"`
	Missing int     `json:"missing,omitempty"` // runs without a number
}

func (q *series) done() int { return len(q.Numbers) + q.Missing }

func (q *series) add(v float64, ok bool) {
	if ok {
		q.Numbers = append(q.Numbers, v)
	} else {
		q.Missing++
	}
}

// numbers are written as text where JSON has no number for them: a ratio with nothing below the line is infinite.
type numbers []float64

// MarshalJSON implements json.Marshaler.
func (n numbers) MarshalJSON() ([]byte, error) {
	out := make([]string, len(n))
	for i, v := range n {
		if out[i] = strconv.FormatFloat(v, 'g', -1, 64); math.IsInf(v, 0) || math.IsNaN(v) {
			out[i] = strconv.Quote(out[i])
		}
	}
	return []byte("[" + strings.Join(out, ",") + "]"), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *numbers) UnmarshalJSON(b []byte) error {
	var in []json.RawMessage
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*n = make(numbers, len(in))
	for i, raw := range in {
		v, err := strconv.ParseFloat(strings.Trim(string(raw), `"`), 64)
		if err != nil {
			return err
		}
		(*n)[i] = v
	}
	return nil
}

// judged is what one query, or the counters, came to; it is the evidence of an analysis.
type judged struct {
	Name    string           `json:"name"`
	Verdict delivery.Verdict `json:"verdict"`
	Message string           `json:"message"`
	Limits  string           `json:"limits,omitempty"`
	Numbers numbers          `json:"numbers,omitempty"`
	Missing int              `json:"missing,omitempty"`
	Counts  *judge.Counts    `json:"counts,omitempty"`
}

// parts judges every query and the counters on their own.
func (s *analysed) parts(a plan.AnalysisArgs, over bool) []judged {
	var out []judged
	if a.Counts != nil {
		o, err := countsOptions(*a.Counts)
		if err != nil {
			return []judged{{Name: "counts", Verdict: delivery.Error, Message: err.Error()}}
		}
		v, m := s.Counts.Verdict(o, over)
		switch {
		case v == delivery.Pass && len(s.Unknown) > 0:
			// A misspelled counter of bad requests would call every canary good.
			v, m = delivery.NoData, fmt.Sprintf("%s never had a number (where there is none before the first bad request, write: … or 0 * the query of all requests); %s",
				strings.Join(s.Unknown, " and "), m)
		case s.Blind > 0:
			m += fmt.Sprintf("; %d of %d looks saw no counters", s.Blind, s.Looks)
		}
		counts := s.Counts
		counts.LogE = nil // what the next look needs is no evidence
		out = append(out, judged{Name: "counts", Verdict: v, Message: m, Counts: &counts})
	}
	for i, q := range a.Queries {
		r := s.Series[i]
		v, m := judge.Threshold(limits(q), r.Numbers, r.Missing, a.Runs, a.AbortOnFail)
		out = append(out, judged{Name: q.Name, Verdict: v, Message: m, Limits: limits(q).String(), Numbers: r.Numbers, Missing: r.Missing})
	}
	return out
}

// conclude returns the verdict of the whole: the worst of its parts. Before all runs are done only a failure is one.
func (s *analysed) conclude(a plan.AnalysisArgs, over bool) Outcome {
	parts := s.parts(a, over)
	worst := delivery.Verdict("")
	if over {
		worst = delivery.Pass
	}
	for _, p := range parts {
		if rank(p.Verdict) > rank(worst) && (over || p.Verdict == delivery.Fail) {
			worst = p.Verdict
		}
	}
	if worst == "" {
		return Outcome{}
	}
	// What decided goes first, the rest is there for comparison.
	var first, rest []string
	for _, p := range parts {
		line := p.Name + ": " + p.Message
		if p.Verdict == worst {
			first = append(first, line)
		} else {
			rest = append(rest, line)
		}
	}
	out := Done(worst, strings.Join(append(first, rest...), "; "))
	out.Evidence = parts
	out.Ask = worst == delivery.Fail && a.RollBack == manual || worst == delivery.Pass && a.RollForward == manual
	return out
}

// rank orders verdicts from good to bad.
func rank(v delivery.Verdict) int {
	switch v {
	case delivery.Pass:
		return 1
	case delivery.Inconclusive:
		return 2
	case delivery.NoData:
		return 3
	case delivery.Error:
		return 4
	case delivery.Fail:
		return 5
	}
	return 0
}

// progress says how far it is.
func (s *analysed) progress(a plan.AnalysisArgs) string {
	var lines []string
	for _, p := range s.parts(a, false) {
		lines = append(lines, p.Name+": "+p.Message)
	}
	return strings.Join(lines, "; ")
}
