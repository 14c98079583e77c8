package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// deploy compiles the deploy phase: the databases first, in the order that keeps their data, then what uses them.
func (b *targetPlan) deploy(after []string) ([]string, error) {
	rest := b.objects
	if slices.ContainsFunc(b.c.f.Data.Databases, func(d deployfile.Database) bool { return b.copies[d.Name] != "" || b.ships(d) }) {
		// What every workload needs must be there before the first database.
		var first []manifest.Object
		first, rest = partition(rest, manifest.Object.Foundation)
		var err error
		if after, err = b.apply("prepare", first, after); err != nil {
			return nil, err
		}
	}
	for _, d := range b.c.f.Data.Databases {
		var err error
		switch {
		case b.copies[d.Name] != "":
			rest, after, err = b.onTheCopy(d, rest, after)
		case b.ships(d):
			rest, after, err = b.upgrade(d, rest, after)
		}
		if err != nil {
			return nil, err
		}
	}
	plain, deployments, settings, err := b.rollout(rest)
	if err != nil {
		return nil, err
	}
	after, err = b.apply("apply", plain, after)
	if err != nil || len(deployments) == 0 {
		return after, err
	}
	return b.shift(deployments, settings, after)
}

// rollout tells apart what is applied as it is, the Deployments whose new version comes up beside the old one, and what those
// alone name.
func (b *targetPlan) rollout(rest []manifest.Object) (plain, deployments, settings []manifest.Object, err error) {
	jobs, rest := partition(rest, func(o manifest.Object) bool { return o.GetKind() == "Job" })
	deployments, others := partition(rest, func(o manifest.Object) bool { return o.GetKind() == "Deployment" })
	if _, ok := b.strategy(); len(deployments) == 0 || !ok {
		return slices.Concat(others, deployments, jobs), nil, nil, nil
	}
	settings, err = settingsOf(deployments, slices.Concat(others, jobs))
	return slices.Concat(without(others, settings), jobs), deployments, settings, err
}

// then returns what follows a database's upgrade, nil where nothing does. Other databases of this target ask for themselves, and where
// they do not change nothing of their workloads is applied.
func (b *targetPlan) then(rest []manifest.Object) (*Application, error) {
	for _, d := range b.c.f.Data.Databases {
		if !b.ships(d) && b.copies[d.Name] == "" {
			continue
		}
		db, err := b.database(d.Name)
		if err != nil {
			return nil, err
		}
		_, rest = partition(rest, func(o manifest.Object) bool {
			return o.GetKind() == db.Workload.Kind && o.GetName() == db.Workload.Name
		})
	}
	plain, deployments, settings, err := b.rollout(rest)
	if err != nil || len(plain)+len(deployments) == 0 {
		return nil, err
	}
	var out Application
	if len(plain) > 0 {
		a := b.applyArgs(plain)
		out.Plain = &a
	}
	if len(deployments) > 0 {
		a := b.canaryArgs(deployments, settings)
		out.Canary = &a
	}
	return &out, nil
}

// settingsOf returns the ConfigMaps and Secrets among the others that the pods of the Deployments name and no other pods do:
// what others need, too, must be there before them.
func settingsOf(deployments, others []manifest.Object) ([]manifest.Object, error) {
	if slices.ContainsFunc(others, func(o manifest.Object) bool {
		return slices.Contains([]string{"DaemonSet", "CronJob", "ReplicaSet", "Pod"}, o.GetKind())
	}) {
		return nil, nil // whose pods are not looked into, so that any of them may need any of the settings
	}
	named, err := mounted(deployments, others)
	if err != nil {
		return nil, err
	}
	needed, err := mounted(others, others)
	return without(named, needed), err
}

func (b *targetPlan) strategy() (deployfile.Strategy, bool) {
	for _, s := range b.c.f.Strategies {
		if s.Name == b.t.Strategy {
			return s, s.Canary != nil || s.BlueGreen != nil
		}
	}
	return deployfile.Strategy{}, false
}

// ships reports whether the database runs in this target and its manifests hold the workload.
func (b *targetPlan) ships(d deployfile.Database) bool {
	db, err := b.database(d.Name)
	return err == nil && d.Target == b.t.Name && slices.ContainsFunc(b.objects, func(o manifest.Object) bool {
		return o.GetKind() == db.Workload.Kind && o.GetName() == db.Workload.Name
	})
}

