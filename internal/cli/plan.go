package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
)

// planID stands for the id that a delivery would get.
const planID = "00000000plan0000"

func (a *app) planCommand() *cobra.Command {
	var f startFlags
	var diff bool
	c := &cobra.Command{
		Use:   "plan -f FILE",
		Short: "Show what a delivery would do, step by step, and how it would be undone",
		Long: `Plan reads the deploy file and its manifests and prints every step: what it waits for, what it does, how it is undone, and where
the point of no return is. Nothing is contacted and nothing changes.

Exit code: 0 it can be started, 1 something is refused, 2 wrong usage or an unreadable file.

With --diff it prints instead how each object of the manifests would differ from the live one, as a unified diff. The accounts of the
targets are asked from here; a cluster answers by a dry run. The values of Secrets are not shown, and what each delivery writes
anew is left out. Objects that are live and in no manifest are not looked for: a delivery does not delete them.

Exit code with --diff, as of kubectl diff: 0 nothing differs, 1 something differs, 2 refused, or it could not be told.`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if diff {
				return a.planDiff(c.Context(), f)
			}
			if f.file == "" {
				return &exit{exitUnable, errors.New("give the deploy file with -f FILE")}
			}
			spec, _, err := a.compile(a.fetcher(c.Context()), f, planID)
			if err != nil {
				return unreadable(err)
			}
			if err := a.unfit(c.Context(), spec.Graph); err != nil {
				return err
			}
			if err := a.movers(spec.Graph); err != nil {
				return unreadable(err)
			}
			lacks, err := a.unready(spec.Graph)
			if err != nil {
				return unreadable(err)
			}
			for _, l := range lacks {
				fmt.Fprintln(a.errs, "warning: before it can start:", l)
			}
			return a.show(viewOf(spec), func(w io.Writer) error { return writePlan(w, spec) })
		},
	}
	f.bind(c)
	c.Flags().BoolVar(&diff, "diff", false, "show what differs from the live objects; exit code 1 if anything does")
	return c
}

// movers adds to copies that go to another account how their volumes get there, which the configuration decides.
func (a *app) movers(g plan.Graph) error {
	c, err := config.Load(a.config)
	if err != nil {
		return err
	}
	return eachCopy(g, func(n *plan.Node, from, to string) error {
		if why := c.Apart(from, to); why != "" {
			n.Description.Does += fmt.Sprintf("; the volumes are streamed over the network from account %s to %s, because %s", from, to, why)
		} else {
			n.Description.Does += fmt.Sprintf("; the volumes are snapshots that account %s hands on to %s, as both share one storage", from, to)
		}
		return nil
	})
}

// eachCopy calls do for the copies that go from one account to another.
func eachCopy(g plan.Graph, do func(n *plan.Node, from, to string) error) error {
	for i, n := range g.Nodes {
		if n.Kind != plan.KindCopyData {
			continue
		}
		var args plan.CopyArgs
		if err := json.Unmarshal(n.Args, &args); err != nil {
			return err
		}
		if from, to := args.Database.Account, args.To.Account; from != to {
			if err := do(&g.Nodes[i], from, to); err != nil {
				return fmt.Errorf("step %s: %w", n.Path, err)
			}
		}
	}
	return nil
}

// unreadable gives errors of reading files the exit code of what could not be told; a refusal keeps its own.
func unreadable(err error) error {
	if fault.KindOf(err) == "" {
		return &exit{exitUnable, err}
	}
	return err
}

// planView is a plan as programs read it. It leaves out the arguments of the steps: they hold whole manifests, and
// Secrets among them.
type planView struct {
	Application string            `json:"application"`
	Context     map[string]string `json:"context,omitempty"`
	Targets     []targetView      `json:"targets"`
}

type targetView struct {
	plan.Target
	Steps []stepView `json:"steps"`
}

type stepView struct {
	Path           string     `json:"path"`
	Title          string     `json:"title"`
	Phase          plan.Phase `json:"phase"`
	Type           string     `json:"type"`
	After          []string   `json:"after,omitempty"`
	OnInconclusive string     `json:"onInconclusive,omitempty"`
	Background     bool       `json:"background,omitempty"`
	plan.Description
}

