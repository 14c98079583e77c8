package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fetch"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/step/data"
)

// compile makes the plan of a delivery: it reads the deploy file, refuses what is wrong or not built yet, loads the
// manifests and describes every step.
func (a *app) compile(get fetcher, f startFlags, id string) (delivery.Spec, *material, error) {
	body, err := readDeployFile(get, f.file)
	if err != nil {
		return delivery.Spec{}, nil, err
	}
	name := shownName(f.file)
	file, findings := deployfile.Parse(name, body)
	if file != nil && !findings.HasErrors() {
		findings = append(findings, deployfile.Unbuilt(file)...)
	}
	if err := findings.Write(a.errs, name, body); err != nil {
		return delivery.Spec{}, nil, err
	}
	if file == nil || findings.HasErrors() {
		return delivery.Spec{}, nil, fault.WithRemedy(fault.Newf(fault.Invalid, "%s is refused", name), "mend what is named above; sluice validate tells more")
	}
	if f.application != "" {
		file.Application = f.application
	}
	if file.Application == "" {
		return delivery.Spec{}, nil, fault.WithRemedy(fault.Newf(fault.Invalid, "%s names no application", name), "write application: in it, or give -n NAME")
	}
	m := load(get, f.file, file)
	for _, w := range m.warnings {
		fmt.Fprintln(a.errs, "warning:", w)
	}
	if err := m.err(name); err != nil {
		return delivery.Spec{}, nil, err
	}
	graph, err := plan.Compile(plan.Input{File: file, Delivery: id, Objects: m.objects, Jobs: m.jobs, Context: f.context, Account: f.account, Targets: f.targets, Force: f.force})
	if err != nil {
		return delivery.Spec{}, nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := describe(&graph); err != nil {
		return delivery.Spec{}, nil, err
	}
	spec := delivery.Spec{ID: id, Application: file.Application, Graph: graph, Context: graph.Context, CreatedAt: time.Now().UTC(), File: string(body),
		EnqueueOne: strings.EqualFold(file.DeploymentConfig.IfDeploymentInProgress, "enqueueOne")}
	spec.By = me()
	return spec, m, nil
}

// me is the name of whoever runs this program, "" where it has none.
func me() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username
}

// fetcher reads a file at an address of the web.
type fetcher func(address string) ([]byte, error)

// fetcher returns what fetches until ctx ends.
func (a *app) fetcher(ctx context.Context) fetcher {
	return func(address string) ([]byte, error) {
		return fetch.Fetcher{AllowHTTP: a.allowHTTP}.Get(ctx, address)
	}
}

// shownName is a deploy file's name as messages show it.
func shownName(path string) string {
	if fetch.IsURL(path) {
		return fetch.Name(path)
	}
	return path
}

func readDeployFile(get fetcher, path string) ([]byte, error) {
	if fetch.IsURL(path) {
		body, err := get(path)
		if err != nil {
			// Its kind is left out: the file could not be read, which is no refusal of what stands in it.
			return nil, errors.New("read the deploy file: " + err.Error())
		}
		return body, nil
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the deploy file: %w", err)
	}
	return body, nil
}

// describe lets the step of each kind say what it will do. A kind that no code does is refused by its name.
func describe(g *plan.Graph) error {
	steps := step.Simple(step.Ports{})
	maps.Copy(steps, data.Steps(step.Ports{}, data.Options{}))
	for i, n := range g.Nodes {
		s, ok := steps[n.Kind]
		if !ok {
			return fault.Newf(fault.Invalid, "step %s: %s is not built yet", n.Path, n.Kind)
		}
		d, err := s.Plan(n)
		if err != nil {
			return fmt.Errorf("step %s: %w", n.Path, err)
		}
		g.Nodes[i].Description = d
	}
	return nil
}

// material is what a deploy file refers to.
type material struct {
	objects  map[string][]manifest.Object // by target, in the order in which they can be applied
	jobs     map[string][]manifest.Object // by name in data.jobs
	problems []problem
	warnings []string
	get      fetcher
}

// problem is something that a deploy file refers to and that is missing or wrong.
type problem struct {
	pos deployfile.Pos
	err error
}

func (p problem) missing() bool { return fault.Is(p.err, fault.NotFound) }

// err returns the problems as one error, nil if there is none.
func (m *material) err(path string) error {
	var errs []error
	for _, p := range m.problems {
		errs = append(errs, fmt.Errorf("%s:%d: %w", path, p.pos.Line, p.err))
	}
	if err := errors.Join(errs...); err != nil {
		return fault.Newf(fault.Invalid, "%w", err)
	}
	return nil
}

// folders are where relative paths of a deploy file lead: the workspace of a CI job or else the working directory, as
// Armory's program reads them, and then the folder of the file.
func folders(path string) []string {
	first := "."
	if w := os.Getenv("GITHUB_WORKSPACE"); w != "" {
		first = w
	}
	return []string{first, filepath.Dir(path)}
}

