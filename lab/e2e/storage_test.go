//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/sluice-cd/sluice/lab/cluster"
	"github.com/sluice-cd/sluice/lab/kube"
	"github.com/sluice-cd/sluice/lab/labtest"
)

const database = `
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: db
        image: lab/tool:1
        args: [http, db]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {storageClassName: %s, accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
`

const snapshot = `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: cut}
spec: {source: {persistentVolumeClaimName: data-db-0}}
`

const claimOfSnapshot = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: copy}
spec:
  storageClassName: %s
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: %s}}
  dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: cut}
`

const snapshotVersion = "snapshot.storage.k8s.io/v1"

// onClaim is the spec of a pod that runs the lab's tool with a claim at /data.
func onClaim(claim string, args ...string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = strconv.Quote(a)
	}
	return fmt.Sprintf(`{restartPolicy: Never, containers: [{name: c, image: "lab/tool:1", args: [%s], volumeMounts: [{name: d, mountPath: /data}]}],
		volumes: [{name: d, persistentVolumeClaim: {claimName: %s}}]}`, strings.Join(quoted, ", "), claim)
}

// startDatabase runs the StatefulSet, writes into its volume, and returns the URL of the file.
func startDatabase(t *testing.T, c *kube.Client, n, class, content string) string {
	t.Helper()
	labtest.Apply(t, c, n, fmt.Sprintf(database, class))
	pod := labtest.Wait(t, c, kube.Ref{APIVersion: "v1", Kind: "Pod", Namespace: n, Name: "db-0"}, kube.Condition("Ready"))
	ip, _, err := unstructured.NestedString(pod.Object, "status", "podIP")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + ip + ":8080/file/data/rows"
	call(t, http.MethodPut, url, content)
	return url
}

// cut snapshots the running database's volume and returns the name of the content.
func cut(t *testing.T, c *kube.Client, n string) (content string) {
	t.Helper()
	labtest.Apply(t, c, n, snapshot)
	s := labtest.Wait(t, c, kube.Ref{APIVersion: snapshotVersion, Kind: "VolumeSnapshot", Namespace: n, Name: "cut"}, kube.Field("true", "status", "readyToUse"))
	content, _, err := unstructured.NestedString(s.Object, "status", "boundVolumeSnapshotContentName")
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestSnapshotOfARunningVolumeIsRestored(t *testing.T) {
	for _, class := range []string{cluster.StorageClass, cluster.LateStorageClass} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			c := clusters.Prod
			n := labtest.Namespace(t, c)
			url := startDatabase(t, c, n, class, "before")
			cut(t, c, n)
			call(t, http.MethodPut, url, "after")
			// The copy may be larger than what it is made from, and then has that size.
			labtest.Apply(t, c, n, fmt.Sprintf(claimOfSnapshot, class, "128Mi"))
			if class == cluster.LateStorageClass {
				staysPending(t, c, n, "copy")
			}
			if said := labtest.Run(t, c, n, "reader", onClaim("copy", "read", "/data/rows")); said != "before" {
				t.Errorf("the copy holds %q", said)
			}
			if said := call(t, http.MethodGet, url, ""); said != "after" {
				t.Errorf("the original holds %q", said)
			}
			size, err := strconv.Atoi(strings.TrimSpace(labtest.Run(t, c, n, "size", onClaim("copy", "size", "/data"))))
			if err != nil || size < 100<<20 || size > 128<<20 {
				t.Errorf("the copy's file system has %d bytes (%v), its claim asks for 128Mi", size, err)
			}
		})
	}
}

// staysPending waits until the controller says that it waits for a pod.
func staysPending(t *testing.T, c *kube.Client, n, claim string) {
	t.Helper()
	events, err := c.CoreV1().Events(n).Watch(t.Context(), metav1.ListOptions{FieldSelector: "reason=WaitForFirstConsumer,involvedObject.name=" + claim})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	for e := range events.ResultChan() {
		if e.Type == watch.Added || e.Type == watch.Modified {
			break
		}
	}
	found, err := c.CoreV1().PersistentVolumeClaims(n).Get(t.Context(), claim, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if found.Status.Phase != corev1.ClaimPending {
		t.Errorf("a claim that waits for its first consumer is %s before there is one", found.Status.Phase)
	}
}

const handedOn = `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata: {name: %[1]s}
spec:
  deletionPolicy: Retain
  driver: ` + cluster.Driver + `
  source: {snapshotHandle: %[2]s}
  sourceVolumeMode: Filesystem
  volumeSnapshotRef: {namespace: %[1]s, name: cut}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: cut, namespace: %[1]s}
