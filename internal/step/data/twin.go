package data

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/volume"
)

// hold is how long writers are held for a copy at most where the deploy file does not say.
const hold = 5 * time.Second

// cut is one copy of a running database.
type cut struct {
	ID     string           `json:"id"`
	Level  volume.Level     `json:"level"`
	Method volume.Method    `json:"method"`
	Bytes  int64            `json:"bytes"`
	Held   time.Duration    `json:"held"` // writers were held this long; 0 where the engine has a way that holds none
	Took   time.Duration    `json:"took"`
	Census database.Catalog `json:"census"`
	Notes  []string         `json:"notes,omitempty"`
}

// String says how good the copy is and what it cost production.
func (k cut) String() string {
	held := "no writer held"
	if k.Level == volume.Application {
		held = "writers held " + k.Held.String()
	}
	what := ""
	if k.Bytes > 0 {
		what = size(k.Bytes) + ", "
	}
	return fmt.Sprintf("%s%s-consistent, by %s in %s, %s", what, k.Level, k.Method, k.Took, held)
}

func size(bytes int64) string {
	switch {
	case bytes >= 10<<30:
		return fmt.Sprintf("%d GiB", bytes>>30)
	case bytes >= 10<<20:
		return fmt.Sprintf("%d MiB", bytes>>20)
	default:
		return fmt.Sprintf("%d KiB", bytes>>10)
	}
}

// take copies the volumes of a running database while its writers are held. The id must not have been used by an
// earlier entry: a copy that was cut under a hold which died with Sluice is worth nothing.
func (b base) take(ctx context.Context, c step.Call, p place, db plan.Database, namespace string, src []volume.Source, id string, maxHold time.Duration) (cut, error) {
	if err := running(ctx, p, db, namespace); err != nil {
		return cut{}, err
	}
	engine, err := b.ports.Engine(db.Engine)
	if err != nil {
		return cut{}, err
	}
	q, ok := engine.(database.Quiescer)
	if !ok {
		return cut{}, fault.Newf(fault.Invalid, "engine %s cannot hold writers for a copy", db.Engine)
	}
	able, err := p.volumes.Probe(ctx, src)
	if err != nil {
		return cut{}, err
	}
	u, err := b.url(p, db, namespace, false)
	if err != nil {
		return cut{}, err
	}
	if err := b.permitted(ctx, engine, db, u); err != nil {
		return cut{}, err
	}
	if maxHold == 0 {
		maxHold = hold
	}
	req := database.QuiesceRequest{ID: id, URL: u, MaxHold: maxHold,
		Atomic: able.Atomic == volume.Group || able.Atomic == volume.PerVolume && len(src) == 1}
	for _, s := range src {
		if s.Dir != "" {
			req.Dirs = append(req.Dirs, s.Dir)
		}
	}
	c.Progress("copying %d volume(s) of %s by %s", len(src), db.Name, able.Method)
	start := time.Now()
	lease, err := q.Quiesce(ctx, req)
	if err != nil {
		return cut{}, fmt.Errorf("hold the writers of %s: %w", db.Name, err)
	}
	k := cut{ID: id, Level: volume.Level(lease.Level()), Census: lease.Census()}
	made, cutErr := p.volumes.Cut(ctx, id, c.Delivery, src)
	select {
	case <-lease.Lost():
		cutErr = fault.Newf(fault.Transient, "the hold on the writers of %s was lost before the copy was cut (maximum %s)", db.Name, maxHold)
	default:
	}
	assembly, err := lease.Release(context.WithoutCancel(ctx))
	if k.Level == volume.Application {
		k.Held = since(start)
	}
	if cutErr != nil {
		return k, cutErr
	}
	if err != nil {
		return k, fmt.Errorf("let the writers of %s go on: %w", db.Name, err)
	}
	if err := p.volumes.Ready(ctx, made); err != nil {
		return k, err
	}
	if assembly.Finish != nil {
		if err := assembly.Finish(ctx, made.Info().Dirs); err != nil {
			return k, fmt.Errorf("finish the copy of %s: %w", db.Name, err)
		}
	}
	if k.Level == volume.Fuzzy {
		return k, fault.Newf(fault.Invalid, "the copy of %s is not consistent, and no database is started on such a copy", db.Name)
	}
	info := made.Info()
	k.Took, k.Method, k.Bytes, k.Notes = since(start), info.Method, info.Bytes, assembly.Notes
	return k, nil
}

