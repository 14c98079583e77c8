//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"testing"
)

// TestAQuarantineThatNothingEnforcesStopsTheCopy copies inside production's own cluster, whose network lets every pod reach
// every other: production would be within the copy's reach.
func TestAQuarantineThatNothingEnforcesStopsTheCopy(t *testing.T) {
	k := newClusters(t)
	ns := k.beside()
	if t.Failed() {
		return
	}
	d := k.copyBeside("trusting", "")
	says(t, d.step("staging/before/1-copyData").Message, "reaches production: ", "Service "+ns+"/mongo at ", "Pod "+ns+"/mongo-0 at ", "quarantine: unenforced")
	if left := k.prod.names(ns+"-trusting-base", "pods"); len(left) > 0 {
		t.Errorf("a copy was started within reach of production: %v", left)
	}
	if d := k.copyBeside("written", ", quarantine: unenforced"); d.Status != "SUCCEEDED" {
		t.Errorf("what was accepted in writing is stopped\n%s", d)
	}
}

// TestAQuarantineThatIsEnforcedLetsTheCopyBeMade does the same in a cluster that enforces NetworkPolicies: nothing has to be
// accepted in writing, the copy is made and compared, and it is compared by pods that have policies of their own.
func TestAQuarantineThatIsEnforcedLetsTheCopyBeMade(t *testing.T) {
	const variable = "LAB_KUBECONFIG_ENFORCED"
	if os.Getenv(variable) == "" {
		t.Skip(variable + " names no cluster that enforces NetworkPolicies: lab run --network-policies gives one")
	}
	k := clustersWith(t, openCluster(t, "prod", variable))
	k.beside()
	if t.Failed() {
		return
	}
	d := k.copyBeside("kept", "")
	if d.Status != "SUCCEEDED" {
		t.Fatalf("it is stopped\n%s", d)
	}
	says(t, d.step("staging/after/1-verifyData").Message, "equal")
}

// beside has production's database run with some orders, and returns its namespace.
func (k clusters) beside() string {
	k.t.Helper()
	k.install(mongoAt("1.17"))
	w := write(k.t, k.orders(k.prod, k.namespace()), 1)
	w.wait(k.site, 10)
	w.end()
	return k.namespace()
}

// copyBeside copies it into a namespace of its own cluster, with what its entry says of a quarantine.
func (k clusters) copyBeside(name, quarantine string) delivery {
	k.t.Helper()
	id := k.start(k.write(name+".yaml", fmt.Sprintf(`
application: %[4]s
targets:
  prod: {account: prod, namespace: %[1]s}
  staging:
    account: prod
    namespace: %[1]s-%[4]s
    constraints: {beforeDeployment: [{copyData: {database: orders}}], afterDeployment: [{verifyData: {database: orders}}]}
manifests:
  - targets: [staging]
    inline: |%[2]s
data: {databases: [{name: orders, engine: mongodb, target: prod, workload: statefulset/mongo, connection: "mongodb://mongo:27017/"%[3]s}]}
`, k.namespace(), mongoAt("1.24"), quarantine, name)))
	return k.until(id, "told", func(d delivery) bool { return d.final() || d.Status == "AWAITING_APPROVAL" })
}
