package data

import (
	"context"
	"fmt"
	"strings"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

// rehearse walks the ways back on a clone of the upgraded candidate: which of them are open in production later is
// decided here.
//
// Legs: the new application writes through its tests, and the old application passes the same tests on that (app); the
// old engine starts on what the new one wrote and holds the same rows (engine); the old engine writes and the new one
// starts and reads it (forward again).
type rehearse struct{ base }

// rehearsed is what rehearse keeps. R1Engine and R1App say which ways back are open.
type rehearsed struct {
	Try      int       `json:"try"`
	Site     plan.Site `json:"site"`
	Done     bool      `json:"done,omitempty"`
	R1Engine bool      `json:"r1Engine,omitempty"`
	R1App    bool      `json:"r1App,omitempty"`
	From     string    `json:"from,omitempty"` // the old version
	To       string    `json:"to,omitempty"`   // the new version
	Why      []string  `json:"why,omitempty"`  // why a way is closed
}

func (s rehearsed) String() string {
	ways := func(name string, open bool) string {
		if open {
			return name + " open"
		}
		return name + " closed"
	}
	m := fmt.Sprintf("%s → %s and back: %s, %s", s.From, s.To, ways("R1-engine", s.R1Engine), ways("R1-app", s.R1App))
	if len(s.Why) > 0 {
		m += ": " + strings.Join(s.Why, "; ")
	}
	return m
}

// Plan says what is rehearsed.
func (rehearse) Plan(n plan.Node) (plan.Description, error) {
	a, err := args[plan.DataArgs](n.Args)
	closed := "a way that fails is closed, and production is told so"
	if a.Require {
		closed = "the gate fails where a way fails"
	}
	return plan.Description{
		Does: fmt.Sprintf("rehearses the way back of %s in %s-rehearsal: the old application on what the new one wrote, the old database version on the upgraded data, and forward again; %s",
			a.Database.Name, a.To.Namespace, closed),
		UndoneBy: "nothing: the clones are deleted when the delivery ends",
	}, err
}

// Run rehearses. A leg that cannot be walked closes its way; what breaks around the legs is an error.
func (st rehearse) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.DataArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[rehearsed](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	p, err := st.at(a.To.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	production, err := st.at(a.Database.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	l := &legs{base: st.base, c: c, p: p, production: production, a: a}
	if l.old, err = st.live(ctx, production, a.Database); err != nil {
		return step.Outcome{}, err
	}
	if l.next, _, _, err = split(a.Objects, a.Database.Workload); err != nil {
		return step.Outcome{}, err
	}
	s = rehearsed{Try: s.Try + 1, Site: beside(a.To, "rehearsal"), From: l.old.images(), To: l.next.images()}
	l.at, l.try = s.Site, s.Try
	if err := c.Save(ctx, s); err != nil {
		return step.Outcome{}, err
	}
	if err := l.prepare(ctx); err != nil {
		return step.Outcome{}, err
	}
	closed := func(way string, err error) error {
		if ctx.Err() != nil || fault.Is(err, fault.Transient) {
			return err
		}
		s.Why = append(s.Why, way+": "+err.Error())
		return nil
	}
	if err := l.app(ctx); err == nil {
		s.R1App = true
	} else if err := closed("application", err); err != nil {
		return step.Outcome{}, err
	}
	if err := l.engine(ctx); err == nil {
		s.R1Engine = true
	} else if err := closed("engine", err); err != nil {
		return step.Outcome{}, err
	}
	s.Done = true
	if err := c.Save(ctx, s); err != nil {
		return step.Outcome{}, err
	}
	verdict := delivery.Pass
	if a.Require && !(s.R1Engine && s.R1App) {
		verdict = delivery.Fail
	}
	out := step.Done(verdict, s.String())
	out.Evidence = s
	return out, l.stopAll(ctx)
}

// legs is one rehearsal under way.
type legs struct {
	base
	c          step.Call
	p          place
	production place
	a          plan.DataArgs
	at         plan.Site
	try        int
	n          int // of the Apply calls of this entry
	old        live
	next       workload
}

func (l *legs) key(what string) string {
	l.n++
	return fmt.Sprintf("%s/%d/%s/%d", l.c.Key, l.try, what, l.n)
}

func (l *legs) copyID() string { return l.c.Key + "/rehearsal" }

// prepare makes the clone anew: whatever an interrupted entry wrote to it is gone.
func (l *legs) prepare(ctx context.Context) error {
	if err := l.stopAll(ctx); err != nil {
		return err
	}
	if err := l.p.discard(ctx, l.c.Delivery, l.copyID()); err != nil {
		return err
	}
	m, err := saved[marked](l.c.Siblings(l.a.MarkPath))
	if err != nil {
		return err
	}
	if m.Cut == nil {
		return fault.Newf(fault.Lost, "step %s left no mark", l.a.MarkPath)
	}
	from, err := l.p.find(ctx, l.c.Delivery, m.Cut.ID)
	if err != nil {
		return err
	}
	others, err := l.others(ctx, l.a.Database)
	if err != nil {
		return err
	}
	launch, err := l.ready(ctx, l.c, l.p, l.a.Database, raising{namespace: l.at.Namespace, others: others, from: from, workload: l.next,
		role: database.Rehearsal, copyID: l.copyID()})
	if err != nil {
		return err
	}
	return l.run(ctx, l.next, l.a.Objects, launch)
}

// run starts a version of the database on the clone.
func (l *legs) run(ctx context.Context, w workload, objects []manifest.Object, launch database.Launch) error {
	return l.base.start(ctx, l.c, l.p, l.a.Database, raising{namespace: l.at.Namespace, workload: w, objects: objects, upKey: l.key("database"), timeout: l.a.Timeout}, launch)
}

// switchTo stops the database and starts another version of it on the same volumes.
func (l *legs) switchTo(ctx context.Context, w workload, objects []manifest.Object) error {
	if err := l.stop(ctx, l.c, l.p, l.at.Namespace, objects, l.key("stop")); err != nil {
		return err
	}
	clone, err := l.p.find(ctx, l.c.Delivery, l.copyID())
	if err != nil {
		return err
	}
	launch, err := l.base.prepare(ctx, l.c, l.p, l.a.Database, w, files(clone), database.Rehearsal, l.key("prepare"))
	if err != nil {
		return err
	}
	return l.run(ctx, w, objects, launch)
}

// app lets the new application write through the tests, and then the old one run the same tests on that.
func (l *legs) app(ctx context.Context) error {
	if len(l.a.Apps) == 0 {
		return fault.Newf(fault.Invalid, "the target has no application beside the database")
	}
	if err := l.tests(ctx, "new", l.a.Apps); err != nil {
		return fmt.Errorf("the new application fails its tests on the new database: %w", err)
	}
	old, err := l.oldApps(ctx)
	if err != nil {
		return err
	}
	if err := l.tests(ctx, "old", old); err != nil {
		return fmt.Errorf("the old application fails its tests on what the new one wrote: %w", err)
	}
	return nil
}

// oldApps returns production's live versions of the target's applications.
func (l *legs) oldApps(ctx context.Context) ([]manifest.Object, error) {
	get, err := optional[platform.Getter](l.production, "read live objects")
	if err != nil {
		return nil, err
	}
	var out []manifest.Object
	for _, o := range l.a.Apps {
		r := manifest.Ref{Kind: o.GetKind(), Namespace: l.a.Database.Namespace, Name: o.GetName()}
		liveObject, err := get.Get(ctx, r)
		if fault.Is(err, fault.NotFound) {
			return nil, fault.Newf(fault.NotFound, "%s does not run in production, so there is no old version of it", r)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, fresh(liveObject))
	}
	return out, nil
}

// tests starts the applications beside the clone, runs the test Jobs and stops them again.
func (l *legs) tests(ctx context.Context, which string, apps []manifest.Object) error {
	l.c.Progress("the %s application runs its tests on the upgraded data", which)
	apps = unled(apps)
	if _, err := l.p.Apply(ctx, l.key(which), apps, platform.Options{Namespace: l.at.Namespace, Delivery: l.c.Delivery}); err != nil {
		return err
	}
	if err := step.Await(ctx, l.p, l.a.Timeout, "ready", podRefs(apps, l.at.Namespace), step.Ready); err != nil {
		return err
	}
	if _, err := l.p.Apply(ctx, l.key("tests"), l.a.Jobs, platform.Options{Namespace: l.at.Namespace, Delivery: l.c.Delivery}); err != nil {
		return err
	}
	if err := step.Await(ctx, l.p, l.a.Timeout, "complete", podRefs(l.a.Jobs, l.at.Namespace), step.Ready); err != nil {
		return err
	}
	return l.stop(ctx, l.c, l.p, l.at.Namespace, append(append([]manifest.Object{}, l.a.Jobs...), apps...), l.key("stop"))
}

// unled are the applications with Services that lead nobody there from outside.
func unled(apps []manifest.Object) []manifest.Object {
	var out []manifest.Object
	for _, o := range apps {
		if o.GetKind() == "Service" {
			o = manifest.Object{Unstructured: *o.DeepCopy(), Origin: o.Origin}
			inward(o)
		}
		out = append(out, o)
	}
	return out
}

// engine starts the old version on what the new one wrote, and the new one again on what the old one wrote.
func (l *legs) engine(ctx context.Context) error {
	l.c.Progress("%s starts on what %s wrote", l.old.images(), l.next.images())
	seed := fingerprint.NewSeed()
	before, err := l.fingerprint(ctx, seed)
	if err != nil {
		return err
	}
	if err := l.switchTo(ctx, l.old.workload, l.old.bundle()); err != nil {
		return fmt.Errorf("the old version does not start on the upgraded data: %w", err)
	}
	if err := l.equal(ctx, seed, before, "the old version reads other rows than the new one wrote"); err != nil {
		return err
	}
	if old, err := l.oldApps(ctx); err == nil && len(l.a.Jobs) > 0 {
		if err := l.tests(ctx, "old", old); err != nil {
			return fmt.Errorf("the old application fails its tests on the old database after the way back: %w", err)
		}
	}
	written, err := l.fingerprint(ctx, seed)
	if err != nil {
		return err
	}
	if err := l.switchTo(ctx, l.next, l.a.Objects); err != nil {
		return fmt.Errorf("the new version does not start again on what the old one wrote: %w", err)
	}
	return l.equal(ctx, seed, written, "the new version reads other rows than the old one wrote")
}

func (l *legs) fingerprint(ctx context.Context, seed fingerprint.Seed) (*fingerprint.Digest, error) {
	return l.digest(ctx, l.c, l.p, l.a.Database, l.at.Namespace, seed, l.key("fingerprint"))
}

func (l *legs) equal(ctx context.Context, seed fingerprint.Seed, want *fingerprint.Digest, otherwise string) error {
	have, err := l.fingerprint(ctx, seed)
	if err != nil {
		return err
	}
	if tables := want.Differing(have); len(tables) > 0 {
		return fault.Newf(fault.Lost, "%s: %s", otherwise, strings.Join(tables, ", "))
	}
	return nil
}

func podRefs(objects []manifest.Object, namespace string) []manifest.Ref {
	var refs []manifest.Ref
	for _, o := range objects {
		switch o.GetKind() {
		case "Deployment", "StatefulSet", "Job":
			refs = append(refs, manifest.Ref{Kind: o.GetKind(), Namespace: namespace, Name: o.GetName()})
		}
	}
	return refs
}

func (l *legs) stopAll(ctx context.Context) error {
	all := append(append(append([]manifest.Object{}, l.a.Jobs...), l.a.Apps...), l.a.Objects...)
	return l.clear(ctx, l.c, l.p, l.at.Namespace, append(all, l.old.bundle()...), l.key("stop"))
}

// Undo has nothing to take back.
func (rehearse) Undo(context.Context, step.Call) (step.Outcome, error) {
	return step.Done(delivery.Pass, "a rehearsal changes nothing"), nil
}

// Clean deletes the clone.
func (st rehearse) Clean(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.DataArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[rehearsed](c.Saved)
	if err != nil || s.Try == 0 {
		return step.Done(delivery.Pass, ""), err
	}
	p, err := st.at(a.To.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	production, err := st.at(a.Database.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	l := &legs{base: st.base, c: c, p: p, production: production, a: a, at: s.Site, try: s.Try}
	if l.old, err = st.live(ctx, production, a.Database); err != nil {
		return step.Outcome{}, err
	}
	if err := l.stopAll(ctx); err != nil {
		return step.Outcome{}, err
	}
	return step.Done(delivery.Pass, ""), p.discard(ctx, c.Delivery, l.copyID())
}
