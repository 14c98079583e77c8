package judge

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/delivery"
)

func p(v float64) *float64 { return &v }

func TestThreshold(t *testing.T) {
	for _, c := range []struct {
		name    string
		limits  Limits
		runs    []float64
		missing int
		planned int
		abort   bool
		want    delivery.Verdict
	}{
		{"more to come", Limits{Upper: p(1)}, []float64{5}, 0, 2, false, ""},
		{"the mean counts", Limits{Upper: p(1)}, []float64{0, 2}, 0, 2, false, delivery.Pass},
		{"inclusive above", Limits{Upper: p(2)}, []float64{2}, 0, 1, false, delivery.Pass},
		{"inclusive below", Limits{Lower: p(2)}, []float64{2}, 0, 1, false, delivery.Pass},
		{"must be zero", Limits{Upper: p(0), Lower: p(0)}, []float64{0, 0}, 0, 2, false, delivery.Pass},
		{"just above", Limits{Upper: p(2)}, []float64{2.0001}, 0, 1, false, delivery.Fail},
		{"negative limits", Limits{Lower: p(-3), Upper: p(-1)}, []float64{-2}, 0, 1, false, delivery.Pass},
		{"abort at the first", Limits{Upper: p(1)}, []float64{0, 2}, 0, 9, true, delivery.Fail},
		{"abort needs a failing run", Limits{Upper: p(1)}, []float64{0, 1}, 0, 9, true, ""},
		{"no data at all", Limits{Upper: p(1)}, nil, 3, 3, false, delivery.NoData},
		{"some data missing", Limits{Upper: p(1)}, []float64{0}, 1, 2, false, delivery.Inconclusive},
		{"NaN is no pass", Limits{Upper: p(1)}, []float64{math.NaN()}, 0, 1, false, delivery.Fail},
	} {
		if got, m := Threshold(c.limits, c.runs, c.missing, c.planned, c.abort); got != c.want {
			t.Errorf("%s: %q (%s), want %q", c.name, got, m, c.want)
		}
	}
}

var usual = CountsOptions{Alpha: 0.02, Margin: 1, MinRequests: 100}

// simulate runs a canary of 10 % of rps requests a second, looked at every second, and returns the second of its fall; 0
// if it never fell.
func simulate(r *rand.Rand, o CountsOptions, rps int, seconds int, base, ratio float64) int {
	var c Counts
	var l Look
	c.Look(o, l)
	for s := 1; s <= seconds; s++ {
		// A wave that both sides share: the judge must not mind it.
		rate := base * (1 + 0.5*math.Sin(float64(s)/20))
		for range rps {
			if r.Float64() < 0.1 {
				l.CanaryTotal++
				if r.Float64() < rate*ratio {
					l.CanaryBad++
				}
			} else if l.StableTotal++; r.Float64() < rate {
				l.StableBad++
			}
		}
		c.Look(o, l)
		if v, _ := c.Verdict(o, false); v == delivery.Fail {
			return s
		}
	}
	return 0
}

func TestCountsFalseAlarms(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	false1, runs := 0, 1000
	for range runs {
		if simulate(r, usual, 50, 120, 0.02, 1) > 0 {
			false1++
		}
	}
	// 2 % are allowed; three standard deviations of 1,000 runs are 1.3 %.
	if got := float64(false1) / float64(runs); got > 0.033 {
		t.Errorf("%.1f %% of good canaries were called bad", 100*got)
	}
}

func TestCountsFindsRegressions(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, c := range []struct {
		ratio  float64
		within int
	}{{10, 60}, {5, 120}} {
		missed := 0
		for range 100 {
			if s := simulate(r, usual, 100, c.within, 0.01, c.ratio); s == 0 {
				missed++
			}
		}
		if missed > 5 {
			t.Errorf("%gx: %d of 100 were not found within %d s", c.ratio, missed, c.within)
		}
	}
}

// TestCountsCleanStable is the case of the demo: stable never fails, the canary does.
func TestCountsCleanStable(t *testing.T) {
	var c Counts
	c.Look(usual, Look{})
	c.Look(usual, Look{CanaryTotal: 40, CanaryBad: 6, StableTotal: 360})
	if v, m := c.Verdict(usual, false); v != delivery.Fail {
		t.Errorf("%q: %s", v, m)
	}
}

func TestCountsVerdicts(t *testing.T) {
	var c Counts
	if v, _ := c.Verdict(usual, true); v != delivery.NoData {
		t.Errorf("nothing seen: %q", v)
	}
	c.Look(usual, Look{CanaryTotal: 1000, CanaryBad: 999, StableTotal: 5})
	if v, _ := c.Verdict(usual, true); v != delivery.NoData {
		t.Errorf("what was counted before the first look: %q", v)
	}
	c.Look(usual, Look{CanaryTotal: 1050, CanaryBad: 999, StableTotal: 505})
	if v, m := c.Verdict(usual, true); v != delivery.Inconclusive || !strings.Contains(m, "too few") {
		t.Errorf("50 requests: %q %s", v, m)
	}
	c.Look(usual, Look{CanaryTotal: 60, CanaryBad: 0, StableTotal: 500}) // both counters were reset
	if c.Canary != 50 || c.Stable != 500 || c.Bad != 0 {
		t.Errorf("after a reset %+v", c)
	}
	c.Look(usual, Look{CanaryTotal: 120, CanaryBad: 0, StableTotal: 1000})
	if c.Canary != 110 || c.Stable != 1000 || c.Bad != 0 {
		t.Errorf("after the look that follows a reset %+v", c)
	}
	c.Look(usual, Look{CanaryTotal: 140, CanaryBad: 0, StableTotal: 600}) // a pod of many has gone with what it had counted
	if c.Canary != 110 || c.Stable != 1000 {
		t.Errorf("after a sum has become smaller %+v", c)
	}
	if v, m := c.Verdict(usual, true); v != delivery.Pass {
		t.Errorf("%q: %s", v, m)
	}
}

// TestCountsNeedsBothSides holds that a canary with nothing to compare it with does not pass, however bad or good it is.
func TestCountsNeedsBothSides(t *testing.T) {
	for _, l := range []Look{{CanaryTotal: 5000, CanaryBad: 4000}, {CanaryTotal: 5000, StableTotal: 99}, {CanaryTotal: 99, StableTotal: 5000}} {
		var c Counts
		c.Look(usual, Look{})
		c.Look(usual, l)
		if v, m := c.Verdict(usual, true); v != delivery.Inconclusive {
			t.Errorf("%+v: %q %s", l, v, m)
		}
	}
}

func TestCountsResumes(t *testing.T) {
	var a, b Counts
	looks := []Look{{}, {100, 1, 900, 2}, {200, 4, 1800, 3}, {300, 9, 2700, 3}}
	for _, l := range looks {
		a.Look(usual, l)
		b.Look(usual, l)
		body, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		b = Counts{}
		if err := json.Unmarshal(body, &b); err != nil {
			t.Fatal(err)
		}
	}
	if a.Max != b.Max || a.Canary != b.Canary {
		t.Errorf("%+v and %+v", a, b)
	}
}
