// Package judge says what numbers mean. It is pure: numbers in, verdict out.
package judge

import (
	"fmt"
	"math"

	"github.com/sluice-cd/sluice/internal/delivery"
)

// Limits are inclusive bounds; a nil one does not bind.
type Limits struct {
	Upper *float64
	Lower *float64
}

func (l Limits) hold(v float64) bool {
	// Written so that NaN holds no limit.
	return (l.Upper == nil || v <= *l.Upper) && (l.Lower == nil || v >= *l.Lower)
}

// String says what is allowed.
func (l Limits) String() string {
	switch {
	case l.Upper != nil && l.Lower != nil:
		return fmt.Sprintf("%g to %g", *l.Lower, *l.Upper)
	case l.Upper != nil:
		return fmt.Sprintf("at most %g", *l.Upper)
	case l.Lower != nil:
		return fmt.Sprintf("at least %g", *l.Lower)
	}
	return "anything"
}

// Threshold judges the runs of one query so far, of so many planned: the mean of all runs against inclusive limits.
// With abort one run outside of them is enough. The verdict is "" while more runs are to come.
//
// No data is never a pass: without any number the verdict is no data.
func Threshold(l Limits, runs []float64, missing, planned int, abort bool) (delivery.Verdict, string) {
	if abort && len(runs) > 0 && !l.hold(runs[len(runs)-1]) {
		return delivery.Fail, fmt.Sprintf("run %d is %s, allowed is %s", len(runs)+missing, number(runs[len(runs)-1]), l)
	}
	if len(runs)+missing < planned {
		return "", fmt.Sprintf("run %d of %d", len(runs)+missing, planned)
	}
	if len(runs) == 0 {
		return delivery.NoData, fmt.Sprintf("none of %d runs returned a number", planned)
	}
	sum := 0.0
	for _, r := range runs {
		sum += r
	}
	mean := sum / float64(len(runs))
	m := fmt.Sprintf("the mean of %d runs is %s, allowed is %s", len(runs), number(mean), l)
	if !l.hold(mean) {
		return delivery.Fail, m
	}
	if missing > 0 {
		return delivery.Inconclusive, fmt.Sprintf("%s, but %d runs returned no number", m, missing)
	}
	return delivery.Pass, m
}

func number(v float64) string {
	if math.IsNaN(v) {
		return "not a number"
	}
	return fmt.Sprintf("%.4g", v)
}
