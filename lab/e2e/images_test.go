//go:build e2e

package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/sluice-cd/sluice/lab/kube"
	"github.com/sluice-cd/sluice/lab/labtest"
)

func snapshotResource(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: name}
}

func deleteContent(t *testing.T, c *kube.Client, name string) {
	if err := c.Dynamic.Resource(snapshotResource("volumesnapshotcontents")).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil && t.Context().Err() == nil {
		t.Error(err)
	}
}

// TestTheExampleRuns applies the manifests that users of the example apply, by the images' names in them.
func TestTheExampleRuns(t *testing.T) {
	c := clusters.Prod
	n := labtest.Namespace(t, c)
	example := filepath.Join("..", "..", "examples", "mongodb-upgrade")
	for _, f := range []string{"release-1/mongo.yaml", "release-1/web.yaml", "jobs/seed.yaml"} {
		if err := c.ApplyFile(t.Context(), n, filepath.Join(example, f)); err != nil {
			t.Fatal(err)
		}
	}
	labtest.Wait(t, c, kube.Ref{APIVersion: "v1", Kind: "Pod", Namespace: n, Name: "mongo-0"}, kube.Condition("Ready"))
	labtest.Wait(t, c, kube.Ref{APIVersion: "apps/v1", Kind: "Deployment", Namespace: n, Name: "web"}, kube.Condition("Available"))
	labtest.Wait(t, c, kube.Ref{APIVersion: "batch/v1", Kind: "Job", Namespace: n, Name: "seed"}, kube.Condition("Complete"))
}

func TestSluiceRunsInAPod(t *testing.T) {
	c := clusters.Staging
	n := labtest.Namespace(t, c)
	said := labtest.Run(t, c, n, "sluice", `{restartPolicy: Never, containers: [{name: c, image: "sluice:dev", args: [version]}]}`)
	if !strings.Contains(said, "sluice") {
		t.Errorf("sluice version said %q", said)
	}
}
