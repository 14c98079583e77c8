package kubernetes

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/cache"

	"github.com/sluice-cd/sluice/internal/manifest"
)

// watching is a watcher that has seen the objects of one Deployment.
func watching(t *testing.T, d *unstructured.Unstructured, sets ...string) *watcher {
	t.Helper()
	w := &watcher{p: &Platform{c: Config{Grace: time.Minute}}, stores: map[source]cache.Store{}, seen: map[string]evidence{}}
	store := cache.NewStore(cache.MetaNamespaceKeyFunc)
	for _, text := range sets {
		if err := store.Add(&unstructured.Unstructured{Object: parsed(t, text)}); err != nil {
			t.Fatal(err)
		}
	}
	w.stores[source{replicaSets(), d.GetNamespace(), "", ""}] = store
	return w
}

// TestProgressOfAnotherVersion: after a way back the controller repeats for a moment that the failed version has made no progress.
func TestProgressOfAnotherVersion(t *testing.T) {
	const set = "{apiVersion: apps/v1, kind: ReplicaSet, metadata: {namespace: ns, name: %s, annotations: {deployment.kubernetes.io/revision: %q}, " +
		"ownerReferences: [{uid: u, controller: true}]}}"
	was := fmt.Sprintf(set, "web-old", "3")
	failed := fmt.Sprintf(set, "web-new", "2")
	for _, c := range []struct {
		name, says string
		sets       []string
		failed     bool
	}{
		{"of the failed version", `ReplicaSet "web-new" has timed out progressing.`, []string{was, failed}, false},
		{"of its own", `ReplicaSet "web-old" has timed out progressing.`, []string{was, failed}, true},
		{"of one whose name begins alike", `ReplicaSet "web-old1" has timed out progressing.`, []string{was, failed}, false},
		{"before its ReplicaSet is seen", `ReplicaSet "web-new" has timed out progressing.`, []string{failed}, false},
		{"of no ReplicaSet", `Deployment "web" has timed out progressing.`, []string{failed}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &unstructured.Unstructured{Object: parsed(t, `
apiVersion: apps/v1
kind: Deployment
metadata: {namespace: ns, name: web, uid: u, generation: 3, annotations: {deployment.kubernetes.io/revision: "3"}}
spec: {replicas: 2, progressDeadlineSeconds: 5, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}}}
status:
  observedGeneration: 3
  replicas: 2
  updatedReplicas: 1
  conditions:
  - {type: Available, status: "True", reason: MinimumReplicasAvailable, message: Deployment has minimum availability.}
  - {type: Progressing, status: "False", reason: ProgressDeadlineExceeded, message: `+fmt.Sprintf("%q", c.says)+`}`)}
			w := watching(t, d, c.sets...)
			s, _ := w.one(t.Context(), manifest.Ref{Kind: "Deployment", Namespace: "ns", Name: "web"}, d)
			if s.Failed != c.failed || s.Ready || s.Reason == "" {
				t.Errorf("%+v", s)
			}
		})
	}
}
