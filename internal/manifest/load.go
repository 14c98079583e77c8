package manifest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/internal/fault"
)

// Renderer turns a folder that has to be rendered into manifests for a namespace.
type Renderer func(folder, namespace string) ([]Rendered, error)

// Rendered is what came of one file of such a folder.
type Rendered struct {
	File string `json:"file"`
	Body string `json:"body"`
}

// Load reads the objects of a file, or of every .yaml and .yml file in a folder and the folders in it, by name. A kustomization
// or a Helm chart is rendered first.
func Load(path, namespace string, render Renderer) ([]Object, error) {
	if err := remote(path); err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Newf(fault.NotFound, "%s does not exist", path)
	}
	if err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	if !info.IsDir() {
		return file(path)
	}
	if Renders(path) {
		return renderedBy(render, path, namespace)
	}
	files, err := list(path)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fault.Newf(fault.NotFound, "folder %s holds no .yaml or .yml file", path)
	}
	var out []Object
	var errs []error
	for _, f := range files {
		objects, err := file(f)
		out, errs = append(out, objects...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

func file(path string) ([]Object, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	return Parse(path, body)
}

// remote refuses what has to be fetched.
func remote(path string) error {
	scheme, _, ok := strings.Cut(path, "://")
	if !ok {
		return nil
	}
	return fault.WithRemedy(fault.Newf(fault.Invalid, "manifests %s: nothing is fetched over %s", path, scheme),
		"put the files beside the deploy file, or give an address of https")
}

// Renders reports whether a folder has to be rendered.
func Renders(path string) bool {
	entries, err := os.ReadDir(path)
	return err == nil && slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return rendering(e.Name()) != "" && !e.IsDir() })
}

// renderedBy reads what a renderer makes of a folder. Lines are those of what was made.
func renderedBy(render Renderer, path, namespace string) ([]Object, error) {
	files, err := render(path, namespace)
	if err != nil {
		return nil, err
	}
	var out []Object
	var errs []error
	for _, f := range files {
		objects, err := Parse(f.File+" (rendered)", []byte(f.Body))
		out, errs = append(out, objects...), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, fault.Newf(fault.NotFound, "folder %s is rendered to nothing", path)
	}
	return out, nil
}

// rendering tells what a folder is that holds a file of this name and has to be rendered, "" where it is one of manifests.
func rendering(file string) string {
	switch file {
	case "kustomization.yaml", "kustomization.yml", "Kustomization":
		return "a kustomization"
	case "Chart.yaml":
		return "a Helm chart"
	}
	return ""
}

// list returns the files of a folder in the order of their names.
func list(folder string) ([]string, error) {
	var files []string
	// The folder itself may be a link; WalkDir would not follow it.
	root, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("manifests: %w", err)
		}
		if what := rendering(e.Name()); what != "" && !e.IsDir() {
			return fault.WithRemedy(fault.Newf(fault.Invalid, "%s is %s inside of a folder of manifests", filepath.Dir(path), what), "name it with a path of its own")
		}
		ext := filepath.Ext(path)
		if e.IsDir() || ext != ".yaml" && ext != ".yml" {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		files = append(files, filepath.Join(folder, rel))
		return nil
	})
	return files, err
}

// Find returns the path under which manifests are found: as it is, or relative to the first of the folders that has it.
// A leading / of a path that does not exist is left out, because it was one of the workspace. Others are further places
// that have it too, which is worth a warning.
func Find(path string, folders ...string) (found string, others []string, err error) {
	if err := remote(path); err != nil {
		return "", nil, err
	}
	if filepath.IsAbs(path) {
		if exists(path) {
			return path, nil, nil
		}
	}
	var all []string
	for _, f := range folders {
		p := filepath.Join(f, path)
		if exists(p) && !slices.ContainsFunc(all, func(q string) bool { return same(p, q) }) {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return "", nil, fault.Newf(fault.NotFound, "%s does not exist, neither in %s", path, strings.Join(unique(folders), " nor in "))
	}
	return all[0], all[1:], nil
}

func unique(folders []string) []string {
	var out []string
	for _, f := range folders {
		if !slices.ContainsFunc(out, func(g string) bool { return same(f, g) }) {
			out = append(out, f)
		}
	}
	return out
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func same(a, b string) bool {
	i, err := os.Stat(a)
	if err != nil {
		return a == b
	}
	j, err := os.Stat(b)
	return err == nil && os.SameFile(i, j)
}
