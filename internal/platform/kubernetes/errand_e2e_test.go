//go:build e2e

package kubernetes

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform"
)

// ownImage is Sluice's own in the lab.
const ownImage = "sluice:dev"

// besideVolumes connects with what Sluice's own pods need, and makes an empty namespace. Errands have policies, so their cluster
// is one that enforces them, if there is one.
func besideVolumes(t *testing.T, namespace string) *Platform {
	t.Helper()
	l := theLab(t)
	if l.enforced != "" {
		l.kubeconfig = l.enforced
	}
	return l.withImage(t, namespace)
}

func (l lab) withImage(t *testing.T, namespace string) *Platform {
	t.Helper()
	p := l.connect(t)
	p.c.Jobs.Image = ownImage
	empty(t, p, namespace)
	t.Cleanup(func() { empty(t, p, namespace) })
	if err := p.makeNamespaces(t.Context(), nil, namespace, "d1"); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestAnErrandTellsItsResult runs the command that readies volumes, where there is nothing to ready: what it says arrives as it
// said it, and nothing of the errand stays.
func TestAnErrandTellsItsResult(t *testing.T) {
	p := besideVolumes(t, "errand")
	if _, err := p.Apply(t.Context(), "d1/claim", objectsOf(t, `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {storageClassName: cow-late, accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
`), platform.Options{Namespace: "errand", Delivery: "d1"}); err != nil {
		t.Fatal(err)
	}
	e := platform.Errand{Namespace: "errand", Delivery: "d1", Mounts: []platform.Mount{{Claim: "data", Path: "/data"}},
		Args: []string{"prepare", "--engine", "mongodb", "--role", "control", "/data"}}
	for range 2 { // the second finds nothing of the first
		_, err := p.Run(t.Context(), "d1/prepare", e)
		if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "there is no database of FerretDB on SQLite (*.sqlite) in [/data]") {
			t.Fatalf("the errand says: %v", err)
		}
	}
	e.Args = []string{"prepare", "--engine", "mongodb", "--role", "production", "/data"}
	result, err := p.Run(t.Context(), "d1/prepare", e)
	if err != nil || !strings.Contains(string(slices.Concat(result...)), "every file of 0 databases is inside the copy") {
		t.Errorf("the errand says: %s, %v", result, err)
	}
	nothingLeft(t, p, "errand")
}

// TestAnErrandAfterAnAbandonedOne has an errand run under the key of another one whose pod the node has not ended yet: it is told its
// own, and not what the node knows of the other one.
func TestAnErrandAfterAnAbandonedOne(t *testing.T) {
	p := besideVolumes(t, "errand")
	const key = "d1/told"
	first := platform.Errand{Namespace: "errand", Delivery: "d1", Args: []string{"probe", "192.0.2.1:9"}} // nobody answers there
	running, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = p.Run(running, key, first) // it is abandoned
	}()
	pods := p.dynamic.Resource(pods()).Namespace("errand")
	begins, giveUp := context.WithTimeout(t.Context(), 2*time.Minute)
	defer giveUp()
	in, err := pods.Watch(begins, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for e := range in.ResultChan() {
		o, ok := e.Object.(*unstructured.Unstructured)
		if phase, _, _ := unstructured.NestedString(o.Object, "status", "phase"); ok && phase != "" && phase != "Pending" {
			break
		}
	}
	in.Stop()
	cancel()
	<-ended
	now := int64(0)
	if err := pods.DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := p.Abandon(t.Context(), key, first); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = p.Run(ctx, key, platform.Errand{Namespace: "errand", Delivery: "d1", Args: []string{"prepare", "--engine", "mongodb", "--role", "control", "/data"}})
	if err == nil || !strings.Contains(err.Error(), "lstat /data: no such file or directory") {
		t.Errorf("the errand says: %v", err)
	}
	nothingLeft(t, p, "errand")
}

// nothingLeft holds that nothing of an errand stays in a namespace: its Job goes once its pod has ended, the rest before.
func nothingLeft(t *testing.T, p *Platform, namespace string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, kind := range []string{"Job", "Pod", "Secret", "Role", "RoleBinding", "ServiceAccount", "NetworkPolicy"} {
		left, err := p.List(ctx, kind, namespace)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range left {
			switch {
			case !strings.Contains(o.GetName(), "errand"):
			case kind != "Job":
				t.Errorf("%s %s is left", kind, o.GetName())
			default:
				if err := p.await(ctx, o.Ref(), func(s platform.State) bool { return !s.Exists }); err != nil {
					t.Errorf("%s is left: %v", o.Ref(), err)
				}
			}
		}
	}
}

// TestAnErrandThatCannotRunSaysWhy uses an image that no registry has, and an account that names none.
func TestAnErrandThatCannotRunSaysWhy(t *testing.T) {
	p := besideVolumes(t, "errand-fails")
	e := platform.Errand{Namespace: "errand-fails", Delivery: "d1", Args: []string{"prepare", "--engine", "mongodb", "--role", "control", "/tmp"}}
	p.c.Jobs.Image = "sluice.invalid/none:1"
	if _, err := p.Run(t.Context(), "d1/none", e); err == nil || !strings.Contains(err.Error(), "ImagePullBackOff") {
		t.Errorf("an image that is nowhere: %v", err)
	}
	p.c.Jobs.Image = ""
	if _, err := p.Run(t.Context(), "d1/unnamed", e); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "sluice.yaml") {
		t.Errorf("no image: %v", err)
	}
}
