package csi

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/kube"
	"github.com/sluice-cd/sluice/internal/volume"
)

// Swap implements volume.Driver. Both volumes are made to outlive their claims before a claim is deleted. The old one stays as
// its claim left it, Released: in that state no other claim can be bound to it.
func (d *Driver) Swap(ctx context.Context, id string, live []volume.Source, with volume.Copy, protect time.Time) (volume.Copy, error) {
	w := with.Info()
	if len(live) != len(w.Sources) {
		return volume.Copy{}, fault.Newf(fault.Invalid, "copy %s has %d volumes for %d claims", w.ID, len(w.Sources), len(live))
	}
	old := volume.CopyInfo{ID: id, Owner: w.Owner, Sources: live, Method: volume.CSI, CutAt: time.Now().UTC(), Protected: protect}
	for n := range live {
		r, err := d.swap(ctx, record{Copy: old, Part: n}, w)
		if err != nil {
			return volume.Copy{}, fmt.Errorf("bind claim %s of namespace %s to copy %s: %w", live[n].Claim, live[n].Namespace, w.ID, err)
		}
		old = r.Copy
	}
	return volume.NewCopy(old), nil
}

// swap binds one live claim to a volume of a copy, and returns the record of the volume that it was bound to.
func (d *Driver) swap(ctx context.Context, r record, w volume.CopyInfo) (record, error) {
	live := r.Copy.Sources[r.Part]
	c, err := d.cluster(live.Account)
	if err != nil {
		return r, err
	}
	in, err := d.part(ctx, w, r.Part)
	if err != nil {
		return r, err
	}
	name, err := incoming(in, live)
	if err != nil {
		return r, err
	}
	out, err := d.part(ctx, r.Copy, r.Part)
	switch {
	case fault.Is(err, fault.NotFound):
		out, err = c.restorer().outgoing(ctx, r, name, in.record)
	case err == nil && !c.isBound(ctx, live, name): // begun by an earlier call
		err = c.unused(ctx, live.Namespace, live.Claim)
	}
	if err != nil {
		return r, err
	}
	r = out.record
	if out.Unstructured == nil || c.isBound(ctx, live, name) {
		return r, d.enter(ctx, c.restorer(), live, name, r)
	}
	if in.k == claims() {
		if err := c.unused(ctx, in.GetNamespace(), in.GetName()); err != nil {
			return r, err
		}
	}
	if _, err := c.restorer().hold(ctx, name, in.record); err != nil {
		return r, err
	}
	// Nothing lies between the deletion of the claim and what was read of its volume: an earlier call may have found it not retained.
	if _, err := c.restorer().hold(ctx, out.GetName(), r); err != nil {
		return r, err
	}
	if err := c.restorer().leave(ctx, live, out.GetName()); err != nil {
		return r, err
	}
	if in.k == claims() {
		if err := c.delete(ctx, claims(), in.object); err != nil {
			return r, err
		}
	}
	return r, d.enter(ctx, c.restorer(), live, name, r)
}

// incoming returns the volume that a copy is to bring in.
func incoming(in part, live volume.Source) (string, error) {
	if in.c.account != live.Account {
		return "", fault.Newf(fault.Invalid, "copy %s lies in account %s, and the claim in account %s", in.Copy.ID, in.c.account, live.Account)
	}
	switch in.k {
	case volumes():
		return in.GetName(), nil
	case claims():
		if name := in.text("spec", "volumeName"); name != "" && in.text("status", "phase") == string(corev1.ClaimBound) {
			return name, nil
		}
		return "", fault.WithRemedy(fault.Newf(fault.Conflict, "claim %s of copy %s has no volume yet", in.GetName(), in.Copy.ID),
			"a claim of a class that waits for its first consumer gets one when a pod mounts it")
	}
	return "", fault.Newf(fault.Invalid, "copy %s is a snapshot: a clone of it can be swapped in", in.Copy.ID)
}

// tookFrom reports whether a volume is what a swap has taken from the live claim, or had begun to.
func (r record) tookFrom(live volume.Source) bool {
	return len(r.Copy.Places) == 0 && r.Part < len(r.Copy.Sources) && r.Copy.Sources[r.Part] == live
}

