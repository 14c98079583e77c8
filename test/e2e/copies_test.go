//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// refusedCopy is a copy of production's database that cannot or must not be made.
type refusedCopy struct {
	name       string
	production func(manifests string) string // how production's manifests differ
	staging    func(manifests string) string // how the target's do
	before     func(t *testing.T, k clusters)
	step       string // more keys of copyData
	says       []string
	within     time.Duration // how long the delivery may take
}

func replaced(old, new string) func(string) string {
	return func(s string) string { return strings.ReplaceAll(s, old, new) }
}

func refusedCopies() []refusedCopy {
	return []refusedCopy{
		{name: "a selector that matches no pod", before: func(t *testing.T, k clusters) {
			k.prod.patch(k.namespace(), "services", "mongo", `{"spec":{"selector":{"app":"mongodb"}}}`)
		}, says: []string{"no Service of namespace", "selects PREFIX-shop/StatefulSet/mongo"}},
		{name: "a database of which nothing runs", before: func(t *testing.T, k clusters) {
			k.prod.patch(k.namespace(), "statefulsets.apps", "mongo", `{"spec":{"replicas":0}}`)
			k.eventually("the database has stopped", func() error {
				if left := k.prod.names(k.namespace(), "pods"); len(left) > 0 {
					return fmt.Errorf("there are %v", left)
				}
				return nil
			})
		}, says: []string{"no pod of PREFIX-shop/StatefulSet/mongo is ready", "whether its selector matches its pods"}},
		{name: "a snapshot that never becomes ready", production: func(s string) string {
			return strings.ReplaceAll(s, "storageClassName: cow", "storageClassName: PREFIX")
		}, before: func(t *testing.T, k clusters) {}, step: ", timeout: {duration: 80, unit: seconds}",
			says: []string{"the twins of orders were not made within 1m20s", "VolumeSnapshot", "was not ready to use within"}, within: 140 * time.Second},
		{name: "another StorageClass", staging: replaced("storageClassName: cow", "storageClassName: PREFIX"), before: func(t *testing.T, k clusters) {
			k.class(t, k.staging, "other.example", "")
		}, says: []string{"StorageClass PREFIX of account staging is of driver other.example", "the copy is a snapshot of driver cow.csi.sluice.dev"}},
		{name: "no such StorageClass", staging: replaced("storageClassName: cow", "storageClassName: PREFIX"), says: []string{"account staging has no StorageClass PREFIX"}},
		{name: "a namespace with other labels", before: func(t *testing.T, k clusters) {
			k.staging.apply(t, "", "namespaces", fmt.Sprintf(`{kind: Namespace, metadata: {name: %s-base, labels: {team: theirs}}}`, k.namespace()))
			k.staging.apply(t, k.namespace()+"-base", "services", `{kind: Service, metadata: {name: mongo}, spec: {ports: [{port: 27017}], selector: {app: theirs}}}`)
		}, says: []string{"namespace PREFIX-shop-base of account staging", "somebody else made it"}},
		{name: "a claim that Sluice did not make", before: func(t *testing.T, k clusters) { k.theirs(t, "") },
			says: []string{"claim data-mongo-0 of namespace PREFIX-shop was not made by Sluice", "replace: true"}},
		{name: "no room for the copy's claim", before: func(t *testing.T, k clusters) {
			k.staging.apply(t, "", "namespaces", fmt.Sprintf(`{kind: Namespace, metadata: {name: %s}}`, k.namespace()))
			k.staging.apply(t, k.namespace(), "resourcequotas", `{kind: ResourceQuota, metadata: {name: q}, spec: {hard: {requests.storage: 1Mi}}}`)
			k.eventually("the quota is in force", func() error {
				if k.staging.text(k.namespace(), "resourcequotas", "q", "status", "hard", "requests.storage") == "" {
					return errors.New("its controller has not counted yet")
				}
				return nil
			})
		}, says: []string{"exceeded quota", "raise the namespace's ResourceQuota"}},
		{name: "whenScaled: Delete", before: func(t *testing.T, k clusters) {
			k.theirs(t, ", persistentVolumeClaimRetentionPolicy: {whenScaled: Delete}")
		}, step: ", replace: true", says: []string{"persistentVolumeClaimRetentionPolicy deletes the claims", "whenScaled: Retain"}},
	}
}

