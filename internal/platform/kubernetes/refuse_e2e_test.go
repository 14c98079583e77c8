//go:build e2e

package kubernetes

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

const store = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 0
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: db, image: "db:1"}]}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
`

// TestRefusals: each says what is wrong, and nothing was written, not even what came before it in the list.
func TestRefusals(t *testing.T) {
	p, ctx := fresh(t)
	by(t, p, "kubectl-client-side-apply", website+"---"+store)
	before := snapshotOf(t, p)
	for what, c := range map[string]struct {
		text string
		kind fault.Kind
		says []string
	}{
		"a claim template that grows": {strings.Replace(store, "1Mi", "2Mi", 1), fault.Invalid, []string{"applied/StatefulSet/db", "cannot be changed", "another name"}},
		"another selector":            {strings.ReplaceAll(website, "app: web", "app: shop"), fault.Invalid, []string{"spec.selector", "cannot be changed once it is made"}},
		"an unknown field":            {strings.Replace(website, "replicas: 0", "replica: 0", 1), fault.Invalid, []string{"test.yaml:", "replica"}},
		"an unknown kind":             {"apiVersion: example.org/v1\nkind: Nothing\nmetadata: {name: x}\n", fault.NotFound, []string{"test.yaml:", "no kind Nothing of example.org/v1"}},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := p.Apply(ctx, "d1/"+what, objectsOf(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: first}\n---\n"+c.text), inNS)
			if !fault.Is(err, c.kind) {
				t.Errorf("kind %q: %v", fault.KindOf(err), err)
			}
			for _, s := range c.says {
				if err == nil || !strings.Contains(err.Error(), s) {
					t.Errorf("%q is missing in: %v", s, err)
				}
			}
			same(t, "after the refusal", snapshotOf(t, p), before)
		})
	}
}

// TestDenied lacks a role, and says for what.
func TestDenied(t *testing.T) {
	p, ctx := fresh(t)
	config := rest.CopyConfig(p.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "nobody"}
	poor, err := connect(Config{Account: "poor"}, config)
	if err != nil {
		t.Fatal(err)
	}
	_, err = poor.Apply(ctx, "d1/a", objectsOf(t, website), inNS)
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), `User "nobody" cannot get resource "secrets"`) {
		t.Errorf("kind %q: %v", fault.KindOf(err), err)
	}
	if _, err := poor.Watch(ctx, []manifest.Ref{{Kind: "Deployment", Namespace: ns, Name: "web"}}); !fault.Is(err, fault.Denied) {
		t.Errorf("watching: %v", err)
	}
	config = rest.CopyConfig(p.config)
	config.TLSClientConfig.CertData, config.TLSClientConfig.KeyData, config.BearerToken = nil, nil, "expired"
	old, err := connect(Config{Account: "old"}, config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Get(ctx, manifest.Ref{Kind: "Secret", Namespace: ns, Name: "x"}); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "renew") {
		t.Errorf("with an expired token: %v", err)
	}
}

// TestClaimsSurvive: a StatefulSet whose claims go when it is scaled to nothing is not stopped, nor one that becomes such a set
// when it is about to be.
func TestClaimsSurvive(t *testing.T) {
	p, ctx := fresh(t)
	s := &shop{Platform: p, t: t, ctx: ctx}
	by(t, p, "kubectl-client-side-apply", strings.Replace(store, "replicas: 0", "replicas: 1", 1))
	db := manifest.Ref{Kind: "StatefulSet", Namespace: ns, Name: "db"}
	config := rest.CopyConfig(p.config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return &ahead{next: next, of: "/statefulsets/db/scale", do: func() {
			s.patchAs("kubectl-patch", db, `{"spec":{"persistentVolumeClaimRetentionPolicy":{"whenScaled":"Delete"}}}`)
		}}
	})
	late, err := connect(p.c, config)
	s.must(err)
	for _, by := range []*Platform{late, p} {
		if err := by.Scale(ctx, "d1/s", db, 0); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "whenScaled: Retain") {
			t.Errorf("kind %q: %v", fault.KindOf(err), err)
		}
	}
}

// ahead does something just before the first request to a path.
type ahead struct {
	next http.RoundTripper
	of   string
	do   func()
	once sync.Once
}

func (a *ahead) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, a.of) {
		a.once.Do(a.do)
	}
	return a.next.RoundTrip(r)
}

// TestClaimsOutliveTheirStatefulSet: a delivery that made a StatefulSet is taken back, and its claims stay, although they are to
// go with it and its pod has never been ready. So they do where the set is deleted by its delivery.
func TestClaimsOutliveTheirStatefulSet(t *testing.T) {
	ref := manifest.Ref{Kind: "StatefulSet", Namespace: ns, Name: "db"}
	for how, end := range map[string]func(*shop, []platform.Change) error{
		"taken back": func(s *shop, changes []platform.Change) error { return s.Revert(s.ctx, "d1/r", changes) },
		"deleted":    func(s *shop, _ []platform.Change) error { return s.Delete(s.ctx, "d1/x", "d1", []manifest.Ref{ref}) },
	} {
		t.Run(how, func(t *testing.T) {
			p, ctx := fresh(t)
			s := &shop{Platform: p, t: t, ctx: ctx}
			text := strings.NewReplacer("replicas: 0", "replicas: 1", "  serviceName", "  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete}\n  serviceName",
				`image: "db:1"`, "image: program, env: [{name: SLUICE_TEST_PROGRAM, value: http}], readinessProbe: {httpGet: {path: /, port: 1}}").Replace(store)
			changes, err := p.Apply(ctx, "d1/a", []manifest.Object{theLab(t).adapt(objectsOf(t, text)[0])}, inNS)
			s.must(err)
			s.is(ref, time.Minute, func(s platform.State) bool { return strings.Contains(s.Message, "pod db-0 is not ready yet") })
			claim, err := p.dynamic.Resource(claims()).Namespace(ns).Get(ctx, "data-db-0", metav1.GetOptions{})
			s.must(err)
			if owners := claim.GetOwnerReferences(); len(owners) != 1 || owners[0].Kind != "StatefulSet" {
				t.Fatalf("the claim's owners are %v", owners)
			}
			s.must(end(s, changes))
			// The set goes last: what it would take with it is gone before.
			s.is(ref, 2*time.Minute, func(s platform.State) bool { return !s.Exists })
			still, err := p.dynamic.Resource(claims()).Namespace(ns).Get(ctx, "data-db-0", metav1.GetOptions{})
			s.must(err)
			if still.GetUID() != claim.GetUID() || still.GetDeletionTimestamp() != nil || len(still.GetOwnerReferences()) != 0 {
				t.Errorf("the claim goes: it is %v", still.Object["metadata"])
			}
		})
	}
}

// TestDeleteKeepsWhatOthersLiveBy: what a delivery has applied that belongs to no namespace is not deleted with the rest.
func TestDeleteKeepsWhatOthersLiveBy(t *testing.T) {
	p, ctx := fresh(t)
	s := &shop{Platform: p, t: t, ctx: ctx}
	const text = `
{apiVersion: v1, kind: Namespace, metadata: {name: sluice-test-kept}}
---
{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: sluice-test-kept}, value: 1}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}}
`
	others := []manifest.Ref{{Kind: "PriorityClass", Name: "sluice-test-kept"}, {Kind: "Namespace", Name: "sluice-test-kept"}}
	t.Cleanup(func() {
		for _, ref := range others {
			if in, err := p.where(ref); err != nil || in.Delete(context.Background(), ref.Name, metav1.DeleteOptions{}) != nil {
				t.Errorf("%s is not there any more, or cannot be deleted: %v", ref, err)
			}
		}
	})
	changes, err := p.Apply(ctx, "d1/a", objectsOf(t, text), inNS)
	s.must(err)
	var refs []manifest.Ref
	for _, c := range changes {
		c.Ref.Namespace = ns // as steps say it, which know no kinds
		refs = append(refs, c.Ref)
	}
	s.must(p.Delete(ctx, "d1/d", "d1", refs))
	if _, err := p.Get(ctx, manifest.Ref{Kind: "ConfigMap", Namespace: ns, Name: "settings"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("the settings are not deleted: %v", err)
	}
	for _, ref := range others {
		o, err := p.Get(ctx, ref)
		if err != nil || o.GetDeletionTimestamp() != nil {
			t.Errorf("%s is deleted: %v", ref, err)
		}
	}
}

// journaled are the Secrets that keep what was there before a delivery's changes.
func journaled(t *testing.T, p *Platform, delivery string) []unstructured.Unstructured {
	t.Helper()
	list, err := p.dynamic.Resource(secrets()).Namespace(ns).List(t.Context(), metav1.ListOptions{LabelSelector: journalLabel + "=true," + deliveryLabel + "=" + delivery})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// TestBigPreImage keeps what does not fit into one Secret, until it is to be forgotten.
func TestBigPreImage(t *testing.T) {
	p, ctx := fresh(t)
	var b strings.Builder
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"
	for x := uint64(1); b.Len() < 900<<10; x = x*6364136223846793005 + 1442695040888963407 {
		b.WriteByte(alphabet[x>>58]) // what does not compress
	}
	text := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: big}\ndata: {a: \"" + b.String() + "\"}\n"
	by(t, p, "kubectl-create", text)
	before := snapshotOf(t, p)
	changes, err := p.Apply(ctx, "d1/a", objectsOf(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: big}\ndata: {a: small}\n"), inNS)
	if err != nil {
		t.Fatal(err)
	}
	all := journaled(t, p, "d1")
	for _, s := range all {
		if fixed, _, _ := unstructured.NestedBool(s.Object, "immutable"); !fixed {
			t.Errorf("Secret %s may be changed", s.GetName())
		}
	}
	if len(all) < 3 {
		t.Errorf("%d Secrets keep it", len(all))
	}
	if err := p.Revert(ctx, "d1/r", changes); err != nil {
		t.Fatal(err)
	}
	same(t, "after the revert", snapshotOf(t, p), before)

	another := platform.Options{Namespace: ns, Delivery: "d2"}
	if _, err := p.Apply(ctx, "d2/a", objectsOf(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: small}\n"), another); err != nil {
		t.Fatal(err)
	}
	if err := p.Forget(ctx, ns, "d1"); err != nil {
		t.Fatal(err)
	}
	if n, others := len(journaled(t, p, "d1")), len(journaled(t, p, "d2")); n != 0 || others == 0 {
		t.Errorf("%d Secrets of the delivery that is forgotten are left, and %d of another one", n, others)
	}
}

// TestDefinition applies a kind and an object of it together.
func TestDefinition(t *testing.T) {
	p, ctx := fresh(t)
	crds, err := p.where(manifest.Ref{Kind: "CustomResourceDefinition"})
	if err != nil {
		t.Fatal(err)
	}
	remove := func() {
		_ = crds.Delete(context.Background(), "boats.sluice.test", metav1.DeleteOptions{})
		if err := p.await(context.Background(), manifest.Ref{Kind: "CustomResourceDefinition", Name: "boats.sluice.test"}, func(s platform.State) bool { return !s.Exists }); err != nil {
			t.Error(err)
		}
	}
	remove()
	t.Cleanup(remove)
	changes, err := p.Apply(ctx, "d1/a", objectsOf(t, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.sluice.test}
spec:
  group: sluice.test
  names: {kind: Boat, plural: boats}
  scope: Namespaced
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {sail: {type: string}}}}}}}
---
apiVersion: sluice.test/v1
kind: Boat
metadata: {name: tender}
spec: {sail: red}
`), inNS)
	if err != nil {
		t.Fatal(err)
	}
	boat := manifest.Ref{Kind: "Boat", Namespace: ns, Name: "tender"}
	if _, err := p.Get(ctx, boat); err != nil {
		t.Error(err)
	}
	if err := p.Revert(ctx, "d1/r", changes); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Get(ctx, boat); !fault.Is(err, fault.NotFound) {
		t.Errorf("what was created is still there: %v", err)
	}
	if _, err := crds.Get(ctx, "boats.sluice.test", metav1.GetOptions{}); err != nil {
		t.Errorf("the kind itself went with it, and so would all of its objects: %v", err)
	}
}

