//go:build e2e

package kubernetes

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// helm is the real program, with a chart of its own in which the test's website is.
type helm struct {
	t              *testing.T
	program, chart string
	lab            lab
}

func newHelm(t *testing.T) helm {
	t.Helper()
	h := helm{t: t, program: filepath.Join(t.TempDir(), "helm"), chart: t.TempDir(), lab: theLab(t)}
	build := exec.Command("go", "build", "-trimpath", "-o", h.program, "helm.sh/helm/v4/cmd/helm")
	build.Dir = "../../../tools/helm"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("helm cannot be built: %v\n%s", err, out)
	}
	for name, body := range map[string]string{"Chart.yaml": "apiVersion: v2\nname: site\nversion: 1.0.0\n",
		"values.yaml": "image: shop:1\n", "templates/site.yaml": strings.ReplaceAll(website, "shop:1", "{{ .Values.image }}")} {
		path := filepath.Join(h.chart, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h helm) run(args ...string) {
	h.t.Helper()
	cmd := exec.Command(h.program, append(args, "--namespace", ns, "--kubeconfig", h.lab.kubeconfig)...)
	cmd.Env = append(os.Environ(), "HOME="+h.t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestHelmsRelease: a first delivery onto what the real Helm has installed is refused by its name until the account adopts it;
// then it is made, and taken back so that Helm goes on as if nothing had been.
func TestHelmsRelease(t *testing.T) {
	p, ctx := fresh(t)
	h := newHelm(t)
	h.run("install", "site", h.chart)
	before, owners := snapshotOf(t, p), managersOf(t, p, web)
	next := objectsOf(t, changed(website))
	_, err := p.Apply(ctx, "d1/a", next, inNS)
	if !fault.Is(err, fault.Conflict) {
		t.Fatalf("kind %q: %v", fault.KindOf(err), err)
	}
	for _, part := range []string{`.spec.template.spec.containers[name="web"].image`, `"helm"`, `"shop:1"`, `"shop:2"`, "adopt: of account lab"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s is missing in: %v", part, err)
		}
	}
	same(t, "after the refusal", snapshotOf(t, p), before)

	p.c.Adopt = append(p.c.Adopt, "helm")
	changes, err := p.Apply(ctx, "d2/a", next, inNS)
	if err != nil {
		t.Fatal(err)
	}
	image := func() any {
		live, err := p.Get(ctx, manifest.Ref{Kind: "Deployment", Namespace: ns, Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		c, _, _ := unstructured.NestedSlice(live.Object, "spec", "template", "spec", "containers")
		return c[0].(map[string]any)["image"]
	}
	if got := image(); got != "shop:2" {
		t.Errorf("the image is %v", got)
	}
	if err := p.Revert(ctx, "d2/r", changes); err != nil {
		t.Fatal(err)
	}
	same(t, "after the revert", snapshotOf(t, p), before)
	if got := managersOf(t, p, web); !reflect.DeepEqual(got, owners) {
		t.Errorf("the fields belong to %v and belonged to %v", got, owners)
	}
	h.run("upgrade", "site", h.chart, "--set", "image=shop:3")
	if got := image(); got != "shop:3" {
		t.Errorf("Helm's own upgrade gives image %v", got)
	}
}