func viewOf(s delivery.Spec) planView {
	v := planView{Application: s.Application, Context: s.Context, Targets: []targetView{}}
	for _, t := range s.Graph.Targets {
		tv := targetView{Target: t, Steps: []stepView{}}
		for _, n := range s.Graph.Nodes {
			if n.Target == t.Name {
				tv.Steps = append(tv.Steps, stepView{n.Path, n.Title, n.Phase, n.Kind, n.After, n.OnInconclusive, n.Background, n.Description})
			}
		}
		v.Targets = append(v.Targets, tv)
	}
	return v
}

// consequence says what a failure in a phase of a target means.
func consequence(ph plan.Phase, target string) string {
	switch ph {
	case plan.Before:
		return "if one fails, " + target + " is not changed"
	case plan.After:
		return "if one fails, " + target + " keeps the new version and what depends on it is cancelled"
	default:
		return "if one fails, what was begun here is undone, last first"
	}
}

// writePlan prints the graph for people. Steps have numbers, by which the others name them.
func writePlan(w io.Writer, s delivery.Spec) error {
	p := &planWriter{w: w, numbers: map[string]int{}, nodes: map[string]plan.Node{}}
	for i, n := range s.Graph.Nodes {
		p.numbers[n.Path], p.nodes[n.Path] = i+1, n
	}
	p.line("%s: %s, %s", s.Application, count(len(s.Graph.Targets), "target"), count(len(s.Graph.Nodes), "step"))
	for _, k := range slices.Sorted(maps.Keys(s.Context)) {
		p.line("  context %s=%s", k, s.Context[k])
	}
	for _, t := range s.Graph.Targets {
		p.line("")
		p.line("%s (account %s, namespace %s)", t.Name, t.Account, t.Namespace)
		if len(t.DependsOn) > 0 {
			p.line("  starts when all of %s has passed", strings.Join(t.DependsOn, " and of "))
		}
		for _, n := range t.Notes {
			p.line("  note: %s", n)
		}
		var ph plan.Phase
		for _, n := range s.Graph.Nodes {
			if n.Target != t.Name {
				continue
			}
			if n.Phase != ph {
				ph = n.Phase
				p.line("  %s: %s", ph, consequence(ph, t.Name))
			}
			p.step(n)
		}
	}
	return p.err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// planWriter writes and remembers the first error.
type planWriter struct {
	w       io.Writer
	err     error
	numbers map[string]int
	nodes   map[string]plan.Node
}

func (p *planWriter) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, strings.TrimRight(shorter(fmt.Sprintf(format, args...)), " "))
	}
}

// shorter writes durations as people do: 30m and not 30m0s.
func shorter(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(text, "h0m0s", "h"), "m0s", "m")
}

// pair writes a name and its text, the text in lines of its own column.
func (p *planWriter) pair(name, text string) {
	if text == "" {
		return
	}
	for _, l := range wrap(shorter(text), planWidth) {
		p.line("         %-10s %s", name, l)
		name = ""
	}
}

// planWidth is how wide the texts of a plan are. It does not follow the terminal, so that a plan in a log or a review reads
// the same.
const planWidth = 100

// wrap cuts a text into lines between words.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

func (p *planWriter) step(n plan.Node) {
	p.line("  %3d  %-44s %s", p.numbers[n.Path], n.Title, n.Path)
	p.pair("after", p.after(n))
	d := n.Description
	p.pair("does", d.Does)
	p.pair("waits for", d.WaitsFor)
	p.pair("undone by", d.UndoneBy)
	p.pair("if unclear", map[string]string{"wait": "waits 24h for a person, then rolls back", "rollback": "rolls back", "continue": "goes on"}[n.OnInconclusive])
	if d.NoReturnAfter {
		p.line("       ──── point of no return: the cheapest way back ends here ────")
	}
}

// after names the steps of the same target that must have passed.
func (p *planWriter) after(n plan.Node) string {
	var numbers []int
	for _, a := range n.After {
		if p.nodes[a].Target == n.Target {
			numbers = append(numbers, p.numbers[a])
		}
	}
	slices.Sort(numbers)
	var parts []string
	for _, i := range numbers {
		parts = append(parts, fmt.Sprint(i))
	}
	return strings.Join(parts, ", ")
}
