package plan

import (
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"

	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// members is how many replicas the manifest of a database's workload has.
func (b *targetPlan) members(db Database) (int32, error) {
	i := slices.IndexFunc(b.objects, func(o manifest.Object) bool {
		return o.GetKind() == db.Workload.Kind && o.GetName() == db.Workload.Name
	})
	if i < 0 || b.objects[i].GetKind() != "StatefulSet" {
		return 1, nil
	}
	var s appsv1.StatefulSet
	if err := b.objects[i].Into(&s); err != nil || s.Spec.Replicas == nil {
		return 1, err
	}
	return *s.Spec.Replicas, nil
}

// memberByMember gives a replicated database its new version one member after another, with the steps of its strategy in
// between. What its pods name and the Services that lead to them are applied before.
func (b *targetPlan) memberByMember(d deployfile.Database, db Database, n int, rest []manifest.Object, after []string) ([]manifest.Object, []string, error) {
	if d.Upgrade.Deadline != 0 || d.Upgrade.Bake != 0 || d.Upgrade.Contract != "" {
		return nil, nil, fault.WithRemedy(fault.Newf(fault.Invalid,
			"database %s: upgrade.deadline, bake and contract belong to the upgrade behind a fence, and %s has %d members, which stay open", d.Name, db.Workload, n),
			"leave them out, and name a canary in upgrade.strategy for what must pass between the members")
	}
	own, err := b.split(db)
	if err != nil {
		return nil, nil, err
	}
	rest = without(rest, own)
	workload, others := partition(own, func(o manifest.Object) bool { return o.GetKind() == db.Workload.Kind })
	if after, err = b.apply(d.Name+"/prepare", others, after); err != nil {
		return nil, nil, err
	}
	prefix := "deploy/" + d.Name
	a := MembersArgs{Database: db, Workload: workload[0], Group: b.t.Name + "/" + prefix, Members: n, Timeout: b.timeout(), Force: b.c.in.Force}
	if a.Then, err = b.then(rest); err != nil {
		return nil, nil, err
	}
	node := func(name, title, kind string) error {
		path, err := b.add(Deploy, prefix+"/"+name, title, kind, a, after)
		after, a.Then = []string{path}, nil
		return err
	}
	if err := node("start", "prepare the new version of "+d.Name, KindStartMembers); err != nil {
		return nil, nil, err
	}
	steps, err := b.between(d)
	if err != nil {
		return nil, nil, err
	}
	for i, st := range steps {
		name := fmt.Sprintf("members/%d", i+1)
		if st.SetWeight == nil {
			ends, err := b.step(Deploy, prefix+"/"+name, st, after)
			if err != nil {
				return nil, nil, err
			}
			if len(ends) > 0 {
				after = ends
			}
			continue
		}
		a.Roll = (n*st.SetWeight.Weight + 99) / 100
		if err := node(name+"-roll", fmt.Sprintf("%d of %d members of %s", a.Roll, n, d.Name), KindRollMembers); err != nil {
			return nil, nil, err
		}
	}
	a.Roll, a.Last = n, true
	err = node("promote", "every member of "+d.Name, KindRollMembers)
	return rest, after, err
}

// between returns what a database's strategy does between its members.
func (b *targetPlan) between(d deployfile.Database) ([]deployfile.Step, error) {
	if d.Upgrade.Strategy == "" {
		return nil, nil
	}
	for _, s := range b.c.f.Strategies {
		if s.Name != d.Upgrade.Strategy {
			continue
		}
		if s.Canary == nil {
			return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "database %s: strategy %s is no canary: members take the new version in place", d.Name, s.Name),
				"name a strategy with canary:")
		}
		return s.Canary.Steps, nil
	}
	return nil, fault.Newf(fault.NotFound, "database %s: upgrade.strategy names %s, which does not exist", d.Name, d.Upgrade.Strategy)
}
