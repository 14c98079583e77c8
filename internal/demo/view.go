package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/store"
)

// view is what the spectators see: plain lines, and on a terminal one more line with what goes on now.
type view struct {
	out   io.Writer
	width int  // of the terminal; 0 where there is none
	over  bool // the line that is written over stands
}

// The signs before lines.
const (
	good = "✔"
	bad  = "✖"
	back = "↩"
)

// plainWidth is how wide lines may be where there is no terminal.
const plainWidth = 132

func (v *view) columns() int {
	if v.width > 0 {
		return min(v.width, plainWidth)
	}
	return plainWidth
}

// end removes the line that is written over.
func (v *view) end() {
	if v.over {
		fmt.Fprint(v.out, "\r\x1b[K")
		v.over = false
	}
}

func (v *view) line(s string) {
	v.end()
	fmt.Fprintln(v.out, strings.TrimRight(s, " "))
}

func (v *view) gap() { v.line("") }

func (v *view) title(format string, args ...any) {
	v.gap()
	s := fmt.Sprintf(format, args...)
	if v.width > 0 {
		s = "\x1b[1m" + s + "\x1b[0m"
	}
	v.line(s)
	v.gap()
}

// say writes a paragraph.
func (v *view) say(format string, args ...any) {
	v.block("  ", "  ", fmt.Sprintf(format, args...))
}

// fact writes a named line.
func (v *view) fact(name, format string, args ...any) {
	v.block(fmt.Sprintf("  %-12s", name), strings.Repeat(" ", 14), fmt.Sprintf(format, args...))
}

func (v *view) mark(sign, format string, args ...any) {
	v.block("  "+v.coloured(sign)+" ", "    ", fmt.Sprintf(format, args...))
}

func (v *view) coloured(sign string) string {
	colour := map[string]string{good: "32", bad: "31", back: "33"}[sign]
	if v.width == 0 || colour == "" {
		return sign
	}
	return "\x1b[" + colour + "m" + sign + "\x1b[0m"
}

// block writes text in lines of the view's width: the first after one prefix, the others after another.
func (v *view) block(first, rest, text string) {
	indent := len([]rune(rest))
	for i, l := range wrapped(text, v.columns()-indent) {
		if i == 0 {
			v.line(first + l)
		} else {
			v.line(rest + l)
		}
	}
}

// wrapped breaks text at blanks.
func wrapped(text string, width int) []string {
	var lines []string
	line, used := "", 0
	for _, w := range strings.Fields(text) {
		n := len([]rune(w))
		if used > 0 && used+1+n > width {
			lines, line, used = append(lines, line), "", 0
		}
		if used > 0 {
			line, used = line+" ", used+1
		}
		line, used = line+w, used+n
	}
	return append(lines, line)
}

// progress shows what goes on now, where there is a terminal.
func (v *view) progress(format string, args ...any) {
	if v.width == 0 {
		return
	}
	r := []rune("  … " + fmt.Sprintf(format, args...))
	if len(r) >= v.width {
		r = r[:v.width-1]
	}
	fmt.Fprintf(v.out, "\r\x1b[K%s", string(r))
	v.over = true
}

// changed tells what has become of the steps between two states of a delivery.
func (v *view) changed(was, is store.Delivery) {
	nodes := slices.Clone(is.Spec.Graph.Nodes)
	slices.SortStableFunc(nodes, func(x, y plan.Node) int { return is.Status.Nodes[x.Path].Ended.Compare(is.Status.Nodes[y.Path].Ended) })
	for _, n := range nodes {
		b, a := was.Status.Nodes[n.Path], is.Status.Nodes[n.Path]
		switch {
		case failed(a) && !failed(b), a.Phase == delivery.StepUndoFailed && a.Phase != b.Phase:
			v.step(bad, n, a)
		case a.Phase == b.Phase:
		case a.Phase == delivery.StepPassed:
			v.step(good, n, a)
		case a.Phase == delivery.StepUndone && goesBack(n.Kind):
			v.step(back, n, a)
		}
	}
}

