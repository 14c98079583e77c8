//go:build e2e

package csi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
	"github.com/sluice-cd/sluice/internal/volume"
	"github.com/sluice-cd/sluice/internal/volume/volumetest"
)

// The tests of this file and its neighbours run on two clusters of the lab, which LAB_KUBECONFIG and LAB_KUBECONFIG_STAGING
// name: they share the storage, and have its classes and its image.
const (
	prod    = "prod"
	staging = "staging"
	class   = "cow"
	late    = "cow-late" // waits for the first consumer
	tool    = "lab/tool:1"
)

// lab is both clusters. Each test has namespaces of its own in them.
type lab struct {
	platforms  map[string]*kubernetes.Platform
	name       string
	begin, end []func() // how what the test made is removed
}

func variables() map[string]string {
	return map[string]string{prod: "LAB_KUBECONFIG", staging: "LAB_KUBECONFIG_STAGING"}
}

func theLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{platforms: map[string]*kubernetes.Platform{}, name: fmt.Sprintf("csi-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)}
	for account, variable := range variables() {
		file := os.Getenv(variable)
		if file == "" {
			t.Fatalf("%s names no cluster: make lab-up starts two", variable)
		}
		p, err := kubernetes.Connect(kubernetes.Config{Account: account, Kubeconfig: file})
		if err != nil {
			t.Fatal(err)
		}
		l.platforms[account] = p
	}
	return l
}

func (l *lab) driver(account string) *Driver {
	return New(account, l.client, nil, Deadlines{})
}

func (l *lab) client(account string) (Clients, error) {
	p, ok := l.platforms[account]
	if !ok {
		return Clients{}, fault.Newf(fault.NotFound, "there is no account %q", account)
	}
	return Clients{p.Client(), p.Client()}, nil
}

func (l *lab) cluster(account string) cluster {
	return cluster{account, l.platforms[account].Client(), l.platforms[account].Client()}
}

// namespace makes a namespace for the test.
func (l *lab) namespace(t *testing.T, account, purpose string) string {
	t.Helper()
	name := l.name + "-" + purpose
	if _, err := l.cluster(account).create(t.Context(), namespaces(), map[string]any{"metadata": map[string]any{"name": name}}); err != nil {
		t.Fatal(err)
	}
	l.clean(t, account, name)
	return name
}

// clean has a namespace be gone after the test, with the volumes and contents that belong to no namespace. All that were made
// begin to go before the first is waited for.
func (l *lab) clean(t *testing.T, account, namespace string) {
	c := l.cluster(account)
	with := func(what func(ctx context.Context, n object)) {
		ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
		defer cancel()
		n, err := c.get(ctx, namespaces(), "", namespace)
		if err == nil {
			what(ctx, n)
		} else if !fault.Is(err, fault.NotFound) {
			t.Error(err)
		}
	}
	l.begin = append(l.begin, func() {
		with(func(ctx context.Context, _ object) {
			if err := c.in(namespaces(), "").Delete(ctx, namespace, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		})
	})
	l.end = append(l.end, func() {
		with(func(ctx context.Context, n object) {
			_, err := c.await(ctx, namespaces(), "", namespace, func(now *object) (bool, error) { return now == nil || now.GetUID() != n.GetUID(), nil })
			if err != nil {
				t.Errorf("namespace %s does not go: %v", namespace, err)
			}
		})
		ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
		defer cancel()
		l.sweep(ctx, t, c, namespace)
	})
	if len(l.begin) > 1 {
		return
	}
	t.Cleanup(func() {
		for _, f := range append(l.begin, l.end...) {
			f()
		}
	})
}

// sweep removes volumes and contents that were of a namespace.
func (l *lab) sweep(ctx context.Context, t *testing.T, c cluster, namespace string) {
	all, err := c.list(ctx, volumes(), "", "")
	if err != nil {
		t.Error(err)
	}
	for _, v := range all {
		if v.text("spec", "claimRef", "namespace") != namespace || v.GetAnnotations()["pv.kubernetes.io/provisioned-by"] == "" {
			continue
		}
		if _, err := c.release(ctx, v.GetName()); err != nil && !fault.Is(err, fault.NotFound) {
			t.Error(err)
		}
		if err := c.gone(ctx, volumes(), v); err != nil {
			t.Error(err)
		}
	}
	if all, err = c.list(ctx, contents(), "", ""); err != nil {
		t.Error(err)
	}
	for _, v := range all {
		if v.text("spec", "volumeSnapshotRef", "namespace") == namespace {
			if err := c.delete(ctx, contents(), v); err != nil {
				t.Error(err)
			}
		}
	}
}

// apply makes an object of a manifest.
func (l *lab) apply(t *testing.T, account string, k kind, text string) object {
	t.Helper()
	o := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	made, err := l.cluster(account).create(t.Context(), k, o)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// claim makes a claim of 32 MiB.
func (l *lab) claim(t *testing.T, account, namespace, name, class string) volume.Place {
	t.Helper()
	l.apply(t, account, claims(), fmt.Sprintf(`{metadata: {name: %s, namespace: %s, labels: {app: db}}, spec: {storageClassName: %s, accessModes: [ReadWriteOnce],
		resources: {requests: {storage: 32Mi}}}}`, name, namespace, class))
	return volume.Place{Account: account, Namespace: namespace, Claim: name}
}

// pod runs the lab's tool with a claim at /data until it has ended, and returns what it printed.
func (l *lab) pod(t *testing.T, p volume.Place, args ...string) (said string, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, list := l.cluster(p.Account), []any{}
	for _, a := range args {
		list = append(list, a)
	}
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"generateName": "tool-", "namespace": p.Namespace},
		"spec": map[string]any{"restartPolicy": "Never", "terminationGracePeriodSeconds": int64(0),
			"containers": []any{map[string]any{"name": "c", "image": tool, "args": list, "volumeMounts": []any{map[string]any{"name": "d", "mountPath": "/data"}}}},
			"volumes":    []any{map[string]any{"name": "d", "persistentVolumeClaim": map[string]any{"claimName": p.Claim}}}}}}
	made, err := c.in(pods(), p.Namespace).Create(ctx, o, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := object{made}
	last, err := c.await(ctx, pods(), p.Namespace, pod.GetName(), func(o *object) (bool, error) {
		if o == nil {
			return false, fmt.Errorf("the pod was deleted")
		}
		phase := corev1.PodPhase(o.text("status", "phase"))
		return phase == corev1.PodSucceeded || phase == corev1.PodFailed, nil
	})
	if err != nil {
		t.Fatalf("pod %s: %v%s", pod.GetName(), err, c.reasons(ctx, pod))
	}
	said = l.output(t, p, pod.GetName())
	if err := c.delete(ctx, pods(), pod); err != nil {
		t.Fatal(err)
	}
	return said, corev1.PodPhase(last.text("status", "phase")) == corev1.PodSucceeded
}

// output reads what a pod has printed.
func (l *lab) output(t *testing.T, p volume.Place, pod string) string {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv(variables()[p.Account]))
	if err != nil {
		t.Fatal(err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Get(fmt.Sprintf("%s/api/v1/namespaces/%s/pods/%s/log", config.Host, p.Namespace, pod))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s %s %v", answer.Status, said, err)
	}
	return string(said)
}

func (l *lab) write(t *testing.T, p volume.Place, name, text string) {
	t.Helper()
	if said, ok := l.pod(t, p, "write", "/data/"+name, text); !ok {
		t.Fatalf("write %s: %s", name, said)
	}
}

func (l *lab) read(t *testing.T, p volume.Place, name string) (string, bool) {
	t.Helper()
	said, ok := l.pod(t, p, "read", "/data/"+name)
	if !ok {
		if !strings.Contains(said, "no such file") {
			t.Fatalf("read %s: %s", name, said)
		}
		return "", false
	}
	return said, true
}

func (l *lab) exists(t *testing.T, p volume.Place) bool {
	t.Helper()
	_, err := l.cluster(p.Account).in(claims(), p.Namespace).Get(t.Context(), p.Claim, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

// volume is the name of the volume behind a claim.
func (l *lab) volume(t *testing.T, p volume.Place) string {
	t.Helper()
	o, err := l.cluster(p.Account).get(t.Context(), claims(), p.Namespace, p.Claim)
	if err != nil {
		t.Fatal(err)
	}
	return o.text("spec", "volumeName")
}

func (l *lab) volumeExists(t *testing.T, p volume.Place, name string) bool {
	t.Helper()
	_, err := l.cluster(p.Account).get(t.Context(), volumes(), "", name)
	if err != nil && !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
	return err == nil
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, class := range []string{class, late} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			volumetest.Run(t, func(t *testing.T) volumetest.Env {
				l := theLab(t)
				return l.env(t, l.driver(prod), class)
			})
		})
	}
}

// env is a place for the suite in production.
func (l *lab) env(t *testing.T, d *Driver, class string) volumetest.Env {
	from, to, another := l.namespace(t, prod, "prod"), l.namespace(t, prod, "twin"), l.namespace(t, prod, "other")
	return volumetest.Env{Driver: d, Owner: l.name, Live: l.claim(t, prod, from, "data-db-0", class),
		Twins: [2]volume.Place{{Account: prod, Namespace: to, Claim: "data-db-0"}, {Account: prod, Namespace: another, Claim: "data-db-0"}},
		Write: l.write, Read: l.read, Exists: l.exists, Volume: l.volume, VolumeExists: l.volumeExists}
}
