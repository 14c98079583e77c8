package csi

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/volume"
)

// Delete implements volume.Driver: claims first, then the snapshots that were handed on with their contents, then the snapshot
// in the cluster that was copied from. A volume that goes by several names goes with all of them. One that was a source once is
// no longer held: what becomes of it is up to the policy that it had.
func (d *Driver) Delete(ctx context.Context, copy volume.Copy) error {
	i := copy.Info()
	var all []record
	for n, s := range i.Sources {
		p, err := d.part(ctx, i, n)
		if fault.Is(err, fault.NotFound) {
			// Its making was cut short, or its deletion; or somebody else deleted the claim, and what filled it is left.
			if i.Method == volume.Stream {
				if err := d.empty(ctx, record{Copy: i, Part: n, From: s.Account}); err != nil {
					return err
				}
			}
			continue
		}
		if err != nil {
			return err
		}
		if p.Copy.Method == volume.Stream {
			if err := d.empty(ctx, p.record); err != nil {
				return err
			}
		}
		also, err := d.deletable(ctx, p)
		if err != nil {
			return err
		}
		all = append(all, also...)
	}
	if len(all) == 0 {
		all = []record{{Copy: i}}
	}
	for _, r := range all {
		if err := d.remove(ctx, r.Copy, r.From); err != nil {
			return err
		}
	}
	return nil
}

