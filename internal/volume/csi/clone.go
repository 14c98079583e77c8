package csi

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/volume"
)

// Clone implements volume.Driver. Where a volume is made only when a pod mounts its claim, that is left to the pod.
func (d *Driver) Clone(ctx context.Context, id, owner string, from volume.Copy, to []volume.Place) (volume.Copy, error) {
	f := from.Info()
	if len(to) != len(f.Sources) {
		return volume.Copy{}, fault.Newf(fault.Invalid, "copy %s has %d volumes and is to be bound to %d claims", f.ID, len(f.Sources), len(to))
	}
	if f.CutAt.IsZero() {
		return volume.Copy{}, fault.Newf(fault.Conflict, "the making of copy %s was cut short, so it cannot be cloned", f.ID)
	}
	info := volume.CopyInfo{ID: id, Owner: owner, Sources: f.Sources, Places: to, Parent: f.ID, Method: volume.CSI, Atomic: f.Atomic, CutAt: time.Now().UTC()}
	for n := range to {
		made, err := d.clone(ctx, record{Copy: info, Part: n}, f)
		if err != nil {
			return volume.Copy{}, fmt.Errorf("clone copy %s to claim %s of namespace %s: %w", f.ID, to[n].Claim, to[n].Namespace, err)
		}
		info = made.Copy
	}
	return volume.NewCopy(info), nil
}

// clone makes one claim of a clone, or finds it made.
func (d *Driver) clone(ctx context.Context, r record, of volume.CopyInfo) (record, error) {
	to := r.Copy.Places[r.Part]
	c, err := d.cluster(to.Account)
	if err != nil {
		return r, err
	}
	if p, err := d.part(ctx, r.Copy, r.Part); err == nil {
		if p.Filling {
			p.Copy.Places[p.Part].Like = to.Like
			return d.fill(ctx, c, p.record, of)
		}
		return p.record, d.settled(ctx, p)
	} else if !fault.Is(err, fault.NotFound) {
		return r, err
	}
	from, err := d.part(ctx, of, r.Part)
	if err != nil {
		return r, err
	}
	r.Shape, r.From = from.Shape, from.c.account
	r.Shape.Labels, r.Shape.Annotations = nil, nil
	if d.mover != nil && !r.Lent {
		r.Filling = d.mover.Apart(r.From, to.Account) != ""
	}
	if r.Filling {
		if r.Copy.Method = volume.Stream; r.Shape.Block {
			return r, fault.Newf(fault.Invalid, "the volume is a raw block device, and %s: only files are streamed", d.mover.Apart(r.From, to.Account))
		}
		if r.Shape.Driver, r.Shape.Class, err = c.anyClass(ctx, to, from.Shape.Class); err != nil {
			return r, err
		}
	}
	var late bool
	if r.Lent {
		r.Shape.Class, late, err = c.passingClass(ctx, r.Shape)
	} else {
		r.Shape.Class, late, err = c.storageClass(ctx, to, r.Shape)
	}
	if err != nil {
		return r, err
	}
	if to.Bytes != 0 && to.Bytes < from.Shape.Bytes {
		return r, fault.WithRemedy(fault.Newf(fault.Invalid, "a claim of %d bytes cannot hold a copy of a volume of %d bytes", to.Bytes, from.Shape.Bytes), "ask for at least as much")
	}
	r.Shape.Bytes = max(to.Bytes, from.Shape.Bytes)
	if err := c.makeNamespace(ctx, to, r.Copy.Owner); err != nil {
		return r, err
	}
	if err := d.vacate(ctx, c, r); err != nil {
		return r, err
	}
	if err := d.hand(ctx, from, to.Account); err != nil {
		return r, err
	}
	if r.Filling {
		if _, err := c.claim(ctx, r, nil); err != nil {
			return r, err
		}
		return d.fill(ctx, c, r, of)
	}
	if err := d.make(ctx, c, r, from, late); err != nil {
		if ctx.Err() != nil {
			return r, err // it is finished by the same call, or removed as what was cut short
		}
		return r, removed(ctx, err, func(ctx context.Context) error { return d.remove(ctx, r.Copy, r.From) })
	}
	return r, nil
}