spec: {source: {volumeSnapshotContentName: %[1]s}}
`

func TestSnapshotIsHandedToAnotherCluster(t *testing.T) {
	prod, staging := clusters.Prod, clusters.Staging
	from, to := labtest.Namespace(t, prod), labtest.Namespace(t, staging)
	startDatabase(t, prod, from, cluster.StorageClass, "rows of production")
	content := kube.Ref{APIVersion: snapshotVersion, Kind: "VolumeSnapshotContent", Name: cut(t, prod, from)}
	handle, _, err := unstructured.NestedString(labtest.Wait(t, prod, content, kube.Exists).Object, "status", "snapshotHandle")
	if err != nil {
		t.Fatal(err)
	}
	labtest.Apply(t, staging, to, fmt.Sprintf(handedOn, to, handle))
	given := kube.Ref{APIVersion: snapshotVersion, Kind: "VolumeSnapshot", Namespace: to, Name: "cut"}
	labtest.Wait(t, staging, given, kube.Field("true", "status", "readyToUse"))
	labtest.Apply(t, staging, to, fmt.Sprintf(claimOfSnapshot, cluster.LateStorageClass, "64Mi"))
	if said := labtest.Run(t, staging, to, "reader", onClaim("copy", "read", "/data/rows")); said != "rows of production" {
		t.Errorf("the copy in the other cluster holds %q", said)
	}

	// What is handed on is retained: its deletion leaves production's snapshot alone.
	snapshots := staging.Dynamic.Resource(snapshotResource("volumesnapshots"))
	if err := snapshots.Namespace(to).Delete(t.Context(), "cut", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := staging.Dynamic.Resource(snapshotResource("volumesnapshotcontents")).Delete(t.Context(), to, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	labtest.Apply(t, prod, from, fmt.Sprintf(claimOfSnapshot, cluster.StorageClass, "64Mi"))
	if said := labtest.Run(t, prod, from, "reader", onClaim("copy", "read", "/data/rows")); said != "rows of production" {
		t.Errorf("production's own copy holds %q afterwards", said)
	}
}

func TestHandleThatNamesNothingNeverBecomesReady(t *testing.T) {
	c := clusters.Staging
	n := labtest.Namespace(t, c)
	labtest.Apply(t, c, n, fmt.Sprintf(handedOn, n, "snapshot-that-never-was"))
	t.Cleanup(func() { deleteContent(t, c, n) })
	labtest.Wait(t, c, kube.Ref{APIVersion: snapshotVersion, Kind: "VolumeSnapshotContent", Name: n}, func(o *unstructured.Unstructured) (bool, error) {
		message, found, err := unstructured.NestedString(o.Object, "status", "error", "message")
		return found && strings.Contains(message, "snapshot-that-never-was"), err
	})
}

func TestVolumesHaveTheSizeOfTheirClaims(t *testing.T) {
	c := clusters.Prod
	n := labtest.Namespace(t, c)
	labtest.Apply(t, c, n, `{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: small}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 32Mi}}}}`)
	written, err := strconv.Atoi(strings.TrimSpace(labtest.Run(t, c, n, "fill", onClaim("small", "fill", "/data/zeros"))))
	if err != nil || written < 16<<20 || written > 32<<20 {
		t.Errorf("a claim of 32Mi took %d bytes (%v)", written, err)
	}
}

func snapshotResource(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: name}
}

// deleteContent removes what belongs to no namespace.
func deleteContent(t *testing.T, c *kube.Client, name string) {
	// The test's context has ended by now.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.Dynamic.Resource(snapshotResource("volumesnapshotcontents")).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}
