package demo

import (
	"context"
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
)

// Clusters are the kubeconfig files of the clusters that the demo plays on, instead of on this machine. This machine must
// reach their Services by their cluster addresses, as it does in the lab.
type Clusters struct {
	Production, Staging string
}

// clusters are two of them: production and staging.
type clusters struct {
	at         Clusters
	production *kubernetes.Platform
}

func (k *clusters) open(ctx context.Context) error {
	for name, file := range map[string]string{"production": k.at.Production, "staging": k.at.Staging} {
		p, err := kubernetes.Connect(kubernetes.Config{Account: name, Kubeconfig: file})
		if err != nil {
			return err
		}
		if name == "production" {
			k.production = p
		}
		_, err = p.Get(ctx, manifest.Ref{Kind: "Namespace", Name: name})
		if err == nil {
			return fault.WithRemedy(fault.Newf(fault.Conflict, "the cluster of %s has a namespace %s already", file, name), "the demo needs clusters of its own")
		}
		if !fault.Is(err, fault.NotFound) {
			return err
		}
		space, err := manifest.Parse("namespace", fmt.Appendf(nil, "{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", name))
		if err != nil {
			return err
		}
		if _, err := p.Apply(ctx, "demo/namespace", space, platform.Options{}); err != nil {
			return err
		}
	}
	return nil
}

func (k *clusters) platform() livePlatform { return k.production }

// metrics has Prometheus run in production's namespace.
func (k *clusters) metrics(ctx context.Context, st *stage) (string, error) {
	objects, err := st.objects("prometheus.yaml")
	if err != nil {
		return "", err
	}
	if err := st.run(ctx, "demo/prometheus", objects, ref("Deployment", "prometheus")); err != nil {
		return "", err
	}
	address, err := k.address(ctx, ref("Service", "prometheus"))
	return "http://" + address, err
}

func (k *clusters) address(ctx context.Context, service manifest.Ref) (string, error) {
	o, err := k.production.Get(ctx, service)
	if err != nil {
		return "", err
	}
	var s corev1.Service
	if err := o.Into(&s); err != nil {
		return "", err
	}
	return net.JoinHostPort(s.Spec.ClusterIP, strconv.Itoa(int(s.Spec.Ports[0].Port))), nil
}

func (k *clusters) config() map[string]any {
	account := func(file string) map[string]any {
		return map[string]any{"kind": "kubernetes", "kubeconfig": file, "jobs": map[string]any{"image": "sluice:dev"}}
	}
	return map[string]any{"accounts": map[string]any{"production": account(k.at.Production), "staging": account(k.at.Staging)}}
}

func (k *clusters) words() words {
	return words{describe: "two Kubernetes clusters, one for production and one for staging", staging: "staging", production: "production",
		requests: "shop_requests_total"}
}

// close leaves the objects where they are: the clusters are the demo's own, and who made them takes them away.
func (k *clusters) close(context.Context) error { return nil }