// split returns the database's own objects: its workload, the Services that select it, and what its pods mount.
func (b *targetPlan) split(db Database) ([]manifest.Object, error) {
	i := slices.IndexFunc(b.objects, func(o manifest.Object) bool {
		return o.GetKind() == db.Workload.Kind && o.GetName() == db.Workload.Name
	})
	if i < 0 {
		return nil, fault.Newf(fault.NotFound, "the manifests of target %s hold no %s, the workload of database %s", b.t.Name, db.Workload, db.Name)
	}
	if owner := metav1.GetControllerOf(&b.objects[i]); owner != nil {
		return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "%s: %s belongs to %s/%s, an operator's object, which would undo every change to it",
			b.objects[i].Origin, db.Workload, owner.Kind, owner.Name), "databases that an operator runs are not built yet")
	}
	template, _, err := b.objects[i].PodTemplate()
	if err != nil {
		return nil, err
	}
	mounts := manifest.Mounts(template.Spec)
	own, _ := partition(b.objects, func(o manifest.Object) bool {
		switch o.GetKind() {
		case db.Workload.Kind:
			return o.GetName() == db.Workload.Name
		case "Service":
			return o.Selects(template.Labels)
		default:
			return slices.Contains(mounts, manifest.Ref{Kind: o.GetKind(), Name: o.GetName()})
		}
	})
	return own, nil
}

// mounted returns those of the objects that the pods of some workloads name.
func mounted(workloads, objects []manifest.Object) ([]manifest.Object, error) {
	var refs []manifest.Ref
	for _, w := range workloads {
		template, _, err := w.PodTemplate()
		if err != nil {
			return nil, err
		}
		refs = append(refs, manifest.Mounts(template.Spec)...)
	}
	out, _ := partition(objects, func(o manifest.Object) bool {
		return o.GetKind() != "PersistentVolumeClaim" && slices.Contains(refs, manifest.Ref{Kind: o.GetKind(), Name: o.GetName()})
	})
	return out, nil
}

// without returns the objects that are not among the others.
func without(objects, others []manifest.Object) []manifest.Object {
	_, rest := partition(objects, func(o manifest.Object) bool {
		return slices.ContainsFunc(others, func(p manifest.Object) bool { return p.Ref() == o.Ref() })
	})
	return rest
}

// onTheCopy deploys a database onto the candidate's volumes: the new version, then the migrations, then the mark, and
// only then what writes.
func (b *targetPlan) onTheCopy(d deployfile.Database, rest []manifest.Object, after []string) ([]manifest.Object, []string, error) {
	a, err := b.copied(d.Name)
	if err != nil {
		return nil, nil, err
	}
	a.Timeout, a.Force = b.timeout(), b.c.in.Force
	rest = without(rest, a.Objects)
	path, err := b.add(Deploy, "deploy/"+d.Name+"/apply", "start "+d.Name+" on the copy", KindApplyDatabase, a, after)
	if err != nil {
		return nil, nil, err
	}
	after = []string{path}
	jobs, rest := partition(rest, func(o manifest.Object) bool { return o.GetKind() == "Job" })
	configs, rest := partition(rest, func(o manifest.Object) bool { return o.GetKind() == "ConfigMap" || o.GetKind() == "Secret" })
	if after, err = b.apply(d.Name+"/migrate", slices.Concat(configs, jobs), after); err != nil {
		return nil, nil, err
	}
	if d.MarkAfter != "" {
		migrator, err := b.markAfter(d, rest)
		if err != nil {
			return nil, nil, err
		}
		rest = without(rest, migrator)
		if after, err = b.apply(d.Name+"/markAfter", migrator, after); err != nil {
			return nil, nil, err
		}
	}
	path, err = b.add(Deploy, "deploy/"+d.Name+"/mark", "mark "+d.Name, KindMarkData, a, after)
	if err != nil {
		return nil, nil, err
	}
	b.marks[d.Name] = path
	return rest, []string{path}, nil
}

