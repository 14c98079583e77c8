// Package csi copies the volumes of clusters: a cut is a snapshot by the storage, a clone is a claim that is made from it, in
// the same cluster or in another one that shares the storage.
//
// The snapshot that production's cluster made belongs to its content alone. Whoever gets a clone gets a content of his own that
// names the same snapshot and retains it, so that nothing which is removed there removes it.
package csi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/dynamic"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/kube"
	"github.com/sluice-cd/sluice/internal/volume"
)

// Deadlines are how long a cluster may take. Zero values are replaced by those of New.
type Deadlines struct {
	Cut   time.Duration // until a snapshot is cut; 2 minutes
	Ready time.Duration // until it can be cloned; 10 minutes
	Bound time.Duration // until a handed-on snapshot is known, and until a claim that waits for no consumer has its volume; 2 minutes
}

// Clients are two identities in one cluster. Whoever copies needs no right to delete or change what Sluice did not make; who
// restores may take production's volume from its claim. They may be the same.
type Clients struct{ Copy, Restore dynamic.Interface }

// Mover fills a claim with what another one holds, where the storage cannot make it from a snapshot.
type Mover interface {
	// Apart tells why the storage of an account does not have the snapshots of another one, "" where it has them.
	Apart(from, to string) string
	// Move makes the claim to hold what the claim from holds, durably and read back. What an earlier call with this id has written
	// counts as far as it is right. Nothing mounts the claim to when it returns, with how many bytes the files have.
	Move(ctx context.Context, id, owner string, from, to volume.Place, say func(line string)) (bytes int64, err error)
	// End ends what is left of a call of Move that was cut short.
	End(ctx context.Context, id, owner string, from, to volume.Place) error
}

// Driver copies volumes of one account, to any other that Clients knows.
type Driver struct {
	account string
	clients func(account string) (Clients, error)
	mover   Mover
	within  Deadlines
	say     func(line string)
}

var (
	_ volume.Driver = (*Driver)(nil)
	_ volume.Teller = (*Driver)(nil)
)

// New returns the driver of an account. Clients connects to an account by its name; an account that is no cluster is an error.
// Without a mover all accounts share their storage.
func New(account string, clients func(account string) (Clients, error), mover Mover, within Deadlines) *Driver {
	d := &Driver{account: account, clients: clients, mover: mover, within: within, say: func(string) {}}
	for _, x := range []struct {
		at    *time.Duration
		usual time.Duration
	}{{&d.within.Cut, 2 * time.Minute}, {&d.within.Ready, 10 * time.Minute}, {&d.within.Bound, 2 * time.Minute}} {
		if *x.at == 0 {
			*x.at = x.usual
		}
	}
	return d
}

// Telling implements volume.Teller.
func (d *Driver) Telling(say func(line string)) volume.Driver {
	t := *d
	t.say = say
	return &t
}

func (d *Driver) cluster(account string) (cluster, error) {
	k, err := d.clients(account)
	return cluster{account, k.Copy, k.Restore}, err
}

// Probe implements volume.Driver.
func (d *Driver) Probe(ctx context.Context, src []volume.Source) (volume.Ability, error) {
	c, err := d.sourceOf(src)
	if err != nil {
		return volume.Ability{}, err
	}
	b, err := c.bound(ctx, src[0].Namespace, src[0].Claim)
	if err != nil {
		return volume.Ability{}, err
	}
	class, err := c.snapshotClass(ctx, b.Driver)
	if err != nil {
		return volume.Ability{}, err
	}
	return volume.Ability{Atomic: volume.PerVolume, Method: volume.CSI, FreeBytes: -1,
		Reason: fmt.Sprintf("driver %s takes snapshots, by class %s", b.Driver, class)}, nil
}

