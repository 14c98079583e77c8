//go:build e2e

package kubernetes

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/kube/kubetest"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// reachedBy returns the same cluster, reached by a wire.
func reachedBy(t *testing.T, w *kubetest.Wire, p *Platform) *Platform {
	t.Helper()
	config := rest.CopyConfig(p.config)
	at, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	config.Host, config.TLSClientConfig.ServerName = "https://"+w.At(), at.Hostname()
	far, err := connect(Config{Account: "far"}, config)
	if err != nil {
		t.Fatal(err)
	}
	return far
}

// TestUnreachableMidCanary cuts the way to the cluster while a canary grows: the call ends by itself with the reason, the stable
// version serves, and the same call goes on where it was once the way is there again.
func TestUnreachableMidCanary(t *testing.T) {
	s := newShop(t)
	refs := []manifest.Ref{web}
	w := kubetest.NewWire(t, s.config.Host)
	far := reachedBy(t, w, s.Platform)
	changes, err := far.StartCanary(s.ctx, "d1/start", s.next, inNS)
	s.must(err)
	s.ready(time.Minute)

	done := make(chan error, 1)
	go func() { done <- far.SetWeight(s.ctx, "d1/75", refs, 75) }()
	canary, err := s.canary(s.ctx, web)
	s.must(err)
	grown := func(platform.State) bool {
		live, err := s.read(s.ctx, manifest.Ref{Kind: "Deployment", Namespace: ns, Name: canary.GetName()})
		n, _ := replicasOf(live)
		return err == nil && n == 3
	}
	s.must(s.await(s.ctx, manifest.Ref{Kind: "Deployment", Namespace: ns, Name: canary.GetName()}, grown))
	w.Cut()
	cut := time.Now()
	select {
	case err = <-done:
	case <-time.After(time.Minute):
		t.Fatal("nobody notices that the cluster is away")
	}
	if !fault.Is(err, fault.Transient) {
		t.Errorf("kind %q: %v", fault.KindOf(err), err)
	}
	t.Logf("%s after the cut: %v", time.Since(cut).Round(time.Millisecond), err)
	if err := far.SetWeight(s.ctx, "d1/75", refs, 75); !fault.Is(err, fault.Transient) || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("kind %q: %v", fault.KindOf(err), err)
	}
	for range 50 {
		resp, err := client().Get("http://" + address(s.ctx, s.Platform, webService))
		s.must(err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("a request was answered with %s", resp.Status)
		}
	}
	w.Mend()
	s.must(far.SetWeight(s.ctx, "d1/75", refs, 75))
	s.ready(time.Minute)
	s.settles(webService, "once it is reached again", 55, 92)
	s.undo(changes)
}

// TestDeniedMidCanary takes privileges and credentials away while a canary runs: nothing moves, the reason is told at once, and
// with them the same call goes on.
func TestDeniedMidCanary(t *testing.T) {
	s := newShop(t)
	refs := []manifest.Ref{web}
	changes := s.start()
	poor := rest.CopyConfig(s.config)
	poor.Impersonate = rest.ImpersonationConfig{UserName: "reader", Groups: []string{"system:authenticated"}}
	s.grant("reader")
	expired := rest.CopyConfig(s.config)
	expired.TLSClientConfig.CertData, expired.TLSClientConfig.KeyData, expired.BearerToken = nil, nil, "expired"
	for says, config := range map[string]*rest.Config{`cannot patch resource "deployments/scale"`: poor, "renew them": expired} {
		who, err := connect(Config{Account: "poor"}, config)
		s.must(err)
		if config == poor {
			eventually(t, "the role is known", func() error {
				_, err := who.dynamic.Resource(secrets()).Namespace(ns).List(s.ctx, metav1.ListOptions{})
				return err
			})
		}
		err = who.SetWeight(s.ctx, "d1/50", refs, 50)
		if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), says) {
			t.Errorf("kind %q, without %q: %v", fault.KindOf(err), says, err)
		}
		s.settles(webService, "after "+says, 0, 0)
	}
	s.must(s.SetWeight(s.ctx, "d1/50", refs, 50))
	s.ready(time.Minute)
	s.settles(webService, "with the privileges", 25, 75)
	s.undo(changes)
}

// grant lets a user do in the namespace what a canary needs, but scale.
func (s *shop) grant(user string) {
	s.t.Helper()
	for _, text := range []string{`
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules:
- {apiGroups: ["", apps, autoscaling, gateway.networking.k8s.io, discovery.k8s.io], resources: ["*"], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [secrets, services], verbs: [create, patch, update]}
`, `
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: User, name: ` + user + `}]
`} {
		o := objectOf(s.t, text)
		in, err := s.where(manifest.Ref{Kind: o.GetKind(), Namespace: ns})
		s.must(err)
		_, err = in.Create(s.ctx, o, metav1.CreateOptions{})
		s.must(err)
	}
}

// eventually tries until it succeeds, for a minute.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); ; <-tick.C {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not: %s: %v", what, err)
		}
	}
}

// TestNamespaceDeletedMidCanary: each call says at once that the namespace ends or is gone, also those that take back.
func TestNamespaceDeletedMidCanary(t *testing.T) {
	s := newShop(t)
	refs := []manifest.Ref{web}
	changes := s.start()
	s.must(s.dynamic.Resource(namespaces()).Delete(s.ctx, ns, metav1.DeleteOptions{}))
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	err := s.SetWeight(ctx, "d1/50", refs, 50)
	if k := fault.KindOf(err); k != fault.Conflict && k != fault.NotFound || !strings.Contains(err.Error(), "namespace") {
		t.Errorf("while it ends: kind %q: %v", k, err)
	}
	empty(t, s.Platform, ns)
	ctx, cancel = context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	for what, err := range map[string]error{"the weight": s.SetWeight(ctx, "d1/50", refs, 50), "the end of the canary": s.Abort(ctx, "d1/abort", refs),
		"taking back": s.Revert(ctx, "d1/revert", changes)} {
		if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), `namespaces "applied" not found`) {
			t.Errorf("%s: kind %q: %v", what, fault.KindOf(err), err)
		}
	}
}