// markAfter returns the workload that migrates at its own start, with the Services that select it: they belong before the
// mark.
func (b *targetPlan) markAfter(d deployfile.Database, rest []manifest.Object) ([]manifest.Object, error) {
	_, name, ok := strings.Cut(d.MarkAfter, "/")
	if !ok {
		name = d.MarkAfter
	}
	i := slices.IndexFunc(rest, func(o manifest.Object) bool {
		return o.GetName() == name && (o.GetKind() == "Deployment" || o.GetKind() == "StatefulSet")
	})
	if i < 0 {
		return nil, fault.Newf(fault.NotFound, "database %s: markAfter names %q, which is no workload of target %s", d.Name, d.MarkAfter, b.t.Name)
	}
	template, _, err := rest[i].PodTemplate()
	own, _ := partition(rest, func(o manifest.Object) bool { return o.Ref() == rest[i].Ref() || o.Selects(template.Labels) })
	return own, err
}

// upgrade brings production's database to the new version: a single instance behind the fence, members one after another.
func (b *targetPlan) upgrade(d deployfile.Database, rest []manifest.Object, after []string) ([]manifest.Object, []string, error) {
	db, err := b.database(d.Name)
	if err != nil {
		return nil, nil, err
	}
	n, err := b.members(db)
	switch {
	case err != nil:
		return nil, nil, err
	case n > 1:
		return b.memberByMember(d, db, int(n), rest, after)
	case d.Upgrade.Strategy != "":
		return nil, nil, fault.WithRemedy(fault.Newf(fault.Invalid, "database %s: upgrade.strategy is for members, and %s has one replica", d.Name, db.Workload),
			"leave it out: a single instance is upgraded behind a fence")
	}
	return b.behindTheFence(d, rest, after)
}

// behindTheFence upgrades production's database.
func (b *targetPlan) behindTheFence(d deployfile.Database, rest []manifest.Object, after []string) ([]manifest.Object, []string, error) {
	db, err := b.database(d.Name)
	if err != nil {
		return nil, nil, err
	}
	own, err := b.split(db)
	if err != nil {
		return nil, nil, err
	}
	rest = without(rest, own)
	jobs, rest := partition(rest, func(o manifest.Object) bool { return o.GetKind() == "Job" })
	// A migration behind the fence needs them where it runs. They stay among the others, too, since the database's part is left
	// out where the database does not change.
	configs, err := mounted(jobs, rest)
	if err != nil {
		return nil, nil, err
	}
	prefix := "deploy/" + d.Name
	a := DataArgs{Database: db, To: b.site, Group: b.t.Name + "/" + prefix, Objects: slices.Concat(configs, own, jobs),
		Deadline: d.Upgrade.Deadline, Bake: d.Upgrade.Bake, MaxLost: d.Upgrade.MaxLost, Timeout: b.timeout(), Force: b.c.in.Force}
	if r := b.c.rehearsals[d.Name]; r != "" && b.c.precedes(r, after) {
		a.Rehearsal = r
	}
	if a.Contract, err = b.contract(d.Upgrade.Contract); err != nil {
		return nil, nil, err
	}
	if a.Then, err = b.then(rest); err != nil {
		return nil, nil, err
	}
	for _, n := range []struct{ name, title, kind string }{
		{"fence", "fence " + d.Name, KindFence},
		{"upgrade", "upgrade a clone of " + d.Name, KindUpgradeClone},
		{"verify", "verify behind the fence", KindQuickVerify},
		{"swap", "swap the volumes", KindSwap},
		{"open", "open " + d.Name, KindOpen},
	} {
		path, err := b.add(Deploy, prefix+"/"+n.name, n.title, n.kind, a, after, nobodyIsAsked)
		if err != nil {
			return nil, nil, err
		}
		after, a.Then = []string{path}, nil
	}
	return rest, after, nil
}

// nobodyIsAsked rolls back whatever does not pass: production stands still for as long as somebody would be waited for.
func nobodyIsAsked(n *Node) { n.OnInconclusive = "rollback" }

// apply adds a node that applies objects and waits for them; nothing where there are none.
func (b *targetPlan) apply(name string, objects []manifest.Object, after []string) ([]string, error) {
	if len(objects) == 0 {
		return after, nil
	}
	path, err := b.add(Deploy, "deploy/"+name, "apply "+summary(objects), KindApply, b.applyArgs(objects), after)
	return []string{path}, err
}

