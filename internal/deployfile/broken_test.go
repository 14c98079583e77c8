package deployfile

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestBroken reads files that are refused, and compares all that is printed about them.
func TestBroken(t *testing.T) {
	files, err := filepath.Glob("testdata/broken/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	categories := map[string]bool{}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		category, _, _ := strings.Cut(name, "-")
		categories[category] = true
		t.Run(name, func(t *testing.T) {
			body, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, found := Parse(path, body)
			if !found.HasErrors() {
				t.Error("it is not refused")
			}
			for _, x := range found {
				if x.Severity == Error && x.Suggestion == "" {
					t.Errorf("no suggestion for: %s", x.Message)
				}
			}
			var out bytes.Buffer
			if err := found.Write(&out, name+".yaml", body); err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(path, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.Bytes(), want) {
				t.Errorf("printed:\n%s\nwant:\n%s", out.Bytes(), want)
			}
		})
	}
	if len(files) < 60 || len(categories) < 12 {
		t.Errorf("%d files in %d categories; at least 60 in 12 are asked for", len(files), len(categories))
	}
}
