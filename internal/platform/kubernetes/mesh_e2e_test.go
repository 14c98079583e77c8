//go:build e2e

package kubernetes

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// The tests of this file have the cluster know the objects of meshes by the meshes' own definitions, so that it checks what is
// written. No mesh runs: that traffic follows is not shown here.

var update = flag.Bool("update", false, "write the golden files")

// meshObjects are a user's, before the first canary.
const meshObjects = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web.example.org]
  gateways: [front]
  http:
  - name: api
    match: [{uri: {prefix: /api}}]
    route: [{destination: {host: api, port: {number: 80}}}]
  - name: main
    timeout: 5s
    route:
    - destination: {host: web.applied.svc.cluster.local, port: {number: 8080}}
      headers: {request: {set: {x-from: front}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  trafficPolicy: {connectionPool: {http: {http1MaxPendingRequests: 64}}}
`

const smiObjects = `
apiVersion: split.smi-spec.io/v1alpha4
kind: TrafficSplit
metadata: {name: shared}
spec:
  service: web
  backends:
  - {service: web, weight: 70}
  - {service: legacy, weight: 30}
`

// withMeshes has the lab know the objects of Istio and SMI, by the definitions of their own modules.
func withMeshes(t *testing.T, p *Platform) {
	t.Helper()
	define(t, p, filepath.Join(module(t, "istio.io/api"), "kubernetes", "customresourcedefinitions.gen.yaml"),
		"virtualservices.networking.istio.io", "destinationrules.networking.istio.io")
	define(t, p, filepath.Join(module(t, "github.com/servicemeshinterface/smi-sdk-go"), "crds", "split.yaml"), "trafficsplits.split.smi-spec.io")
}

// define has the lab know some of the kinds that a file defines, for as long as a test takes.
func define(t *testing.T, p *Platform, file string, wanted ...string) {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all, err := manifest.Parse(filepath.Base(file), body)
	if err != nil {
		t.Fatal(err)
	}
	crds, err := p.where(manifest.Ref{Kind: "CustomResourceDefinition"})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		if !slices.Contains(wanted, o.GetName()) {
			continue
		}
		modern(t, o.Object)
		_, err := crds.Create(t.Context(), &o.Unstructured, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := crds.Delete(ctx, o.GetName(), metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				t.Error(err)
			}
			// The next test makes it again, which it cannot while this one is on its way out.
			if err := p.await(ctx, o.Ref(), func(s platform.State) bool { return !s.Exists }); err != nil {
				t.Error(err)
			}
		})
		if err := p.established(t.Context(), o.GetName()); err != nil {
			t.Fatal(err)
		}
	}
}

// module returns where the files of a module are, which it fetches if need be.
func module(t *testing.T, path string) string {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", path)
	cmd.Dir = filepath.Join("..", "..", "..", "tools", "crds")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("fetch module %s: %v\n%s", path, err, out)
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(out, &m); err != nil || m.Dir == "" {
		t.Fatalf("where module %s is: %v\n%s", path, err, out)
	}
	return m.Dir
}

// modern makes a definition of the form that SMI has it in, which no server knows any more, be one of the present form: the
// schema of its served version moves to that version.
func modern(t *testing.T, crd map[string]any) {
	t.Helper()
	if crd["apiVersion"] == "apiextensions.k8s.io/v1" {
		return
	}
	schema, ok, err := unstructured.NestedMap(crd, "spec", "validation")
	version, _, _ := unstructured.NestedString(crd, "spec", "version")
	if !ok || err != nil || version == "" {
		t.Fatalf("a definition of another form: %v", crd)
	}
	if err := unstructured.SetNestedField(schema, "object", "openAPIV3Schema", "type"); err != nil {
		t.Fatal(err)
	}
	spec := crd["spec"].(map[string]any)
	for _, f := range []string{"validation", "version", "additionalPrinterColumns"} {
		delete(spec, f)
	}
	spec["versions"] = []any{map[string]any{"name": version, "served": true, "storage": true, "schema": schema}}
	crd["apiVersion"] = "apiextensions.k8s.io/v1"
}

// golden compares what an object says with a file. The stable version's hash is the cluster's to choose.
func (s *shop) golden(kind, name, file string) {
	s.t.Helper()
	o, err := s.Get(s.ctx, manifest.Ref{Kind: kind, Namespace: ns, Name: name})
	s.must(err)
	body, err := yaml.Marshal(o.Object["spec"])
	s.must(err)
	stable, err := s.read(s.ctx, web)
	s.must(err)
	sets, err := s.setsOf(s.ctx, stable)
	s.must(err)
	got := strings.ReplaceAll(string(body), newest(stable, sets).GetLabels()[templateHash], "HASH")
	path := filepath.Join("testdata", "mesh", file)
	if *update {
		s.must(os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	s.must(err)
	if got != string(want) {
		s.t.Errorf("%s is\n%snot as %s\n%s", o.Ref(), got, file, want)
	}
}

// onlyOne reports whether the Service leads to one version alone.
func (s *shop) onlyOne() bool {
	s.t.Helper()
	one, err := s.pinned(s.ctx, s.stable())
	s.must(err)
	return one
}

func (s *shop) stable() *unstructured.Unstructured {
	s.t.Helper()
	o, err := s.read(s.ctx, web)
	s.must(err)
	return o
}

// spec is what an object says.
func (s *shop) spec(kind, name string) string {
	s.t.Helper()
	o, err := s.Get(s.ctx, manifest.Ref{Kind: kind, Namespace: ns, Name: name})
	s.must(err)
	body, err := yaml.Marshal(o.Object["spec"])
	s.must(err)
	return string(body)
}

var istioOfWeb = platform.Options{Namespace: ns, Delivery: "d1", Meshes: []platform.Mesh{
	{VirtualService: "web", Route: "main", DestinationRule: "web", ActiveSubset: "active", CanarySubset: "canary"}}}

// TestIstio: the objects at each step, checked by Istio's definitions, and as they were after the rollback.
func TestIstio(t *testing.T) {
	p := theLab(t).connect(t)
	withMeshes(t, p)
	s := newShop(t)
	by(t, s.Platform, "kubectl-client-side-apply", meshObjects)
	virtual, rule := s.spec("VirtualService", "web"), s.spec("DestinationRule", "web")
	refs := []manifest.Ref{web}
	changes, err := s.StartCanary(s.ctx, "d1/start", s.next, istioOfWeb)
	s.must(err)
	s.ready(time.Minute)
	if !s.onlyOne() {
		t.Error("before the first weight the Service leads to the canary")
	}
	s.golden("DestinationRule", "web", "destinationrule.golden")
	s.golden("VirtualService", "web", "virtualservice-0.golden")
	s.must(s.SetWeight(s.ctx, "d1/10", refs, 10))
	if s.onlyOne() {
		t.Error("with a weight the Service does not lead to the canary, whose subset is empty so")
	}
	s.golden("VirtualService", "web", "virtualservice-10.golden")
	s.golden("DestinationRule", "web", "destinationrule.golden")
	s.undo(changes)
	if got := s.spec("VirtualService", "web"); got != virtual {
		t.Errorf("the VirtualService is\n%sand was\n%s", got, virtual)
	}
	if got := s.spec("DestinationRule", "web"); got != rule {
		t.Errorf("the DestinationRule is\n%sand was\n%s", got, rule)
	}
}

// TestPromotionByIstio: the new version has all of it before the old one's subset becomes empty.
func TestPromotionByIstio(t *testing.T) {
	p := theLab(t).connect(t)
	withMeshes(t, p)
	s := newShop(t)
	by(t, s.Platform, "kubectl-client-side-apply", meshObjects)
	virtual := s.spec("VirtualService", "web")
	refs := []manifest.Ref{web}
	_, err := s.StartCanary(s.ctx, "d1/start", s.next, istioOfWeb)
	s.must(err)
	s.must(s.SetWeight(s.ctx, "d1/50", refs, 50))
	s.must(s.Promote(s.ctx, "d1/promote", refs))
	s.ready(time.Minute)
	s.settles(webService, "promoted", 100, 100)
	if got := s.spec("VirtualService", "web"); got != virtual {
		t.Errorf("the VirtualService is\n%sand was\n%s", got, virtual)
	}

	wrong := istioOfWeb
	wrong.Meshes = []platform.Mesh{{VirtualService: "web", Route: "other", DestinationRule: "web", ActiveSubset: "active", CanarySubset: "canary"}}
	if _, err := s.StartCanary(s.ctx, "d2/start", s.next, wrong); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "no http route other that leads to Service web") {
		t.Errorf("a route that is not there: %v", err)
	}
}

// TestSMI: a TrafficSplit that is there gets its backends back, and one that is not is made and goes.
func TestSMI(t *testing.T) {
	p := theLab(t).connect(t)
	withMeshes(t, p)
	for name, c := range map[string]struct{ split, golden string }{"shared": {smiObjects, "trafficsplit-10.golden"}, "made": {"", "trafficsplit-made-10.golden"}} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			before := ""
			if c.split != "" {
				by(t, s.Platform, "kubectl-client-side-apply", c.split)
				before = s.spec("TrafficSplit", name)
			}
			opts := inNS
			opts.Meshes = []platform.Mesh{{TrafficSplit: name, RootService: "web", CanaryService: "web-next"}}
			changes, err := s.StartCanary(s.ctx, "d1/start", s.next, opts)
			s.must(err)
			s.ready(time.Minute)
			s.must(s.SetWeight(s.ctx, "d1/10", []manifest.Ref{web}, 10))
			s.golden("TrafficSplit", name, c.golden)
			s.settles(manifest.Ref{Kind: "Service", Namespace: ns, Name: "web-next"}, "the canary's Service", 100, 100)
			s.settles(webService, "the root Service", 0, 0)
			s.undo(changes)
			if before != "" {
				if got := s.spec("TrafficSplit", name); got != before {
					t.Errorf("the TrafficSplit is\n%sand was\n%s", got, before)
				}
			} else if _, err := s.Get(s.ctx, manifest.Ref{Kind: "TrafficSplit", Namespace: ns, Name: name}); !fault.Is(err, fault.NotFound) {
				t.Errorf("the TrafficSplit that was made is still there: %v", err)
			}
		})
	}
}