// timeout is how long pods may take to become ready.
func (b *targetPlan) timeout() time.Duration {
	return orElse(b.c.f.DeploymentConfig.Timeout, readyWithin)
}

func (b *targetPlan) applyArgs(objects []manifest.Object) ApplyArgs {
	a := ApplyArgs{Account: b.site.Account, Namespace: b.site.Namespace, Timeout: b.timeout(), Force: b.c.in.Force}
	w := b.where()
	a.Annotate = map[string]string{"deploy.armory.io/application": w.Application, "deploy.armory.io/deployment-id": b.c.in.Delivery,
		"deploy.armory.io/environment": w.Target}
	a.Env = map[string]string{"ARMORY_APPLICATION_NAME": w.Application, "ARMORY_DEPLOYMENT_ID": b.c.in.Delivery,
		"ARMORY_ENVIRONMENT_NAME": w.Target}
	for _, o := range objects {
		if o.GetKind() == "Deployment" {
			o = versioned(o, b.revision(o.GetName()))
		}
		a.Objects = append(a.Objects, o)
	}
	return a
}

// canaryArgs are those of Deployments whose new version comes up beside the old one.
func (b *targetPlan) canaryArgs(deployments, settings []manifest.Object) ApplyArgs {
	a := b.applyArgs(deployments)
	a.Settings, a.Meshes, a.Recovers = settings, b.meshes, slices.ContainsFunc(b.c.f.Data.Databases, b.ships)
	return a
}

// summary counts objects by kind: "2 Services, 1 Deployment".
func summary(objects []manifest.Object) string {
	counts := map[string]int{}
	for _, o := range objects {
		counts[o.GetKind()]++
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		s := ""
		if counts[k] > 1 {
			s = "s"
		}
		parts = append(parts, fmt.Sprintf("%d %s%s", counts[k], k, s))
	}
	return strings.Join(parts, ", ")
}

// shift brings the new version of the Deployments up beside the old one and moves the traffic as the strategy says.
func (b *targetPlan) shift(deployments, settings []manifest.Object, after []string) ([]string, error) {
	s, _ := b.strategy()
	w := WeightArgs{Account: b.site.Account, Namespace: b.site.Namespace, Timeout: b.timeout()}
	for _, d := range deployments {
		w.Deployments = append(w.Deployments, manifest.Ref{Kind: "Deployment", Namespace: b.site.Namespace, Name: d.GetName()})
	}
	node := func(name, title, kind string, args any, after []string) ([]string, error) {
		p, err := b.add(Deploy, "deploy/"+name, title, kind, args, after)
		return []string{p}, err
	}
	after, err := node("start", "start the new version beside the old one", KindStartCanary, b.canaryArgs(deployments, settings), after)
	if err != nil {
		return nil, err
	}
	if s.BlueGreen != nil {
		if after, err = b.parallel(Deploy, "deploy/redirectAfter", s.BlueGreen.RedirectTrafficAfter, after); err != nil {
			return nil, err
		}
		w.Weight = 100
		title := "redirect the traffic"
		if len(b.active) > 0 {
			title += " of " + strings.Join(b.active, ", ")
		}
		if after, err = node("redirect", title, KindRedirect, w, after); err != nil {
			return nil, err
		}
		if after, err = b.parallel(Deploy, "deploy/shutDownAfter", s.BlueGreen.ShutDownOldVersionAfter, after); err != nil {
			return nil, err
		}
		return node("promote", "shut the old version down", KindPromote, w, after)
	}
	for i, st := range s.Canary.Steps {
		name := fmt.Sprintf("canary/%d", i+1)
		if st.SetWeight != nil {
			w.Weight = st.SetWeight.Weight
			after, err = node(fmt.Sprintf("%s-weight", name), fmt.Sprintf("weight %d %%", w.Weight), KindSetWeight, w, after)
		} else {
			var ends []string
			if ends, err = b.step(Deploy, "deploy/"+name, st, after); len(ends) > 0 {
				after = ends
			}
		}
		if err != nil {
			return nil, err
		}
	}
	w.Weight = 100
	return node("promote", "promote the canary", KindPromote, w, after)
}
