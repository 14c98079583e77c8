//go:build e2e

package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/lab/kube"
	"github.com/sluice-cd/sluice/lab/labtest"
)

// seed is the example's Job with a place for the ledger that exists in a container.
const seed = `
apiVersion: batch/v1
kind: Job
metadata: {name: seed}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: seed, image: "shop-seed:1", args: [--database, "mongodb://mongo:27017/shop", --ledger, /tmp/ledger]}
`

// TestTheExampleRuns applies the manifests that users of the example apply, by the images' names in them.
func TestTheExampleRuns(t *testing.T) {
	c := clusters.Prod
	n := labtest.Namespace(t, c)
	example := filepath.Join("..", "..", "examples", "mongodb-upgrade")
	for _, f := range []string{"release-1/mongo.yaml", "release-1/web.yaml"} {
		if err := c.ApplyFile(t.Context(), n, filepath.Join(example, f)); err != nil {
			t.Fatal(err)
		}
	}
	labtest.Wait(t, c, kube.Ref{APIVersion: "v1", Kind: "Pod", Namespace: n, Name: "mongo-0"}, kube.Condition("Ready"))
	labtest.Wait(t, c, kube.Ref{APIVersion: "apps/v1", Kind: "Deployment", Namespace: n, Name: "web"}, kube.Condition("Available"))
	labtest.Apply(t, c, n, seed)
	labtest.Wait(t, c, kube.Ref{APIVersion: "batch/v1", Kind: "Job", Namespace: n, Name: "seed"}, kube.JobComplete)
	if err := c.ApplyFile(t.Context(), n, filepath.Join(example, "jobs/integration-tests.yaml")); err != nil {
		t.Fatal(err)
	}
	labtest.Wait(t, c, kube.Ref{APIVersion: "batch/v1", Kind: "Job", Namespace: n, Name: "integration-tests"}, kube.JobComplete)
}

func TestSluiceRunsInAPod(t *testing.T) {
	c := clusters.Staging
	n := labtest.Namespace(t, c)
	said := labtest.Run(t, c, n, "sluice", `{restartPolicy: Never, containers: [{name: c, image: "sluice:dev", args: [version]}]}`)
	if !strings.Contains(said, "sluice") {
		t.Errorf("sluice version said %q", said)
	}
}