// outgoing secures the volume that a live claim is bound to, under the record of a swap. It returns no volume where the claim is to
// get back what a swap that was cut short had begun to take from it, and has nothing else.
func (c cluster) outgoing(ctx context.Context, r record, incoming string, in record) (part, error) {
	live := r.Copy.Sources[r.Part]
	if in.tookFrom(live) {
		r.Policy = in.Policy // what is there now may still be held, by a swap that was cut short
		p, done, err := c.unfinished(ctx, r, incoming, in.Shape)
		if err != nil || done {
			return p, err
		}
	}
	b, err := c.bound(ctx, live.Namespace, live.Claim)
	if err != nil {
		return part{}, err
	}
	if b.volume.GetName() == incoming {
		return part{}, fault.Newf(fault.Conflict, "it is bound to it already")
	}
	if err := c.unused(ctx, live.Namespace, live.Claim); err != nil {
		return part{}, err
	}
	r.Shape = shapeOf(b.claim)
	r.Shape.Driver, r.Shape.Bytes = b.Driver, b.Bytes
	return c.hold(ctx, b.volume.GetName(), r)
}

// unfinished is outgoing where the claim is as a swap has left it that was cut short: bound to the old volume still, gone, or made
// anew and not bound. Its shape is then the one that this swap has written down.
func (c cluster) unfinished(ctx context.Context, r record, incoming string, s shape) (p part, done bool, err error) {
	live := r.Copy.Sources[r.Part]
	r.Shape = s
	nothing := part{c: c, k: volumes(), record: r}
	claim, err := c.get(ctx, claims(), live.Namespace, live.Claim)
	if err == nil && claim.GetDeletionTimestamp() != nil {
		if err := c.gone(ctx, claims(), claim); err != nil {
			return p, false, err
		}
		return nothing, true, nil
	}
	if fault.Is(err, fault.NotFound) {
		return nothing, true, nil
	}
	if err != nil {
		return p, false, err
	}
	switch has := claim.text("spec", "volumeName"); {
	case has == incoming, has == "":
		return nothing, true, nil
	case claim.text("status", "phase") == string(corev1.ClaimBound):
		return p, false, nil
	default:
		if err := c.unused(ctx, live.Namespace, live.Claim); err != nil {
			return p, false, err
		}
		if p, err = c.hold(ctx, has, r); fault.Is(err, fault.NotFound) {
			return nothing, true, c.delete(ctx, claims(), claim) // it waits for a volume that is no more
		}
		return p, true, err
	}
}

// shapeOf is what a claim has that another one of its name must have.
func shapeOf(claim object) shape {
	s := shape{Class: claim.text("spec", "storageClassName"), Block: claim.text("spec", "volumeMode") == "Block"}
	s.Modes, _, _ = unstructured.NestedStringSlice(claim.Object, "spec", "accessModes")
	s.Labels = foreign(claim.GetLabels(), copyLabel, kube.DeliveryLabel)
	s.Annotations = foreign(claim.GetAnnotations(), copyNote, handedNote, "pv.kubernetes.io/bind-completed", "pv.kubernetes.io/bound-by-controller",
		"volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner", "volume.kubernetes.io/selected-node")
	return s
}

// hold makes a volume outlive its claim and writes a copy's record on it, in one step that is read back.
func (c cluster) hold(ctx context.Context, name string, r record) (part, error) {
	v, err := c.change(ctx, volumes(), "", name, func(v object) (map[string]any, error) {
		all, err := recordsOf(v)
		if err != nil {
			return nil, err
		}
		if n := slices.IndexFunc(all, func(o record) bool { return o.Copy.ID == r.Copy.ID && o.Part == r.Part }); n >= 0 {
			r = all[n]
			if v.text("spec", "persistentVolumeReclaimPolicy") == retain {
				return nil, nil
			}
		} else {
			if r.Policy == "" {
				r.Policy = v.text("spec", "persistentVolumeReclaimPolicy")
			}
			r.Kept = len(r.Copy.Places) == 0 && !slices.ContainsFunc(all, func(o record) bool { return !o.Kept })
			all = append(all, r)
		}
		fields, err := noted(all)
		if err == nil {
			fields["spec"] = map[string]any{"persistentVolumeReclaimPolicy": retain}
		}
		return fields, err
	})
	if err == nil {
		v, err = c.get(ctx, volumes(), "", name)
	}
	if err != nil {
		return part{}, err
	}
	if p := v.text("spec", "persistentVolumeReclaimPolicy"); p != retain {
		return part{}, fault.Newf(fault.Conflict, "volume %s was set to be retained and is back at %s: somebody else manages it", name, p)
	}
	return part{c, volumes(), v, r}, nil
}

