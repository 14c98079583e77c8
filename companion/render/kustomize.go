package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// kustomization builds a folder. Plugins, functions and charts inside of it are off, and files come from the folder of the
// kustomization that names them, as kustomize and kubectl have it by themselves. Other folders are bases, wherever they lie:
// an overlay names ../../base.
func kustomization(folder, name string) ([]rendered, error) {
	o := krusty.MakeDefaultOptions()
	o.LoadRestrictions = types.LoadRestrictionsRootOnly
	all, err := krusty.MakeKustomizer(o).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil && strings.Contains(err.Error(), "is not in or below") {
		return nil, fmt.Errorf("%s names a file outside of its folder; give that a kustomization of its own, and name its folder: %w", filepath.Join(folder, name), err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(folder, name), err)
	}
	body, err := all.AsYaml()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(folder, name), err)
	}
	return []rendered{{filepath.Join(folder, name), string(body)}}, nil
}
