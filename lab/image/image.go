// Package image writes container images as archives that containerd imports: no registry and no image builder is needed
// for programs that are one static file, with or without a Debian root file system below them.
package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Image is what one archive holds.
type Image struct {
	// Names are the tags: one archive may carry several.
	Names []string
	// Entrypoint and Env are the defaults of its containers.
	Entrypoint, Env []string
	// Files are host paths by their absolute path in the image. They are readable and executable by all.
	Files map[string]string
	// Root is a tar of a root file system that lies below the files, "" for none.
	Root string
}

// Write makes the archive at a path, in one step. The same content makes the same bytes.
func Write(path string, i Image) error {
	begun, err := os.CreateTemp(filepath.Dir(path), ".image-*")
	if err != nil {
		return err
	}
	defer os.Remove(begun.Name())
	defer begun.Close()
	if err := write(begun, i); err != nil {
		return fmt.Errorf("image %s: %w", strings.Join(i.Names, ", "), err)
	}
	if err := begun.Close(); err != nil {
		return err
	}
	return os.Rename(begun.Name(), path)
}

func write(to io.Writer, i Image) error {
	top, err := os.CreateTemp("", "layer-*")
	if err != nil {
		return err
	}
	defer os.Remove(top.Name())
	defer top.Close()
	if err := layer(top, i); err != nil {
		return err
	}
	archive := tar.NewWriter(to)
	var digests, names []string
	for _, source := range []string{i.Root, top.Name()} {
		if source == "" {
			continue
		}
		digest, err := digestOf(source)
		if err != nil {
			return err
		}
		name := digest + "/layer.tar"
		if err := addFile(archive, name, 0o644, source); err != nil {
			return err
		}
		digests, names = append(digests, "sha256:"+digest), append(names, name)
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "2026-01-01T00:00:00Z",
		"config": map[string]any{"Entrypoint": i.Entrypoint, "Env": i.Env, "WorkingDir": "/"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": digests},
	})
	if err != nil {
		return err
	}
	configName := fmt.Sprintf("%x.json", sha256.Sum256(config))
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": i.Names, "Layers": names}})
	if err != nil {
		return err
	}
	if err := addBytes(archive, configName, config); err != nil {
		return err
	}
	if err := addBytes(archive, "manifest.json", manifest); err != nil {
		return err
	}
	return archive.Close()
}

// layer is the part of the image that is not Debian's.
func layer(to io.Writer, i Image) error {
	w := tar.NewWriter(to)
	directories := map[string]int64{"tmp": 0o1777}
	for name := range i.Files {
		for dir := path.Dir(strings.TrimPrefix(name, "/")); dir != "."; dir = path.Dir(dir) {
			directories[dir] = cmp.Or(directories[dir], 0o755)
		}
	}
	if i.Root == "" {
		directories["etc"] = 0o755
	}
	for _, dir := range slices.Sorted(maps.Keys(directories)) {
		// Debian's own directories may be links, which an entry here would replace.
		if i.Root != "" {
			continue
		}
		if err := w.WriteHeader(&tar.Header{Name: dir + "/", Mode: directories[dir], Typeflag: tar.TypeDir}); err != nil {
			return err
		}
	}
	if i.Root == "" {
		// Programs that look up their user find one.
		if err := addBytes(w, "etc/passwd", []byte("root:x:0:0:root:/:/\nnobody:x:65534:65534:nobody:/:/\n")); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(i.Files)) {
		if err := addFile(w, strings.TrimPrefix(name, "/"), 0o755, i.Files[name]); err != nil {
			return err
		}
	}
	return w.Close()
}

func digestOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

func addFile(w *tar.Writer, name string, mode int64, source string) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: info.Size(), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

func addBytes(w *tar.Writer, name string, b []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := io.Copy(w, bytes.NewReader(b))
	return err
}
