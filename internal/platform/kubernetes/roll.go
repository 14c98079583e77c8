package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// partitionPath is where a StatefulSet says from which ordinal on its pods have the new version.
func partitionPath() []string {
	return []string{"spec", "updateStrategy", "rollingUpdate", "partition"}
}

// StartRoll implements platform.Roller. The new template and a partition above all members are one write, so that the
// controller never sees one without the other.
func (p *Platform) StartRoll(ctx context.Context, key string, o manifest.Object, opts platform.Options) ([]platform.Change, error) {
	all, err := p.place([]manifest.Object{o}, opts)
	if err != nil {
		return nil, err
	}
	home := homeOf(all, opts.Namespace)
	rec, err := p.journal.load(ctx, home, key)
	if err != nil {
		return nil, err
	}
	if rec != nil && rec.done {
		return changesOf(rec), nil
	}
	var live *unstructured.Unstructured
	if rec != nil {
		live = &unstructured.Unstructured{Object: rec.Entries[0].Before}
	} else {
		if live, err = p.read(ctx, all[0].Ref()); err != nil {
			return nil, err
		}
		if err := fitForRoll(all[0], live); err != nil {
			return nil, err
		}
	}
	// Members are not replaced for the sake of a label: theirs stays what it was.
	at := []string{"spec", "template", "metadata", "labels", deliveryLabel}
	unstructured.RemoveNestedField(all[0].Object, at...)
	if of, ok, _ := unstructured.NestedString(live.Object, at...); ok {
		label(all[0].Object, at[:len(at)-1], deliveryLabel, of)
	}
	held, err := hold(all[0], live)
	if err != nil {
		return nil, err
	}
	if rec == nil {
		entries, open, err := p.rehearse(ctx, []manifest.Object{held}, opts.Force)
		if err != nil {
			return nil, err
		}
		entries[0].Next = all[0].Object
		if rec, err = p.journal.begin(ctx, &record{Namespace: home, Key: key, Entries: entries, Force: opts.Force}); err != nil {
			return nil, err
		}
		if err := p.settle(ctx, rec, []manifest.Object{held}, open); err != nil {
			return nil, err
		}
	}
	return changesOf(rec), p.writeAll(ctx, rec, []manifest.Object{held})
}

// fitForRoll refuses what cannot be given a new version member by member.
func fitForRoll(o manifest.Object, live *unstructured.Unstructured) error {
	if o.GetKind() != "StatefulSet" {
		return fault.Newf(fault.Invalid, "%s: a %s has no members with ordinals", o.Origin, o.GetKind())
	}
	for _, from := range []map[string]any{o.Object, live.Object} {
		if how, _, _ := unstructured.NestedString(from, "spec", "updateStrategy", "type"); how == "OnDelete" {
			return fault.WithRemedy(fault.Newf(fault.Invalid, "%s: %s has the update strategy OnDelete: a pod that dies would come back in the new version before its turn",
				o.Origin, o.Ref()), "use RollingUpdate: Sluice decides itself when a member's turn has come")
		}
	}
	if owner := metav1.GetControllerOf(live); owner != nil {
		return fault.Newf(fault.Denied, "%s belongs to %s/%s, an operator's object, which would undo every change to it", o.Ref(), owner.Kind, owner.Name)
	}
	if s := computed(o.Ref(), live); !s.Ready {
		return fault.WithRemedy(fault.Newf(fault.Conflict, "%s is not at rest: %s", o.Ref(), s.Message), "wait for its rollout, or undo it")
	}
	now, _, _ := unstructured.NestedString(live.Object, "status", "currentRevision")
	next, _, _ := unstructured.NestedString(live.Object, "status", "updateRevision")
	if now != next {
		return fault.WithRemedy(fault.Newf(fault.Conflict, "%s stands between two versions: a rollout was not finished", o.Ref()),
			"finish or undo it: kubectl rollout status and undo tell how far it is")
	}
	return nil
}

// hold returns the object as it is while no member has the new version yet.
func hold(o manifest.Object, live *unstructured.Unstructured) (manifest.Object, error) {
	h := manifest.Object{Unstructured: *o.DeepCopy(), Origin: o.Origin}
	n, _ := replicasOf(live)
	if err := unstructured.SetNestedField(h.Object, n, "spec", "replicas"); err != nil {
		return h, invalid(o, "has a spec that is none", err)
	}
	if err := unstructured.SetNestedField(h.Object, "RollingUpdate", "spec", "updateStrategy", "type"); err != nil {
		return h, invalid(o, "has an updateStrategy that is none", err)
	}
	return h, unstructured.SetNestedField(h.Object, n, partitionPath()...)
}

