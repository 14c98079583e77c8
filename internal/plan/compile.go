package plan

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// Defaults where the deploy file does not say.
const (
	readyWithin = 30 * time.Minute // Armory's limit for pods to become ready
	exposedFor  = 5 * time.Minute
	keptFor     = 30 * 24 * time.Hour // a checkpoint
)

// Input is what a plan is made of.
type Input struct {
	File     *deployfile.File
	Delivery string // id; its first 8 characters name the new version of Deployments
	// Objects are the manifests of each target, Jobs those of data.jobs by name.
	Objects map[string][]manifest.Object
	Jobs    map[string][]manifest.Object
	Context map[string]string // --add-context: stronger than the file's and the steps' own
	Account string            // --account: in place of every target's
	Targets []string          // --target-filters: these only, all with none
	Force   bool              // --force-conflicts: fields that others hold are taken over
}

// Compile makes the graph. Its nodes are in an order in which they could run one after another.
func Compile(in Input) (Graph, error) {
	c := &compiler{in: in, f: in.File, rehearsals: map[string]string{}, ends: map[string][]string{}, means: map[string][]string{}}
	c.g = Graph{Application: in.File.Application, Context: merged(in.File.Context, in.Context)}
	order, err := c.order()
	if err != nil {
		return Graph{}, err
	}
	for _, t := range order {
		if err := c.target(t); err != nil {
			return Graph{}, fmt.Errorf("target %s: %w", t.Name, err)
		}
	}
	return c.g, nil
}

type compiler struct {
	in         Input
	f          *deployfile.File
	g          Graph
	rehearsals map[string]string   // database → path of the rehearsal
	ends       map[string][]string // target → every node that must have passed before a dependant starts
	means      map[string][]string // target → the targets of the plan that a dependant of it waits for
}

func merged(maps ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range maps {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

// order sorts the targets so that each comes after those that it depends on, otherwise as written.
func (c *compiler) order() ([]deployfile.Target, error) {
	var out []deployfile.Target
	state := map[string]int{} // 1 under way, 2 done
	byName := map[string]deployfile.Target{}
	for _, t := range c.f.Targets {
		byName[t.Name] = t
	}
	var visit func(t deployfile.Target) error
	visit = func(t deployfile.Target) error {
		switch state[t.Name] {
		case 1:
			return fault.Newf(fault.Invalid, "target %s depends on itself", t.Name)
		case 2:
			return nil
		}
		state[t.Name] = 1
		for _, d := range t.DependsOn {
			next, ok := byName[d]
			if !ok {
				return fault.Newf(fault.Invalid, "target %s depends on %s, which does not exist", t.Name, d)
			}
			if err := visit(next); err != nil {
				return err
			}
		}
		state[t.Name] = 2
		if len(c.in.Targets) == 0 || slices.Contains(c.in.Targets, t.Name) {
			out = append(out, t)
			c.means[t.Name] = []string{t.Name}
			return nil
		}
		// A target that is left out still stands between the others.
		for _, d := range t.DependsOn {
			c.means[t.Name] = append(c.means[t.Name], c.means[d]...)
		}
		return nil
	}
	for _, t := range c.f.Targets {
		if err := visit(t); err != nil {
			return nil, err
		}
	}
	for _, name := range c.in.Targets {
		if _, ok := byName[name]; !ok {
			return nil, fault.Newf(fault.Invalid, "--target-filters names %s, which does not exist", name)
		}
	}
	return out, nil
}

// target compiles one target.
func (c *compiler) target(t deployfile.Target) error {
	b := &targetPlan{c: c, t: t, objects: slices.Clone(c.in.Objects[t.Name]), site: c.site(t), copies: map[string]string{}, marks: map[string]string{}}
	if b.site.Account == "" {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "it has no account"), "write account: in the target, or give --account")
	}
	if err := manifest.Unique(b.objects, b.site.Namespace); err != nil {
		return err
	}
	target := Target{Name: t.Name, Account: b.site.Account, Namespace: b.site.Namespace}
	var after []string
	for _, d := range t.DependsOn {
		for _, n := range c.means[d] {
			if !slices.Contains(target.DependsOn, n) {
				target.DependsOn = append(target.DependsOn, n)
				after = append(after, c.ends[n]...)
			}
		}
	}
	if err := b.traffic(&target); err != nil {
		return err
	}
	c.g.Targets = append(c.g.Targets, target)
	first := len(c.g.Nodes)
	ends, err := b.parallel(Before, "before", t.BeforeDeployment, after)
	if err != nil {
		return err
	}
	if ends, err = b.deploy(ends); err != nil {
		return err
	}
	if _, err = b.parallel(After, "after", t.AfterDeployment, ends); err != nil {
		return err
	}
	for _, n := range c.g.Nodes[first:] {
		if !n.Background {
			c.ends[t.Name] = append(c.ends[t.Name], n.Path)
		}
	}
	if len(c.ends[t.Name]) == 0 {
		// Nothing is done in it, so that a dependant waits for what it would have waited for.
		c.ends[t.Name] = after
	}
	return nil
}

