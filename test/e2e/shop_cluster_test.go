//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watches "k8s.io/client-go/tools/watch"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
	steps "github.com/sluice-cd/sluice/internal/step"
)

// shopCluster is a cluster with a namespace for the shop. Its pods must reach this machine.
type shopCluster struct {
	cluster
	namespace string
	host      string // this machine, as the cluster's pods reach it
	platform  *kubernetes.Platform
}

// newShopCluster makes the namespace, which goes with the test.
func newShopCluster(t *testing.T, name, variable, namespace string) *shopCluster {
	t.Helper()
	c := &shopCluster{cluster: openCluster(t, name, variable), namespace: namespace}
	config := kubernetes.Config{Account: name, Kubeconfig: c.file}
	credentials, err := kubernetes.Credentials(config)
	if err != nil {
		t.Fatal(err)
	}
	if c.host, err = facing(credentials.Host); err != nil {
		t.Fatal(err)
	}
	if c.platform, err = kubernetes.Connect(config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.remove(namespace) })
	c.apply("namespace", fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", namespace))
	return c
}

// facing is this machine's address on the way to a URL.
func facing(to string) (string, error) {
	u, err := url.Parse(to)
	if err != nil {
		return "", err
	}
	// Nothing is sent: a datagram socket only looks the way up.
	way, err := net.Dial("udp", u.Host)
	if err != nil {
		return "", err
	}
	defer way.Close()
	host, _, err := net.SplitHostPort(way.LocalAddr().String())
	return host, err
}

// without deletes an object and waits until it is gone.
func (c *shopCluster) without(ctx context.Context, namespace, resource, name string) error {
	err := c.of(namespace, resource).Delete(ctx, name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = c.await(ctx, namespace, resource, name, func(o *unstructured.Unstructured) (bool, error) { return o == nil, nil })
	return err
}

// await watches an object until the condition holds. It is asked with nil where there is none.
func (c *shopCluster) await(
	ctx context.Context, namespace, resource, name string, holds func(*unstructured.Unstructured) (bool, error),
) (*unstructured.Unstructured, error) {
	only := fields.OneTermEqualSelector("metadata.name", name).String()
	r := c.of(namespace, resource)
	lists := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only
			return r.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = only
			return r.Watch(ctx, o)
		},
	}
	none := func(store cache.Store) (bool, error) {
		if len(store.List()) > 0 {
			return false, nil
		}
		return holds(nil)
	}
	var last *unstructured.Unstructured
	_, err := watches.UntilWithSync(ctx, lists, &unstructured.Unstructured{}, none, func(e watch.Event) (bool, error) {
		if last, _ = e.Object.(*unstructured.Unstructured); e.Type == watch.Deleted {
			last = nil
		}
		return holds(last)
	})
	if err != nil {
		err = fmt.Errorf("%s %s: %w; it was last %v", resource, name, err, last)
	}
	return last, err
}

// apply applies objects in the cluster's namespace and waits until they are ready.
func (c *shopCluster) apply(key, text string) {
	c.t.Helper()
	objects, err := manifest.Parse(key, []byte(text))
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), within)
	defer cancel()
	if _, err := c.platform.Apply(ctx, "story/"+key, objects, platform.Options{Namespace: c.namespace}); err != nil {
		c.t.Fatal(err)
	}
	var workloads []manifest.Ref
	for _, o := range objects {
		if k := o.GetKind(); k == "Deployment" || k == "StatefulSet" {
			workloads = append(workloads, manifest.Ref{Kind: k, Namespace: c.namespace, Name: o.GetName()})
		}
	}
	if err := steps.Await(ctx, c.platform, within, "ready", workloads, steps.Ready); err != nil {
		c.t.Fatal(err)
	}
}

// address returns HOST:PORT of a Service.
func (c *shopCluster) address(service string) string {
	c.t.Helper()
	o, err := c.platform.Get(c.t.Context(), manifest.Ref{Kind: "Service", Namespace: c.namespace, Name: service})
	if err != nil {
		c.t.Fatal(err)
	}
	var s corev1.Service
	if err := o.Into(&s); err != nil {
		c.t.Fatal(err)
	}
	return fmt.Sprintf("%s:%d", s.Spec.ClusterIP, s.Spec.Ports[0].Port)
}

// image returns what a workload's first container runs.
func (c *shopCluster) image(kind, name string) string {
	c.t.Helper()
	o, err := c.platform.Get(c.t.Context(), manifest.Ref{Kind: kind, Namespace: c.namespace, Name: name})
	if err != nil {
		c.t.Fatal(err)
	}
	template, _, err := o.PodTemplate()
	if err != nil {
		c.t.Fatal(err)
	}
	return template.Spec.Containers[0].Image
}