// TestKindsOfOneName: two groups have a kind of the same name, one of them in a version that is not the one that it prefers. The
// objects are told apart.
func TestKindsOfOneName(t *testing.T) {
	p, ctx := fresh(t)
	s := &shop{Platform: p, t: t, ctx: ctx}
	crds, err := p.where(manifest.Ref{Kind: "CustomResourceDefinition"})
	s.must(err)
	names := []string{"boats.sluice.test", "sails.sluice.test", "boats.sluice.example"}
	remove := func() {
		for _, name := range names {
			_ = crds.Delete(context.Background(), name, metav1.DeleteOptions{})
			if err := p.await(context.Background(), manifest.Ref{Kind: "CustomResourceDefinition", Name: name}, func(s platform.State) bool { return !s.Exists }); err != nil {
				t.Error(err)
			}
		}
	}
	remove()
	t.Cleanup(remove)
	var text strings.Builder
	for i, of := range [][]string{{"Boat", "v1alpha1"}, {"Sail", "v1"}, {"Boat", "v1"}} {
		plural, group, _ := strings.Cut(names[i], ".")
		text.WriteString(strings.NewReplacer("NAME", names[i], "GROUP", group, "KIND", of[0], "PLURAL", plural, "VERSION", of[1]).Replace(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: NAME}
spec:
  group: GROUP
  names: {kind: KIND, plural: PLURAL}
  scope: Namespaced
  versions:
  - {name: VERSION, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
---
`))
	}
	text.WriteString(`
{apiVersion: sluice.test/v1alpha1, kind: Boat, metadata: {name: tender}}
---
{apiVersion: sluice.example/v1, kind: Boat, metadata: {name: raft}}
`)
	_, err = p.Apply(ctx, "d1/a", objectsOf(t, text.String()), inNS)
	s.must(err)
	for name, version := range map[string]string{"tender": "sluice.test/v1alpha1", "raft": "sluice.example/v1"} {
		boat := manifest.Ref{Kind: "Boat", Namespace: ns, Name: name}
		s.is(boat, time.Minute, isReady)
		if o, err := p.Get(ctx, boat); err != nil || o.GetAPIVersion() != version {
			t.Errorf("%s is of %s: %v", name, o.GetAPIVersion(), err)
		}
	}
}

// TestAutoscaled leaves the number of pods to the autoscaler.
func TestAutoscaled(t *testing.T) {
	p, ctx := fresh(t)
	by(t, p, "kubectl-client-side-apply", strings.Replace(website, "replicas: 0", "replicas: 1", 1)+`
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec: {minReplicas: 3, maxReplicas: 9, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}
`)
	ref := manifest.Ref{Kind: "Deployment", Namespace: ns, Name: "web"}
	replicas := func() int64 {
		live, err := p.read(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		n, _ := replicasOf(live)
		return n
	}
	within, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	states, err := p.Watch(within, []manifest.Ref{ref})
	if err != nil {
		t.Fatal(err)
	}
	for range states {
		if replicas() == 3 { // a change of the number is a change of the object's status
			break
		}
	}
	cancel()
	if _, err := p.Apply(ctx, "d1/a", objectsOf(t, changed(website)), inNS); err != nil {
		t.Fatal(err)
	}
	if n := replicas(); n != 3 {
		t.Errorf("the manifest set the replicas to %d", n)
	}
}

// TestUnreachable needs no answer to give a reason.
func TestUnreachable(t *testing.T) {
	p, err := connect(Config{Account: "away"}, &rest.Config{Host: "https://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Apply(t.Context(), "d1/a", objectsOf(t, website), inNS)
	if !fault.Is(err, fault.Transient) || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("kind %q: %v", fault.KindOf(err), err)
	}
}
