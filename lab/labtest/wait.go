package labtest

import (
	"context"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/lab/kube"
)

// Deadline of one wait: far above what a busy machine needs.
const Deadline = 3 * time.Minute

// Apply applies manifests in a namespace.
func Apply(t *testing.T, c *kube.Client, namespace, manifests string) {
	t.Helper()
	if err := c.Apply(t.Context(), namespace, manifests); err != nil {
		t.Fatal(err)
	}
}

// Wait watches an object until the condition holds.
func Wait(t *testing.T, c *kube.Client, ref kube.Ref, holds func(*unstructured.Unstructured) (bool, error)) *unstructured.Unstructured {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Deadline)
	defer cancel()
	o, err := c.Wait(ctx, ref, holds)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// Run runs a pod to its end and returns what it wrote.
func Run(t *testing.T, c *kube.Client, namespace, name, spec string) string {
	t.Helper()
	Apply(t, c, namespace, "{apiVersion: v1, kind: Pod, metadata: {name: "+name+"}, spec: "+spec+"}")
	Wait(t, c, kube.Ref{APIVersion: "v1", Kind: "Pod", Namespace: namespace, Name: name}, kube.PodSucceeded)
	log, err := c.Logs(t.Context(), namespace, name, "")
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// Eventually asks until there is no error. It is for what offers no event, such as a Service whose packet filter
// follows its endpoints within a second.
func Eventually(t *testing.T, ask func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Deadline)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-tick.C:
		}
	}
}
