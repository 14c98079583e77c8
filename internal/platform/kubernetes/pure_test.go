package kubernetes

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/restmapper"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

func parsed(t *testing.T, text string) map[string]any {
	t.Helper()
	var o map[string]any
	if err := yaml.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestValueAt(t *testing.T) {
	o := parsed(t, `
metadata: {annotations: {example.org/a.b: x, example: {org/a: wrong}}}
spec:
  replicas: 3
  finalizers: [one, two]
  containers:
  - {name: a, image: "a:1"}
  - name: web
    image: web:1
    ports: [{containerPort: 80, protocol: UDP}, {containerPort: 80, protocol: TCP, name: "h]t,tp"}]`)
	for path, want := range map[string]any{
		".spec.replicas":                     float64(3),
		`.spec.containers[name="web"].image`: "web:1",
		`.spec.containers[name="web"].ports[containerPort=80,protocol="TCP"].name`:    "h]t,tp",
		`.spec.containers[name="web"].ports[containerPort=80,name="h]t,tp"].protocol`: "TCP",
		".spec.containers[0].name":              "a",
		`.spec.finalizers[="two"]`:              "two",
		".metadata.annotations.example.org/a.b": "x",
		`.spec.containers[name="none"].image`:   nil,
		".spec.containers[9].name":              nil,
		".spec.none.image":                      nil,
		`.spec.containers[name="web`:            nil,
		".spec.replicas.more":                   nil,
	} {
		got, ok := valueAt(o, path)
		if n, isInt := got.(int64); isInt {
			got = float64(n)
		}
		if ok != (want != nil) || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %v (%v), not %v", path, got, ok, want)
		}
	}
}

func TestConflicts(t *testing.T) {
	err := &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonConflict, Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{
		{Type: metav1.CauseTypeFieldManagerConflict, Field: ".spec.replicas", Message: `conflict with "argocd-controller" with subresource "scale" using apps/v1 at 2026-01-01T00:00:00Z`},
		{Type: metav1.CauseTypeFieldManagerConflict, Field: `.spec.template.spec.containers[name="web"].image`, Message: `conflict with "kubectl-set" using apps/v1`},
		{Type: metav1.CauseTypeFieldValueInvalid, Field: "spec"},
	}}}}
	all := conflicts(fmt.Errorf("wrapped: %w", err))
	want := []conflict{{".spec.replicas", "argocd-controller"}, {`.spec.template.spec.containers[name="web"].image`, "kubectl-set"}}
	if !reflect.DeepEqual(all, want) {
		t.Fatalf("got %v", all)
	}
	p := &Platform{c: Config{Account: "prod", Adopt: kubectls()}}
	if p.adopted(all) || !p.adopted(all[1:]) {
		t.Error("kubectl is adopted, and nobody else")
	}
	o := manifest.Object{Origin: "m.yaml:3"}
	o.Object = parsed(t, "{kind: Deployment, metadata: {name: web, namespace: ns}, spec: {replicas: 2}}")
	live := manifest.Object{}
	live.Object = parsed(t, "{spec: {replicas: 5}}")
	got := p.contested(o, &live.Unstructured, all)
	if !fault.Is(got, fault.Conflict) {
		t.Errorf("kind %q", fault.KindOf(got))
	}
	for _, part := range []string{"m.yaml:3", "ns/Deployment/web", `.spec.replicas is held by "argocd-controller" with 5, the manifest says 2`, "adopt: of account prod"} {
		if !strings.Contains(got.Error(), part) {
			t.Errorf("%q is missing in: %v", part, got)
		}
	}
	if strings.Contains(got.Error(), "kubectl-set") {
		t.Errorf("what is adopted is no conflict: %v", got)
	}
	o.SetKind("Secret")
	if got := p.contested(o, &live.Unstructured, all); strings.Contains(got.Error(), "5") {
		t.Errorf("the value of a Secret is told: %v", got)
	}
}

