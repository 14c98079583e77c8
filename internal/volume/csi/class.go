package csi

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/volume"
)

// bound is a claim with the volume that it is bound to.
type bound struct {
	claim  object
	volume object
	handle string
	shape
}

// bound finds the volume behind a claim. One that no CSI driver made is refused.
func (c cluster) bound(ctx context.Context, namespace, name string) (bound, error) {
	b := bound{}
	var err error
	if b.claim, err = c.get(ctx, claims(), namespace, name); err != nil {
		return b, err
	}
	k, err := into[corev1.PersistentVolumeClaim](b.claim)
	if err != nil {
		return b, err
	}
	if k.Status.Phase != corev1.ClaimBound || k.Spec.VolumeName == "" {
		return b, fault.WithRemedy(fault.Newf(fault.Conflict, "claim %s of namespace %s is bound to no volume%s", name, namespace, c.reasons(ctx, b.claim)),
			"a claim of a class that waits for its first consumer is bound when a pod mounts it")
	}
	if b.volume, err = c.get(ctx, volumes(), "", k.Spec.VolumeName); err != nil {
		return b, err
	}
	v, err := into[corev1.PersistentVolume](b.volume)
	if err != nil {
		return b, err
	}
	if v.Spec.CSI == nil {
		return b, fault.WithRemedy(fault.Newf(fault.Invalid, "claim %s of namespace %s is on a volume of no CSI driver (class %q), which has no snapshots",
			name, namespace, v.Spec.StorageClassName), "move it to a class whose driver takes snapshots")
	}
	b.handle = v.Spec.CSI.VolumeHandle
	b.shape = shape{Driver: v.Spec.CSI.Driver, Class: v.Spec.StorageClassName, Bytes: v.Spec.Capacity.Storage().Value(),
		Block: v.Spec.VolumeMode != nil && *v.Spec.VolumeMode == corev1.PersistentVolumeBlock}
	for _, m := range k.Spec.AccessModes {
		b.Modes = append(b.Modes, string(m))
	}
	return b, nil
}

// snapshotClass chooses the class by which volumes of a driver are cut: the default one of the driver, or its only one.
func (c cluster) snapshotClass(ctx context.Context, driver string) (string, error) {
	all, err := c.list(ctx, snapshotClasses(), "", "")
	if err != nil {
		return "", err
	}
	found := slices.DeleteFunc(all, func(o object) bool { return o.text("driver") != driver })
	one, ok := choose(found, "snapshot.storage.kubernetes.io/is-default-class")
	if !ok {
		return "", fault.WithRemedy(fault.Newf(fault.Invalid, "account %s has %s", c.account, count(found, "VolumeSnapshotClass", driver)),
			"make exactly one of them the default, by annotation snapshot.storage.kubernetes.io/is-default-class")
	}
	if p := one.text("deletionPolicy"); p != deletes {
		return "", fault.WithRemedy(fault.Newf(fault.Invalid, "VolumeSnapshotClass %s has the deletion policy %s: what is cut by it could not be removed again", one.GetName(), p),
			"make a class of driver %s with deletionPolicy: Delete the default", driver)
	}
	return one.GetName(), nil
}

// choose returns the only one, or the only one that is marked as default.
func choose(all []object, mark string) (object, bool) {
	if len(all) == 1 {
		return all[0], true
	}
	marked := slices.DeleteFunc(slices.Clone(all), func(o object) bool { return o.GetAnnotations()[mark] != "true" })
	if len(marked) == 1 {
		return marked[0], true
	}
	return object{}, false
}

func count(all []object, kind, driver string) string {
	if len(all) == 0 {
		return "no " + kind + " of driver " + driver
	}
	var names []string
	for _, o := range all {
		names = append(names, o.GetName())
	}
	return "several of kind " + kind + " of driver " + driver + " and no single default: " + strings.Join(names, ", ")
}

// anyClass chooses the class of a claim whose volume is made empty: the one that is asked for, else the one that is called as the
// source's, else the cluster's default.
func (c cluster) anyClass(ctx context.Context, to volume.Place, usual string) (driver, name string, err error) {
	all, err := c.list(ctx, storageClasses(), "", "")
	if err != nil {
		return "", "", err
	}
	for _, name := range []string{to.Class, usual} {
		for _, o := range all {
			if name != "" && o.GetName() == name {
				return o.text("provisioner"), name, nil
			}
		}
		if name != "" && name == to.Class {
			return "", "", fault.Newf(fault.NotFound, "account %s has no StorageClass %s", c.account, to.Class)
		}
	}
	one, ok := choose(all, "storageclass.kubernetes.io/is-default-class")
	if !ok {
		return "", "", fault.WithRemedy(fault.Newf(fault.Invalid, "account %s has no StorageClass %s, which production's volume has, and no single default", c.account, usual),
			"make one the default, or name one in the target's template")
	}
	return one.text("provisioner"), one.GetName(), nil
}

// passingClass chooses the class of a clone that goes again when it was streamed: one by which the volume goes with its claim, so
// that whoever copies need not be allowed to change volumes.
func (c cluster) passingClass(ctx context.Context, s shape) (name string, late bool, err error) {
	all, err := c.list(ctx, storageClasses(), "", "")
	if err != nil {
		return "", false, err
	}
	found := slices.DeleteFunc(all, func(o object) bool { return o.text("provisioner") != s.Driver || o.text("reclaimPolicy") == retain })
	one, ok := choose(found, "storageclass.kubernetes.io/is-default-class")
	for _, o := range found {
		if o.GetName() == s.Class {
			one, ok = o, true
		}
	}
	if !ok {
		return "", false, fault.WithRemedy(fault.Newf(fault.Invalid, "a clone of the volume is to be streamed and then to go, and account %s has %s by which that could be", c.account,
			count(found, "StorageClass", s.Driver)), "make a class of driver %s with reclaimPolicy: Delete; where there are several, mark one as the default", s.Driver)
	}
	return one.GetName(), lateness(one), nil
}

// lateness tells whether a class has its volumes made when somebody mounts their claim.
func lateness(class object) bool { return class.text("volumeBindingMode") == "WaitForFirstConsumer" }

// storageClass chooses the class of a clone's claim, and says whether it waits for its first consumer.
func (c cluster) storageClass(ctx context.Context, to volume.Place, s shape) (name string, late bool, err error) {
	all, err := c.list(ctx, storageClasses(), "", "")
	if err != nil {
		return "", false, err
	}
	wanted := to.Class
	if wanted == "" {
		wanted = s.Class
	}
	found := slices.DeleteFunc(slices.Clone(all), func(o object) bool { return o.text("provisioner") != s.Driver })
	for _, o := range found {
		if o.GetName() == wanted {
			return wanted, lateness(o), nil
		}
	}
	if to.Class != "" {
		for _, o := range all {
			if o.GetName() == to.Class {
				return "", false, fault.Newf(fault.Invalid, "StorageClass %s of account %s is of driver %s, and the copy is a snapshot of driver %s, which it cannot read",
					to.Class, c.account, o.text("provisioner"), s.Driver)
			}
		}
		return "", false, fault.Newf(fault.NotFound, "account %s has no StorageClass %s", c.account, to.Class)
	}
	one, ok := choose(found, "storageclass.kubernetes.io/is-default-class")
	if !ok {
		return "", false, fault.WithRemedy(fault.Newf(fault.Invalid, "account %s has %s, which the copy is a snapshot of", c.account, count(found, "StorageClass", s.Driver)),
			"a copy goes to clusters whose storage has the snapshot; where there are several classes, name one")
	}
	return one.GetName(), lateness(one), nil
}
