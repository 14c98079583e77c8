//go:build e2e

package e2e

import (
	"fmt"
	"testing"
)

// TestADatabaseIsCopiedToAnotherCluster rehearses an upgrade on a copy of production: a snapshot of its claim is handed on to
// staging, while a client goes on writing.
func TestADatabaseIsCopiedToAnotherCluster(t *testing.T) {
	k := newClusters(t)
	ns := k.namespace()
	k.install(mongoAt("1.17"))
	orders := k.orders(k.prod, ns)
	w := write(t, orders, 1)
	w.wait(k.site, 300)
	if t.Failed() {
		return
	}
	w.stall()
	claim := k.prod.text(ns, "persistentvolumeclaims", "data-mongo-0", "spec", "volumeName")

	id := k.copies(mongoAt("1.24"), "", ", afterDeployment: [{verifyData: {database: orders}}]")
	d := k.ended(id, "SUCCEEDED")
	t.Logf("%s", d)
	copied, up := d.step("staging/before/1-copyData"), d.step("staging/deploy/orders/apply")
	measured(t, "from copyData's start to control ready %s, to both twins ready %s; production's longest write stall %s",
		copied.Ended.Sub(copied.Started), up.Ended.Sub(copied.Started), w.stall())
	says(t, copied.Message, "recoverable-consistent", "csi snapshot", "no writer held")
	says(t, k.must("data", "list", "--owner", id).out, "prod ", "staging ", ns+"/data-mongo-0")

	w.holds(t, k.orders(k.staging, ns), copied.Started)
	if now := k.prod.text(ns, "persistentvolumeclaims", "data-mongo-0", "spec", "volumeName"); now != claim {
		t.Errorf("production's claim is bound to %s, was to %s", now, claim)
	}
	k.eventually("what ran beside the target is gone", func() error {
		for _, purpose := range []string{"base", "control", "mark"} {
			left := append(k.staging.names(ns+"-"+purpose, "pods"), k.staging.names(ns+"-"+purpose, "networkpolicies.networking.k8s.io")...)
			// The candidate was cloned from the base, which stays with it.
			if purpose != "base" {
				left = append(left, k.staging.names(ns+"-"+purpose, "persistentvolumeclaims")...)
			}
			if len(left) > 0 {
				return fmt.Errorf("namespace %s-%s still has %v", ns, purpose, left)
			}
		}
		return nil
	})
}