func TestTakeBack(t *testing.T) {
	const before = "{spec: {replicas: 2, template: {containers: [{name: a, image: a1}, {name: b, image: b1}], gone: x}}}"
	const after = "{spec: {replicas: 3, template: {containers: [{name: a, image: a2}, {name: c, image: c1}], added: y}}}"
	for _, c := range []struct{ name, before, after, live, want, foreign string }{
		{"nobody else", before, after, after, before, ""},
		{"already back", before, after, before, before, ""},
		{"another replicas", before, after, strings.Replace(after, "replicas: 3", "replicas: 9", 1), strings.Replace(before, "replicas: 2", "replicas: 9", 1), "spec.replicas"},
		{"another image", before, after, strings.Replace(after, "a2", "a3", 1), strings.Replace(before, "a1", "a3", 1), "spec.template.containers[a].image"},
		{"a sidecar injected since", before, after, strings.Replace(after, "{name: c,", "{name: s, image: s1}, {name: c,", 1),
			"{spec: {replicas: 2, template: {containers: [{name: a, image: a1}, {name: b, image: b1}, {name: s, image: s1}], gone: x}}}", ""},
		{"a field that we never touched", "{a: {x: 1, y: 1}}", "{a: {x: 2, y: 1}}", "{a: {x: 2, y: 7, z: 1}}", "{a: {x: 1, y: 7, z: 1}}", ""},
		{"ours removed by others", "{a: {x: 1}}", "{a: {x: 2}}", "{a: {}}", "{a: {}}", "a.x"},
		{"added by us, removed by others", "{a: {}}", "{a: {x: 2}}", "{a: {}}", "{a: {}}", ""},
		{"a map that we emptied and others filled", "{a: {x: 1}}", "{}", "{a: {y: 1}}", "{a: {x: 1, y: 1}}", ""},
		{"a map that we filled and others too", "{}", "{a: {x: 1}}", "{a: {x: 1, y: 1}}", "{a: {y: 1}}", ""},
		{"a map that we filled", "{b: 1}", "{b: 1, a: {x: 1}}", "{b: 2, a: {x: 1}}", "{b: 2}", ""},
		{"a list without names", "{a: [1, 2]}", "{a: [1]}", "{a: [1, 3]}", "{a: [1, 3]}", "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, foreign := takeBack(parsed(t, c.before), parsed(t, c.after), parsed(t, c.live))
			if want := parsed(t, c.want); !reflect.DeepEqual(got, want) {
				t.Errorf("got %v\nnot %v", got, want)
			}
			if f := strings.Join(foreign, ","); f != c.foreign {
				t.Errorf("left to others: %q, not %q", f, c.foreign)
			}
		})
	}
}

// What a fence or a canary requires of pods belongs to neither side of what is taken back.
func TestRestoreKeepsFence(t *testing.T) {
	live := parsed(t, `
apiVersion: v1
kind: Service
metadata: {name: db, uid: u, labels: {sluice.dev/delivery: d}, annotations: {deployment.kubernetes.io/revision: "4", a: b}}
spec: {selector: {app: db, sluice.dev/open: "true"}, clusterIP: 10.0.0.1}
status: {x: 1}`)
	before := parsed(t, `{kind: Service, metadata: {annotations: {deployment.kubernetes.io/revision: "2", a: old}}, spec: {selector: {app: old}, clusterIP: 10.0.0.1}}`)
	want, foreign := takeBack(own(before), own(live), own(live))
	if len(foreign) != 0 {
		t.Error("left to others:", foreign)
	}
	got := restore(live, want)
	expect := parsed(t, `
apiVersion: v1
kind: Service
metadata: {name: db, uid: u, annotations: {deployment.kubernetes.io/revision: "4", a: old}}
spec: {selector: {app: old, sluice.dev/open: "true"}, clusterIP: 10.0.0.1}
status: {x: 1}`)
	if !reflect.DeepEqual(got, expect) {
		t.Errorf("got %v\nnot %v", got, expect)
	}
}

func TestRender(t *testing.T) {
	o := manifest.Object{Origin: "m.yaml:1"}
	o.Object = parsed(t, `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, resourceVersion: "4", uid: u, managedFields: []}
spec:
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}, annotations: {deploy.armory.io/replica-set-name: db-own}}
    spec: {containers: [{name: a, args: [x], env: [{name: E, value: old}, {name: F, value: f}]}, {name: b}]}
status: {replicas: 1}`)
	before := o.DeepCopy()
	got, err := render(o, platform.Options{Delivery: "d1", Annotate: map[string]string{revisionName: "db-other", "x/y": "z"}, Env: map[string]string{"E": "new"},
		Quarantine: &platform.Quarantine{Suffix: "-control", Args: []string{"--safe"}, Env: map[string]string{"Q": "1"}}})
	if err != nil {
		t.Fatal(err)
	}
	want := parsed(t, `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db-control, labels: {sluice.dev/delivery: d1}}
spec:
  selector: {matchLabels: {app: db, sluice.dev/twin: control}}
  template:
    metadata:
      labels: {app: db, sluice.dev/delivery: d1, sluice.dev/twin: control}
      annotations: {deploy.armory.io/replica-set-name: db-own, x/y: z}
    spec:
      containers:
      - {name: a, args: [x, --safe], env: [{name: F, value: f}, {name: E, value: new}, {name: Q, value: "1"}]}
      - {name: b, env: [{name: E, value: new}]}`)
	if !reflect.DeepEqual(got.Object, want) {
		t.Errorf("got %v\nnot %v", got.Object, want)
	}
	if !reflect.DeepEqual(&o.Unstructured, before) {
		t.Error("the given object was changed")
	}
}

