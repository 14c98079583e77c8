package cluster

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/sluice-cd/sluice/lab/build"
	"github.com/sluice-cd/sluice/lab/kube"
)

//go:embed manifests/dns.yaml
var dnsManifests string

// startDNS runs CoreDNS in the cluster, so that its start is also the proof that pods run.
func (c *Cluster) startDNS(ctx context.Context, client *kube.Client) error {
	manifests, err := fillTemplate(dnsManifests, map[string]string{"IP": c.slot.dns(), "Image": build.CoreDNSImage})
	if err != nil {
		return err
	}
	if err := client.Apply(ctx, "", manifests); err != nil {
		return err
	}
	deployment := kube.Ref{APIVersion: "apps/v1", Kind: "Deployment", Namespace: "kube-system", Name: "coredns"}
	if _, err := client.Wait(ctx, deployment, kube.Condition("Available")); err != nil {
		return fmt.Errorf("CoreDNS runs: %w%s", err, c.lastLog("kubelet"))
	}
	return nil
}