// settled waits for the volume of a claim that was made by an earlier call, where it waits for nobody itself.
func (d *Driver) settled(ctx context.Context, p part) error {
	if p.k != claims() {
		return nil
	}
	_, late, err := p.c.storageClass(ctx, volume.Place{Class: p.Shape.Class}, p.Shape)
	if err != nil || late {
		return err
	}
	return d.bind(ctx, p.c, p.object)
}

// make hands the snapshot on to where the clone goes, and makes the claim from it.
func (d *Driver) make(ctx context.Context, c cluster, r record, from part, late bool) error {
	origin, err := d.origin(ctx, from, r)
	if err != nil {
		return err
	}
	if status, ok := origin.Object["status"].(map[string]any); ok {
		if n, ok := status["restoreSize"].(int64); ok {
			r.Shape.Bytes = max(r.Shape.Bytes, n)
		}
	}
	name := nameOf(r.Copy.ID, r.Part)
	if err := d.handOn(ctx, c, r, origin); err != nil {
		return err
	}
	claim, err := c.claim(ctx, r, map[string]any{"apiGroup": snapshots().Group, "kind": snapshots().kind, "name": name})
	if err != nil || late {
		return err
	}
	return d.bind(ctx, c, claim)
}

// claim makes the claim of a clone, with what its volume is made from; nil: with an empty one.
func (c cluster) claim(ctx context.Context, r record, from map[string]any) (object, error) {
	to := r.Copy.Places[r.Part]
	m, err := r.metadata(to.Namespace, to.Claim)
	if err != nil {
		return object{}, err
	}
	spec := map[string]any{"storageClassName": r.Shape.Class, "accessModes": list(r.Shape.Modes), "volumeMode": r.Shape.mode(),
		"resources": map[string]any{"requests": map[string]any{"storage": strconv.FormatInt(r.Shape.Bytes, 10)}}}
	if from != nil {
		spec["dataSource"] = from
	}
	claim, err := c.create(ctx, claims(), map[string]any{"metadata": m, "spec": spec})
	if err != nil {
		return claim, err
	}
	return claim, ours(claim, r)
}

func list(all []string) []any {
	var out []any
	for _, s := range all {
		out = append(out, s)
	}
	return out
}

// origin returns the content whose snapshot a clone is made from. A copy that is a claim with a volume of its own is cut for it.
func (d *Driver) origin(ctx context.Context, from part, r record) (object, error) {
	s, namespace, claim := from.object, from.GetNamespace(), from.GetName()
	switch from.k {
	case snapshots():
	case claims():
		if from.text("status", "phase") != string(corev1.ClaimBound) {
			// Nobody has mounted it, so it holds what it is made from.
			var err error
			if s, err = from.c.get(ctx, snapshots(), namespace, nameOf(from.Copy.ID, from.Part)); err != nil {
				return object{}, err
			}
			return from.c.contentOf(ctx, s)
		}
	default:
		namespace, claim = from.text("spec", "claimRef", "namespace"), from.text("spec", "claimRef", "name")
		if from.text("status", "phase") != string(corev1.VolumeBound) {
			return object{}, fault.WithRemedy(fault.Newf(fault.Conflict, "copy %s is volume %s, which is bound to no claim, and a volume is copied by its claim", from.Copy.ID, from.GetName()),
				"swap it in first, or clone the checkpoint")
		}
	}
	if from.k != snapshots() {
		var err error
		r.Helper = true
		if s, err = from.c.snapshot(ctx, r, namespace, claim, nameOf(r.Copy.ID, r.Part)+"-of"); err != nil {
			return object{}, err
		}
	}
	if err := d.ready(ctx, from.c, s, d.within.Ready); err != nil {
		return object{}, err
	}
	s, err := from.c.get(ctx, snapshots(), s.GetNamespace(), s.GetName())
	if err != nil {
		return object{}, err
	}
	return from.c.contentOf(ctx, s)
}