func TestShares(t *testing.T) {
	for _, c := range []struct {
		n, percent     int64
		autoscaled     bool
		canary, stable int64
	}{
		{4, 0, false, 1, 4}, {4, 25, false, 1, 3}, {4, 26, false, 2, 2}, {4, 100, false, 4, 0}, {1, 10, false, 1, 0}, {3, 50, false, 2, 1},
		{10, 1, false, 1, 9}, {4, 0, true, 1, 4}, {4, 50, true, 4, 4}, {4, 20, true, 1, 4}, {4, 100, true, 4, 4}, {0, 50, false, 0, 0},
	} {
		if canary, stable := shares(c.n, c.percent, c.autoscaled); canary != c.canary || stable != c.stable {
			t.Errorf("%+v: got %d and %d", c, canary, stable)
		}
	}
}

func TestDiagnose(t *testing.T) {
	now := time.Now()
	waiting := func(reason string) corev1.PodStatus {
		return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", RestartCount: 2, State: corev1.ContainerState{
			Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: "m"}},
			LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 3, Reason: "Error"}}}}}
	}
	unscheduled := func(ago time.Duration) corev1.PodStatus {
		return corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable",
			Message: "no node", LastTransitionTime: metav1.NewTime(now.Add(-ago))}}}
	}
	for _, c := range []struct {
		status   corev1.PodStatus
		reason   string
		failed   bool
		after    time.Duration
		contains string
	}{
		{waiting("ImagePullBackOff"), "ImagePullBackOff", true, 0, "container c: m"},
		{waiting("ErrImagePull"), "ErrImagePull", false, 0, ""},
		{waiting("CrashLoopBackOff"), "CrashLoopBackOff", true, 0, "exit code 3"},
		{waiting("ContainerCreating"), "", false, 0, ""},
		{unscheduled(time.Minute), "Unschedulable", true, 0, "no node"},
		{unscheduled(20 * time.Second), "Unschedulable", false, 10 * time.Second, ""},
		{corev1.PodStatus{Phase: corev1.PodRunning}, "Progressing", false, 0, "not ready"},
	} {
		d := diagnose(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Status: c.status}, now, 30*time.Second)
		if d.reason != c.reason || d.failed != c.failed || d.after.Round(time.Second) != c.after || !strings.Contains(d.message, c.contains) {
			t.Errorf("%+v gives %+v", c, d)
		}
	}
}

// Records of any size come back as they were, whole numbers as whole numbers.
func TestPack(t *testing.T) {
	big := make([]byte, 2<<20)
	x := uint32(1)
	for i := range big { // text that does not compress, so that there is more than one part
		x = x*1664525 + 1013904223
		big[i] = 'a' + byte(x>>24)%26
	}
	in := record{Key: "d/k", Entries: []entry{{Ref: manifest.Ref{Kind: "ConfigMap", Namespace: "n", Name: "c"}, APIVersion: "v1",
		Before: map[string]any{"data": string(big), "n": int64(3)}}}}
	parts, err := pack(in)
	if err != nil {
		t.Fatal(err)
	}
	if len(parts) < 2 {
		t.Errorf("%d parts", len(parts))
	}
	for _, p := range parts {
		if len(p) > chunk {
			t.Errorf("a part has %d bytes", len(p))
		}
	}
	var out record
	if err := unpack(parts, &out); err != nil || !reflect.DeepEqual(in, out) {
		t.Errorf("it comes back different (%v)", err)
	}
	if err := unpack(parts[:1], &out); err == nil {
		t.Error("a record that lacks a part is read")
	}
}