// What becomes of a volume whose claim is gone, or of a snapshot whose content is.
const (
	retain  = "Retain"
	deletes = "Delete"
)

// leave deletes the live claim where it is still bound to the old volume.
func (c cluster) leave(ctx context.Context, live volume.Source, old string) error {
	claim, err := c.get(ctx, claims(), live.Namespace, live.Claim)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil || claim.text("spec", "volumeName") != old {
		return err
	}
	return c.delete(ctx, claims(), claim)
}

// isBound reports whether the live claim has the volume.
func (c cluster) isBound(ctx context.Context, live volume.Source, name string) bool {
	claim, err := c.get(ctx, claims(), live.Namespace, live.Claim)
	return err == nil && claim.text("spec", "volumeName") == name
}

// enter makes the live claim anew, bound to the volume. A claim that names its volume is bound without a consumer.
func (d *Driver) enter(ctx context.Context, c cluster, live volume.Source, name string, old record) error {
	claim, err := c.get(ctx, claims(), live.Namespace, live.Claim)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if err == nil && claim.text("spec", "volumeName") != name {
		return fault.WithRemedy(fault.Newf(fault.Conflict, "somebody made claim %s of namespace %s anew in the middle of a swap", live.Claim, live.Namespace),
			"delete it; asked again, the swap goes on: its volumes are %s and the ones that the copies name", name)
	}
	if err != nil {
		if claim, err = c.reserve(ctx, live, name, old); err != nil {
			return err
		}
	}
	if err := d.bind(ctx, c, claim); err != nil {
		return err
	}
	// From here on production's volume is treated as production's was before.
	_, err = c.change(ctx, volumes(), "", name, func(v object) (map[string]any, error) {
		if old.Policy == "" || v.text("spec", "persistentVolumeReclaimPolicy") == old.Policy {
			return nil, nil
		}
		return map[string]any{"spec": map[string]any{"persistentVolumeReclaimPolicy": old.Policy}}, nil
	})
	return err
}

// reserve keeps a volume for the live claim, and no other one any longer, and makes the claim.
func (c cluster) reserve(ctx context.Context, live volume.Source, name string, old record) (object, error) {
	if err := c.unreserve(ctx, live, name); err != nil {
		return object{}, err
	}
	v, err := c.change(ctx, volumes(), "", name, func(v object) (map[string]any, error) {
		return map[string]any{"spec": map[string]any{"claimRef": map[string]any{"apiVersion": "v1", "kind": claims().kind,
			"namespace": live.Namespace, "name": live.Claim, "uid": nil, "resourceVersion": nil}}}, nil
	})
	if err != nil {
		return object{}, err
	}
	size, _, _ := unstructured.NestedString(v.Object, "spec", "capacity", "storage")
	if size == "" {
		size = strconv.FormatInt(old.Shape.Bytes, 10)
	}
	m := map[string]any{"namespace": live.Namespace, "name": live.Claim}
	for field, values := range map[string]map[string]string{"labels": old.Shape.Labels, "annotations": old.Shape.Annotations} {
		out := map[string]any{}
		for k, s := range values {
			out[k] = s
		}
		m[field] = out
	}
	return c.create(ctx, claims(), map[string]any{"metadata": m, "spec": map[string]any{
		"storageClassName": v.text("spec", "storageClassName"), "accessModes": list(old.Shape.Modes), "volumeMode": old.Shape.mode(), "volumeName": name,
		"resources": map[string]any{"requests": map[string]any{"storage": size}}}})
}

// unreserve lets go of volumes that a swap which was cut short has kept for the live claim. A claim of a uid that there is not has
// them then: they are Released, and go when their copies do.
func (c cluster) unreserve(ctx context.Context, live volume.Source, but string) error {
	all, err := c.list(ctx, volumes(), "", volumeLabel)
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.GetName() == but {
			continue
		}
		_, err := c.change(ctx, volumes(), "", o.GetName(), func(v object) (map[string]any, error) {
			if v.text("spec", "claimRef", "namespace") != live.Namespace || v.text("spec", "claimRef", "name") != live.Claim || v.text("spec", "claimRef", "uid") != "" {
				return nil, nil
			}
			return map[string]any{"spec": map[string]any{"claimRef": map[string]any{"uid": string(v.GetUID())}}}, nil
		})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}
