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

// Load reads the objects of a file, or of every .yaml and .yml file in a folder and the folders in it, by name.
func Load(path string) ([]Object, error) {
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
	return fault.WithRemedy(fault.Newf(fault.Invalid, "manifests %s: fetching over %s belongs to a cluster build and is not built yet", path, scheme),
		"put the files beside the deploy file")
}

// rendering tells whether a file says that its folder has to be rendered before it is a folder of manifests, and by what.
func rendering(file string) (what, by string, ok bool) {
	switch file {
	case "kustomization.yaml", "kustomization.yml", "Kustomization":
		return "a kustomization", "kustomize build", true
	case "Chart.yaml":
		return "a Helm chart", "helm template", true
	}
	return "", "", false
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
		if what, by, ok := rendering(e.Name()); ok && !e.IsDir() {
			return fault.WithRemedy(fault.Newf(fault.Invalid, "%s is %s, whose rendering belongs to a cluster build and is not built yet", filepath.Dir(path), what),
				"give the output of %s", by)
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
