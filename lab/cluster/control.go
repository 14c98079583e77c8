package cluster

import (
	"context"
	"fmt"
	"os"

	"github.com/sluice-cd/sluice/lab/kube"
)

// auditPolicy records every call that changes something, with who and what; reads are counted by their metadata too,
// because tests prove that some programs do none.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:kube-scheduler", "system:kube-proxy", "system:apiserver"]
- level: None
  userGroups: ["system:nodes"]
- level: None
  resources: [{group: coordination.k8s.io, resources: [leases]}]
  namespaces: [kube-system, kube-node-lease]
- level: Metadata
`

// startControlPlane starts etcd, the API server, the controllers and the scheduler, and waits until objects are served.
func (c *Cluster) startControlPlane(ctx context.Context) (*kube.Client, error) {
	const etcd = "http://127.0.0.1:2379"
	const peer = "http://127.0.0.1:2380"
	if err := c.program(ctx, "etcd", "--name="+c.Name, "--data-dir="+c.path("etcd"), "--log-level=warn",
		// Nothing here must survive a power cut, and the disk is shared with what is tested.
		"--unsafe-no-fsync", "--listen-client-urls="+etcd, "--advertise-client-urls="+etcd, "--listen-peer-urls="+peer,
		"--initial-advertise-peer-urls="+peer, "--initial-cluster="+c.Name+"="+peer); err != nil {
		return nil, err
	}
	if err := os.WriteFile(c.path("audit.yaml"), []byte(auditPolicy), 0o644); err != nil {
		return nil, err
	}
	pki := func(file string) string { return c.path("pki", file) }
	if err := c.program(ctx, "kube-apiserver", "--etcd-servers="+etcd, "--secure-port=6443", "--advertise-address="+c.slot.nodeIP(),
		"--service-cluster-ip-range="+c.slot.services(), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true", "--profiling=false", "--cert-dir="+c.path("apiserver"),
		"--client-ca-file="+pki("ca.crt"), "--tls-cert-file="+pki("apiserver.crt"), "--tls-private-key-file="+pki("apiserver.key"),
		// The node's name is in no DNS that the server could ask; logs and exec go by address.
		"--kubelet-preferred-address-types=InternalIP", "--kubelet-certificate-authority=",
		"--kubelet-client-certificate="+pki("apiserver-kubelet.crt"), "--kubelet-client-key="+pki("apiserver-kubelet.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+pki("sa.pub"), "--service-account-signing-key-file="+pki("sa.key"),
		"--requestheader-client-ca-file="+pki("ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+pki("front-proxy.crt"), "--proxy-client-key-file="+pki("front-proxy.key"),
		"--audit-policy-file="+c.path("audit.yaml"), "--audit-log-path="+c.AuditLog()); err != nil {
		return nil, err
	}
	if err := c.until(ctx, "the API server is ready", []string{"etcd", "kube-apiserver"}, c.Healthy); err != nil {
		return nil, err
	}
	admin := pki("admin.kubeconfig")
	if err := c.program(ctx, "kube-controller-manager", "--kubeconfig="+admin, "--authentication-kubeconfig="+admin, "--authorization-kubeconfig="+admin,
		// There is one of each; electing leaders and separate accounts would cost seconds of every start.
		"--leader-elect=false", "--use-service-account-credentials=false", "--profiling=false", "--cert-dir="+c.path("manager"),
		"--service-account-private-key-file="+pki("sa.key"), "--root-ca-file="+pki("ca.crt"),
		"--cluster-signing-cert-file="+pki("ca.crt"), "--cluster-signing-key-file="+pki("ca.key"), "--client-ca-file="+pki("ca.crt"),
		"--requestheader-client-ca-file="+pki("ca.crt"), "--allocate-node-cidrs=true", "--cluster-cidr="+c.slot.pods(),
		"--node-cidr-mask-size=24", "--service-cluster-ip-range="+c.slot.services(), "--cluster-name="+c.Name); err != nil {
		return nil, err
	}
	scheduler := pki("scheduler.kubeconfig")
	if err := c.program(ctx, "kube-scheduler", "--kubeconfig="+scheduler, "--authentication-kubeconfig="+scheduler,
		"--authorization-kubeconfig="+scheduler, "--leader-elect=false", "--profiling=false", "--cert-dir="+c.path("scheduler")); err != nil {
		return nil, err
	}
	client, err := c.Client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	account := kube.Ref{APIVersion: "v1", Kind: "ServiceAccount", Namespace: "default", Name: "default"}
	if _, err := client.Wait(ctx, account, kube.Exists); err != nil {
		return nil, fmt.Errorf("the controllers work: %w%s", err, c.lastLog("kube-controller-manager"))
	}
	return client, nil
}

// program starts one of our own programs, under its own name.
func (c *Cluster) program(ctx context.Context, name string, args ...string) error {
	return c.run(ctx, name, c.programs.Path(name), args...)
}
