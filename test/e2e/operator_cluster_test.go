//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestOperatorsDatabase: a database whose StatefulSet belongs to another object is refused by plan and by start, which name it,
// and nothing is begun.
func TestOperatorsDatabase(t *testing.T) {
	k := newClusters(t)
	ctx := context.Background()
	make := func(namespace, resource string, o map[string]any) *unstructured.Unstructured {
		made, err := k.prod.of(namespace, resource).Create(ctx, &unstructured.Unstructured{Object: o}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	ns := k.namespace()
	make("", "namespaces", map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": ns}})
	// It stands for an operator's resource: who owns it is all that is read.
	owner := make(ns, "configmaps", map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "orders-cluster"}})
	make(ns, "statefulsets.apps", map[string]any{"apiVersion": "apps/v1", "kind": "StatefulSet",
		"metadata": map[string]any{"name": "mongo", "ownerReferences": []any{map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "name": owner.GetName(),
			"uid": string(owner.GetUID()), "controller": true}}},
		"spec": map[string]any{"replicas": int64(0), "serviceName": "mongo", "selector": map[string]any{"matchLabels": map[string]any{"app": "mongo"}},
			"template": map[string]any{"metadata": map[string]any{"labels": map[string]any{"app": "mongo"}},
				"spec": map[string]any{"containers": []any{map[string]any{"name": "mongo", "image": "ferretdb:1.17"}}}}}})
	file := k.write("deploy.yaml", strings.ReplaceAll(fmt.Sprintf(`
application: shop
targets:
  production:
    account: prod
    namespace: %s
    constraints:
      beforeDeployment:
        - checkpointData: {database: orders, name: before}
data:
  databases:
    - {name: orders, engine: mongodb, target: production, workload: statefulset/mongo, connection: "mongodb://mongo:27017/"}
manifests:
  - inline: |
      {apiVersion: v1, kind: ConfigMap, metadata: {name: settings}}
`, ns), "\t", "  "))
	for _, command := range [][]string{{"plan", "-f", file}, {"deploy", "start", "-f", file}} {
		r := k.sluice(command...)
		if r.code != 1 {
			t.Errorf("%s ends with %d", command, r.code)
		}
		says(t, r.errs, "StatefulSet/mongo of account prod belongs to ConfigMap orders-cluster, whose operator would undo")
	}
	if left := k.prod.names(ns, "secrets"); len(left) > 0 {
		t.Errorf("something was begun: %v", left)
	}
}