// Roll implements platform.Roller.
func (p *Platform) Roll(ctx context.Context, key string, workload manifest.Ref, from int) error {
	return p.once(ctx, workload.Namespace, key, nil, func([]entry) error {
		all, err := p.Members(ctx, workload)
		if err != nil {
			return err
		}
		for i := from; i < len(all); i++ {
			if all[i].Ready && !all[i].Present {
				// The controller deletes pods and asks no budget, so it is asked here.
				if err := p.evict(ctx, workload.Namespace, all[i], true); err != nil {
					return err
				}
			}
		}
		return p.setPartition(ctx, workload, int64(from))
	})
}

func (p *Platform) setPartition(ctx context.Context, workload manifest.Ref, to int64) error {
	in := p.dynamic.Resource(statefulSets()).Namespace(workload.Namespace)
	return p.patch(ctx, in, workload, func(live *unstructured.Unstructured) ([]operation, error) {
		if now, ok, _ := unstructured.NestedInt64(live.Object, partitionPath()...); ok && now == to {
			return nil, nil
		}
		return []operation{{Op: "add", Path: pointer(partitionPath()...), Value: to}}, nil
	})
}

// rolled finds what StartRoll has recorded.
func (p *Platform) rolled(ctx context.Context, changes []platform.Change) (*record, *entry, error) {
	if len(changes) != 1 {
		return nil, nil, fault.Newf(fault.Invalid, "a roll changes one StatefulSet, not %d objects", len(changes))
	}
	records := map[string]*record{}
	if _, err := p.entryOf(ctx, changes[0], records); err != nil {
		return nil, nil, err
	}
	rec := records[changes[0].Journal]
	if rec == nil || len(rec.Entries) != 1 || rec.Entries[0].Next == nil {
		return nil, nil, fault.Newf(fault.Lost, "what %s was before its roll is gone with Secret %s", changes[0].Ref, changes[0].Journal)
	}
	return rec, &rec.Entries[0], nil
}

// EndRoll implements platform.Roller.
func (p *Platform) EndRoll(ctx context.Context, key string, changes []platform.Change) error {
	rec, e, err := p.rolled(ctx, changes)
	if err != nil {
		return err
	}
	return p.once(ctx, e.Ref.Namespace, key, nil, func([]entry) error {
		all, err := p.Members(ctx, e.Ref)
		if err != nil {
			return err
		}
		for _, m := range all {
			if !m.Present || !m.Ready {
				return fault.Newf(fault.Conflict, "member %s is not of the new version and ready, so the roll of %s cannot end", m.Name, e.Ref)
			}
		}
		e.After = nil // what is found from now on may be this write's
		if err := p.journal.note(ctx, rec); err != nil {
			return err
		}
		after, err := p.write(ctx, manifest.Object{Unstructured: unstructured.Unstructured{Object: e.Next}, Origin: e.Ref.String()}, rec.Force)
		if err != nil {
			return err
		}
		e.After = after.Object
		return p.journal.note(ctx, rec)
	})
}

// TurnBack implements platform.Roller. A partition above all members keeps the controller from ending any: whoever walks
// through them decides about the order.
func (p *Platform) TurnBack(ctx context.Context, key string, changes []platform.Change) error {
	_, e, err := p.rolled(ctx, changes)
	if err != nil {
		return err
	}
	template, _, _ := unstructured.NestedMap(e.Before, "spec", "template")
	return p.once(ctx, e.Ref.Namespace, key, nil, func([]entry) error {
		in := p.dynamic.Resource(statefulSets()).Namespace(e.Ref.Namespace)
		return p.patch(ctx, in, e.Ref, func(live *unstructured.Unstructured) ([]operation, error) {
			n, _ := replicasOf(live)
			at, _, _ := unstructured.NestedInt64(live.Object, partitionPath()...)
			if reflect.DeepEqual(templateSpec(live.Object), any(template)) && at == n {
				return nil, nil
			}
			return []operation{{Op: "replace", Path: "/spec/template", Value: template}, {Op: "add", Path: pointer(partitionPath()...), Value: n}}, nil
		})
	})
}

