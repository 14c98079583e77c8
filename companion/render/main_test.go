package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// Each folder of testdata is rendered to what its golden file says, or refused with it.
func TestRender(t *testing.T) {
	shut()
	entries, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		if !e.IsDir() || name == "base" {
			continue // of another one
		}
		t.Run(name, func(t *testing.T) {
			out, err := render(filepath.Join("testdata", name), "shop")
			var b strings.Builder
			for _, r := range out {
				b.WriteString("# " + r.File + "\n" + r.Body + "\n")
			}
			if err != nil {
				b.WriteString("error: " + err.Error() + "\n")
			}
			here, wdErr := os.Getwd()
			if wdErr != nil {
				t.Fatal(wdErr)
			}
			// Messages of kustomize name where the folder is on this machine.
			got, path := strings.ReplaceAll(b.String(), here, "HERE"), filepath.Join("testdata", name+".golden")
			if strings.HasPrefix(name, "bad-") != (err != nil) {
				t.Errorf("the error is %v", err)
			}
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil || got != string(want) {
				t.Errorf("got\n%s\nnot\n%s%v", got, want, err)
			}
		})
	}
}
