package demo

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/store"
)

func TestWrapped(t *testing.T) {
	for _, c := range []struct {
		text  string
		width int
		want  string
	}{
		{"one two three", 7, "one two|three"},
		{"one two three", 100, "one two three"},
		{"unbreakable", 3, "unbreakable"},
		{"a unbreakable b", 3, "a|unbreakable|b"},
		{"", 10, ""},
		{"äöü ß", 5, "äöü ß"},
	} {
		if got := strings.Join(wrapped(c.text, c.width), "|"); got != c.want {
			t.Errorf("%q in %d: %q", c.text, c.width, got)
		}
	}
}

func TestGrouped(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := grouped(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

func TestSameSet(t *testing.T) {
	a, b := damage{"orders", "o-1", "placedAt"}, damage{"orders", "o-2", ""}
	of := func(all ...damage) []found {
		var out []found
		for _, d := range all {
			out = append(out, found{damage: d})
		}
		return out
	}
	for _, c := range []struct {
		name     string
		reported []found
		done     []damage
		says     string
	}{
		{"equal, in another order", of(b, a), []damage{a, b}, ""},
		{"one too few", of(a), []damage{a, b}, "o-2  was damaged and not reported"},
		{"one too many", of(a, b), []damage{a}, "o-2  was reported and not damaged"},
		{"another field", of(damage{"orders", "o-1", "cents"}), []damage{a}, "not reported"},
		{"one twice", of(a, a), []damage{a}, "was reported and not damaged"},
	} {
		err := sameSet(c.reported, c.done)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestReportedIsComplete refuses a report that names fewer rows than it counts: then the demo could not tell which.
func TestReportedIsComplete(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	const one = `{"key":"\"o-1\"","old":{"type":"int","text":"1"},"new":{"type":"string","text":"1"}}`
	for examples, ok := range map[string]bool{one: true, "": false} {
		body := `{"tables":[{"name":{"database":"shop","relation":"orders"},"classes":[{"class":"type","column":"quantity","count":1,"examples":[` + examples + `]}]}]}`
		if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := reported(file)
		if (err == nil) != ok {
			t.Errorf("%v, %v", all, err)
		}
		if ok && (len(all) != 1 || all[0].damage != (damage{"orders", "o-1", "quantity"}) || all[0].old != "1 (int)") {
			t.Errorf("%+v", all)
		}
	}
}

func TestTraffic(t *testing.T) {
	tr := traffic{Failed: map[string]int{}}
	tr.count(request{Took: time.Second, Tries: 1, Release: "1"})
	tr.count(request{Took: 2 * time.Second, Tries: 2, Does: "place", ID: "n", Release: "2-rc1", Failed: "broken"})
	tr.count(request{Tries: 9, Failed: "no answer"})
	if tr.Requests != 3 || tr.Reconnected != 2 || tr.Worst != 2*time.Second || tr.failed() != 2 || tr.Why != "place n: broken" {
		t.Errorf("%+v", tr)
	}
	if got := tr.failures(); got != "2 failed (1 without an answer, 1 by release 2-rc1)" {
		t.Error(got)
	}
}

// steps makes a delivery with one step in a phase and with a verdict.
func steps(kind string, s delivery.NodeStatus) store.Delivery {
	return store.Delivery{Spec: delivery.Spec{Graph: plan.Graph{Nodes: []plan.Node{{Path: "p", Title: "the step", Target: "staging", Kind: kind}}}},
		Status: delivery.Status{Nodes: map[string]delivery.NodeStatus{"p": s}}}
}

func TestChanged(t *testing.T) {
	running := delivery.NodeStatus{Phase: delivery.StepRunning}
	undoing := delivery.NodeStatus{Phase: delivery.StepUndoing, Verdict: delivery.Fail, Message: "it is bad"}
	for _, c := range []struct {
		name    string
		kind    string
		was, is delivery.NodeStatus
		want    string
	}{
		{"passes", plan.KindApply, running, delivery.NodeStatus{Phase: delivery.StepPassed, Verdict: delivery.Pass, Message: "well"}, good},
		{"fails and goes back at once", plan.KindAnalysis, running, undoing, bad},
		{"a failure is told once", plan.KindAnalysis, undoing, undoing, ""},
		{"goes back", plan.KindSwap, delivery.NodeStatus{Phase: delivery.StepUndoing, Verdict: delivery.Pass}, delivery.NodeStatus{Phase: delivery.StepUndone, Verdict: delivery.Pass}, back},
		{"nothing to see", plan.KindQuickVerify, running, delivery.NodeStatus{Phase: delivery.StepUndone}, ""},
		{"only saved", plan.KindApply, running, running, ""},
	} {
		var out strings.Builder
		(&view{out: &out}).changed(steps(c.kind, c.was), steps(c.kind, c.is))
		if !strings.Contains(out.String(), c.want) || (out.Len() == 0) != (c.want == "") || c.want == bad && !strings.Contains(out.String(), "it is bad") {
			t.Errorf("%s: %q", c.name, out.String())
		}
	}
}

func TestWaitsForNobody(t *testing.T) {
	if err := waits(steps(plan.KindApproval, delivery.NodeStatus{Phase: delivery.StepRunning})); err != nil {
		t.Error(err)
	}
	for _, s := range []delivery.NodeStatus{{Phase: delivery.StepWaiting, Held: true}, {Phase: delivery.StepUndoFailed}, {Phase: delivery.StepUndoing, Awaits: []string{"p"}}} {
		if waits(steps(plan.KindVerifyData, s)) == nil {
			t.Errorf("%+v: the demo would wait for ever", s)
		}
	}
}

// TestPlainLines has no control character where there is no terminal.
func TestPlainLines(t *testing.T) {
	var out strings.Builder
	v := &view{out: &out}
	v.title("A title")
	v.progress("something goes on")
	v.mark(good, "something is well")
	v.table([]result{{act: act{short: "one"}, ended: "promoted", traffic: traffic{Failed: map[string]int{}}}, {act: act{short: "two"}, wrong: []error{errors.New("it is bad")}}})
	if strings.ContainsAny(out.String(), "\x1b\r") || strings.Contains(out.String(), "goes on") {
		t.Errorf("%q", out.String())
	}
	for l := range strings.Lines(out.String()) {
		if strings.HasSuffix(strings.TrimSuffix(l, "\n"), " ") {
			t.Errorf("blanks at the end of %q", l)
		}
	}
	var shown strings.Builder
	(&view{out: &shown, width: 40}).progress("%s", strings.Repeat("long ", 20))
	if got := strings.TrimPrefix(shown.String(), "\r\x1b[K"); len([]rune(got)) > 39 {
		t.Errorf("%d characters on a line of 40", len([]rune(got)))
	}
}
