//go:build e2e

package kubernetes

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// TestAQuarantineIsTried holds that what a pod of a copy reaches is told, with the name of what was reached; this
// cluster's network enforces no policy. What cannot be reached, and addresses that mean something else here, are not.
func TestAQuarantineIsTried(t *testing.T) {
	p := theLab(t).withImage(t, "probed")
	// The API server is what every cluster has, as a Service.
	service, err := p.Get(t.Context(), manifest.Ref{Kind: "Service", Namespace: "default", Name: "kubernetes"})
	if err != nil {
		t.Fatal(err)
	}
	ip, _, _ := unstructured.NestedString(service.Object, "spec", "clusterIP")
	uid := string(service.GetUID())
	got, err := p.Isolate(t.Context(), "d1/probe", platform.Isolation{Namespace: "probed", Delivery: "d1", Labels: map[string]string{"app": "copy"},
		Others: []platform.Endpoint{
			{What: "Service default/kubernetes", Address: net.JoinHostPort(ip, "443"), UID: uid},
			{What: "a port that nobody has", Address: net.JoinHostPort(ip, "444"), UID: uid},
			{What: "another cluster's", Address: net.JoinHostPort(ip, "443"), UID: "elsewhere"}}})
	if err != nil || !slices.Equal(got, []string{"Service default/kubernetes at " + net.JoinHostPort(ip, "443")}) {
		t.Errorf("reached %q, %v", got, err)
	}
	policies, err := p.dynamic.Resource(networkPolicies()).Namespace("probed").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(policies.Items) != 1 {
		t.Fatalf("%v, %v", policies, err)
	}
	pods, err := p.List(t.Context(), "Pod", "probed")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range pods {
		if strings.HasPrefix(o.GetName(), "sluice-probe") && o.GetDeletionTimestamp() == nil {
			t.Errorf("the probe %s is left", o.GetName())
		}
	}
}

// aServer is what can be reached, as a Service and as a pod.
const aServer = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: lab/tool:1
        args: [http]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
`

// TestAQuarantineThatIsEnforcedHolds holds which connections the policy leaves to a copy where one is enforced: those to its own
// namespace and to the name service; and that it leaves all of them to others, but where all of a namespace is kept apart. What is copied was
// brought by an earlier delivery.
func TestAQuarantineThatIsEnforcedHolds(t *testing.T) {
	l := theLab(t)
	if l.enforced == "" {
		t.Skip("LAB_KUBECONFIG_ENFORCED names no cluster that enforces NetworkPolicies: lab run --network-policies gives one")
	}
	l.kubeconfig = l.enforced
	p := l.withImage(t, "kept")
	l.withImage(t, "kept-from")
	for _, ns := range []string{"kept", "kept-from"} {
		if _, err := p.Apply(t.Context(), "d1/"+ns, objectsOf(t, aServer), platform.Options{Namespace: ns, Delivery: "d1"}); err != nil {
			t.Fatal(err)
		}
	}
	for _, ns := range []string{"kept", "kept-from"} {
		if err := p.await(t.Context(), manifest.Ref{Kind: "Deployment", Namespace: ns, Name: "web"}, func(s platform.State) bool { return s.Ready }); err != nil {
			t.Fatal(err)
		}
	}
	own := append(servers(t, p, "kept"), service(t, p, "kube-system", "kube-dns", "53"))
	production := append(servers(t, p, "kept-from"), service(t, p, "default", "kubernetes", "443"))

	i := platform.Isolation{Namespace: "kept", Delivery: "d1", Labels: map[string]string{"app": "copy", deliveryLabel: "earlier"}, Others: production}
	if reached, err := p.Isolate(t.Context(), "d1/kept", i); err != nil || len(reached) > 0 {
		t.Fatalf("a copy reaches %q, %v", reached, err)
	}
	free := i
	free.Labels = map[string]string{"app": "other"}
	var attempts errgroup.Group
	for key, a := range map[string]struct {
		who    platform.Isolation
		reach  []platform.Endpoint
		manner string
	}{
		"d1/own":   {i, own, "a copy does not reach its own"},
		"d1/other": {free, production, "a pod without a policy does not reach all"},
	} {
		attempts.Go(func() error {
			reached, err := p.probe(t.Context(), key, a.who, a.reach)
			if err == nil && len(reached) != len(a.reach) {
				err = fmt.Errorf("only %q", reached)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", a.manner, err)
			}
			return nil
		})
	}
	attempts.Go(func() error {
		pod := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "kept", Name: "lookup", Labels: i.Labels},
			Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever,
				Containers: []corev1.Container{{Name: "lookup", Image: "lab/tool:1", Args: []string{"lookup", "web.kept.svc.cluster.local"}}}}}
		if err := p.make(t.Context(), pods(), pod); err != nil {
			return err
		}
		_, err := p.ended(t.Context(), "kept", "lookup")
		return err
	})
	// The application of a rehearsal is kept apart with the database.
	beside := platform.Isolation{Namespace: "kept-own", Own: true, Whole: true, Delivery: "d1", Labels: i.Labels}
	empty(t, p, beside.Namespace)
	t.Cleanup(func() { empty(t, p, beside.Namespace) })
	attempts.Go(func() error {
		if _, err := p.Isolate(t.Context(), "d1/kept-own", beside); err != nil {
			return err
		}
		application := beside
		application.Labels = map[string]string{"app": "other"}
		reached, err := p.probe(t.Context(), "d1/beside", application, production)
		if err == nil && len(reached) > 0 {
			err = fmt.Errorf("what runs beside a copy reaches %q", reached)
		}
		return err
	})
	if err := attempts.Wait(); err != nil {
		t.Error(err)
	}
}

// servers are the addresses of a namespace's server.
func servers(t *testing.T, p *Platform, namespace string) []platform.Endpoint {
	t.Helper()
	all := []platform.Endpoint{service(t, p, namespace, "web", "80")}
	running, err := p.List(t.Context(), "Pod", namespace)
	if err != nil || len(running) != 1 {
		t.Fatalf("%d pods in %s, %v", len(running), namespace, err)
	}
	ip, _, _ := unstructured.NestedString(running[0].Object, "status", "podIP")
	return append(all, platform.Endpoint{What: "Pod " + namespace + "/web", Address: net.JoinHostPort(ip, "8080"), UID: string(running[0].GetUID())})
}

func service(t *testing.T, p *Platform, namespace, name, port string) platform.Endpoint {
	t.Helper()
	s, err := p.Get(t.Context(), manifest.Ref{Kind: "Service", Namespace: namespace, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	ip, _, _ := unstructured.NestedString(s.Object, "spec", "clusterIP")
	return platform.Endpoint{What: "Service " + namespace + "/" + name, Address: net.JoinHostPort(ip, port), UID: string(s.GetUID())}
}