// sourceOf returns the cluster of what is to be copied. Several claims are refused: cut one after another they would not belong
// together.
func (d *Driver) sourceOf(src []volume.Source) (cluster, error) {
	if len(src) == 0 {
		return cluster{}, fault.Newf(fault.Invalid, "there is no volume to copy")
	}
	if len(src) > 1 {
		return cluster{}, fault.WithRemedy(fault.Newf(fault.Invalid, "%d claims of namespace %s are to be copied at one instant, which needs a VolumeGroupSnapshot: group snapshots are not built yet",
			len(src), src[0].Namespace), "keep the database on one claim")
	}
	return d.cluster(src[0].Account)
}

// Cut implements volume.Driver.
func (d *Driver) Cut(ctx context.Context, id, owner string, src []volume.Source) (volume.Copy, error) {
	c, err := d.sourceOf(src)
	if err != nil {
		return volume.Copy{}, err
	}
	info := volume.CopyInfo{ID: id, Owner: owner, Sources: src, Method: volume.CSI, Atomic: volume.PerVolume}
	p, err := d.part(ctx, info, 0)
	s := p.object
	switch {
	case err == nil:
		info = p.Copy // begun by an earlier call
	case fault.Is(err, fault.NotFound):
		if s, err = c.begin(ctx, record{Copy: info}); err != nil {
			return volume.Copy{}, err
		}
	default:
		return volume.Copy{}, err
	}
	info.CutAt, err = d.awaitCut(ctx, c, s)
	if err != nil {
		return volume.Copy{}, removed(ctx, err, func(ctx context.Context) error { return c.delete(ctx, snapshots(), s) })
	}
	return volume.NewCopy(info), nil
}

// begin has the storage begin to cut the only source of a copy.
func (c cluster) begin(ctx context.Context, r record) (object, error) {
	of := r.Copy.Sources[0]
	b, err := c.bound(ctx, of.Namespace, of.Claim)
	if err != nil {
		return object{}, err
	}
	r.Shape = b.shape
	return c.snapshot(ctx, r, of.Namespace, of.Claim, nameOf(r.Copy.ID, 0))
}

// removed cleans up after what failed, also where the caller has given up, and says where even that failed.
func removed(ctx context.Context, err error, remove func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goneWithin)
	defer cancel()
	if e := remove(ctx); e != nil {
		return fmt.Errorf("%w; and what was made for it could not be removed: %w", err, e)
	}
	return err
}

// snapshot begins a snapshot of a claim, or finds the one that was begun.
func (c cluster) snapshot(ctx context.Context, r record, namespace, claim, name string) (object, error) {
	class, err := c.snapshotClass(ctx, r.Shape.Driver)
	if err != nil {
		return object{}, err
	}
	m, err := r.metadata(namespace, name)
	if err != nil {
		return object{}, err
	}
	s, err := c.create(ctx, snapshots(), map[string]any{"metadata": m,
		"spec": map[string]any{"volumeSnapshotClassName": class, "source": map[string]any{"persistentVolumeClaimName": claim}}})
	if err != nil {
		return s, err
	}
	return s, ours(s, r)
}

// ours refuses an object that stands where one of a copy would.
func ours(o object, r record) error {
	if have, ok := recordOf(o); ok && have.Copy.ID == r.Copy.ID && have.Part == r.Part && have.Helper == r.Helper {
		return nil
	}
	return fault.Newf(fault.Denied, "%s was not made for copy %s", o, r.Copy.ID)
}

// awaitCut waits for the instant that a snapshot holds.
func (d *Driver) awaitCut(ctx context.Context, c cluster, s object) (at time.Time, err error) {
	start := time.Now()
	within, cancel := context.WithTimeout(ctx, d.within.Cut)
	defer cancel()
	name := ""
	last, err := c.await(within, snapshots(), s.GetNamespace(), s.GetName(), func(o *object) (bool, error) {
		if o == nil {
			return false, fault.Newf(fault.Lost, "%s was deleted by somebody", s)
		}
		name = o.text("status", "boundVolumeSnapshotContentName")
		return name != "", nil
	})
	if err == nil {
		last, err = c.await(within, contents(), "", name, func(o *object) (bool, error) {
			ok := false
			if o != nil {
				at, ok = cutAt(*o)
			}
			return ok, nil
		})
	}
	if err != nil && errors.Is(within.Err(), context.DeadlineExceeded) {
		return at, c.never(ctx, fmt.Sprintf("%s was not cut within %s", s, since(start)), s, last)
	}
	return at, err
}

