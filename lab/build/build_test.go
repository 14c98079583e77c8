package build

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tree writes files below a fresh directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		write(t, filepath.Join(dir, name), content)
	}
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestTheKeyFollowsWhatIsBuilt(t *testing.T) {
	for _, c := range []struct {
		file    string
		changes bool
	}{
		{"go.sum", true},
		{"go.mod", true},
		{"programs/tool/main.go", true},
		{"programs/tool/new.go", true},
		{"programs/tool/main_test.go", false},
		{"cluster/lab.go", false},
	} {
		t.Run(c.file, func(t *testing.T) {
			b := &Builder{Source: tree(t, map[string]string{"go.mod": "a", "go.sum": "b", "programs/tool/main.go": "c"}), Out: io.Discard}
			before, err := b.key()
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(b.Source, c.file), "changed")
			after, err := b.key()
			if err != nil {
				t.Fatal(err)
			}
			if (before != after) != c.changes {
				t.Errorf("the key went from %s to %s", before, after)
			}
		})
	}
}

func TestTheKeyDoesNotDependOnThePlace(t *testing.T) {
	files := map[string]string{"go.mod": "a", "go.sum": "b", "programs/tool/main.go": "c"}
	var keys []string
	for range 2 {
		key, err := (&Builder{Source: tree(t, files)}).key()
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	if keys[0] != keys[1] {
		t.Errorf("two checkouts have the keys %v", keys)
	}
}

func TestTheSourceIsFoundFromInsideAndFromTheRepository(t *testing.T) {
	repo := tree(t, map[string]string{"go.mod": "module example.com/other\n", "lab/go.mod": "module " + module + "\n\ngo 1.26.0\n", "lab/e2e/x_test.go": ""})
	for _, from := range []string{"lab", "lab/e2e", ""} {
		found, err := findSource(filepath.Join(repo, from))
		if err != nil || found != filepath.Join(repo, "lab") {
			t.Errorf("from %q: %q, %v", from, found, err)
		}
	}
	if _, err := findSource(t.TempDir()); err == nil || !strings.Contains(err.Error(), "start it there") {
		t.Errorf("outside of the repository: %v", err)
	}
}

func TestFinishedProgramsAreNotBuiltAgain(t *testing.T) {
	b := &Builder{Source: tree(t, map[string]string{"go.mod": "not a module", "go.sum": ""}), Cache: t.TempDir(), Out: io.Discard}
	write(t, filepath.Join(b.Source, "programs/tool/main.go"), "package main")
	key, err := b.key()
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(b.Cache, "programs", key, "bin", "tool"), "built")
	p, err := b.Programs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(p.Path("tool")); err != nil || string(content) != "built" {
		t.Errorf("the program is %q (%v)", content, err)
	}
}

func TestAFailedBuildLeavesNothingInTheCache(t *testing.T) {
	b := &Builder{Source: tree(t, map[string]string{"go.mod": "not a module", "go.sum": "", "programs/tool/main.go": ""}), Cache: t.TempDir(), Out: io.Discard}
	if _, err := b.Programs(t.Context()); err == nil || !strings.Contains(err.Error(), "kubeall") {
		t.Errorf("the error is %v", err)
	}
	entries, err := os.ReadDir(filepath.Join(b.Cache, "programs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "lock" {
			t.Errorf("%s is left in the cache", e.Name())
		}
	}
}

func TestTheOldestBuildsGo(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"newest", "b", "c", "d", "oldest"} {
		write(t, filepath.Join(dir, name, "bin"), "")
		used := time.Now().Add(-time.Duration(i) * time.Hour)
		if err := os.Chtimes(filepath.Join(dir, name), used, used); err != nil {
			t.Fatal(err)
		}
	}
	if err := prune(dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != keep {
		t.Fatalf("%d builds are left, want %d (%v)", len(entries), keep, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "newest")); err != nil {
		t.Error(err)
	}
}

func TestAnUnknownImageNamesThoseThatThereAre(t *testing.T) {
	b := &Builder{Cache: t.TempDir(), Source: t.TempDir(), Out: io.Discard}
	programs := Programs{dir: t.TempDir()}
	for _, name := range []string{"tool", "coredns"} {
		write(t, programs.Path(name), name)
	}
	if _, err := b.Images(t.Context(), programs, []string{"shop:99"}); err == nil || !strings.Contains(err.Error(), "shop:1") {
		t.Errorf("the error is %v", err)
	}
	paths, err := b.Images(t.Context(), programs, nil)
	if err != nil || len(paths) != len(base()) {
		t.Fatalf("the images that every cluster needs: %v (%v)", paths, err)
	}
	// An archive is replaced when its program changes, and only then.
	write(t, programs.Path("coredns"), "changed")
	again, err := b.Images(t.Context(), programs, nil)
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for i := range paths {
		if paths[i] != again[i] {
			changed++
			if _, err := os.Stat(paths[i]); !os.IsNotExist(err) {
				t.Errorf("%s is still there (%v)", paths[i], err)
			}
		}
	}
	if changed != 1 {
		t.Errorf("%d archives changed, want 1", changed)
	}
}
