//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
)

// The tests of this file and its neighbours with clusters run on those that LAB_KUBECONFIG (production) and
// LAB_KUBECONFIG_STAGING name, as the lab makes them: this machine reaches their Services.

// cluster is one of them.
type cluster struct {
	t    *testing.T
	name string
	file string
	dynamic.Interface
}

func openCluster(t *testing.T, name, variable string) cluster {
	t.Helper()
	c := cluster{t: t, name: name, file: os.Getenv(variable)}
	if c.file == "" {
		t.Fatalf("%s names no cluster: make lab-up starts one", variable)
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.file)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 50, 100
	if c.Interface, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	return c
}

// of returns the objects of a kind of a namespace: RESOURCE.GROUP/VERSION. The group may be left out for Kubernetes' first
// ones, and version v1.
func (c cluster) of(namespace, resource string) dynamic.ResourceInterface {
	group, version := "", "v1"
	if name, rest, ok := strings.Cut(resource, "/"); ok {
		resource, version = name, rest
	}
	if name, rest, ok := strings.Cut(resource, "."); ok {
		resource, group = name, rest
	}
	r := c.Resource(schema.GroupVersionResource{Group: group, Version: version, Resource: resource})
	if namespace == "" {
		return r
	}
	return r.Namespace(namespace)
}

// text reads a field of an object.
func (c cluster) text(namespace, resource, name string, field ...string) string {
	c.t.Helper()
	o, err := c.of(namespace, resource).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	v, _, _ := unstructured.NestedString(o.Object, field...)
	return v
}

// names lists what a namespace has of a kind.
func (c cluster) names(namespace, resource string) []string {
	c.t.Helper()
	list, err := c.of(namespace, resource).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	var out []string
	for _, o := range list.Items {
		out = append(out, o.GetName())
	}
	return out
}

