//go:build e2e

package csi

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/kube"
	"github.com/sluice-cd/sluice/internal/volume"
)

// source makes a claim in production that holds rows, and cuts it.
func (l *lab) source(t *testing.T) (volume.Place, volume.Copy) {
	t.Helper()
	p := l.claim(t, prod, l.namespace(t, prod, "prod"), "data-db-0", class)
	l.write(t, p, "rows", "rows of production")
	return p, l.cut(t, p, "cut")
}

func sourceOf(p volume.Place) []volume.Source {
	return []volume.Source{{Account: p.Account, Namespace: p.Namespace, Claim: p.Claim}}
}

func (l *lab) cut(t *testing.T, p volume.Place, id string) volume.Copy {
	t.Helper()
	d := l.driver(p.Account)
	c, err := d.Cut(t.Context(), l.name+"/"+id, l.name, sourceOf(p))
	if err == nil {
		err = d.Ready(t.Context(), c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// mine returns what an account has of the test's copies, by kind and name.
func (l *lab) mine(t *testing.T, account string) (found []string) {
	t.Helper()
	for _, k := range []kind{snapshots(), contents(), claims()} {
		all, err := l.cluster(account).list(t.Context(), k, "", kube.DeliveryLabel+"="+kube.LabelValue(l.name))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range all {
			found = append(found, o.String())
		}
	}
	return found
}

func TestCopyGoesToAnotherCluster(t *testing.T) {
	l := theLab(t)
	from, cut := l.source(t)
	to := volume.Place{Account: staging, Namespace: l.namespace(t, staging, "target"), Claim: "data-db-0", Class: late}
	start := time.Now()
	k, err := l.driver(prod).Clone(t.Context(), l.name+"/candidate", l.name, cut, []volume.Place{to})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("handed on and claimed within %s", time.Since(start))
	claim, err := l.cluster(staging).get(t.Context(), claims(), to.Namespace, to.Claim)
	if err != nil || claim.text("status", "phase") != "Pending" {
		t.Errorf("before it has a consumer the claim is %s, %v", claim.text("status", "phase"), err)
	}
	content, err := l.cluster(staging).get(t.Context(), contents(), "", nameOf(k.ID(), 0))
	if err != nil || content.text("spec", "deletionPolicy") != retain || content.text("spec", "sourceVolumeMode") != "Filesystem" ||
		content.text("spec", "volumeSnapshotRef", "uid") == "" {
		t.Errorf("what is handed on: %v, %v", content, err)
	}
	if rows, _ := l.read(t, to, "rows"); rows != "rows of production" {
		t.Errorf("the other cluster's copy holds %q", rows)
	}
	for account, want := range map[string]string{prod: cut.ID(), staging: k.ID()} {
		listed, err := l.driver(account).List(t.Context(), l.name)
		if err != nil || len(listed) != 1 || listed[0].ID() != want || listed[0].Info().CutAt.IsZero() {
			t.Errorf("account %s lists %+v, %v", account, listed, err)
		}
	}
	if err := l.driver(prod).Delete(t.Context(), cut); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), staging) {
		t.Errorf("a copy with a clone in another account could be deleted: %v", err)
	}
	// What was handed on goes and leaves production's snapshot alone; then that goes as well.
	if err := l.driver(staging).Delete(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	if left := l.mine(t, staging); len(left) != 0 {
		t.Errorf("left in staging: %v", left)
	}
	twin := volume.Place{Account: prod, Namespace: from.Namespace, Claim: "twin"}
	k2, err := l.driver(prod).Clone(t.Context(), l.name+"/twin", l.name, cut, []volume.Place{twin})
	if err != nil {
		t.Fatal(err)
	}
	if rows, _ := l.read(t, twin, "rows"); rows != "rows of production" {
		t.Errorf("production's own copy holds %q afterwards", rows)
	}
	for _, c := range []volume.Copy{k2, cut} {
		if err := l.driver(prod).Delete(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if left := l.mine(t, prod); len(left) != 0 {
		t.Errorf("left in production: %v", left)
	}
}

// TestUnmountedClones: a clone that nobody has mounted has no volume. It can be cloned, and cannot be swapped in.
func TestUnmountedClones(t *testing.T) {
	l := theLab(t)
	from, cut := l.source(t)
	base := volume.Place{Account: prod, Namespace: l.name + "-base", Claim: "data-db-0", Own: true, Class: late}
	l.clean(t, prod, base.Namespace)
	k, err := l.driver(prod).Clone(t.Context(), l.name+"/base", l.name, cut, []volume.Place{base})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.driver(prod).Swap(t.Context(), l.name+"/swap", sourceOf(from), k, time.Time{}); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "no volume yet") {
		t.Errorf("swapped in: %v", err)
	}
	to := volume.Place{Account: prod, Namespace: from.Namespace, Claim: "candidate"}
	if _, err := l.driver(prod).Clone(t.Context(), l.name+"/candidate", l.name, k, []volume.Place{to}); err != nil {
		t.Fatal(err)
	}
	if rows, _ := l.read(t, to, "rows"); rows != "rows of production" {
		t.Errorf("the clone's clone holds %q", rows)
	}
}

// TestRefusals asks for what cannot or must not be done. Each is refused in its time with its reason, and leaves what is there.
func TestRefusals(t *testing.T) {
	l := theLab(t)
	from, cut := l.source(t)
	target := l.namespace(t, staging, "target")
	theirs := l.claim(t, staging, target, "theirs", class)
	l.write(t, theirs, "rows", "theirs")
	l.apply(t, staging, kind{storageClasses().GroupVersionResource, "StorageClass"}, fmt.Sprintf("{metadata: {name: %s}, provisioner: other.example}", l.name))
	t.Cleanup(func() {
		c := l.cluster(staging)
		if o, err := c.get(context.Background(), storageClasses(), "", l.name); err != nil || c.delete(context.Background(), storageClasses(), o) != nil {
			t.Error("the class is left behind")
		}
	})
	full := l.namespace(t, staging, "full")
	l.apply(t, staging, coreKind("resourcequotas", "ResourceQuota"), fmt.Sprintf("{metadata: {name: q, namespace: %s}, spec: {hard: {requests.storage: 1Mi}}}", full))
	l.counted(t, full, "q")
	for _, c := range []struct {
		name string
		to   volume.Place
		kind fault.Kind
		says []string
	}{
		{"a class of another driver", volume.Place{Namespace: target, Claim: "x", Class: l.name}, fault.Invalid, []string{"other.example", "cow.csi.sluice.dev"}},
		{"no such class", volume.Place{Namespace: target, Claim: "x", Class: "none"}, fault.NotFound, []string{"StorageClass none"}},
		{"too small", volume.Place{Namespace: target, Claim: "x", Bytes: 16 << 20}, fault.Invalid, []string{"16777216", "33554432"}},
		{"a namespace of somebody else", volume.Place{Namespace: target, Claim: "x", Own: true}, fault.Denied, []string{target, "somebody else made it"}},
		{"no such namespace", volume.Place{Namespace: l.name + "-none", Claim: "x"}, fault.NotFound, []string{l.name + "-none"}},
		{"a claim of somebody else", theirs, fault.Denied, []string{"not made by Sluice", "replace: true"}},
		{"no room", volume.Place{Namespace: full, Claim: "x"}, fault.Denied, []string{"exceeded quota", "raise the namespace's ResourceQuota"}},
		{"an account that is not there", volume.Place{Account: "nowhere", Namespace: target, Claim: "x"}, fault.NotFound, []string{"nowhere"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.to.Account == "" {
				c.to.Account = staging
			}
			k, err := l.driver(prod).Clone(t.Context(), l.name+"/"+c.name, l.name, cut, []volume.Place{c.to})
			if !fault.Is(err, c.kind) {
				t.Fatalf("%+v, %v (%s)", k, err, fault.KindOf(err))
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q is not said by: %v", s, err)
				}
			}
			if left := l.mine(t, staging); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
	if rows, _ := l.read(t, theirs, "rows"); rows != "theirs" {
		t.Errorf("the claim of somebody else holds %q", rows)
	}
	l.claim(t, prod, from.Namespace, "more", class)
	two := append(sourceOf(from), volume.Source{Account: prod, Namespace: from.Namespace, Claim: "more"})
	if _, err := l.driver(prod).Cut(t.Context(), l.name+"/two", l.name, two); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "VolumeGroupSnapshot") {
		t.Errorf("two claims: %v", err)
	}
}

// counted waits until a quota of staging is in force.
func (l *lab) counted(t *testing.T, namespace, quota string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := l.cluster(staging).await(ctx, coreKind("resourcequotas", "ResourceQuota"), namespace, quota, func(o *object) (bool, error) {
		status, _ := o.Object["status"].(map[string]any)
		return status["hard"] != nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestForeignClaimIsReplaced: what somebody else's claim held is kept as a copy, and goes with it.
func TestForeignClaimIsReplaced(t *testing.T) {
	l := theLab(t)
	_, cut := l.source(t)
	theirs := l.claim(t, staging, l.namespace(t, staging, "target"), "data-db-0", class)
	l.write(t, theirs, "rows", "theirs")
	held := l.volume(t, theirs)
	to := theirs
	to.Replace = true
	d := l.driver(staging)
	k, err := d.Clone(t.Context(), l.name+"/candidate", l.name, cut, []volume.Place{to})
	if err != nil {
		t.Fatal(err)
	}
	if rows, _ := l.read(t, theirs, "rows"); rows != "rows of production" {
		t.Errorf("the claim holds %q", rows)
	}
	aside := l.name + "/candidate/replaced/data-db-0"
	listed, err := d.List(t.Context(), l.name)
	if err != nil || len(listed) != 2 || listed[1].ID() != aside {
		t.Fatalf("listed %+v, %v", listed, err)
	}
	// The next copy takes the place of what Sluice made, without being allowed to replace anything.
	if _, err := d.Clone(t.Context(), l.name+"/next", l.name, cut, []volume.Place{theirs}); err != nil {
		t.Fatal(err)
	}
	again, err := d.List(t.Context(), l.name)
	if err != nil || len(again) != 2 || again[0].ID() != aside || again[1].ID() == k.ID() {
		t.Errorf("listed %+v, %v", again, err)
	}
	if !l.volumeExists(t, theirs, held) {
		t.Fatal("the volume of somebody else is gone")
	}
	if err := d.Delete(t.Context(), listed[1]); err != nil {
		t.Fatal(err)
	}
	if l.volumeExists(t, theirs, held) {
		t.Error("the volume whose class lets it go is still there")
	}
}

// TestNeverReady: what the storage does not do is told within the deadline with what it says, and nothing is left.
func TestNeverReady(t *testing.T) {
	l := theLab(t)
	quick := New(prod, l.client, nil, Deadlines{Cut: 40 * time.Second, Bound: 40 * time.Second})
	t.Cleanup(func() {
		c := l.cluster(prod)
		if v, err := c.get(context.Background(), volumes(), "", l.name); err == nil {
			if err := c.delete(context.Background(), volumes(), v); err != nil {
				t.Error(err)
			}
		}
	})
	n := l.namespace(t, prod, "prod")
	// A volume that the storage does not have.
	l.apply(t, prod, volumes(), fmt.Sprintf(`{metadata: {name: %s}, spec: {capacity: {storage: 32Mi}, accessModes: [ReadWriteOnce], persistentVolumeReclaimPolicy: Retain,
		storageClassName: %s, csi: {driver: cow.csi.sluice.dev, volumeHandle: none}, claimRef: {namespace: %s, name: data}}}`, l.name, class, n))
	l.apply(t, prod, claims(), fmt.Sprintf(`{metadata: {name: data, namespace: %s}, spec: {storageClassName: %s, accessModes: [ReadWriteOnce], volumeName: %s,
		resources: {requests: {storage: 32Mi}}}}`, n, class, l.name))
	claim, err := l.cluster(prod).get(t.Context(), claims(), n, "data")
	if err != nil || l.driver(prod).bind(t.Context(), l.cluster(prod), claim) != nil {
		t.Fatal("the claim is not bound to the volume that was made for it")
	}
	start := time.Now()
	_, err = quick.Cut(t.Context(), l.name+"/cut", l.name, []volume.Source{{Account: prod, Namespace: n, Claim: "data"}})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "not cut within 40s") || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("%v", err)
	}
	if took := time.Since(start); took > 2*time.Minute {
		t.Errorf("it took %s", took)
	}
	if left := l.mine(t, prod); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	// A snapshot that the storage of the other cluster does not have.
	r := record{Copy: volume.CopyInfo{ID: l.name + "/k", Owner: l.name, Sources: []volume.Source{{Account: prod, Namespace: n, Claim: "data"}},
		Places: []volume.Place{{Account: staging, Namespace: l.namespace(t, staging, "target"), Claim: "data"}}}, Shape: shape{Driver: "cow.csi.sluice.dev"}}
	origin := object{}
	origin.Unstructured = claim.DeepCopy()
	origin.Object["status"] = map[string]any{"snapshotHandle": "snapshot-that-never-was"}
	err = quick.handOn(t.Context(), l.cluster(staging), r, origin)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "not ready to use within 40s") || !strings.Contains(err.Error(), "snapshot-that-never-was") {
		t.Errorf("%v", err)
	}
	// What was cut short is listed as such, so that it can be deleted.
	listed, err := l.driver(staging).List(t.Context(), l.name)
	if err != nil || len(listed) != 1 || !listed[0].Info().CutAt.IsZero() {
		t.Fatalf("listed %+v, %v", listed, err)
	}
	if err := l.driver(staging).Delete(t.Context(), listed[0]); err != nil {
		t.Fatal(err)
	}
	if left := l.mine(t, staging); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
