package docs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestExamples validates and plans every deploy file of the examples' folders, where it stands.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	planned := 0
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(body), "\ntargets:") {
			continue // another file of the example
		}
		planned++
		t.Run(filepath.Base(filepath.Dir(f))+"/"+filepath.Base(f), func(t *testing.T) {
			folder, name := filepath.Split(f)
			run := func(args ...string) string {
				t.Helper()
				cmd := exec.Command(filepath.Join(binary, "sluice"), args...)
				cmd.Dir, cmd.Env = folder, append(os.Environ(), "SLUICE_CONFIG=")
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("sluice %s: %v\n%s", strings.Join(args, " "), err, out)
				}
				return string(out)
			}
			if got := run("validate", "--strict", name); got != name+": valid\n" {
				t.Errorf("an example shows how it is done, and validate finds\n%s", got)
			}
			if got := run("plan", "-f", name); strings.Contains(got, "warning:") {
				t.Errorf("the configuration beside it lacks something:\n%s", got)
			}
		})
	}
	if planned < 3 {
		t.Errorf("only %d deploy files were found", planned)
	}
}