// cutAt is the instant that a content holds.
func cutAt(content object) (time.Time, bool) {
	if content.Unstructured == nil {
		return time.Time{}, false
	}
	status, _ := content.Object["status"].(map[string]any)
	switch n := status["creationTime"].(type) {
	case int64:
		return time.Unix(0, n).UTC(), n != 0
	case float64:
		return time.Unix(0, int64(n)).UTC(), n != 0
	}
	return time.Time{}, false
}

// contentOf reads the content that a snapshot is bound to.
func (c cluster) contentOf(ctx context.Context, s object) (object, error) {
	name := s.text("status", "boundVolumeSnapshotContentName")
	if name == "" {
		return object{}, fault.Newf(fault.NotFound, "%s is bound to no content", s)
	}
	return c.get(ctx, contents(), "", name)
}

// since is how long something was waited for, as people read it.
func since(start time.Time) time.Duration { return time.Since(start).Round(time.Second) }

// never is the error for what did not become as it should in its time, with what the cluster says about it.
func (c cluster) never(ctx context.Context, what string, about ...any) error {
	why := ""
	for _, a := range about {
		switch o := a.(type) {
		case object:
			if now, err := c.get(context.WithoutCancel(ctx), kindOf(o), o.GetNamespace(), o.GetName()); err == nil {
				o = now
			}
			why += c.reasons(ctx, o)
		case *object:
			if o != nil {
				why += c.reasons(ctx, *o)
			}
		}
	}
	if why == "" {
		why = ": the cluster says nothing about it"
	}
	return fault.WithRemedy(fault.Newf(fault.Invalid, "%s%s", what, why), "look at the storage driver and its sidecars in account %s", c.account)
}

func kindOf(o object) kind {
	for _, k := range []kind{claims(), snapshots(), contents()} {
		if o.GetKind() == k.kind {
			return k
		}
	}
	return volumes()
}

// Ready implements volume.Driver. A clone is ready when it is made.
func (d *Driver) Ready(ctx context.Context, copy volume.Copy) error {
	i := copy.Info()
	for n := range i.Sources {
		p, err := d.part(ctx, i, n)
		if err != nil {
			return err
		}
		if p.k != snapshots() {
			continue
		}
		if err := d.ready(ctx, p.c, p.object, d.within.Ready); err != nil {
			return fmt.Errorf("copy %s: %w", i.ID, err)
		}
	}
	return nil
}

// ready waits until a snapshot can be cloned.
func (d *Driver) ready(ctx context.Context, c cluster, s object, deadline time.Duration) error {
	start := time.Now()
	within, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	last, err := c.await(within, snapshots(), s.GetNamespace(), s.GetName(), func(o *object) (bool, error) {
		if o == nil {
			return false, fault.Newf(fault.Lost, "%s was deleted by somebody", s)
		}
		status, _ := o.Object["status"].(map[string]any)
		return status["readyToUse"] == true, nil
	})
	if err != nil && errors.Is(within.Err(), context.DeadlineExceeded) {
		var content *object
		if last != nil {
			if o, err := c.contentOf(context.WithoutCancel(ctx), *last); err == nil {
				content = &o
			}
		}
		return c.never(ctx, fmt.Sprintf("%s was not ready to use within %s", s, since(start)), last, content)
	}
	return err
}

// makeNamespace makes a namespace of Sluice's own, and refuses one that somebody else made.
func (c cluster) makeNamespace(ctx context.Context, to volume.Place, owner string) error {
	if !to.Own {
		_, err := c.get(ctx, namespaces(), "", to.Namespace)
		if fault.Is(err, fault.Denied) {
			return nil // who may not read namespaces works in one that was made for him
		}
		return err
	}
	return kube.OwnNamespace(ctx, c.client, c.account, to.Namespace, owner)
}
