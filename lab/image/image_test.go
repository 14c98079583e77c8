package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sluice-cd/sluice/lab/image"
)

// contents reads a tar.
func contents(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = content
	}
}

func write(t *testing.T, i image.Image) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := image.Write(path, i); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func program(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("the program"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAnArchiveDescribesItsLayers(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root.tar")
	var below bytes.Buffer
	w := tar.NewWriter(&below)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "bin", Linkname: "usr/bin", Typeflag: tar.TypeSymlink}), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root, below.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		root  string
		files []string
	}{
		"static":           {"", []string{"bin/", "bin/x", "etc/", "etc/passwd", "tmp/"}},
		"on a root system": {root, []string{"bin/x"}},
	} {
		t.Run(name, func(t *testing.T) {
			archive := contents(t, write(t, image.Image{
				Names: []string{"x:1", "x:2"}, Entrypoint: []string{"/bin/x", "serve"}, Files: map[string]string{"/bin/x": program(t)}, Root: c.root,
			}))
			var manifests []struct {
				Config           string
				RepoTags, Layers []string
			}
			if err := json.Unmarshal(archive["manifest.json"], &manifests); err != nil {
				t.Fatal(err)
			}
			m := manifests[0]
			if !slices.Equal(m.RepoTags, []string{"x:1", "x:2"}) {
				t.Errorf("tags are %v", m.RepoTags)
			}
			var config struct {
				Config struct{ Entrypoint []string }
				Rootfs struct {
					DiffIDs []string `json:"diff_ids"`
				}
			}
			if err := json.Unmarshal(archive[m.Config], &config); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(config.Config.Entrypoint, []string{"/bin/x", "serve"}) {
				t.Errorf("the entrypoint is %v", config.Config.Entrypoint)
			}
			if len(m.Layers) != len(config.Rootfs.DiffIDs) {
				t.Fatalf("%d layers, %d digests", len(m.Layers), len(config.Rootfs.DiffIDs))
			}
			for i, l := range m.Layers {
				if want := fmt.Sprintf("sha256:%x", sha256.Sum256(archive[l])); config.Rootfs.DiffIDs[i] != want {
					t.Errorf("layer %d has digest %s, described as %s", i, want, config.Rootfs.DiffIDs[i])
				}
			}
			top := contents(t, archive[m.Layers[len(m.Layers)-1]])
			var names []string
			for n := range top {
				names = append(names, n)
			}
			slices.Sort(names)
			if !slices.Equal(names, c.files) {
				t.Errorf("the top layer holds %v, want %v", names, c.files)
			}
			if string(top["bin/x"]) != "the program" {
				t.Errorf("the program is %q", top["bin/x"])
			}
		})
	}
}

func TestTheSameContentMakesTheSameBytes(t *testing.T) {
	i := image.Image{Names: []string{"x:1"}, Files: map[string]string{"/a/x": program(t), "/b/y": program(t), "/c": program(t)}}
	if !bytes.Equal(write(t, i), write(t, i)) {
		t.Error("two archives of one image differ")
	}
}

func TestAFailedWriteLeavesNoArchive(t *testing.T) {
	dir := t.TempDir()
	err := image.Write(filepath.Join(dir, "image.tar"), image.Image{Names: []string{"x:1"}, Files: map[string]string{"/x": filepath.Join(dir, "missing")}})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the error is %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left in the directory: %v (%v)", entries, err)
	}
}
