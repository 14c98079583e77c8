// Package kube is what the lab and its tests need of a Kubernetes client: apply manifests, wait for a condition by
// watching, read logs.
package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

// manager owns the fields that the lab applies.
const manager = "lab"

// Client talks to one cluster.
type Client struct {
	// Clientset is for what has Go types.
	*kubernetes.Clientset
	// Dynamic is for the rest.
	Dynamic dynamic.Interface
	// Config and Kubeconfig are how the cluster is reached.
	Config     *rest.Config
	Kubeconfig string

	mapper *restmapper.DeferredDiscoveryRESTMapper
}

// Open makes a client of a kubeconfig file. It does not talk to the cluster yet.
func Open(kubeconfig string) (*Client, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	// Tests do much at once, and the server has flow control of its own.
	config.QPS, config.Burst = 200, 400
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(set.Discovery()))
	return &Client{Clientset: set, Dynamic: dyn, Config: config, Kubeconfig: kubeconfig, mapper: mapper}, nil
}

// Apply creates or updates the objects of a YAML stream, in their order. A namespace is for those that name none.
func (c *Client) Apply(ctx context.Context, namespace, manifests string) error {
	objects, err := Parse(manifests)
	if err != nil {
		return err
	}
	for _, o := range objects {
		r, err := c.resource(o.GroupVersionKind(), o.GetNamespace(), namespace)
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		if _, err := r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: manager, Force: true}); err != nil {
			return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

// ApplyFile applies the objects of a file.
func (c *Client) ApplyFile(ctx context.Context, namespace, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return c.Apply(ctx, namespace, string(b))
}

// resource is the dynamic client of a kind, in the first namespace that is given.
func (c *Client) resource(kind schema.GroupVersionKind, namespaces ...string) (dynamic.ResourceInterface, error) {
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		// A definition may have been applied since the last look.
		c.mapper.Reset()
		mapping, err = c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		return c.Dynamic.Resource(mapping.Resource), nil
	}
	for _, n := range append(namespaces, metav1.NamespaceDefault) {
		if n != "" {
			return c.Dynamic.Resource(mapping.Resource).Namespace(n), nil
		}
	}
	return nil, nil
}

// Parse reads the objects of a YAML stream.
func Parse(manifests string) ([]*unstructured.Unstructured, error) {
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifests), 4096)
	var objects []*unstructured.Unstructured
	for {
		o := &unstructured.Unstructured{}
		err := decoder.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("manifest %d: %w", len(objects)+1, err)
		}
		if len(o.Object) > 0 {
			objects = append(objects, o)
		}
	}
}

// Ref names one object: its API version and kind, namespace and name.
type Ref struct{ APIVersion, Kind, Namespace, Name string }

// String is for messages.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// Get reads an object.
func (c *Client) Get(ctx context.Context, ref Ref) (*unstructured.Unstructured, error) {
	r, err := c.resource(schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind), ref.Namespace)
	if err != nil {
		return nil, err
	}
	return r.Get(ctx, ref.Name, metav1.GetOptions{})
}

// Wait watches an object, which need not exist yet, until the condition holds. A condition's error ends the wait. The
// error of a wait that came to its deadline holds the object's last status.
func (c *Client) Wait(ctx context.Context, ref Ref, holds func(*unstructured.Unstructured) (bool, error)) (*unstructured.Unstructured, error) {
	r, err := c.resource(schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind), ref.Namespace)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	var last *unstructured.Unstructured
	for {
		found, err := c.follow(ctx, r, ref, &last, holds)
		switch {
		case found:
			return last, nil
		case ctx.Err() != nil && last == nil:
			return nil, fmt.Errorf("%s does not exist: %w", ref, ctx.Err())
		case ctx.Err() != nil:
			status, _, _ := unstructured.NestedMap(last.Object, "status")
			return last, fmt.Errorf("%s is at %v: %w", ref, status, ctx.Err())
		case err != nil:
			return last, fmt.Errorf("%s: %w", ref, err)
		}
		// The server ended the watch, as it does from time to time.
	}
}

// follow lists and watches once.
func (c *Client) follow(
	ctx context.Context, r dynamic.ResourceInterface, ref Ref, last **unstructured.Unstructured, holds func(*unstructured.Unstructured) (bool, error),
) (bool, error) {
	only := fields.OneTermEqualSelector("metadata.name", ref.Name).String()
	list, err := r.List(ctx, metav1.ListOptions{FieldSelector: only})
	if err != nil {
		return false, err
	}
	for i := range list.Items {
		*last = &list.Items[i]
		if ok, err := holds(*last); ok || err != nil {
			return ok, err
		}
	}
	w, err := r.Watch(ctx, metav1.ListOptions{FieldSelector: only, ResourceVersion: list.GetResourceVersion()})
	if err != nil {
		return false, err
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		o, ok := event.Object.(*unstructured.Unstructured)
		switch {
		case event.Type == watch.Error:
			if err := apierrors.FromObject(event.Object); !apierrors.IsResourceExpired(err) {
				return false, err
			}
			return false, nil
		case event.Type == watch.Deleted || !ok:
			continue
		}
		*last = o
		if ok, err := holds(o); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// Condition holds when the object's status has a condition of this type that is True.
func Condition(conditionType string) func(*unstructured.Unstructured) (bool, error) {
	return func(o *unstructured.Unstructured) (bool, error) {
		conditions, err := List(o, "status", "conditions")
		return slices.ContainsFunc(conditions, func(m map[string]any) bool {
			return m["type"] == conditionType && m["status"] == "True"
		}), err
	}
}

// List is the list of objects at a path; one that is absent or null is empty.
func List(o *unstructured.Unstructured, path ...string) ([]map[string]any, error) {
	found, _, err := unstructured.NestedFieldNoCopy(o.Object, path...)
	if err != nil || found == nil {
		return nil, err
	}
	entries, ok := found.([]any)
	if !ok {
		return nil, fmt.Errorf("%s is no list", strings.Join(path, "."))
	}
	var list []map[string]any
	for _, entry := range entries {
		if m, ok := entry.(map[string]any); ok {
			list = append(list, m)
		}
	}
	return list, nil
}

// Field holds when the field at a path has this value, printed.
func Field(want string, path ...string) func(*unstructured.Unstructured) (bool, error) {
	return func(o *unstructured.Unstructured) (bool, error) {
		value, found, err := unstructured.NestedFieldNoCopy(o.Object, path...)
		return found && fmt.Sprint(value) == want, err
	}
}

// PodSucceeded holds when a pod ended well, and is an error when it failed.
func PodSucceeded(o *unstructured.Unstructured) (bool, error) {
	phase, _, err := unstructured.NestedString(o.Object, "status", "phase")
	if phase == string(corev1.PodFailed) {
		return false, errors.New("the pod failed")
	}
	return phase == string(corev1.PodSucceeded), err
}

// JobComplete holds when a Job ended well, and is an error when it failed.
func JobComplete(o *unstructured.Unstructured) (bool, error) {
	if failed, err := Condition("Failed")(o); failed || err != nil {
		return false, errors.Join(err, errors.New("the job failed"))
	}
	return Condition("Complete")(o)
}

// Logs are what a pod's container wrote; "" means its only container.
func (c *Client) Logs(ctx context.Context, namespace, pod, container string) (string, error) {
	stream, err := c.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: container}).Stream(ctx)
	if err != nil {
		return "", fmt.Errorf("logs of %s/%s: %w", namespace, pod, err)
	}
	defer stream.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(stream)
	return b.String(), err
}

// Exists holds for every object.
func Exists(*unstructured.Unstructured) (bool, error) { return true, nil }