// deletable refuses what is protected, in use, or has clones. It returns the records of all that goes with it.
func (d *Driver) deletable(ctx context.Context, p part) ([]record, error) {
	all := []record{p.record}
	switch p.k {
	case claims():
		if err := p.c.unused(ctx, p.GetNamespace(), p.GetName()); err != nil {
			return nil, err
		}
	case volumes():
		if p.text("status", "phase") == string(corev1.VolumeBound) {
			return nil, fault.Newf(fault.Denied, "copy %s is what claim %s of namespace %s is bound to", p.Copy.ID, p.text("spec", "claimRef", "name"), p.text("spec", "claimRef", "namespace"))
		}
		var err error
		if all, err = recordsOf(p.object); err != nil {
			return nil, err
		}
	}
	for _, r := range all {
		if time.Now().Before(r.Copy.Protected) {
			return nil, fault.Newf(fault.Denied, "copy %s is protected until %s, as %s", p.Copy.ID, r.Copy.Protected.Format(time.RFC3339), r.Copy.ID)
		}
		if err := d.childless(ctx, p, r.Copy.ID); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// childless refuses a copy that has clones, here or in the accounts that it was handed to.
func (d *Driver) childless(ctx context.Context, p part, id string) error {
	for _, account := range append([]string{p.c.account}, handedTo(p.object)...) {
		all, err := New(account, d.clients, d.mover, d.within).List(ctx, "")
		if err != nil {
			return fmt.Errorf("whether copy %s has clones in account %s cannot be told: %w", id, account, err)
		}
		for _, o := range all {
			if o.Info().Parent == id {
				return fault.Newf(fault.Conflict, "copy %s was cloned as %s in account %s, which must go first", id, o.ID(), account)
			}
		}
	}
	return nil
}

// remove removes what was made for a copy. It goes on where an earlier call has ended.
func (d *Driver) remove(ctx context.Context, i volume.CopyInfo, from string) error {
	accounts := []string{from}
	for n, s := range i.Sources {
		p, err := d.part(ctx, i, n)
		if err == nil {
			err = d.removePart(ctx, p)
		}
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		accounts = append(accounts, s.Account)
		if n < len(i.Places) {
			accounts = slices.Insert(accounts, 0, i.Places[n].Account)
		}
	}
	for n, a := range accounts {
		if a == "" || slices.Contains(accounts[:n], a) {
			continue
		}
		c, err := d.cluster(a)
		if err != nil {
			return err
		}
		if err := c.removeHelpers(ctx, i.ID); err != nil {
			return err
		}
	}
	return nil
}

func (d *Driver) removePart(ctx context.Context, p part) error {
	switch p.k {
	case volumes():
		return p.c.restorer().removeVolume(ctx, p)
	case snapshots():
		return p.c.removeSnapshot(ctx, p.object)
	}
	name := p.text("spec", "volumeName")
	if name == "" {
		return p.c.delete(ctx, claims(), p.object)
	}
	v, err := p.c.release(ctx, name)
	there := !fault.Is(err, fault.NotFound)
	if err != nil && there {
		return err
	}
	if err := p.c.delete(ctx, claims(), p.object); err != nil || !there {
		return err
	}
	return p.c.gone(ctx, volumes(), v)
}

// release lets the storage have a volume of Sluice's own making when no claim has it.
func (c cluster) release(ctx context.Context, name string) (object, error) {
	return c.change(ctx, volumes(), "", name, func(v object) (map[string]any, error) {
		if v.text("spec", "persistentVolumeReclaimPolicy") == deletes {
			return nil, nil
		}
		return map[string]any{"spec": map[string]any{"persistentVolumeReclaimPolicy": deletes}}, nil
	})
}

// removeVolume lets a volume out of service go, with all that is written on it.
func (c cluster) removeVolume(ctx context.Context, p part) error {
	policy := p.Policy
	if !p.Kept {
		policy = deletes
	}
	v, err := c.change(ctx, volumes(), "", p.GetName(), func(object) (map[string]any, error) {
		fields, err := noted(nil)
		if err == nil {
			fields["spec"] = map[string]any{"persistentVolumeReclaimPolicy": policy}
		}
		return fields, err
	})
	if err != nil || policy != deletes {
		return err
	}
	return c.gone(ctx, volumes(), v)
}

// removeSnapshot deletes a snapshot, and waits until its content and what the storage has of it are gone too.
func (c cluster) removeSnapshot(ctx context.Context, s object) error {
	content, err := c.contentOf(ctx, s)
	there := !fault.Is(err, fault.NotFound)
	if err != nil && there {
		return err
	}
	if err := c.delete(ctx, snapshots(), s); err != nil || !there {
		return err
	}
	if content.text("spec", "deletionPolicy") == retain {
		if r, ok := recordOf(content); ok && r.Helper {
			return c.delete(ctx, contents(), content)
		}
		return nil
	}
	return c.gone(ctx, contents(), content)
}

// removeHelpers removes the snapshots that a clone was made from, those that were handed on first, and contents without one.
func (c cluster) removeHelpers(ctx context.Context, id string) error {
	all, err := c.list(ctx, snapshots(), "", copyLabel+"="+hashOf(id))
	if err != nil {
		return err
	}
	slices.SortStableFunc(all, func(a, b object) int {
		return len(b.text("spec", "source", "volumeSnapshotContentName")) - len(a.text("spec", "source", "volumeSnapshotContentName"))
	})
	for _, s := range all {
		if r, ok := recordOf(s); !ok || r.Copy.ID != id {
			continue
		}
		if err := c.removeSnapshot(ctx, s); err != nil {
			return err
		}
	}
	left, err := c.list(ctx, contents(), "", copyLabel+"="+hashOf(id))
	if err != nil {
		return err
	}
	for _, o := range left {
		if r, ok := recordOf(o); ok && r.Copy.ID == id {
			if err := c.removeContent(ctx, o.GetName()); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
	}
	return nil
}

// removeContent deletes a content whose snapshot is gone. A snapshot that went while it was being bound leaves the snapshot controller
// without a word to the driver's side, which then holds the content for ever; so it is said here, in the controller's way.
func (c cluster) removeContent(ctx context.Context, name string) error {
	o, err := c.change(ctx, contents(), "", name, func(o object) (map[string]any, error) {
		if _, said := o.GetAnnotations()[beingDeleted]; said {
			return nil, nil
		}
		return map[string]any{"metadata": map[string]any{"annotations": map[string]any{beingDeleted: "yes"}}}, nil
	})
	if err != nil {
		return err
	}
	return c.delete(ctx, contents(), o)
}

// beingDeleted is what the snapshot controller writes on a content whose snapshot is deleted.
const beingDeleted = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
