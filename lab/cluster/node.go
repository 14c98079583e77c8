package cluster

import (
	"context"
	"fmt"
	"os"

	"github.com/sluice-cd/sluice/lab/kube"
)

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: {{.Dir}}/pki/ca.crt}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix://{{.Socket}}
cgroupDriver: cgroupfs
cgroupRoot: {{.Cgroup}}
failCgroupV1: false
failSwapOn: false
clusterDNS: [{{.DNS}}]
clusterDomain: cluster.local
resolvConf: {{.Dir}}/resolv.conf
volumePluginDir: {{.Dir}}/kubelet/volume-plugins
podLogsDir: {{.Dir}}/pods
syncFrequency: 5s
nodeStatusUpdateFrequency: 5s
serializeImagePulls: false
# No registry could give an image back, and a nearly full disk is no reason to end a test's pods.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
`

const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: {{.Dir}}/pki/proxy.kubeconfig}
mode: nftables
clusterCIDR: {{.Pods}}
hostnameOverride: {{.Node}}
# The size of the table of connections cannot be set in a network namespace.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
`

// nodeRights let a kubelet read what its pods mount. The authorizer of nodes lets it too, but some milliseconds after a pod is
// bound: a kubelet that is refused meanwhile tries again ten seconds later.
const nodeRights = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: lab:nodes}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:node}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: system:nodes}]
`

// startNode starts the kubelet and the proxy of Services, and waits until the node takes pods.
func (c *Cluster) startNode(ctx context.Context, client *kube.Client) error {
	values := map[string]any{
		"Dir": c.dir(), "Socket": c.containerdSocket(), "Cgroup": c.slot.cgroup(), "DNS": c.slot.dns(), "Pods": c.slot.pods(), "Node": c.slot.node(),
	}
	if err := os.WriteFile(c.path("resolv.conf"), []byte("nameserver "+c.slot.dns()+"\n"), 0o644); err != nil {
		return err
	}
	if err := writeTemplate(c.path("kubelet.yaml"), kubeletConfig, values); err != nil {
		return err
	}
	if err := writeTemplate(c.path("proxy.yaml"), proxyConfig, values); err != nil {
		return err
	}
	if err := client.Apply(ctx, "", nodeRights); err != nil {
		return err
	}
	if err := c.program(ctx, "kubelet", "--config="+c.path("kubelet.yaml"), "--kubeconfig="+c.path("pki", "kubelet.kubeconfig"),
		"--root-dir="+c.path("kubelet"), "--cert-dir="+c.path("kubelet", "pki"),
		"--hostname-override="+c.slot.node(), "--node-ip="+c.slot.nodeIP()); err != nil {
		return err
	}
	if err := c.program(ctx, "kube-proxy", "--config="+c.path("proxy.yaml")); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	node := kube.Ref{APIVersion: "v1", Kind: "Node", Name: c.slot.node()}
	if _, err := client.Wait(ctx, node, kube.Condition("Ready")); err != nil {
		return fmt.Errorf("the node is ready: %w%s", err, c.lastLog("kubelet"))
	}
	return nil
}