// site is where a target is deployed: without a namespace of its own, in that of its first manifest that names one.
func (c *compiler) site(t deployfile.Target) Site {
	s := Site{Account: t.Account, Namespace: t.Namespace}
	if c.in.Account != "" {
		s.Account = c.in.Account
	}
	for _, o := range c.in.Objects[t.Name] {
		if s.Namespace == "" {
			s.Namespace = o.GetNamespace()
		}
	}
	if s.Namespace == "" {
		s.Namespace = "default"
	}
	return s
}

// precedes reports whether the step of a path must have passed before one that waits for others can start.
func (c *compiler) precedes(path string, after []string) bool {
	before := map[string]bool{}
	for _, a := range after {
		before[a] = true
	}
	for _, n := range slices.Backward(c.g.Nodes) {
		if before[n.Path] {
			for _, a := range n.After {
				before[a] = true
			}
		}
	}
	return before[path]
}

// targetPlan is one target being compiled.
type targetPlan struct {
	c       *compiler
	t       deployfile.Target
	site    Site
	objects []manifest.Object
	copies  map[string]string // database → path of its copyData here
	marks   map[string]string // database → path of its markData here
	active  []string          // Services that blueGreen redirects, as far as it names them
	meshes  []Mesh            // that the canary is shared out by
}

// add appends a node.
func (b *targetPlan) add(ph Phase, path, title, kind string, args any, after []string, opts ...func(*Node)) (string, error) {
	body, err := json.Marshal(args)
	if err != nil {
		return "", err
	}
	n := Node{Path: b.t.Name + "/" + path, Title: title, Target: b.t.Name, Phase: ph, Kind: kind, Args: body, After: slices.Clone(after)}
	for _, o := range opts {
		o(&n)
	}
	if slices.ContainsFunc(b.c.g.Nodes, func(m Node) bool { return m.Path == n.Path }) {
		return "", fault.Newf(fault.Invalid, "two steps have the path %s", n.Path)
	}
	b.c.g.Nodes = append(b.c.g.Nodes, n)
	return n.Path, nil
}

// parallel compiles a list whose steps all start at once. It returns what must have passed after it: the steps, or what
// came before an empty list.
func (b *targetPlan) parallel(ph Phase, prefix string, steps []deployfile.Step, after []string) ([]string, error) {
	ends := []string{}
	for i, s := range steps {
		e, err := b.step(ph, fmt.Sprintf("%s/%d", prefix, i+1), s, after)
		if err != nil {
			return nil, err
		}
		ends = append(ends, e...)
	}
	if len(ends) == 0 {
		return after, nil
	}
	return ends, nil
}

// sequential compiles a list whose steps wait for each other.
func (b *targetPlan) sequential(ph Phase, prefix string, steps []deployfile.Step, after []string) ([]string, error) {
	for i, s := range steps {
		e, err := b.step(ph, fmt.Sprintf("%s/%d", prefix, i+1), s, after)
		if err != nil {
			return nil, err
		}
		if len(e) > 0 {
			after = e
		}
	}
	return after, nil
}

// partition returns objects split by a condition, in their order.
func partition(objects []manifest.Object, is func(manifest.Object) bool) (yes, no []manifest.Object) {
	for _, o := range objects {
		if is(o) {
			yes = append(yes, o)
		} else {
			no = append(no, o)
		}
	}
	return yes, no
}