// soonReady is how long a database may take until a pod of it is ready, as after the death of what runs it.
const soonReady = 10 * time.Second

// running refuses to copy a database of which nothing runs: there is nobody whose writers could be held, nor who could say
// what the copy must hold.
func running(ctx context.Context, p place, db plan.Database, namespace string) error {
	within, cancel := context.WithTimeout(ctx, soonReady)
	defer cancel()
	ref := db.Workload
	ref.Namespace = namespace
	states, err := p.Watch(within, []manifest.Ref{ref})
	if err != nil {
		return err
	}
	known := false
	var last platform.State
	for s := range states {
		if s.Replicas > 0 {
			return nil
		}
		known, last = true, s
		if !s.Exists || s.Failed {
			break
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case !known:
		return fault.Newf(fault.Transient, "account %s does not tell how %s is", p.account, ref)
	case last.Reason != "":
		return fault.Newf(fault.Invalid, "no pod of %s is ready, so there is no running database to copy: %s: %s", ref, last.Reason, last.Message)
	}
	return fault.WithRemedy(fault.Newf(fault.Invalid, "no pod of %s is ready, so there is no running database to copy", ref), "start it, and look whether its selector matches its pods")
}

// raising is how a copy of a database is started.
type raising struct {
	namespace string
	replace   bool                        // claims there that Sluice did not make are replaced
	theirs    bool                        // the namespace was there before, and is not one of Sluice's
	others    []platform.Endpoint         // what it must not reach
	isolated  func(context.Context) error // tells when that is proven; nil: nobody has begun to prove it
	classes   map[string]string           // of claims that are not of the class that production's are
	from      volume.Copy
	workload  workload
	objects   []manifest.Object
	role      database.Role
	copyID    string // of the clone: the same after a crash
	upKey     string // of the start: new for every entry, because an earlier one may have stopped it again
	timeout   time.Duration
}

// raise clones a copy, neutralises it and starts the database on it. What an earlier entry left running there is stopped
// first: no volumes are prepared under a server.
func (b base) raise(ctx context.Context, c step.Call, p place, db plan.Database, r raising) error {
	if err := b.stop(ctx, c, p, r.namespace, r.objects, r.upKey+"/vacate"); err != nil {
		return err
	}
	launch, err := b.ready(ctx, c, p, db, r)
	if err != nil {
		return err
	}
	return b.start(ctx, c, p, db, r, launch)
}

// ready clones a copy, neutralises the clone and keeps its pods from others.
func (b base) ready(ctx context.Context, c step.Call, p place, db plan.Database, r raising) (database.Launch, error) {
	var to []volume.Place
	for _, claim := range r.workload.claims {
		to = append(to, volume.Place{Account: p.account, Namespace: r.namespace, Claim: claim, Own: !r.theirs, Replace: r.replace, Class: r.classes[claim],
			Like: &r.workload.template.Spec})
	}
	var launch database.Launch
	g, within := errgroup.WithContext(ctx)
	if r.isolated != nil {
		// Already while it is cloned: that may be streamed for hours, in vain where the quarantine does not hold.
		g.Go(func() error { return r.isolated(within) })
	}
	g.Go(func() error {
		clone, err := telling(p.volumes, c).Clone(within, r.copyID, c.Delivery, r.from, to)
		if err != nil {
			return err
		}
		if r.isolated == nil {
			g.Go(func() error { return b.isolate(within, c, p, db, r) })
		}
		launch, err = b.prepare(within, c, p, db, r.workload, files(clone), r.role, r.copyID+"/prepare")
		if err != nil {
			return fmt.Errorf("prepare a copy of %s as %s: %w", db.Name, r.role, err)
		}
		return nil
	})
	err := g.Wait()
	return launch, err
}

// telling returns the driver that says how far it is, where it can.
func telling(d volume.Driver, c step.Call) volume.Driver {
	if t, ok := d.(volume.Teller); ok {
		return t.Telling(func(line string) { c.Progress("%s", line) })
	}
	return d
}

func (b base) start(ctx context.Context, c step.Call, p place, db plan.Database, r raising, launch database.Launch) error {
	objects, err := asCopies(r.objects, db.Sidecars)
	if err != nil {
		return err
	}
	lent, err := b.lend(ctx, db, objects)
	if err != nil {
		return err
	}
	c.Progress("starting %s in namespace %s", r.workload.images(), r.namespace)
	_, err = p.Apply(ctx, r.upKey, append(lent, objects...), platform.Options{Namespace: r.namespace, Delivery: c.Delivery,
		Quarantine: &platform.Quarantine{Args: launch.Args, Env: launch.Env}})
	if err != nil {
		return err
	}
	return step.Await(ctx, p, r.timeout, "ready", []manifest.Ref{r.workload.ref(r.namespace)}, step.Ready)
}

// stop ends a copy's workload cleanly and deletes its objects. Its volumes stay. Workloads of the same names can be started when
// it returns: on a cluster a workload outlives its last pod by a moment.
func (b base) stop(ctx context.Context, c step.Call, p place, namespace string, objects []manifest.Object, key string) error {
	pods, err := b.beginStop(ctx, c, p, namespace, objects, key)
	if err != nil {
		return err
	}
	grace, err := graceOf(objects)
	if err != nil {
		return err
	}
	return step.Await(ctx, p, grace+time.Minute, "gone", pods, step.Gone)
}

// beginStop is stop that does not wait. It returns what has pods.
func (base) beginStop(ctx context.Context, c step.Call, p place, namespace string, objects []manifest.Object, key string) (pods []manifest.Ref, err error) {
	del, err := optional[platform.Deleter](p, "delete what it created")
	if err != nil {
		return nil, err
	}
	var refs []manifest.Ref
	for _, o := range objects {
		r := manifest.Ref{Kind: o.GetKind(), Namespace: namespace, Name: o.GetName()}
		if r.Kind == "PersistentVolumeClaim" {
			continue
		}
		refs = append(refs, r)
		switch r.Kind {
		case "StatefulSet", "Deployment", "Job":
			pods = append(pods, r)
		}
	}
	return pods, del.Delete(ctx, key, c.Delivery, refs)
}

// graceOf is how long the pods of objects may take to end, the longest of them.
func graceOf(objects []manifest.Object) (time.Duration, error) {
	longest := corev1.DefaultTerminationGracePeriodSeconds * time.Second
	for _, o := range objects {
		t, _, err := o.PodTemplate()
		if err != nil {
			return 0, err
		}
		if s := t.Spec.TerminationGracePeriodSeconds; s != nil {
			longest = max(longest, time.Duration(*s)*time.Second)
		}
	}
	return longest, nil
}

// find returns a copy by its id.
func (p place) find(ctx context.Context, owner, id string) (volume.Copy, error) {
	all, err := p.volumes.List(ctx, owner)
	if err != nil {
		return volume.Copy{}, err
	}
	for _, c := range all {
		if c.ID() == id {
			return c, nil
		}
	}
	return volume.Copy{}, fault.Newf(fault.NotFound, "there is no copy %s", id)
}

// discard deletes copies by id, those first that were made last. What is gone already is well.
func (p place) discard(ctx context.Context, owner string, ids ...string) error {
	for _, id := range ids {
		if id == "" {
			continue
		}
		k, err := p.find(ctx, owner, id)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err == nil {
			err = p.volumes.Delete(ctx, k)
		}
		if err != nil {
			return fmt.Errorf("delete copy %s: %w", id, err)
		}
	}
	return nil
}

// covers fails where a copy does not hold what the census says it must.
func covers(ctx context.Context, s database.Server, census database.Catalog) error {
	have, err := s.Catalog(ctx)
	if err != nil {
		return err
	}
	if lacking := database.Covers(census, have); len(lacking) > 0 {
		return fault.Newf(fault.Lost, "the copy lacks what the source held when it was cut: %s: %s (and %d more)",
			lacking[0].Object, lacking[0].Message, len(lacking)-1)
	}
	return nil
}