// failed reports whether a step has ended with any verdict but pass. What failed in production goes back at once, so it
// may never be seen to stand as failed.
func failed(s delivery.NodeStatus) bool { return s.Verdict != "" && s.Verdict != delivery.Pass }

// goesBack reports whether there is something to see when a step of this kind is undone. The others change nothing, or
// nothing that customers could notice.
func goesBack(kind string) bool {
	switch kind {
	case plan.KindStartCanary, plan.KindSetWeight, plan.KindSwap, plan.KindOpen, plan.KindFence:
		return true
	}
	return false
}

func (v *view) step(sign string, n plan.Node, s delivery.NodeStatus) {
	took := ""
	if sign != back && !s.Ended.IsZero() && !s.Started.IsZero() {
		took = " " + rounded(s.Ended.Sub(s.Started))
	}
	head := fmt.Sprintf("  %s %-11s %s", v.coloured(sign), n.Target, n.Title)
	v.line(head + took)
	if s.Message != "" {
		v.block(strings.Repeat(" ", 16), strings.Repeat(" ", 16), s.Message)
	}
}

func rounded(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// grouped writes a number with its thousands apart.
func grouped(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// differences shows each differing document with what was and what is.
func (v *view) differences(all []found) {
	v.say("What the gate has found, on copies of production:")
	v.gap()
	for _, f := range all {
		change := f.old + " → " + f.new
		switch {
		case f.Field == "":
			change = f.new
		case f.pattern != "":
			change += "   each " + f.pattern
		}
		v.line(fmt.Sprintf("    %-10s %-10s %-9s %s", f.Collection, f.ID, f.Field, change))
	}
	v.gap()
}

// evidence shows what each gate has to show, from the record of the delivery.
func (v *view) evidence(d store.Delivery) {
	v.say("The evidence of each gate, as it stands in the delivery's record:")
	v.gap()
	for _, n := range d.Spec.Graph.Nodes {
		switch n.Kind {
		case plan.KindCopyData, plan.KindVerifyData, plan.KindRehearse, plan.KindQuickVerify, plan.KindOpen, plan.KindAnalysis, plan.KindRunJob, plan.KindCheckpointData:
			s := d.Status.Nodes[n.Path]
			v.block(fmt.Sprintf("    %-30s", n.Target+" "+n.Kind), strings.Repeat(" ", 34), string(s.Verdict)+": "+s.Message+digests(s.Evidence))
		}
	}
	v.gap()
}

// digests names the roots that a comparison leaves.
func digests(evidence json.RawMessage) string {
	var e struct {
		Tables []struct{ Name, SourceRoot, TargetRoot string }
	}
	if json.Unmarshal(evidence, &e) != nil {
		return ""
	}
	out := ""
	for _, t := range e.Tables {
		out += fmt.Sprintf("; %s %s = %s", t.Name, short(t.SourceRoot), short(t.TargetRoot))
	}
	return out
}

func short(root string) string {
	root = strings.TrimPrefix(root, "sha256:")
	return root[:min(8, len(root))] + "…"
}

// table sums the deliveries up.
func (v *view) table(all []result) {
	v.title("What became of them")
	rows := [][]string{{"", "ended", "requests", "failed", "longest wait", "in the ledger", "lost", "took"}}
	for i, r := range all {
		sign := good
		if len(r.wrong) > 0 {
			sign = bad
		}
		rows = append(rows, []string{fmt.Sprintf("%s %d %s", sign, i+1, r.act.short), r.ended, grouped(r.traffic.Requests), grouped(r.traffic.failed()),
			rounded(r.traffic.Worst), grouped(r.checked.Acknowledged), grouped(r.checked.lost()), rounded(r.took)})
	}
	widths := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, c := range r {
			widths[i] = max(widths[i], len([]rune(c)))
		}
	}
	for n, r := range rows {
		line := "  "
		for i, c := range r {
			line += c + strings.Repeat(" ", widths[i]-len([]rune(c))+2)
		}
		v.line(line)
		if n > 0 && all[n-1].because != "" {
			v.line("      " + all[n-1].because)
		}
	}
	v.gap()
}
