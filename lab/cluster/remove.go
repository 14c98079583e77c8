package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// remove takes away everything that may belong to a cluster of this name, in whatever state it is. It can be repeated;
// the slot goes last, so that an interrupted removal is found again.
func (l *Lab) remove(ctx context.Context, name string) error {
	c, err := l.find(name)
	if err != nil {
		return err
	}
	known := c != nil
	if !known {
		c = &Cluster{Name: name, lab: l}
	}
	if err := c.killAll(ctx, known); err != nil {
		return fmt.Errorf("take down %s: %w", name, err)
	}
	var failed []error
	failed = append(failed, unmountBelow(c.dir()))
	if known {
		failed = append(failed, c.removeNetwork(ctx), c.removeCgroup(ctx))
	}
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("take down %s: %w", name, err)
	}
	if err := os.RemoveAll(c.dir()); err != nil {
		return fmt.Errorf("take down %s: %w", name, err)
	}
	if !known {
		return nil
	}
	if err := freeSlot(ctx, c.slot); err != nil {
		return fmt.Errorf("take down %s: %w", name, err)
	}
	if c.storage.Own {
		return nil
	}
	return l.releasePool(ctx)
}

// killAll ends every process of the cluster: first those that would start new ones, then the pods, then the rest.
func (c *Cluster) killAll(ctx context.Context, known bool) error {
	for _, name := range []string{"kubelet", "kube-proxy", "containerd"} {
		p, err := c.process(name)
		if err != nil {
			continue
		}
		if err := p.kill(); err != nil {
			return err
		}
		if err := gone(ctx, []process{p}); err != nil {
			return err
		}
	}
	// A program that was started just now may not have been seen: look again until there is none.
	for {
		all, err := c.processes()
		if err != nil {
			return err
		}
		if known {
			pods, err := c.podProcesses()
			if err != nil {
				return err
			}
			all = append(all, pods...)
		}
		var living []process
		for _, p := range all {
			if p.alive() {
				living = append(living, p)
			}
		}
		if len(living) == 0 {
			return nil
		}
		for _, p := range living {
			if err := p.kill(); err != nil {
				return err
			}
		}
		if err := gone(ctx, living); err != nil {
			return err
		}
	}
}