// remove deletes every namespace that begins so, and the volumes and snapshots that are left of them.
func (c cluster) remove(prefix string) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	now := int64(0)
	c.each(ctx, "namespaces", func(o *unstructured.Unstructured) error {
		if !strings.HasPrefix(o.GetName(), prefix) {
			return nil
		}
		// Pods that take their time to end would hold the namespace for as long.
		return errors.Join(c.of("", "namespaces").Delete(ctx, o.GetName(), metav1.DeleteOptions{}),
			c.of(o.GetName(), "pods").DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}))
	})
	of := func(o *unstructured.Unstructured, field string) bool {
		namespace, _, _ := unstructured.NestedString(o.Object, "spec", field, "namespace")
		return strings.HasPrefix(namespace, prefix)
	}
	let := func(resource string, o *unstructured.Unstructured, patch string) error {
		_, err := c.of("", resource).Patch(ctx, o.GetName(), types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
	// These go when nothing is bound to them any more.
	c.each(ctx, "persistentvolumes", func(o *unstructured.Unstructured) error {
		if !of(o, "claimRef") {
			return nil
		}
		return let("persistentvolumes", o, `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)
	})
	c.each(ctx, contents, func(o *unstructured.Unstructured) error {
		if !of(o, "volumeSnapshotRef") {
			return nil
		}
		// What was handed on belongs to the cluster that cut it.
		if _, cut, _ := unstructured.NestedString(o.Object, "spec", "source", "volumeHandle"); cut {
			if err := let(contents, o, `{"spec":{"deletionPolicy":"Delete"}}`); err != nil {
				return err
			}
		}
		return c.of("", contents).Delete(ctx, o.GetName(), metav1.DeleteOptions{})
	})
}

// each does something with every object of a kind. What is gone meanwhile is no fault.
func (c cluster) each(ctx context.Context, resource string, do func(*unstructured.Unstructured) error) {
	list, err := c.of("", resource).List(ctx, metav1.ListOptions{})
	if err != nil {
		c.t.Errorf("list %s: %v", resource, err)
		return
	}
	for _, o := range list.Items {
		if err := do(&o); err != nil && !apierrors.IsNotFound(err) {
			c.t.Errorf("%s %s: %v", resource, o.GetName(), err)
		}
	}
}

// clusters is a site with an account for each of two clusters, and a prefix of namespaces of its own in both.
type clusters struct {
	*site
	prod, staging cluster
	prefix        string
}

func newClusters(t *testing.T) clusters {
	t.Helper()
	return clustersWith(t, openCluster(t, "prod", "LAB_KUBECONFIG"))
}

func clustersWith(t *testing.T, production cluster) clusters {
	t.Helper()
	k := clusters{prod: production, staging: openCluster(t, "staging", "LAB_KUBECONFIG_STAGING"),
		prefix: fmt.Sprintf("e2e-%d-%d", os.Getpid(), time.Now().UnixNano()%100000)}
	t.Cleanup(func() {
		k.prod.remove(k.prefix)
		k.staging.remove(k.prefix)
	})
	k.site = newSite(t, "")
	k.wait = 8 * time.Minute // pods, snapshots and probes of a whole delivery, on a machine with other things to do
	k.write("sluice.yaml", fmt.Sprintf(`
accounts:
  prod: {kind: kubernetes, kubeconfig: %s, jobs: {image: "sluice:dev", limits: {memory: 512Mi}}}
  staging: {kind: kubernetes, kubeconfig: %s, jobs: {image: "sluice:dev", limits: {memory: 512Mi}}}
`, k.prod.file, k.staging.file))
	return k
}

// namespace is where the database runs in each cluster.
func (k clusters) namespace() string { return k.prefix + "-shop" }

// mongoAt are the manifests of FerretDB at a version, as an inline of a deploy file.
func mongoAt(version string) string {
	return strings.ReplaceAll(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: mongo}
spec: {selector: {app: mongo}, ports: [{name: mongodb, port: 27017}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: mongo}
spec:
  serviceName: mongo
  replicas: 1
  selector: {matchLabels: {app: mongo}}
  template:
    metadata: {labels: {app: mongo}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: mongo
        image: ferretdb:%s
        args: [--listen, "0.0.0.0:27017", --dir, /data]
        ports: [{name: mongodb, containerPort: 27017}]
        readinessProbe: {tcpSocket: {port: 27017}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {storageClassName: cow, accessModes: [ReadWriteOnce], resources: {requests: {storage: 256Mi}}}
`, version), "\n", "\n      ")
}

// ended waits until a delivery has ended, and holds how. One that waits for a person will not.
func (k clusters) ended(id, status string) delivery {
	k.t.Helper()
	d := k.until(id, "at its end", func(d delivery) bool { return d.final() || d.Status == "AWAITING_APPROVAL" })
	if d.Status != status {
		k.t.Fatalf("the delivery has not ended as %s\n%s", status, d)
	}
	return d
}

// install starts the database in production and waits until it is ready.
func (k clusters) install(manifests string) {
	k.t.Helper()
	id := k.start(k.write("install.yaml", fmt.Sprintf(`
application: %[1]s-install
targets: {prod: {account: prod, namespace: %[1]s}}
manifests:
  - inline: |%[2]s
`, k.namespace(), manifests)))
	k.ended(id, "SUCCEEDED")
}

// orders opens the collection of orders of a cluster's database.
func (k clusters) orders(c cluster, namespace string) *mongo.Collection {
	k.t.Helper()
	o := options.Client().ApplyURI("mongodb://" + net.JoinHostPort(c.text(namespace, "services", "mongo", "spec", "clusterIP"), "27017")).
		SetDirect(true).SetServerSelectionTimeout(5 * time.Second)
	client, err := mongo.Connect(o)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { _ = client.Disconnect(context.Background()) })
	return client.Database("shop").Collection("orders")
}

// undated is a context without its deadline, which the driver would tell to a server that does not understand it.
type undated struct{ context.Context }

func (undated) Deadline() (time.Time, bool) { return time.Time{}, false }

// writer writes orders one after the other, each again until it is acknowledged.
type writer struct {
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	acked   map[int32]time.Time
	longest time.Duration
}

// write starts one at a number.
func write(t *testing.T, orders *mongo.Collection, from int32) *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{stop: cancel, done: make(chan struct{}), acked: map[int32]time.Time{}}
	t.Cleanup(w.end)
	go func() {
		defer close(w.done)
		last := time.Now()
		for i := from; ctx.Err() == nil; i++ {
			for ctx.Err() == nil {
				_, err := orders.InsertOne(undated{ctx}, bson.D{{Key: "_id", Value: i}, {Key: "total", Value: int64(i) * 3}})
				if err == nil || mongo.IsDuplicateKeyError(err) {
					break
				}
			}
			if ctx.Err() != nil {
				return
			}
			now := time.Now()
			w.mu.Lock()
			w.acked[i] = now
			w.longest = max(w.longest, now.Sub(last))
			w.mu.Unlock()
			last = now
		}
	}()
	return w
}

