package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// makeNetwork makes the cluster's network namespace and a link to it. The machine gets routes to the cluster's Services
// and pods, so that tests reach them; it does not forward, so clusters do not reach each other's pods.
func (c *Cluster) makeNetwork(ctx context.Context) error {
	s := c.slot
	inside := []string{"-n", s.namespace()}
	for _, args := range [][]string{
		{"netns", "add", s.namespace()},
		{"link", "add", s.hostLink(), "type", "veth", "peer", "name", s.nodeLink(), "netns", s.namespace()},
		{"addr", "add", s.hostIP() + "/24", "dev", s.hostLink()},
		{"link", "set", s.hostLink(), "up"},
		append(inside, "addr", "add", s.nodeIP()+"/24", "dev", s.nodeLink()),
		append(inside, "link", "set", s.nodeLink(), "up"),
		append(inside, "link", "set", "lo", "up"),
		// Kubernetes finds a node's address by its default route.
		append(inside, "route", "add", "default", "via", s.hostIP()),
		{"route", "add", s.services(), "via", s.nodeIP()},
		{"route", "add", s.pods(), "via", s.nodeIP()},
	} {
		if err := command(ctx, "ip", args...); err != nil {
			return err
		}
	}
	if err := c.inside(ctx, "echo 1 >/proc/sys/net/ipv4/ip_forward"); err != nil {
		return err
	}
	// Where bridges do not pass their packets to the packet filter there is nothing to turn on.
	return c.inside(ctx, "f=/proc/sys/net/bridge/bridge-nf-call-iptables; [ ! -e $f ] || echo 1 >$f")
}

// inside runs a line of shell in the network namespace.
func (c *Cluster) inside(ctx context.Context, line string) error {
	return command(ctx, "nsenter", "--net=/run/netns/"+c.slot.namespace(), "sh", "-c", line)
}

// removeNetwork takes the namespace away; links and routes go with it.
func (c *Cluster) removeNetwork(ctx context.Context) error {
	var failed []error
	if _, err := os.Stat("/run/netns/" + c.slot.namespace()); err == nil {
		failed = append(failed, command(ctx, "ip", "netns", "del", c.slot.namespace()))
	}
	// The namespace lives until its last process is buried; its link should be gone now.
	if _, err := os.Stat("/sys/class/net/" + c.slot.hostLink()); err == nil {
		err := command(ctx, "ip", "link", "del", c.slot.hostLink())
		if _, still := os.Stat("/sys/class/net/" + c.slot.hostLink()); still == nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// command runs a program of the system to its end.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
