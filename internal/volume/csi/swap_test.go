package csi

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/volume"
)

// bench is a cluster in memory with production's claim on volume first and a clone of it on volume second. It does with claims and
// volumes what a cluster does, at once.
type bench struct {
	*fake.FakeDynamicClient
	live, twin volume.Place
	clone      volume.Copy

	made     int               // claims so far
	writes   int               // of Sluice
	dies     int               // at its nth write; 0: never
	unbound  bool              // claims stay Pending
	policies map[string]string // what another manager sets policies of volumes to
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{live: volume.Place{Account: "prod", Namespace: "production", Claim: "data-db-0"}, twin: volume.Place{Account: "prod", Namespace: "twin", Claim: "data-db-0"}}
	b.clone = volume.NewCopy(volume.CopyInfo{ID: "d1/clone", Owner: "d1", Sources: b.source(), Places: []volume.Place{b.twin}, CutAt: time.Now()})
	lists := map[schema.GroupVersionResource]string{}
	for _, k := range []kind{claims(), volumes(), pods(), events(), snapshots(), contents()} {
		lists[k.GroupVersionResource] = k.kind + "List"
	}
	b.FakeDynamicClient = fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists)
	b.PrependReactor("*", "*", b.write)
	b.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		if w, ok := a.(clienttesting.WatchActionImpl); ok && w.ListOptions.SendInitialEvents != nil {
			return true, nil, apierrors.NewInvalid(schema.GroupKind{}, "", nil) // it begins no watch with a list
		}
		return false, nil, nil
	})
	for _, name := range []string{"first", "second"} {
		b.put(t, volumes(), "", name, map[string]any{"metadata": map[string]any{"name": name, "uid": "volume-" + name}, "spec": map[string]any{
			"persistentVolumeReclaimPolicy": deletes, "storageClassName": "cow", "capacity": map[string]any{"storage": "32Mi"},
			"csi": map[string]any{"driver": "cow.csi.sluice.dev", "volumeHandle": name}}})
	}
	copied, err := record{Copy: b.clone.Info()}.metadata(b.twin.Namespace, b.twin.Claim)
	if err != nil {
		t.Fatal(err)
	}
	production := map[string]any{"namespace": b.live.Namespace, "name": b.live.Claim, "labels": map[string]any{"app": "db"}}
	for v, m := range map[string]map[string]any{"first": production, "second": copied} {
		_, err := b.cluster().create(t.Context(), claims(), map[string]any{"metadata": m, "spec": map[string]any{"volumeName": v, "accessModes": []any{"ReadWriteOnce"}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	b.writes = 0
	return b
}

func (b *bench) source() []volume.Source {
	return []volume.Source{{Account: b.live.Account, Namespace: b.live.Namespace, Claim: b.live.Claim}}
}

func (b *bench) cluster() cluster { return cluster{"prod", b, b} }

func (b *bench) driver() *Driver {
	return New("prod", func(string) (Clients, error) { return Clients{b, b}, nil }, nil, Deadlines{Bound: 2 * time.Second})
}

func (b *bench) put(t *testing.T, k kind, namespace, name string, o map[string]any) {
	t.Helper()
	u := &unstructured.Unstructured{Object: o}
	u.SetAPIVersion(k.GroupVersion().String())
	u.SetKind(k.kind)
	if err := b.Tracker().Create(k.GroupVersionResource, u, namespace); err != nil {
		t.Fatal(err)
	}
}

// write does what Sluice asks for, and then what the cluster does of itself.
func (b *bench) write(a clienttesting.Action) (bool, runtime.Object, error) {
	switch a.GetVerb() {
	case "create", "patch", "delete":
	default:
		return false, nil, nil
	}
	if b.writes++; b.dies != 0 && b.writes >= b.dies {
		return true, nil, errors.New("this Sluice is dead")
	}
	if a.GetResource() == claims().GroupVersionResource {
		if a, ok := a.(clienttesting.CreateActionImpl); ok {
			b.made++
			a.Object.(*unstructured.Unstructured).SetUID(types.UID(fmt.Sprintf("claim-%d", b.made)))
		}
		if a, ok := a.(clienttesting.DeleteActionImpl); ok {
			if err := b.reclaim(a.Namespace, a.Name); err != nil {
				return true, nil, err
			}
		}
	}
	done, o, err := clienttesting.ObjectReaction(b.Tracker())(a)
	if err != nil {
		return done, o, err
	}
	if c, ok := o.(*unstructured.Unstructured); ok && a.GetVerb() == "create" && c.GetKind() == claims().kind && !b.unbound {
		return done, o, b.bind(object{c})
	}
	if a, ok := a.(clienttesting.PatchActionImpl); ok && a.GetResource() == volumes().GroupVersionResource {
		err = b.patched(object{o.(*unstructured.Unstructured)})
	}
	return done, o, err
}

// patched does with a volume that was changed what others do: its other manager, and the cluster, to which a volume with the uid of a
// claim that there is not is Released, and one that is reserved for a claim is not.
func (b *bench) patched(v object) error {
	if policy := b.policies[v.GetName()]; policy != "" {
		return b.set(volumes(), "", v.GetName(), map[string]any{"spec": map[string]any{"persistentVolumeReclaimPolicy": policy}})
	}
	phase := "Available"
	if uid := v.text("spec", "claimRef", "uid"); uid != "" {
		phase = "Released"
		o, err := b.Tracker().Get(claims().GroupVersionResource, v.text("spec", "claimRef", "namespace"), v.text("spec", "claimRef", "name"))
		if err == nil && string(o.(*unstructured.Unstructured).GetUID()) == uid {
			phase = "Bound"
		}
	}
	if phase == "Released" && v.text("spec", "persistentVolumeReclaimPolicy") == deletes {
		return b.Tracker().Delete(volumes().GroupVersionResource, "", v.GetName())
	}
	return b.set(volumes(), "", v.GetName(), map[string]any{"status": map[string]any{"phase": phase}})
}

// set changes an object as somebody else than Sluice does.
func (b *bench) set(k kind, namespace, name string, fields map[string]any) error {
	body, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	_, _, err = clienttesting.ObjectReaction(b.Tracker())(clienttesting.NewPatchAction(k.GroupVersionResource, namespace, name, types.MergePatchType, body))
	return err
}

// bind binds a claim to the volume that it names.
func (b *bench) bind(claim object) error {
	err := b.set(volumes(), "", claim.text("spec", "volumeName"), map[string]any{"status": map[string]any{"phase": "Bound"}, "spec": map[string]any{
		"claimRef": map[string]any{"namespace": claim.GetNamespace(), "name": claim.GetName(), "uid": string(claim.GetUID())}}})
	if err != nil {
		return err
	}
	return b.set(claims(), claim.GetNamespace(), claim.GetName(), map[string]any{"status": map[string]any{"phase": "Bound"}})
}

// reclaim does with the volume of a claim that goes what its policy says.
func (b *bench) reclaim(namespace, name string) error {
	o, err := b.Tracker().Get(claims().GroupVersionResource, namespace, name)
	if err != nil {
		return err
	}
	claim := object{o.(*unstructured.Unstructured)}
	if claim.text("status", "phase") != "Bound" {
		return nil
	}
	v := claim.text("spec", "volumeName")
	if o, err = b.Tracker().Get(volumes().GroupVersionResource, "", v); err != nil {
		return err
	}
	if (object{o.(*unstructured.Unstructured)}).text("spec", "persistentVolumeReclaimPolicy") == deletes {
		return b.Tracker().Delete(volumes().GroupVersionResource, "", v)
	}
	return b.set(volumes(), "", v, map[string]any{"status": map[string]any{"phase": "Released"}})
}

// holds tells which volume production's claim is bound to, "" for none.
func (b *bench) holds(t *testing.T) string {
	t.Helper()
	o, err := b.Resource(claims().GroupVersionResource).Namespace(b.live.Namespace).Get(t.Context(), b.live.Claim, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	if err != nil || (object{o}).text("status", "phase") != "Bound" {
		return ""
	}
	return object{o}.text("spec", "volumeName")
}

// TestVolumeThatIsNotRetainedKeepsItsClaim: a volume whose policy somebody else sets back is not taken from its claim, however often
// the swap is asked for.
func TestVolumeThatIsNotRetainedKeepsItsClaim(t *testing.T) {
	b := newBench(t)
	b.policies = map[string]string{"first": deletes}
	for range 3 {
		if _, err := b.driver().Swap(t.Context(), "d1/swap", b.source(), b.clone, time.Time{}); !fault.Is(err, fault.Conflict) {
			t.Fatalf("%v", err)
		}
		if got := b.holds(t); got != "first" {
			t.Fatalf("production's claim holds %q", got)
		}
	}
	b.policies = nil
	if _, err := b.driver().Swap(t.Context(), "d1/swap", b.source(), b.clone, time.Time{}); err != nil || b.holds(t) != "second" {
		t.Fatalf("once nobody else manages it the claim holds %q, %v", b.holds(t), err)
	}
	if _, err := b.cluster().get(t.Context(), volumes(), "", "first"); err != nil {
		t.Errorf("production's first volume: %v", err)
	}
}

// TestHalfASwapIsTakenBack: whatever the last write of a swap was, production gets its volume back under another id, treated as it was,
// and what was to be swapped in can go.
func TestHalfASwapIsTakenBack(t *testing.T) {
	for _, unbound := range []bool{false, true} {
		for n, done := 1, false; !done; n++ {
			t.Run(fmt.Sprintf("unbound %t, dead at write %d", unbound, n), func(t *testing.T) {
				b := newBench(t)
				b.dies, b.unbound = n, unbound
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				_, err := b.driver().Swap(ctx, "d1/swap", b.source(), b.clone, time.Time{})
				cancel()
				done = b.writes < n
				if !done && err == nil {
					t.Fatal("the dead have swapped")
				}
				b.dies, b.unbound = 0, false
				swapped, there := b.find(t, "d1/swap")
				if !there && n > 1 {
					t.Fatal("the swap is not listed")
				}
				for range 2 { // the second time it is done
					if !there {
						break
					}
					if _, err := b.driver().Swap(t.Context(), "d1/back", b.source(), swapped, time.Time{}); err != nil {
						t.Fatal(err)
					}
				}
				b.isAsBefore(t)
			})
		}
	}
}

// TestTakingBackIsKilled: taking half a swap back is finished by the same call, whatever its last write was.
func TestTakingBackIsKilled(t *testing.T) {
	for half := 2; half <= 7; half++ {
		for n, done := 1, false; !done; n++ {
			t.Run(fmt.Sprintf("swap dead at write %d, back at %d", half, n), func(t *testing.T) {
				b := newBench(t)
				b.dies = half
				if _, err := b.driver().Swap(t.Context(), "d1/swap", b.source(), b.clone, time.Time{}); err == nil {
					t.Fatal("the dead have swapped")
				}
				swapped, _ := b.find(t, "d1/swap")
				b.writes, b.dies = 0, n
				_, err := b.driver().Swap(t.Context(), "d1/back", b.source(), swapped, time.Time{})
				if done = b.writes < n; done && err != nil {
					t.Fatal(err)
				}
				b.dies = 0
				if _, err := b.driver().Swap(t.Context(), "d1/back", b.source(), swapped, time.Time{}); err != nil {
					t.Fatal(err)
				}
				b.isAsBefore(t)
			})
		}
	}
}

func (b *bench) find(t *testing.T, id string) (volume.Copy, bool) {
	t.Helper()
	all, err := b.driver().List(t.Context(), "d1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.ID() == id {
			return c, true
		}
	}
	return volume.Copy{}, false
}

// isAsBefore checks that production has its volume as it had it, and that the clone can be deleted.
func (b *bench) isAsBefore(t *testing.T) {
	t.Helper()
	if got := b.holds(t); got != "first" {
		t.Fatalf("production's claim holds %q", got)
	}
	claim, err := b.cluster().get(t.Context(), claims(), b.live.Namespace, b.live.Claim)
	if err != nil || claim.GetLabels()["app"] != "db" {
		t.Errorf("production's claim is %v, %v", claim, err)
	}
	v, err := b.cluster().get(t.Context(), volumes(), "", "first")
	if err != nil || v.text("spec", "persistentVolumeReclaimPolicy") != deletes {
		t.Errorf("production's volume is no longer treated as it was: %v, %v", v, err)
	}
	if c, ok := b.find(t, "d1/swap"); ok {
		if err := b.driver().Delete(t.Context(), c); !fault.Is(err, fault.Denied) {
			t.Errorf("production's volume could be deleted: %v", err)
		}
	}
	if err := b.driver().Delete(t.Context(), b.clone); err != nil {
		t.Fatal(err)
	}
	if _, err := b.cluster().get(t.Context(), volumes(), "", "second"); !fault.Is(err, fault.NotFound) {
		t.Errorf("the clone's volume is left: %v", err)
	}
	if got := b.holds(t); got != "first" {
		t.Errorf("afterwards production's claim holds %q", got)
	}
}
