package judge

import (
	"fmt"
	"math"

	"github.com/sluice-cd/sluice/internal/delivery"
)

// Look is four counters at one instant: requests and bad ones of the canary and of the stable version.
type Look struct {
	CanaryTotal, CanaryBad, StableTotal, StableBad float64
}

// CountsOptions are what a canary may cost: Alpha is the probability of ever calling a good canary bad, over however many
// looks; Margin is how many times worse than stable it may be; there is no pass below MinRequests requests of either version.
type CountsOptions struct {
	Alpha       float64
	Margin      float64
	MinRequests int64
}

// Counts is the state of the judgement. It is kept between looks, so that a restart goes on with the same budget.
//
// It is an e-process on the question from which arm each bad request came (Lindon and Malek, Anytime-Valid Inference for
// Multinomial Count Data, 2022): under the null hypothesis that the canary's error rate is at most Margin times stable's
// the expected value of E never exceeds 1, so by Ville's inequality it ever reaches 1/Alpha with probability Alpha at
// most. The share of requests is the measured one, never the configured weight.
type Counts struct {
	Started bool      `json:"started,omitempty"`
	Last    Look      `json:"last"`
	LogE    []float64 `json:"logE,omitempty"` // per ratio of the grid
	Max     float64   `json:"max,omitempty"`
	Canary  float64   `json:"canary,omitempty"` // requests counted
	Bad     float64   `json:"bad,omitempty"`
	Stable  float64   `json:"stable,omitempty"`
	Worse   float64   `json:"worse,omitempty"` // bad ones of stable
}

// grid are the ratios of error rates that the mixture bets on, above the margin.
func grid(margin float64) []float64 {
	var g []float64
	for r := 1.1; r <= 40; r *= 1.15 {
		g = append(g, margin*r)
	}
	return g
}

// Look takes in the counters. The first look only sets where counting starts, and so does one at which a counter has become
// smaller: a process began anew, or a pod has left the sum. Nobody knows then how much came since the look before, and to
// take the rest of a sum for it would tilt the ratio that everything is judged by.
func (c *Counts) Look(o CountsOptions, l Look) {
	g := grid(o.Margin)
	if len(c.LogE) != len(g) {
		c.LogE = make([]float64, len(g))
	}
	if !c.Started || l.below(c.Last) {
		c.Started, c.Last = true, l
		return
	}
	d := Look{math.Round(l.CanaryTotal - c.Last.CanaryTotal), math.Round(l.CanaryBad - c.Last.CanaryBad),
		math.Round(l.StableTotal - c.Last.StableTotal), math.Round(l.StableBad - c.Last.StableBad)}
	c.Last = l
	c.Canary, c.Bad, c.Stable, c.Worse = c.Canary+d.CanaryTotal, c.Bad+d.CanaryBad, c.Stable+d.StableTotal, c.Worse+d.StableBad
	all := d.CanaryTotal + d.StableTotal
	if all == 0 || d.CanaryTotal == 0 || d.StableTotal == 0 {
		return // without traffic on both sides an interval tells nothing about their ratio
	}
	share := d.CanaryTotal / all
	p0 := share * o.Margin / (share*o.Margin + 1 - share)
	for i, r := range g {
		p1 := share * r / (share*r + 1 - share)
		c.LogE[i] += d.CanaryBad*math.Log(p1/p0) + d.StableBad*math.Log((1-p1)/(1-p0))
	}
	c.Max = max(c.Max, c.E())
}

// below reports whether a counter is smaller than it was.
func (l Look) below(before Look) bool {
	return l.CanaryTotal < before.CanaryTotal || l.CanaryBad < before.CanaryBad || l.StableTotal < before.StableTotal || l.StableBad < before.StableBad
}

// E is the evidence against the canary: 1 says nothing, 1/Alpha is enough.
func (c *Counts) E() float64 {
	if len(c.LogE) == 0 {
		return 1
	}
	top := c.LogE[0]
	for _, e := range c.LogE {
		top = max(top, e)
	}
	sum := 0.0
	for _, e := range c.LogE {
		sum += math.Exp(e - top)
	}
	return math.Exp(min(700, top)) * sum / float64(len(c.LogE))
}

// Verdict judges what has been seen; over says that the time to watch has passed. It is "" while there is more to see.
func (c *Counts) Verdict(o CountsOptions, over bool) (delivery.Verdict, string) {
	m := fmt.Sprintf("canary %.0f bad of %.0f requests, stable %.0f of %.0f, evidence %.3g of %.3g", c.Bad, c.Canary, c.Worse, c.Stable, c.Max, 1/o.Alpha)
	switch {
	case c.Max >= 1/o.Alpha:
		return delivery.Fail, "the canary is worse: " + m
	case !over:
		return "", m
	case c.Canary == 0 && c.Stable == 0:
		return delivery.NoData, "no request was counted"
	case min(c.Canary, c.Stable) < float64(max(1, o.MinRequests)):
		// With hardly a request on one side, whichever it is, nothing could have been found.
		return delivery.Inconclusive, fmt.Sprintf("too few requests to say (at least %d of each version are asked for): %s", max(1, o.MinRequests), m)
	}
	return delivery.Pass, m
}
