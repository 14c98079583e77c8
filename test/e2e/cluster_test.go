//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

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

// kubectl runs it on the cluster of a kubeconfig, and returns what it prints.
func kubectl(t *testing.T, kubeconfig, in string, args ...string) string {
	t.Helper()
	cmd := exec.Command("kubectl", append([]string{"--kubeconfig", kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

const deliveryKind = "deliveries.sluice.dev/v1alpha1"

// define makes the cluster know Deliveries. Those that a failed test leaves in its namespace would wait for a controller, and are let go.
func (c cluster) define(namespace string) {
	c.t.Helper()
	kubectl(c.t, c.file, "", "apply", "--server-side", "--force-conflicts", "-f", "../../config/crd")
	c.t.Cleanup(func() {
		for _, d := range c.names(namespace, deliveryKind) {
			kubectl(c.t, c.file, "", "-n", namespace, "patch", "delivery", d, "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
		}
	})
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

// copies starts a delivery that copies production's database to staging before these manifests go there. With is what copyData says
// besides, and then what follows.
func (k clusters) copies(manifests, with, then string) string {
	k.t.Helper()
	return k.start(k.write("copy.yaml", fmt.Sprintf(`
application: %[1]s
targets:
  prod: {account: prod, namespace: %[1]s}
  staging: {account: staging, namespace: %[1]s, constraints: {beforeDeployment: [{copyData: {database: orders%[3]s}}]%[4]s}}
manifests:
  - targets: [staging]
    inline: |%[2]s
data: {databases: [{name: orders, engine: mongodb, target: prod, workload: statefulset/mongo, connection: "mongodb://mongo:27017/"}]}
`, k.namespace(), manifests, with, then)))
}

// measured logs what a test has measured and keeps it in the file that SLUICE_MEASURES names: of tests that pass go test says nothing.
func measured(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf(format, args...)
	path := os.Getenv("SLUICE_MEASURES")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, t.Name()+": "+format+"\n", args...); err != nil {
		t.Fatal(err)
	}
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