// TestCopiesThatCannotBeMade: each is refused or has failed within its time with its reason, everything that was there before is
// there afterwards, and nothing of the copy is.
func TestCopiesThatCannotBeMade(t *testing.T) {
	for _, c := range refusedCopies() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k := newClusters(t)
			ns, named := k.namespace(), strings.NewReplacer("PREFIX", k.prefix)
			production, staging := mongoAt("1.17"), mongoAt("1.24")
			if c.production != nil {
				production = c.production(production)
				k.class(t, k.prod, "cow.csi.sluice.dev", "snapshots: unready")
			}
			if c.staging != nil {
				staging = c.staging(staging)
			}
			k.install(named.Replace(production))
			w := write(t, k.orders(k.prod, ns), 1)
			w.wait(k.site, 10)
			w.end()
			if c.before != nil {
				c.before(t, k)
			}
			if t.Failed() {
				return
			}
			was := k.objects()
			id := k.copies(named.Replace(staging), c.step, "")
			d := k.ended(id, "FAILED")
			defer func() {
				if t.Failed() {
					t.Logf("%s", k.status(id))
				}
			}()
			copying := d.step(stepOf(d, "copyData"))
			took := copying.Ended.Sub(copying.Started)
			t.Logf("after %s: %s", took.Round(time.Second), d.Reason)
			for _, s := range c.says {
				says(t, d.Reason, named.Replace(s))
			}
			if c.within != 0 && (took <= 0 || took > c.within) {
				t.Errorf("it took %s, allowed are %s", took, c.within)
			}
			k.unchanged(was)
		})
	}
}

// TestCopiesOfUnusualVolumes copies what is unusual and can be copied: a volume without any room left, of a class that waits for
// its first consumer, of a workload whose claims go with it.
func TestCopiesOfUnusualVolumes(t *testing.T) {
	k := newClusters(t)
	ns := k.namespace()
	late := strings.ReplaceAll(mongoAt("1.17"), "storageClassName: cow", "storageClassName: cow-late")
	k.install(strings.Replace(late, "replicas: 1", "replicas: 1\n        persistentVolumeClaimRetentionPolicy: {whenScaled: Delete, whenDeleted: Delete}", 1))
	orders := k.orders(k.prod, ns)
	w := write(t, orders, 1)
	w.wait(k.site, 100)
	w.end()
	k.run(t, k.prod, "data-mongo-0", "fill", "/data/ballast")
	before := time.Now()
	was := k.objects()
	id := k.copies(late, "", "")
	k.ended(id, "SUCCEEDED")
	w.holds(t, k.orders(k.staging, ns), before)
	for _, at := range []string{ns, ns + "-base"} {
		if class := k.staging.text(at, "persistentvolumeclaims", "data-mongo-0", "spec", "storageClassName"); class != "cow-late" {
			t.Errorf("the claim of namespace %s is of class %s", at, class)
		}
	}
	now := k.objects()
	for name, uid := range was {
		if now[name] != uid {
			t.Errorf("%s is gone", name)
		}
	}
}

// theirs has somebody else run the same database in the target's namespace.
func (k clusters) theirs(t *testing.T, more string) {
	t.Helper()
	id := k.start(k.write("theirs.yaml", fmt.Sprintf(`
application: %[1]s-theirs
targets: {staging: {account: staging, namespace: %[1]s}}
manifests:
  - inline: |%[2]s
`, k.namespace(), strings.Replace(mongoAt("1.17"), "replicas: 1", "replicas: 1"+strings.ReplaceAll(more, ", ", "\n        "), 1))))
	k.ended(id, "SUCCEEDED")
}