// cluster is what one with these kinds tells of itself: group/version of each, the one that its group prefers first.
func cluster(kindsOf map[string][]string) *kinds {
	k := &kinds{}
	for group, all := range kindsOf {
		g := &restmapper.APIGroupResources{Group: metav1.APIGroup{Name: group}, VersionedResources: map[string][]metav1.APIResource{}}
		for _, is := range all {
			version, kind, _ := strings.Cut(is, "/")
			v := metav1.GroupVersionForDiscovery{GroupVersion: group + "/" + version, Version: version}
			if len(g.Group.Versions) == 0 {
				g.Group.PreferredVersion = v
			}
			if g.VersionedResources[version] == nil {
				g.Group.Versions = append(g.Group.Versions, v)
			}
			g.VersionedResources[version] = append(g.VersionedResources[version], metav1.APIResource{Name: strings.ToLower(kind) + "s", Kind: kind, Namespaced: true})
		}
		k.groups = append(k.groups, g)
	}
	k.mapper = restmapper.NewDiscoveryRESTMapper(k.groups)
	return k
}

// TestKinds: a group may serve a kind in another version than the one that it prefers, and Kubernetes' own win.
func TestKinds(t *testing.T) {
	k := cluster(map[string][]string{
		"networking.istio.io":       {"v1/Gateway", "v1beta1/Gateway", "v1alpha3/Gateway", "v1alpha3/EnvoyFilter"},
		"gateway.networking.k8s.io": {"v1/Gateway", "v1alpha2/TCPRoute"},
		"example.org":               {"v1/Widget"},
		"":                          {"v1/Service"},
		"serving.knative.dev":       {"v1/Service"},
		"example.com":               {"v1/Gadget", "v1beta1/Widget"},
	})
	for kind, want := range map[string]string{"EnvoyFilter": "networking.istio.io/v1alpha3", "TCPRoute": "gateway.networking.k8s.io/v1alpha2",
		"Gateway": "gateway.networking.k8s.io/v1", "Service": "v1"} {
		if r, err := k.named(kind); err != nil || r.GroupVersion().String() != want {
			t.Errorf("%s is %v, not of %s: %v", kind, r.GroupVersionResource, want, err)
		}
	}
	if _, err := k.named("Widget"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "example.org") || !strings.Contains(err.Error(), "example.com") {
		t.Errorf("of two groups: %v", err)
	}
}

func TestFailed(t *testing.T) {
	gr := schema.GroupResource{Group: "apps", Resource: "deployments"}
	for name, c := range map[string]struct {
		err  error
		kind fault.Kind
		says string
	}{
		"a role is missing":   {apierrors.NewForbidden(gr, "web", errors.New(`User "x" cannot patch resource "deployments"`)), fault.Denied, `cannot patch resource "deployments"`},
		"expired credentials": {apierrors.NewUnauthorized("Unauthorized"), fault.Denied, "renew"},
		"away":                {&url.Error{Op: "Get", URL: "https://x", Err: &net.OpError{Op: "dial", Err: errors.New("connection refused")}}, fault.Transient, "cannot be reached"},
		"busy":                {apierrors.NewTooManyRequests("later", 1), fault.Transient, "later"},
		"not there":           {apierrors.NewNotFound(gr, "web"), fault.NotFound, "not found"},
		"a program":           {&url.Error{Op: "Get", URL: "https://x", Err: errors.New("getting credentials: exec: no")}, fault.Denied, "log in again"},
		"has a kind already":  {fault.Newf(fault.Lost, "gone"), fault.Lost, "gone"},
	} {
		if got := failed(c.err, "do it"); fault.KindOf(got) != c.kind || !strings.Contains(got.Error(), c.says) || !strings.HasPrefix(got.Error(), "do it: ") {
			t.Errorf("%s: %q: %v", name, fault.KindOf(got), got)
		}
	}
}

// The name of a canary is a valid one, whatever name somebody has given the Delivery.
func TestCanaryName(t *testing.T) {
	for delivery, want := range map[string]string{"68685a33e34580b8": "web-68685a33", "release-2026": "web-release", "d1": "web-d1"} {
		o := manifest.Object{Unstructured: unstructured.Unstructured{Object: map[string]any{}}}
		o.SetName("web")
		o.SetLabels(map[string]string{deliveryLabel: delivery})
		if got := canaryName(o); got != want {
			t.Errorf("the canary of delivery %s is %s, not %s", delivery, got, want)
		}
	}
}
