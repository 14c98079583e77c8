//go:build e2e

package csi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/kube"
	"github.com/sluice-cd/sluice/internal/kube/kubetest"
	"github.com/sluice-cd/sluice/internal/volume"
)

// identities applies what is shipped, under the test's own names and for its namespace, and returns the two users.
func (l *lab) identities(t *testing.T, namespace string) (copier, restorer string) {
	t.Helper()
	system := l.namespace(t, prod, "system")
	names := strings.NewReplacer("sluice-system", system, "sluice-copier", l.name+"-copier", "sluice-restorer", l.name+"-restorer",
		"sluice-as-", l.name+"-as-", `"production-"`, `"`+namespace+`-"`, `"production"`, `"`+namespace+`"`, "namespace: production", "namespace: "+namespace,
		"data-mongo-0", "data-db-0")
	for _, file := range []string{"copier.yaml", "restorer.yaml"} {
		text, err := os.ReadFile(filepath.Join("..", "..", "..", "config", "identities", file))
		if err != nil {
			t.Fatal(err)
		}
		r := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(names.Replace(string(text)))))
		for {
			doc, err := r.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			l.install(t, doc)
		}
	}
	return "system:serviceaccount:" + system + ":" + l.name + "-copier", "system:serviceaccount:" + system + ":" + l.name + "-restorer"
}

