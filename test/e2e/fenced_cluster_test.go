//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// web are the manifests of an application at a version, as an inline of a deploy file.
func web(version string) string {
	return strings.ReplaceAll("\n---"+manifests(1, version, tool), "\n", "\n      ")
}

const tool = "lab/tool:1"

// manifests are an application at a version, from an image.
func manifests(replicas int, version, image string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - {name: web, image: %q, args: [http, %q], readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}
`, replicas, image, version)
}

// upgrading writes a deploy file that rehearses an upgrade of production's database in staging and then does it, with a canary
// of the application that asks a person.
func (k clusters) upgrading(version string) string {
	return k.write("upgrade.yaml", fmt.Sprintf(`
application: %[1]s
targets:
  staging:
    account: staging
    namespace: %[1]s
    constraints:
      beforeDeployment: [{copyData: {database: orders}}]
      afterDeployment: [{sequence: [{verifyData: {database: orders}}, {rehearseRollback: {database: orders}}]}]
  prod:
    account: prod
    namespace: %[1]s
    strategy: asking
    constraints:
      dependsOn: [staging]
      beforeDeployment: [{checkpointData: {database: orders, name: before, ttl: {duration: 1, unit: hours}}}]
strategies: {asking: {canary: {steps: [{pause: {untilApproved: true}}]}}}
manifests:
  - inline: |%[2]s
data:
  databases:
    - {name: orders, engine: mongodb, target: prod, workload: statefulset/mongo, connection: "mongodb://mongo:27017/",
       upgrade: {deadline: {duration: 5, unit: minutes}}}
`, k.namespace(), mongoAt(version)+web(version)))
}

// image is what production's database runs.
func (k clusters) image() string {
	k.t.Helper()
	o, err := k.prod.of(k.namespace(), "pods").Get(context.Background(), "mongo-0", metav1.GetOptions{})
	if err != nil {
		k.t.Fatal(err)
	}
	containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "containers")
	return containers[0].(map[string]any)["image"].(string)
}

// TestADatabaseIsUpgradedBehindAFence upgrades production's database and goes back by R1: the old version on the volumes that
// hold what was written meanwhile. No acknowledged order is lost on either way.
func TestADatabaseIsUpgradedBehindAFence(t *testing.T) {
	k := newClusters(t)
	ns := k.namespace()
	k.install(mongoAt("1.17") + web("1.17"))
	orders := k.orders(k.prod, ns)
	w := write(t, orders, 1)
	w.wait(k.site, 300)
	if t.Failed() {
		return
	}
	w.stall()
	volume := func() string { return k.prod.text(ns, "persistentvolumeclaims", "data-mongo-0", "spec", "volumeName") }
	old := volume()

	id := k.start(k.upgrading("1.24"))
	asking := func(d delivery) bool {
		return d.step("prod/after/1-pause").Status == "AWAITING_APPROVAL" || d.Status == "AWAITING_APPROVAL"
	}
	d := k.until(id, "upgraded", asking)
	if d.step("prod/deploy/orders/open").Verdict == "" {
		t.Fatalf("it is not upgraded\n%s", d)
	}
	w.wait(k.site, 100)
	t.Logf("%s", d)
	t.Logf("production's longest write stall, with the fence: %s", w.stall())
	if got := k.image(); got != "ferretdb:1.24" {
		t.Errorf("production runs %s", got)
	}
	upgraded := volume()
	if upgraded == old {
		t.Errorf("production still runs on volume %s", old)
	}
	w.holds(t, orders, time.Now())

	k.must("deploy", "rollback", id)
	d = k.until(id, "at its end", delivery.final)
	t.Logf("%s", d)
	w.wait(k.site, 100)
	t.Logf("production's longest write stall on the way back: %s", w.stall())
	says(t, d.String(), "R1-engine")
	if got := k.image(); got != "ferretdb:1.17" {
		t.Errorf("production runs %s", got)
	}
	if now := volume(); now != upgraded {
		t.Errorf("production runs on volume %s: what was written meanwhile is on %s", now, upgraded)
	}
	w.end()
	w.holds(t, orders, time.Now())
}

// TestAnUpgradeThatFailsBehindTheFenceGoesBack has a migration that fails in production alone: the old version comes back on
// its untouched volume. Before, the cluster would refuse the application: nobody is fenced to find that out.
func TestAnUpgradeThatFailsBehindTheFenceGoesBack(t *testing.T) {
	k := newClusters(t)
	ns := k.namespace()
	k.install(mongoAt("1.17"))
	orders := k.orders(k.prod, ns)
	w := write(t, orders, 1)
	w.wait(k.site, 100)
	if t.Failed() {
		return
	}
	w.stall()
	volume := func() string { return k.prod.text(ns, "persistentvolumeclaims", "data-mongo-0", "spec", "volumeName") }
	old := volume()
	with := func(more string) delivery {
		return k.until(k.start(k.write("broken.yaml", fmt.Sprintf(`
application: %[1]s
targets: {prod: {account: prod, namespace: %[1]s}}
manifests:
  - inline: |%[2]s
data: {databases: [{name: orders, engine: mongodb, target: prod, workload: statefulset/mongo, connection: "mongodb://mongo:27017/"}]}
`, ns, mongoAt("1.24")+more))), "at its end", delivery.final)
	}
	pod := func() string { return k.prod.text(ns, "pods", "mongo-0", "metadata", "uid") }
	first := pod()
	d := with(strings.Replace(web("1.24"), "terminationGracePeriodSeconds: 2", "restartPolicy: Never", 1))
	says(t, d.String(), "FAILED", "restartPolicy", "the database was not touched")
	if now := pod(); now != first {
		t.Errorf("the database was stopped for an application that the cluster refuses\n%s", d)
	}
	d = with(`
      ---
      apiVersion: batch/v1
      kind: Job
      metadata: {name: migrate}
      spec:
        backoffLimit: 0
        template: {spec: {restartPolicy: Never, containers: [{name: migrate, image: "lab/tool:1", args: [no-such-command]}]}}`)
	t.Logf("%s", d)
	if d.Status != "FAILED" {
		t.Errorf("it is %s", d.Status)
	}
	says(t, d.String(), "the upgrade of a clone failed", "R0")
	w.wait(k.site, 100)
	t.Logf("production's longest write stall: %s", w.stall())
	if got := k.image(); got != "ferretdb:1.17" {
		t.Errorf("production runs %s", got)
	}
	if now := volume(); now != old {
		t.Errorf("production runs on volume %s, was on %s", now, old)
	}
	w.end()
	w.holds(t, orders, time.Now())
}
