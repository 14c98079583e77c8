package cluster

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

// startDeadline is for each part of a start; an idle machine needs ten seconds for all of it.
const startDeadline = 3 * time.Minute

// start brings up the whole cluster. What it made before an error is for the caller to remove.
func (c *Cluster) start(ctx context.Context) error {
	begun := time.Now()
	var err error
	// Nothing may be made before the slot says that it will be.
	if c.slot, err = takeSlot(ctx, slot{Dir: c.lab.Dir, Name: c.Name, Storage: c.storage}); err != nil {
		return err
	}
	for _, dir := range []string{"log", "pid", "pki", "containerd", "cni", "kubelet/plugins_registry", "pods"} {
		if err := os.MkdirAll(c.path(dir), 0o755); err != nil {
			return err
		}
	}
	if err := c.makePKI(); err != nil {
		return err
	}
	if err := c.makeNetwork(ctx); err != nil {
		return err
	}
	if err := c.makeCgroup(); err != nil {
		return err
	}
	// The container runtime takes its images while the control plane comes up.
	runtime, both := errgroup.WithContext(ctx)
	runtime.Go(func() error { return c.startContainerd(both) })
	client, err := c.startControlPlane(both)
	if waited := runtime.Wait(); waited != nil {
		return waited
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.lab.Out, "%s: the control plane is ready (%.1f s)\n", c.Name, time.Since(begun).Seconds())
	if c.policies != "" {
		// Before the first pod, so that none begins outside of them.
		if err := c.enforcePolicies(ctx); err != nil {
			return err
		}
	}
	if err := c.startNode(ctx, client); err != nil {
		return err
	}
	fmt.Fprintf(c.lab.Out, "%s: the node is ready (%.1f s)\n", c.Name, time.Since(begun).Seconds())
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	parts, both := errgroup.WithContext(ctx)
	parts.Go(func() error { return c.startStorage(both, client) })
	parts.Go(func() error { return c.startDNS(both, client) })
	if err := parts.Wait(); err != nil {
		return err
	}
	c.slot.Ready, c.Ready = true, true
	if err := c.slot.save(); err != nil {
		return err
	}
	fmt.Fprintf(c.lab.Out, "%s: names and storage are served (%.1f s); export KUBECONFIG=%s\n", c.Name, time.Since(begun).Seconds(), c.Kubeconfig())
	return nil
}