func (l *lab) install(t *testing.T, doc []byte) {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(doc, &o.Object); err != nil {
		t.Fatal(err)
	}
	gvk := o.GroupVersionKind()
	plural := strings.ToLower(gvk.Kind) + "s"
	if gvk.Kind == "ValidatingAdmissionPolicy" {
		plural = "validatingadmissionpolicies"
	}
	in := l.cluster(prod).in(kind{schema.GroupVersionResource{Group: gvk.Group, Version: gvk.Version, Resource: plural}, gvk.Kind}, o.GetNamespace())
	made, err := in.Create(t.Context(), o, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
	if err != nil {
		t.Fatal(err)
	}
	if warnings, _, _ := unstructured.NestedSlice(made.Object, "status", "typeChecking", "expressionWarnings"); len(warnings) > 0 {
		t.Errorf("%s: %v", o.GetName(), warnings)
	}
	t.Cleanup(func() {
		if err := in.Delete(context.Background(), o.GetName(), metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
}

// TestIdentities copies, swaps, goes back and cleans up with no more rights than are shipped, and tries what they must not give.
// Then the API server's log has exactly the deletions that are meant, and what production held is still there.
func TestIdentities(t *testing.T) {
	l, start := theLab(t), time.Now()
	live := l.claim(t, prod, l.namespace(t, prod, "prod"), "data-db-0", class)
	l.write(t, live, "rows", "rows of production")
	copier, restorer := l.identities(t, live.Namespace)
	p := l.platforms[prod]
	as := func(user string) cluster {
		client, err := p.As(user)
		if err != nil {
			t.Fatal(err)
		}
		return cluster{prod, client, client}
	}
	// The policies hold from some moment on, which nothing tells but their effect.
	l.inForce(t, as(copier), live.Namespace)
	d := New(prod, func(string) (Clients, error) { return Clients{as(copier).client, as(restorer).client}, nil }, nil, Deadlines{})
	original := l.volume(t, live)

	cut, err := d.Cut(t.Context(), l.name+"/cut", l.name, sourceOf(live))
	if err == nil {
		err = d.Ready(t.Context(), cut)
	}
	if err != nil {
		t.Fatal(err)
	}
	twin := volume.Place{Account: prod, Namespace: live.Namespace + "-upgrade", Claim: "data-db-0", Own: true}
	l.clean(t, prod, twin.Namespace)
	k, err := d.Clone(t.Context(), l.name+"/clone", l.name, cut, []volume.Place{twin})
	if err != nil {
		t.Fatal(err)
	}
	l.write(t, twin, "rows", "upgraded")
	old, err := d.Swap(t.Context(), l.name+"/swap", sourceOf(live), k, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if rows, _ := l.read(t, live, "rows"); rows != "upgraded" {
		t.Errorf("after the swap production holds %q", rows)
	}
	l.refused(t, as(copier), as(restorer), live, original)
	if _, err := d.Swap(t.Context(), l.name+"/back", sourceOf(live), old, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if rows, _ := l.read(t, live, "rows"); rows != "rows of production" || l.volume(t, live) != original {
		t.Errorf("after the way back production holds %q on %s, was on %s", rows, l.volume(t, live), original)
	}
	for _, c := range []volume.Copy{k, cut} {
		if err := d.Delete(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if left := l.mine(t, prod); len(left) != 0 {
		t.Errorf("left: %v", left)
	}

	var deleted []string
	who := map[string]string{copier: "copier", restorer: "restorer"}
	for _, c := range kubetest.Calls(t, os.Getenv(variables()[prod]), start, true) {
		if c.Verb == "delete" && c.Did() && who[c.As()] != "" {
			deleted = append(deleted, fmt.Sprintf("%s: %s %s/%s", who[c.As()], c.On.Resource, c.On.Namespace, c.On.Name))
		}
	}
	want := []string{
		"restorer: persistentvolumeclaims " + live.Namespace + "/data-db-0", // the swap: its volume is retained
		"copier: persistentvolumeclaims " + twin.Namespace + "/data-db-0",
		"restorer: persistentvolumeclaims " + live.Namespace + "/data-db-0", // and back
		"copier: volumesnapshots " + twin.Namespace + "/" + nameOf(k.ID(), 0),
		"copier: volumesnapshotcontents /" + nameOf(k.ID(), 0),
		"copier: volumesnapshots " + live.Namespace + "/" + nameOf(cut.ID(), 0),
	}
	if !slices.Equal(deleted, want) {
		t.Errorf("deleted were\n%s\nwant\n%s", strings.Join(deleted, "\n"), strings.Join(want, "\n"))
	}
	if rows, _ := l.read(t, live, "rows"); rows != "rows of production" {
		t.Errorf("in the end production holds %q", rows)
	}
}

// inForce waits until the copier's policy refuses what its role alone would allow.
func (l *lab) inForce(t *testing.T, copier cluster, namespace string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		_, err := copier.in(claims(), namespace).Create(ctx, unlabelled(namespace), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "what the copier makes bears the label") {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the policy is not in force: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func unlabelled(namespace string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": map[string]any{"name": "x", "namespace": namespace},
		"spec": map[string]any{"accessModes": []any{"ReadWriteOnce"}, "resources": map[string]any{"requests": map[string]any{"storage": "1Mi"}}}}}
}

// refused tries what neither identity may do. Original is the volume that was taken out of service.
func (l *lab) refused(t *testing.T, copier, restorer cluster, live volume.Place, original string) {
	t.Helper()
	theirs := l.claim(t, prod, live.Namespace, "theirs", class)
	l.write(t, theirs, "rows", "theirs")
	l.apply(t, prod, snapshots(), fmt.Sprintf("{metadata: {name: theirs, namespace: %s}, spec: {source: {persistentVolumeClaimName: theirs}}}", live.Namespace))
	if err := l.driver(prod).ready(t.Context(), l.cluster(prod), l.object(t, snapshots(), live.Namespace, "theirs"), time.Minute); err != nil {
		t.Fatal(err)
	}
	content, err := l.cluster(prod).contentOf(t.Context(), l.object(t, snapshots(), live.Namespace, "theirs"))
	if err != nil {
		t.Fatal(err)
	}
	labelled := []byte(`{"metadata":{"labels":{"` + copyLabel + `":"d"}}}`)
	remove := func(c cluster, k kind, namespace, name string) error {
		return c.in(k, namespace).Delete(t.Context(), name, metav1.DeleteOptions{})
	}
	change := func(c cluster, k kind, namespace, name string, patch []byte) error {
		_, err := c.in(k, namespace).Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
	// What a delivery has applied bears its label, and is no copy.
	for _, o := range []object{l.object(t, claims(), live.Namespace, live.Claim), l.object(t, claims(), live.Namespace, "theirs"), l.object(t, snapshots(), live.Namespace, "theirs")} {
		applied := []byte(`{"metadata":{"labels":{"` + kube.DeliveryLabel + `":"d"}}}`)
		if err := change(l.cluster(prod), kindOf(o), live.Namespace, o.GetName(), applied); err != nil {
			t.Fatal(err)
		}
	}
	mine := map[string]any{"name": l.name + "-mine", "labels": map[string]any{copyLabel: "d"}}
	for what, err := range map[string]error{
		"the copier deletes production's claim":  remove(copier, claims(), live.Namespace, live.Claim),
		"the copier deletes somebody's claim":    remove(copier, claims(), live.Namespace, "theirs"),
		"the copier deletes somebody's snapshot": remove(copier, snapshots(), live.Namespace, "theirs"),
		"the copier deletes somebody's content":  remove(copier, contents(), "", content.GetName()),
		"the copier deletes the old volume":      remove(copier, volumes(), "", original),
		"the copier gives a claim the label":     change(copier, claims(), live.Namespace, live.Claim, labelled),
		"the copier gives a snapshot the label":  change(copier, snapshots(), live.Namespace, "theirs", labelled),
		"the copier gives a content the label":   change(copier, contents(), "", content.GetName(), labelled),
		"the copier lets the old volume go":      change(copier, volumes(), "", original, []byte(`{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)),
		"the copier makes a content that does not retain": func() error {
			_, err := copier.create(t.Context(), contents(), map[string]any{"metadata": mine, "spec": map[string]any{"deletionPolicy": "Delete", "driver": "cow.csi.sluice.dev",
				"source": map[string]any{"snapshotHandle": content.text("status", "snapshotHandle")}, "volumeSnapshotRef": map[string]any{"namespace": live.Namespace, "name": "x"}}})
			return err
		}(),
		"the copier makes a claim of a volume that is there": func() error {
			o := unlabelled(live.Namespace)
			o.SetLabels(map[string]string{copyLabel: "d"})
			_ = unstructured.SetNestedField(o.Object, original, "spec", "volumeName")
			_, err := copier.in(claims(), live.Namespace).Create(t.Context(), o, metav1.CreateOptions{})
			return err
		}(),
		"the restorer deletes another claim":                  remove(restorer, claims(), live.Namespace, "theirs"),
		"the restorer deletes the old volume":                 remove(restorer, volumes(), "", original),
		"the restorer deletes a snapshot":                     remove(restorer, snapshots(), live.Namespace, "theirs"),
		"the restorer lets a volume go that is nobody's copy": change(restorer, volumes(), "", l.volume(t, theirs), []byte(`{"metadata":{"labels":{"a":"b"}}}`)),
	} {
		if !apierrors.IsForbidden(err) && !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if rows, _ := l.read(t, theirs, "rows"); rows != "theirs" {
		t.Errorf("what is somebody's holds %q", rows)
	}
	for _, k := range []kind{snapshots(), claims()} {
		if err := l.cluster(prod).delete(t.Context(), k, l.object(t, k, live.Namespace, "theirs")); err != nil {
			t.Fatal(err)
		}
	}
}

func (l *lab) object(t *testing.T, k kind, namespace, name string) object {
	t.Helper()
	o, err := l.cluster(prod).get(t.Context(), k, namespace, name)
	if err != nil {
		t.Fatal(err)
	}
	return o
}
