//go:build e2e

package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/platformtest"
)

// The tests of this file and its neighbours run on the cluster that LAB_KUBECONFIG names: one node, on this machine, whose
// Services and pods this machine reaches, as the lab makes it. Pods find their program in a folder of this machine.
const (
	programName = "program"
	anyImage    = "lab/tool:1" // an image that the node has; what it holds does not matter
)

// lab is the cluster, the folder that holds the program, and a cluster that enforces NetworkPolicies, if there is one.
type lab struct{ kubeconfig, folder, enforced string }

func theLab(t *testing.T) lab {
	t.Helper()
	l := lab{os.Getenv("LAB_KUBECONFIG"), filepath.Join(os.TempDir(), fmt.Sprintf("sluice-program-%d", os.Getpid())), os.Getenv("LAB_KUBECONFIG_ENFORCED")}
	if l.kubeconfig == "" {
		t.Fatal("LAB_KUBECONFIG names no cluster: make lab-up starts one")
	}
	return l
}

// TestMain builds the program that pods run. It is linked statically, because the image may hold no library.
func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	folder := filepath.Join(os.TempDir(), fmt.Sprintf("sluice-program-%d", os.Getpid()))
	defer os.RemoveAll(folder)
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(folder, programName),
		"github.com/sluice-cd/sluice/internal/platform/platformtest/program")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "the program of the tests cannot be built: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

func (l lab) connect(t *testing.T) *Platform {
	t.Helper()
	p, err := Connect(Config{Account: "lab", Kubeconfig: l.kubeconfig, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// empty makes a namespace be gone, with all that is in it.
func empty(t *testing.T, p *Platform, namespace string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	now := int64(0)
	// Pods that take their time to end would hold the namespace for as long.
	err := p.dynamic.Resource(namespaces()).Delete(ctx, namespace, metav1.DeleteOptions{})
	if err == nil {
		err = p.dynamic.Resource(pods()).Namespace(namespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	ref := manifest.Ref{Kind: "Namespace", Name: namespace}
	if err := p.await(ctx, ref, func(s platform.State) bool { return !s.Exists }); err != nil {
		t.Fatalf("namespace %s does not go: %v", namespace, err)
	}
}

// adapt has pods run the program of this machine.
func (l lab) adapt(o manifest.Object) manifest.Object {
	at := templateOf(o.GetKind())
	if at == nil {
		return o
	}
	path := append(append([]string{}, at...), "spec", "containers")
	list, _, _ := unstructured.NestedSlice(o.Object, path...)
	for _, v := range list {
		c := v.(map[string]any)
		if c["image"] != programName {
			continue
		}
		c["image"], c["command"] = anyImage, []any{"/sluice/" + programName}
		mounts, _, _ := unstructured.NestedSlice(c, "volumeMounts")
		c["volumeMounts"] = append(mounts, map[string]any{"name": "sluice", "mountPath": "/sluice", "readOnly": true})
	}
	_ = unstructured.SetNestedSlice(o.Object, list, path...)
	at = append(append([]string{}, at...), "spec", "volumes")
	volumes, _, _ := unstructured.NestedSlice(o.Object, at...)
	_ = unstructured.SetNestedSlice(o.Object, append(volumes, map[string]any{"name": "sluice", "hostPath": map[string]any{"path": l.folder}}), at...)
	return o
}

// address is where clients in the cluster's network reach a Service.
func address(ctx context.Context, p *Platform, s manifest.Ref) string {
	o, err := p.Get(ctx, s)
	if err != nil {
		return "no Service: " + err.Error()
	}
	ip, _, _ := unstructured.NestedString(o.Object, "spec", "clusterIP")
	ports, _, _ := unstructured.NestedSlice(o.Object, "spec", "ports")
	return net.JoinHostPort(ip, fmt.Sprint(ports[0].(map[string]any)["port"]))
}

// client opens a connection for each request, as many clients do: shares are those of connections.
func client() *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
}

func TestConformance(t *testing.T) {
	l := theLab(t)
	platformtest.Run(t, func(t *testing.T) platformtest.Harness {
		p := l.connect(t)
		empty(t, p, "suite")
		t.Cleanup(func() { empty(t, p, "suite") })
		return platformtest.Harness{Platform: p, Image: programName, Adapt: l.adapt, Client: client(), Chance: true, Pulls: true, Refuses: true, Drain: 6,
			Within:  2 * time.Minute,
			URL:     func(ctx context.Context, s manifest.Ref) string { return "http://" + address(ctx, p, s) },
			Address: func(ctx context.Context, s manifest.Ref) string { return address(ctx, p, s) }}
	})
}

// objectsOf parses manifests.
func objectsOf(t *testing.T, text string) []manifest.Object {
	t.Helper()
	out, err := manifest.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func objectOf(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatal(err)
	}
	return o
}
