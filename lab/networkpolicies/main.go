// Command networkpolicies answers which connections the NetworkPolicies of a cluster allow: the verdicts are those of
// sigs.k8s.io/kube-network-policies.
//
// The lab's packet filter asks it, by rules of the lab. The library would write rules too, with an expression that kernels
// without CONFIG_NFT_QUEUE do not have; there its attempts fail, as the log says, and nothing depends on them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "networkpolicies:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("networkpolicies", flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "of the cluster")
	node := flags.String("node", "", "the node's name")
	queue := flags.Int("queue", 100, "number of the queue of packets")
	if err := flags.Parse(args); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	all := informers.NewSharedInformerFactory(client, 0)
	// Debian's containerd cannot tell the library a pod's address (NRI): a pod comes under its policies when the API server knows
	// the address. The attempt is not switched off, because the library then stumbles over every address that is no pod's.
	c, err := networkpolicy.NewController(client, all.Networking().V1().NetworkPolicies(), all.Core().V1().Namespaces(), all.Core().V1().Pods(),
		nil, nil, nil, nil, networkpolicy.Config{NodeName: *node, QueueID: *queue})
	if err != nil {
		return err
	}
	all.Start(ctx.Done())
	return c.Run(ctx)
}
