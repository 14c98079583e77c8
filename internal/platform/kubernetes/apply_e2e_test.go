//go:build e2e

package kubernetes

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/json"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

const (
	ns      = "applied"
	website = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {team: shop}}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: "shop:1", ports: [{containerPort: 80}], env: [{name: A, value: a}]}
`
	others = `
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue}
---
apiVersion: v1
kind: Secret
metadata: {name: password}
stringData: {password: hush-hush}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
`
)

var inNS = platform.Options{Namespace: ns, Delivery: "d1"}

// fresh gives a test the namespace, empty but there.
func fresh(t *testing.T) (*Platform, context.Context) {
	t.Helper()
	l := theLab(t)
	p := l.connect(t)
	empty(t, p, ns)
	t.Cleanup(func() { empty(t, p, ns) })
	o := objectOf(t, "{apiVersion: v1, kind: Namespace, metadata: {name: applied}}")
	if _, err := p.dynamic.Resource(namespaces()).Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return p, t.Context()
}

// by has somebody else make objects: kubectl apply, Helm or kubectl create.
func by(t *testing.T, p *Platform, who, text string) {
	t.Helper()
	for _, o := range objectsOf(t, text) {
		r, err := p.kinds.of(o.GroupVersionKind())
		if err != nil {
			t.Fatal(err)
		}
		if who == "kubectl-client-side-apply" {
			body, err := json.Marshal(o.Unstructured.Object)
			if err != nil {
				t.Fatal(err)
			}
			label(o.Object, []string{"metadata", "annotations"}, "kubectl.kubernetes.io/last-applied-configuration", string(body))
		}
		if _, err := p.at(r, ns).Create(t.Context(), &o.Unstructured, metav1.CreateOptions{FieldManager: who}); err != nil {
			t.Fatal(err)
		}
	}
}

// snapshotOf is every object of the namespace that people write, without what only the cluster counts.
func snapshotOf(t *testing.T, p *Platform) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, kind := range []string{"Deployment", "ConfigMap", "Secret", "Service", "StatefulSet", "HorizontalPodAutoscaler", "PodDisruptionBudget", "HTTPRoute"} {
		all, err := p.List(t.Context(), kind, ns)
		if fault.Is(err, fault.NotFound) {
			continue // not every cluster has routes
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range all {
			if o.GetLabels()[journalLabel] != "" || o.GetName() == "kube-root-ca.crt" {
				continue
			}
			fields := []string{"resourceVersion", "generation", "managedFields"}
			if o.GetLabels()[deliveryLabel] != "" {
				fields = append(fields, "uid", "creationTimestamp") // each delivery makes its own
			}
			for _, f := range fields {
				unstructured.RemoveNestedField(o.Object, "metadata", f)
			}
			a := o.GetAnnotations()
			delete(a, "deployment.kubernetes.io/revision") // counted by the controller
			if len(a) == 0 {
				a = nil
			}
			o.SetAnnotations(a)
			unstructured.RemoveNestedField(o.Object, "status")
			body, err := json.Marshal(o.Unstructured.Object)
			if err != nil {
				t.Fatal(err)
			}
			out[o.Ref().String()] = string(body)
		}
	}
	return out
}

func same(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %s is\n%s\nand was\n%s", what, k, got[k], v)
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			t.Errorf("%s: %s is there and was not", what, k)
		}
	}
}

func changed(text string) string {
	return strings.NewReplacer("shop:1", "shop:2", "blue", "green", "hush-hush", "psst", "team: shop", "team: store", ", env: [{name: A, value: a}]", "",
		"port: 80}", "port: 81}").Replace(text)
}

// TestFirstDelivery delivers onto objects that others have made, and takes it back: byte for byte, and the owners of the
// fields are who they were.
func TestFirstDelivery(t *testing.T) {
	for who, adopt := range map[string][]string{"kubectl-client-side-apply": nil, "kubectl-create": nil, "helm": {"helm"}} {
		t.Run(who, func(t *testing.T) {
			p, ctx := fresh(t)
			p.c.Adopt = append(p.c.Adopt, adopt...)
			by(t, p, who, website+others)
			before := snapshotOf(t, p)
			ref := manifest.Ref{Kind: "Deployment", Namespace: ns, Name: "web"}
			owners := managersOf(t, p, ref)
			changes, err := p.Apply(ctx, "d1/a", objectsOf(t, changed(website+others)), inNS)
			if err != nil {
				t.Fatal(err)
			}
			live, err := p.Get(ctx, ref)
			if err != nil {
				t.Fatal(err)
			}
			c, _, _ := unstructured.NestedSlice(live.Object, "spec", "template", "spec", "containers")
			if first := c[0].(map[string]any); first["image"] != "shop:2" || first["env"] != nil {
				t.Errorf("what the new manifest does not name is still there: %v", first)
			}
			for _, ch := range changes {
				body, _ := json.Marshal(ch)
				if strings.Contains(string(body), "aHVzaC1odXNo") || strings.Contains(string(body), "hush-hush") {
					t.Errorf("the change of %s tells the Secret", ch.Ref)
				}
			}
			if err := p.Revert(ctx, "d1/r", changes); err != nil {
				t.Fatal(err)
			}
			same(t, "after the revert", snapshotOf(t, p), before)
			if got := managersOf(t, p, ref); !reflect.DeepEqual(got, owners) {
				t.Errorf("the fields belong to %v and belonged to %v", got, owners)
			}
		})
	}
}

// managersOf tells who owns what, but for the controllers' status.
func managersOf(t *testing.T, p *Platform, ref manifest.Ref) map[string]string {
	t.Helper()
	live, err := p.read(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, m := range live.GetManagedFields() {
		if m.Subresource != "status" && m.Manager != "kube-controller-manager" {
			out[m.Manager+"/"+string(m.Operation)+"/"+m.Subresource] = m.FieldsV1.GetRawString()
		}
	}
	return out
}

// TestConflict meets a controller that holds a field.
func TestConflict(t *testing.T) {
	p, ctx := fresh(t)
	by(t, p, "kubectl-client-side-apply", website+others)
	r := p.dynamic.Resource(deployments()).Namespace(ns)
	argo := objectOf(t, strings.Replace(website, "shop:1", "shop:9", 1))
	if _, err := r.Apply(ctx, "web", argo, metav1.ApplyOptions{FieldManager: "argocd-controller", Force: true}); err != nil {
		t.Fatal(err)
	}
	before := snapshotOf(t, p)
	next := objectsOf(t, others+"---"+changed(website))
	_, err := p.Apply(ctx, "d1/a", next, inNS)
	for what, err := range map[string]error{"applied": err, "asked beforehand": p.Check(ctx, next, inNS)} {
		if !fault.Is(err, fault.Conflict) {
			t.Fatalf("%s: kind %q: %v", what, fault.KindOf(err), err)
		}
		for _, part := range []string{`.spec.template.spec.containers[name="web"].image`, `"argocd-controller"`, `"shop:9"`, `"shop:2"`, "test.yaml:"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %s is missing in: %v", what, part, err)
			}
		}
	}
	forced := inNS
	forced.Force = true
	if err := p.Check(ctx, next, forced); err != nil {
		t.Errorf("asked beforehand, with force: %v", err)
	}
	if err := p.Check(ctx, next, platform.Options{Namespace: "nobody-made-it"}); err != nil {
		t.Errorf("asked about a namespace that is made with them: %v", err)
	}
	same(t, "after the refusal", snapshotOf(t, p), before)
}

// TestOthersSince changes what was delivered before it is taken back.
func TestOthersSince(t *testing.T) {
	p, ctx := fresh(t)
	by(t, p, "kubectl-client-side-apply", website+others)
	changes, err := p.Apply(ctx, "d1/a", objectsOf(t, changed(website+others)), inNS)
	if err != nil {
		t.Fatal(err)
	}
	r := p.dynamic.Resource(deployments()).Namespace(ns)
	patch := []byte(`{"metadata":{"labels":{"team":"ops"},"annotations":{"note":"mine"}}}`)
	if _, err := r.Patch(ctx, "web", types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "kubectl-patch"}); err != nil {
		t.Fatal(err)
	}
	if err := p.Revert(ctx, "d1/r", changes); err != nil {
		t.Fatal(err)
	}
	live, err := p.Get(ctx, manifest.Ref{Kind: "Deployment", Namespace: ns, Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	c, _, _ := unstructured.NestedSlice(live.Object, "spec", "template", "spec", "containers")
	if live.GetLabels()["team"] != "ops" || live.GetAnnotations()["note"] != "mine" || c[0].(map[string]any)["image"] != "shop:1" {
		t.Errorf("labels %v, annotations %v, containers %v", live.GetLabels(), live.GetAnnotations(), c)
	}
	told, err := p.dynamic.Resource(events()).Namespace(ns).List(ctx, metav1.ListOptions{FieldSelector: "reason=LeftAlone"})
	if err != nil || len(told.Items) != 1 || !strings.HasSuffix(fmt.Sprint(told.Items[0].Object["message"]), "keep: metadata.labels.team") {
		t.Errorf("it was not told: %v, %v", told, err)
	}
}

// TestKilledAtEveryWrite dies at each write of an apply and of its revert, and goes on with the same keys: the end is the same.
func TestKilledAtEveryWrite(t *testing.T) {
	p, ctx := fresh(t)
	by(t, p, "kubectl-client-side-apply", website+others)
	extra := "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra}\ndata: {a: b}\n"
	objects := objectsOf(t, changed(website+others)+extra)
	before := snapshotOf(t, p)
	var after map[string]string
	for n := int64(0); ; n++ {
		key := fmt.Sprintf("d1/%d", n)
		mortal, d := mortal(t, p, n)
		_, died := mortal.Apply(ctx, key+"/a", objects, inNS)
		changes, err := p.Apply(ctx, key+"/a", objects, inNS)
		if err != nil {
			t.Fatalf("after %d writes: %v", n, err)
		}
		if got := snapshotOf(t, p); after == nil {
			after = got
		} else {
			same(t, fmt.Sprintf("applied with %d writes before the end", n), got, after)
		}
		again, err := p.Apply(ctx, key+"/a", objects, inNS)
		if err != nil || !reflect.DeepEqual(again, changes) {
			t.Errorf("the same key gives other changes: %v, %v", again, err)
		}
		d.left.Store(n)
		mortalErr := mortal.Revert(ctx, key+"/r", changes)
		if err := p.Revert(ctx, key+"/r", changes); err != nil {
			t.Fatalf("revert after %d writes: %v", n, err)
		}
		same(t, fmt.Sprintf("reverted with %d writes before the end", n), snapshotOf(t, p), before)
		if died == nil && mortalErr == nil {
			t.Logf("%d writes and more are the whole", n)
			return
		}
	}
}
