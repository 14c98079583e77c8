package cluster

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// verdicts is the number of the queue in which packets wait for a verdict. Network namespaces number their own.
const verdicts = 100

// enforcePolicies has NetworkPolicies decide about every new connection from a pod, to a pod, and from a pod to the node, where
// the API server is. What the node itself begins is free: a kubelet's probes are. If the program dies no connection is made.
//
// The rules are those of xtables, because kernels without CONFIG_NFT_QUEUE have no other way to a queue.
func (c *Cluster) enforcePolicies(ctx context.Context) error {
	const name = "networkpolicies"
	if err := c.run(ctx, name, c.policies, "--kubeconfig="+c.Kubeconfig(), "--node="+c.slot.node(), "--queue="+strconv.Itoa(verdicts)); err != nil {
		return err
	}
	if err := c.until(ctx, "NetworkPolicies are enforced", []string{name}, func(context.Context) error { return c.listens(name, verdicts) }); err != nil {
		return err
	}
	for _, packets := range []string{"FORWARD", "INPUT -i " + bridge} {
		if err := c.inside(ctx, fmt.Sprintf("iptables -A %s -m conntrack --ctstate NEW -j NFQUEUE --queue-num %d", packets, verdicts)); err != nil {
			return err
		}
	}
	return nil
}

// listens asks the kernel whether a program's network has somebody at a queue.
func (c *Cluster) listens(name string, queue int) error {
	p, err := c.process(name)
	if err != nil {
		return err
	}
	queues, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netfilter/nfnetlink_queue", p.PID))
	if err != nil {
		return fmt.Errorf("the kernel has no queues of packets (CONFIG_NETFILTER_NETLINK_QUEUE): %w", err)
	}
	for line := range strings.Lines(string(queues)) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == strconv.Itoa(queue) {
			return nil
		}
	}
	return fmt.Errorf("nobody is at queue %d", queue)
}