// handOn makes a content that names a snapshot and retains it, and a snapshot that is bound to it, where a clone goes.
func (d *Driver) handOn(ctx context.Context, c cluster, r record, origin object) error {
	r.Helper = true
	to, name := r.Copy.Places[r.Part], nameOf(r.Copy.ID, r.Part)
	handle := origin.text("status", "snapshotHandle")
	if handle == "" {
		handle = origin.text("spec", "source", "snapshotHandle")
	}
	m, err := r.metadata("", name)
	if err != nil {
		return err
	}
	content, err := c.create(ctx, contents(), map[string]any{"metadata": m, "spec": map[string]any{
		"deletionPolicy": "Retain", "driver": r.Shape.Driver, "source": map[string]any{"snapshotHandle": handle}, "sourceVolumeMode": r.Shape.mode(),
		"volumeSnapshotRef": map[string]any{"apiVersion": snapshots().GroupVersion().String(), "kind": snapshots().kind, "namespace": to.Namespace, "name": name}}})
	if err == nil {
		err = ours(content, r)
	}
	if err != nil {
		return err
	}
	if m, err = r.metadata(to.Namespace, name); err != nil {
		return err
	}
	s, err := c.create(ctx, snapshots(), map[string]any{"metadata": m, "spec": map[string]any{"source": map[string]any{"volumeSnapshotContentName": name}}})
	if err == nil {
		err = ours(s, r)
	}
	if err != nil {
		return err
	}
	return d.ready(ctx, c, s, d.within.Bound)
}

// bind waits until a claim that waits for no consumer has its volume.
func (d *Driver) bind(ctx context.Context, c cluster, claim object) error {
	start := time.Now()
	within, cancel := context.WithTimeout(ctx, d.within.Bound)
	defer cancel()
	last, err := c.await(within, claims(), claim.GetNamespace(), claim.GetName(), func(o *object) (bool, error) {
		if o == nil {
			return false, fault.Newf(fault.Lost, "%s was deleted by somebody", claim)
		}
		if o.text("status", "phase") == string(corev1.ClaimLost) {
			return false, fault.Newf(fault.Lost, "%s has lost its volume", claim)
		}
		return o.text("status", "phase") == string(corev1.ClaimBound), nil
	})
	if err != nil && errors.Is(within.Err(), context.DeadlineExceeded) {
		return c.never(ctx, fmt.Sprintf("%s had no volume within %s", claim, since(start)), last)
	}
	return err
}

// vacate makes a clone's claim be free. A claim that Sluice made goes with its copy; another one is refused, or kept aside.
func (d *Driver) vacate(ctx context.Context, c cluster, r record) error {
	to := r.Copy.Places[r.Part]
	claim, err := c.get(ctx, claims(), to.Namespace, to.Claim)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if claim.GetDeletionTimestamp() != nil {
		return c.gone(ctx, claims(), claim)
	}
	if have, ok := recordOf(claim); ok {
		if err := d.Delete(ctx, volume.NewCopy(have.Copy)); err != nil {
			return fmt.Errorf("the claim holds copy %s: %w", have.Copy.ID, err)
		}
		return nil
	}
	if !to.Replace {
		return fault.WithRemedy(fault.Newf(fault.Denied, "claim %s of namespace %s was not made by Sluice", to.Claim, to.Namespace),
			"set `replace: true` in copyData to take it out of service; its volume is kept")
	}
	if err := c.unused(ctx, to.Namespace, to.Claim); err != nil {
		return err
	}
	if v := claim.text("spec", "volumeName"); v != "" {
		aside := volume.CopyInfo{ID: r.Copy.ID + "/replaced/" + to.Claim, Owner: r.Copy.Owner, CutAt: time.Now().UTC(),
			Sources: []volume.Source{{Account: to.Account, Namespace: to.Namespace, Claim: to.Claim}}}
		if _, err := c.restorer().hold(ctx, v, record{Copy: aside, Shape: shapeOf(claim)}); err != nil {
			return err
		}
	}
	return c.restorer().delete(ctx, claims(), claim)
}