// Members implements platform.Members.
func (p *Platform) Members(ctx context.Context, workload manifest.Ref) ([]platform.Member, error) {
	live, err := p.observed(ctx, workload)
	if err != nil {
		return nil, err
	}
	return p.membersOf(ctx, workload, live)
}

func (p *Platform) membersOf(ctx context.Context, workload manifest.Ref, live *unstructured.Unstructured) ([]platform.Member, error) {
	list, err := p.dynamic.Resource(pods()).Namespace(workload.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selectorOf(live).String()})
	if err != nil {
		return nil, failed(err, "list the pods of %s", workload)
	}
	n, _ := replicasOf(live)
	first, _, _ := unstructured.NestedInt64(live.Object, "spec", "ordinals", "start")
	revision, _, _ := unstructured.NestedString(live.Object, "status", "updateRevision")
	out := make([]platform.Member, n)
	for i := range out {
		m := platform.Member{Name: fmt.Sprintf("%s-%d", workload.Name, first+int64(i))}
		for _, pod := range list.Items {
			if pod.GetName() != m.Name {
				continue
			}
			m.ID = string(pod.GetUID())
			m.Ready = condition(&pod, "Ready") && pod.GetDeletionTimestamp() == nil
			m.Present = pod.GetLabels()["controller-revision-hash"] == revision
		}
		out[i] = m
	}
	return out, nil
}

// observed reads a StatefulSet once its controller has seen what it says now.
func (p *Platform) observed(ctx context.Context, workload manifest.Ref) (live *unstructured.Unstructured, err error) {
	seen := func() bool {
		if live, err = p.read(ctx, workload); err != nil {
			return true
		}
		g, _, _ := unstructured.NestedInt64(live.Object, "status", "observedGeneration")
		return g >= live.GetGeneration()
	}
	if seen() {
		return live, err
	}
	return live, errors.Join(p.await(ctx, workload, func(platform.State) bool { return seen() }), err)
}

// soon is observed for those who have nothing else to do if the controller does not get to it.
func (p *Platform) soon(ctx context.Context, workload manifest.Ref) (*unstructured.Unstructured, error) {
	within, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	live, err := p.observed(within, workload)
	if err != nil && ctx.Err() == nil && within.Err() != nil {
		return nil, fault.WithRemedy(fault.Newf(fault.Transient, "the controller of %s has not seen its present version after a minute", workload),
			"see whether the cluster's kube-controller-manager is well")
	}
	return live, err
}

// unblock deletes the pods of a StatefulSet that are not ready and of another version than it has now, so that its controller,
// which waits for such a pod until it is ready, goes on and replaces the others. Where people replace the pods themselves, it
// leaves that to them.
func (p *Platform) unblock(ctx context.Context, workload manifest.Ref) error {
	live, err := p.soon(ctx, workload)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if how, _, _ := unstructured.NestedString(live.Object, "spec", "updateStrategy", "type"); how == "OnDelete" {
		return nil
	}
	all, err := p.membersOf(ctx, workload, live)
	if err != nil {
		return err
	}
	from, _, _ := unstructured.NestedInt64(live.Object, partitionPath()...)
	for i, m := range all {
		if int64(i) < from || m.ID == "" || m.Present || m.Ready {
			continue
		}
		if err := p.deletePod(ctx, workload.Namespace, m); err != nil {
			return err
		}
	}
	return nil
}

// deletePod deletes exactly this pod: a later one of its name is another.
func (p *Platform) deletePod(ctx context.Context, namespace string, m platform.Member) error {
	uid := types.UID(m.ID)
	err := p.dynamic.Resource(pods()).Namespace(namespace).Delete(ctx, m.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	return gone(err, "delete pod %s/%s", namespace, m.Name)
}

// Restart implements platform.Members. A pod that is not ready holds the controller up for ever when its version is taken
// back, and is deleted.
func (p *Platform) Restart(ctx context.Context, key string, workload manifest.Ref, m platform.Member) error {
	if m.ID == "" {
		return nil
	}
	return p.once(ctx, workload.Namespace, key, nil, func([]entry) error {
		if m.Ready {
			return p.evict(ctx, workload.Namespace, m, false)
		}
		return p.deletePod(ctx, workload.Namespace, m)
	})
}