// load reads everything that a deploy file refers to. The bodies of webhooks that are files become part of the file.
func load(get fetcher, path string, f *deployfile.File) *material {
	m := &material{get: get, objects: map[string][]manifest.Object{}, jobs: map[string][]manifest.Object{}}
	in := folders(path)
	for _, x := range f.Manifests {
		read := map[string][]manifest.Object{} // by namespace, which a chart may ask for
		for _, t := range append(slices.Clone(f.Targets), deployfile.Target{}) {
			if t.Name != "" && len(x.Targets) > 0 && !slices.Contains(x.Targets, t.Name) || t.Name == "" && len(read) > 0 {
				continue
			}
			namespace := ""
			if p, _, err := manifest.Find(x.Path, in...); err == nil && manifest.Renders(p) {
				namespace = t.Namespace
			}
			objects, ok := read[namespace]
			if !ok {
				objects = m.read(x.Pos, path, in, x.Path, x.Inline, namespace)
				read[namespace] = objects
			}
			if t.Name != "" {
				m.objects[t.Name] = append(m.objects[t.Name], objects...)
			}
		}
	}
	for t, objects := range m.objects {
		m.objects[t] = manifest.Order(objects)
	}
	for _, j := range f.Data.Jobs {
		m.jobs[j.Name] = m.read(j.Pos, path, in, j.Path, j.Inline, "")
	}
	for i, w := range f.Webhooks {
		if w.BodyPath == "" {
			continue
		}
		body, err := m.body(path, in, w.BodyPath)
		f.Webhooks[i].Body = string(body)
		if err != nil {
			m.problems = append(m.problems, problem{w.Pos, fmt.Errorf("the body of webhook %s: %w", w.Name, err)})
		}
	}
	return m
}

func (m *material) read(pos deployfile.Pos, file string, in []string, path, inline, namespace string) []manifest.Object {
	if inline != "" {
		objects, err := manifest.Parse(fmt.Sprintf("%s:%d inline", shownName(file), pos.Line), []byte(inline))
		if err != nil {
			m.problems = append(m.problems, problem{pos, err})
		}
		return objects
	}
	if address, err := address(file, path); address != "" || err != nil {
		return m.fetched(pos, address, err)
	}
	p, others, err := manifest.Find(path, in...)
	if err != nil {
		m.problems = append(m.problems, problem{pos, err})
		return nil
	}
	for _, o := range others {
		if w := fmt.Sprintf("%s:%d: %s is used, although %s exists, too", file, pos.Line, p, o); !slices.Contains(m.warnings, w) {
			m.warnings = append(m.warnings, w)
		}
	}
	objects, err := manifest.Load(p, namespace, render)
	if err != nil && !m.known(pos, err) {
		m.problems = append(m.problems, problem{pos, err})
	}
	return objects
}

// known reports whether a problem was told: a chart is rendered for each namespace.
func (m *material) known(pos deployfile.Pos, err error) bool {
	return slices.ContainsFunc(m.problems, func(p problem) bool { return p.pos == pos && p.err.Error() == err.Error() })
}

// address returns where on the web a path of a deploy file leads, "" where it leads to a file of this machine. The paths of a
// deploy file at an address lead to its neighbours there, never to files of this machine.
func address(file, path string) (string, error) {
	switch {
	case fetch.IsURL(path):
		return path, nil
	case fetch.IsURL(file):
		return fetch.Beside(file, path)
	}
	return "", nil
}

func (m *material) fetched(pos deployfile.Pos, address string, err error) []manifest.Object {
	var body []byte
	if err == nil {
		body, err = m.get(address)
	}
	var objects []manifest.Object
	if err == nil {
		objects, err = manifest.Parse(fetch.Name(address), body)
	}
	if err != nil {
		m.problems = append(m.problems, problem{pos, err})
	}
	return objects
}

// body reads the file that holds the body of a webhook.
func (m *material) body(file string, in []string, path string) ([]byte, error) {
	at, err := address(file, path)
	if err != nil {
		return nil, err
	}
	if at != "" {
		return m.get(at)
	}
	found, _, err := manifest.Find(path, in...)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(found)
}

// unready names what a plan needs and the configuration that is seen from here lacks.
func (a *app) unready(g plan.Graph) ([]error, error) {
	c, err := config.Load(a.config)
	if err != nil {
		return nil, err
	}
	needs, err := g.Needs()
	if err != nil {
		return nil, err
	}
	var lacks []error
	for _, n := range needs.Accounts {
		_, err := c.Account(n)
		lacks = append(lacks, err)
	}
	for _, n := range needs.Providers {
		_, err := c.MetricProvider(n)
		lacks = append(lacks, err)
	}
	for _, n := range needs.Secrets {
		if _, ok := c.Secrets[n]; !ok {
			// The value is not read: it may be there for the server alone.
			_, err := c.Secret(n)
			lacks = append(lacks, err)
		}
	}
	return slices.DeleteFunc(lacks, func(err error) bool { return err == nil }), nil
}

// again gives a plan that was made for one delivery to another one. The id of a delivery is 16 random digits, so that it
// stands only where it is meant.
func again(s delivery.Spec, id string) delivery.Spec {
	old := s.ID
	s.Graph.Nodes = slices.Clone(s.Graph.Nodes)
	for i, n := range s.Graph.Nodes {
		n.Args = bytes.ReplaceAll(n.Args, []byte(old), []byte(id))
		if len(old) >= 8 {
			n.Args = bytes.ReplaceAll(n.Args, []byte(old[:8]), []byte(id[:8]))
		}
		s.Graph.Nodes[i] = n
	}
	s.ID, s.CreatedAt, s.By = id, time.Now().UTC(), me()
	return s
}
