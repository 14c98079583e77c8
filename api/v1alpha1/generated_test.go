package v1alpha1_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestGenerated holds the definitions and the deep copies to the types: make generate writes them anew.
func TestGenerated(t *testing.T) {
	dir := t.TempDir()
	tool := filepath.Join(dir, "controller-gen")
	build := exec.Command("go", "build", "-o", tool, "sigs.k8s.io/controller-tools/cmd/controller-gen")
	build.Dir = "../../tools/generate"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the generator cannot be built: %v\n%s", err, out)
	}
	generate := exec.Command(tool, "object", "crd", "paths=./api/v1alpha1", "output:crd:dir="+filepath.Join(dir, "crd"), "output:object:dir="+dir)
	generate.Dir = "../.."
	if out, err := generate.CombinedOutput(); err != nil {
		t.Fatalf("the generator fails: %v\n%s", err, out)
	}
	same := func(fresh, kept string) {
		t.Helper()
		want, err := os.ReadFile(fresh)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(kept)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want, got) {
			t.Errorf("%s is not what the types give: make generate", kept)
		}
	}
	same(filepath.Join(dir, "zz_generated.deepcopy.go"), "zz_generated.deepcopy.go")
	made, err := filepath.Glob(filepath.Join(dir, "crd", "*.yaml"))
	if err != nil || len(made) != 2 {
		t.Fatalf("the generator makes %q, %v", made, err)
	}
	for _, f := range made {
		same(f, filepath.Join("../../config/crd", filepath.Base(f)))
		same(f, filepath.Join("../../charts/sluice/crds", filepath.Base(f)))
	}
}
