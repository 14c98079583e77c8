package csi

import (
	"context"
	"fmt"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/volume"
)

// lent is the clone beside the source that a mover reads. It lies in a namespace of Sluice's own and lives until the claim is filled.
func (r record) lent() volume.CopyInfo {
	i := r.Copy
	i.ID, i.Method, i.Places = r.Copy.ID+"/lent", volume.CSI, nil
	for n, s := range r.Copy.Sources {
		i.Places = append(i.Places, volume.Place{Account: r.From, Namespace: s.Namespace + "-stream", Claim: nameOf(i.ID, n), Own: true})
	}
	return i
}

// fill streams to a claim what it is made from. One that was begun by an earlier call goes on. That it is filled is written down
// when all of it is verified, so that half a copy never counts.
func (d *Driver) fill(ctx context.Context, c cluster, r record, of volume.CopyInfo) (record, error) {
	if d.mover == nil {
		return r, fault.Newf(fault.Invalid, "copy %s was begun as a stream from account %s, which now shares its storage: delete the copy first", r.Copy.ID, r.From)
	}
	lent, to := r.lent(), r.Copy.Places[r.Part]
	err := func() error {
		if _, err := d.clone(ctx, record{Copy: lent, Part: r.Part, Lent: true}, of); err != nil {
			return fmt.Errorf("the clone that is streamed: %w", err)
		}
		bytes, err := d.mover.Move(ctx, r.Copy.ID, r.Copy.Owner, lent.Places[r.Part], to, d.say)
		r.Copy.Bytes += bytes
		return err
	}()
	if err == nil {
		r.Filling = false
		err = c.rewrite(ctx, r)
	}
	if err == nil {
		// It goes with the copy if it does not go now.
		if e := d.remove(ctx, lent, r.From); e != nil {
			d.say(fmt.Sprintf("the clone that was streamed is not removed yet: %v", e))
		}
		return r, nil
	}
	if ctx.Err() != nil || fault.Is(err, fault.Transient) {
		return r, err // what was streamed is not streamed again by the same call
	}
	return r, removed(ctx, err, func(ctx context.Context) error {
		if err := d.empty(ctx, r); err != nil {
			return err
		}
		return d.remove(ctx, r.Copy, r.From)
	})
}

// rewrite writes the record of a clone on its claim anew.
func (c cluster) rewrite(ctx context.Context, r record) error {
	to := r.Copy.Places[r.Part]
	_, err := c.change(ctx, claims(), to.Namespace, to.Claim, func(o object) (map[string]any, error) {
		if err := ours(o, r); err != nil {
			return nil, err
		}
		m, err := r.metadata(to.Namespace, to.Claim)
		return map[string]any{"metadata": map[string]any{"annotations": m["annotations"]}}, err
	})
	return err
}

// empty ends what fills a claim, or has filled it, and removes what that was read from.
func (d *Driver) empty(ctx context.Context, r record) error {
	lent := r.lent()
	if d.mover != nil {
		if err := d.mover.End(ctx, r.Copy.ID, r.Copy.Owner, lent.Places[r.Part], r.Copy.Places[r.Part]); err != nil {
			return err
		}
	}
	return d.remove(ctx, lent, r.From)
}