// class makes a StorageClass of the test's own name.
func (k clusters) class(t *testing.T, c cluster, driver, parameters string) {
	t.Helper()
	c.apply(t, "", "storageclasses.storage.k8s.io", fmt.Sprintf(`{kind: StorageClass, metadata: {name: %s}, provisioner: %s, parameters: {%s}}`, k.prefix, driver, parameters))
	t.Cleanup(func() {
		if err := c.of("", "storageclasses.storage.k8s.io").Delete(context.Background(), k.prefix, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// objects are those of the test in both clusters, with their UIDs and how often what is wanted of them was changed. Pods and what controllers keep beside them come and go; the
// namespaces that Sluice makes for copies stay, empty but for the journal of what was applied there.
func (k clusters) objects() map[string]string {
	k.t.Helper()
	found := map[string]string{}
	for _, c := range []cluster{k.prod, k.staging} {
		for resource, at := range map[string][]string{
			"namespaces": {"metadata", "name"}, "persistentvolumes": {"spec", "claimRef", "namespace"},
			"volumesnapshotcontents.snapshot.storage.k8s.io": {"spec", "volumeSnapshotRef", "namespace"},
			"volumesnapshots.snapshot.storage.k8s.io":        {"metadata", "namespace"}, "persistentvolumeclaims": {"metadata", "namespace"},
			"statefulsets.apps": {"metadata", "namespace"}, "services": {"metadata", "namespace"}, "jobs.batch": {"metadata", "namespace"},
			"configmaps": {"metadata", "namespace"}, "secrets": {"metadata", "namespace"}, "serviceaccounts": {"metadata", "namespace"},
			"roles.rbac.authorization.k8s.io": {"metadata", "namespace"}, "rolebindings.rbac.authorization.k8s.io": {"metadata", "namespace"},
			"networkpolicies.networking.k8s.io": {"metadata", "namespace"}, "resourcequotas": {"metadata", "namespace"},
		} {
			list, err := c.of("", resource).List(context.Background(), metav1.ListOptions{})
			if err != nil {
				k.t.Fatal(err)
			}
			for _, o := range list.Items {
				ns, _, _ := unstructured.NestedString(o.Object, at...)
				stays := resource == "namespaces" && o.GetLabels()["app.kubernetes.io/managed-by"] == "sluice" || o.GetLabels()["sluice.dev/journal"] != "" ||
					resource == "configmaps" && o.GetName() == "kube-root-ca.crt" || resource == "serviceaccounts" && o.GetName() == "default"
				if strings.HasPrefix(ns, k.prefix) && !stays {
					found[fmt.Sprintf("%s: %s %s/%s", c.name, resource, o.GetNamespace(), o.GetName())] = fmt.Sprintf("%s, generation %d", o.GetUID(), o.GetGeneration())
				}
			}
		}
	}
	return found
}

// unchanged holds that the objects are those that were there.
func (k clusters) unchanged(was map[string]string) {
	k.t.Helper()
	k.eventually("nothing of the copy is left", func() error {
		now := k.objects()
		maps.DeleteFunc(now, func(name, is string) bool { return was[name] == is })
		if len(now) > 0 {
			return fmt.Errorf("there are %s", strings.Join(slices.Sorted(maps.Keys(now)), "; "))
		}
		return nil
	})
	now := k.objects()
	for name, is := range was {
		if now[name] != is {
			k.t.Errorf("%s is %q, and was %q", name, now[name], is)
		}
	}
}

// apply makes an object; its version is left out.
func (c cluster) apply(t *testing.T, namespace, resource, text string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatal(err)
	}
	version := "v1"
	if _, group, ok := strings.Cut(resource, "."); ok {
		version = group + "/v1"
	}
	o.SetAPIVersion(version)
	made, err := c.of(namespace, resource).Create(t.Context(), o, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// patch changes an object as somebody else would.
func (c cluster) patch(namespace, resource, name, body string) {
	c.t.Helper()
	if _, err := c.of(namespace, resource).Patch(context.Background(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{FieldManager: "somebody"}); err != nil {
		c.t.Fatal(err)
	}
}

// run runs the lab's tool with a claim at /data until it has ended.
func (k clusters) run(t *testing.T, c cluster, claim string, args ...string) {
	t.Helper()
	pod := c.apply(t, k.namespace(), "pods", fmt.Sprintf(`{kind: Pod, metadata: {generateName: tool-}, spec: {restartPolicy: Never, terminationGracePeriodSeconds: 0,
		containers: [{name: c, image: "lab/tool:1", args: [%s], volumeMounts: [{name: d, mountPath: /data}]}],
		volumes: [{name: d, persistentVolumeClaim: {claimName: %s}}]}}`, strings.Join(args, ", "), claim))
	k.eventually(fmt.Sprintf("tool %v has ended", args), func() error {
		if phase := c.text(k.namespace(), "pods", pod.GetName(), "status", "phase"); phase != "Succeeded" {
			return fmt.Errorf("it is %s", phase)
		}
		return nil
	})
	if err := c.of(k.namespace(), "pods").Delete(t.Context(), pod.GetName(), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}