// end stops it.
func (w *writer) end() {
	w.stop()
	<-w.done
}

// stall is the longest time between two acknowledgements so far; it is forgotten then.
func (w *writer) stall() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.longest
	w.longest = 0
	return l
}

// wait waits until some more orders have been acknowledged.
func (w *writer) wait(s *site, n int) {
	s.t.Helper()
	count := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.acked)
	}
	until := count() + n
	s.eventually(fmt.Sprintf("%d more orders are written", n), func() error {
		if c := count(); c < until {
			return fmt.Errorf("there are %d of %d", c, until)
		}
		return nil
	})
}

// holds checks that a collection holds every order that was acknowledged before an instant.
func (w *writer) holds(t *testing.T, orders *mongo.Collection, before time.Time) {
	t.Helper()
	cursor, err := orders.Find(context.Background(), bson.D{})
	if err != nil {
		t.Fatal(err)
	}
	have := map[int32]bool{}
	for cursor.Next(context.Background()) {
		var d struct {
			ID    int32 `bson:"_id"`
			Total int64 `bson:"total"`
		}
		if err := cursor.Decode(&d); err != nil {
			t.Fatal(err)
		}
		if d.Total != int64(d.ID)*3 {
			t.Errorf("order %d is worth %d", d.ID, d.Total)
		}
		have[d.ID] = true
	}
	if err := cursor.Err(); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for i, at := range w.acked {
		if at.After(before) {
			continue
		}
		n++
		if !have[i] {
			t.Errorf("order %d, acknowledged at %s, is missing", i, at.Format(time.TimeOnly))
		}
	}
	if n == 0 {
		t.Error("nothing was acknowledged that could be missing")
	}
	t.Logf("%d acknowledged orders are among %d", n, len(have))
}

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

	id := k.start(k.write("upgrade.yaml", fmt.Sprintf(`
application: %[1]s
targets:
  prod: {account: prod, namespace: %[1]s}
  staging:
    account: staging
    namespace: %[1]s
    constraints:
      beforeDeployment: [{copyData: {database: orders}}]
      afterDeployment: [{verifyData: {database: orders}}]
manifests:
  - targets: [staging]
    inline: |%[2]s
data: {databases: [{name: orders, engine: mongodb, target: prod, workload: statefulset/mongo, connection: "mongodb://mongo:27017/"}]}
`, ns, mongoAt("1.24"))))
	d := k.ended(id, "SUCCEEDED")
	t.Logf("%s", d)
	copied, up := d.step("staging/before/1-copyData"), d.step("staging/deploy/orders/apply")
	t.Logf("from copyData's start to control ready %s, to both twins ready %s; production's longest write stall %s",
		copied.Ended.Sub(copied.Started), up.Ended.Sub(copied.Started), w.stall())
	says(t, copied.Message, "recoverable-consistent", "csi snapshot", "no writer held")
	says(t, k.must("data", "list", "--owner", id).out, "prod ", "staging ", ns+"/data-mongo-0")

	w.holds(t, k.orders(k.staging, ns), copied.Started)
	if now := k.prod.text(ns, "persistentvolumeclaims", "data-mongo-0", "spec", "volumeName"); now != claim {
		t.Errorf("production's claim is bound to %s, was to %s", now, claim)
	}
	k.eventually("what ran beside the target is gone", func() error {
		for _, purpose := range []string{"base", "control", "mark"} {
			left := k.staging.names(ns+"-"+purpose, "pods")
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
// its untouched volume.
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
	id := k.start(k.write("broken.yaml", fmt.Sprintf(`
application: %[1]s
targets: {prod: {account: prod, namespace: %[1]s}}
manifests:
  - inline: |%[2]s
      ---
      apiVersion: batch/v1
      kind: Job
      metadata: {name: migrate}
      spec:
        backoffLimit: 0
        template: {spec: {restartPolicy: Never, containers: [{name: migrate, image: "lab/tool:1", args: [no-such-command]}]}}
data: {databases: [{name: orders, engine: mongodb, target: prod, workload: statefulset/mongo, connection: "mongodb://mongo:27017/"}]}
`, ns, mongoAt("1.24"))))
	d := k.until(id, "at its end", delivery.final)
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
