package main

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
	"sigs.k8s.io/kustomize/kyaml/yaml"
)

// chart renders a chart with its own values, as the release that is called as the chart is: definitions first, then what
// came of each template.
func chart(folder, namespace string) ([]rendered, error) {
	c, err := loader.LoadDir(folder)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", folder, err)
	}
	if err := complete(c, folder); err != nil {
		return nil, err
	}
	if err := chartutil.ProcessDependencies(c, c.Values); err != nil {
		return nil, fmt.Errorf("%s: %w", folder, err)
	}
	values, err := util.ToRenderValues(c, map[string]any{}, common.ReleaseOptions{Name: c.Name(), Namespace: namespace, Revision: 1, IsInstall: true},
		common.DefaultCapabilities)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", folder, err)
	}
	files, err := engine.Render(c, values)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", folder, err)
	}
	var out []rendered
	for _, d := range c.CRDObjects() {
		out = append(out, rendered{filepath.Join(folder, d.Name), string(d.File.Data)})
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		// Names begin with that of the chart, which is not always that of its folder.
		_, inside, _ := strings.Cut(name, "/")
		body, err := manifests(filepath.Join(folder, inside), files[name])
		if err != nil {
			return nil, err
		}
		if body != "" {
			out = append(out, rendered{filepath.Join(folder, inside), body})
		}
	}
	return out, nil
}

// complete refuses a chart that cannot be rendered as it lies there.
func complete(c *chartv2.Chart, folder string) error {
	if c.Metadata.Type == "library" {
		return fmt.Errorf("%s is a library chart, of which nothing is made", folder)
	}
	for _, d := range c.Metadata.Dependencies {
		if !slices.ContainsFunc(c.Dependencies(), func(s *chartv2.Chart) bool { return s.Name() == d.Name }) {
			return fmt.Errorf("%s needs the chart %s, which is not in its folder charts: run helm dependency build", folder, d.Name)
		}
	}
	return nil
}

// manifests returns what came of a template, "" where that is no manifest. Tests of a chart are left out; its other hooks
// are refused, because no delivery runs them when Helm would.
func manifests(name, body string) (string, error) {
	if base := path.Base(name); base == "NOTES.txt" || strings.HasPrefix(base, "_") || strings.TrimSpace(body) == "" {
		return "", nil
	}
	var kept []string
	for i, doc := range strings.Split("\n"+body, "\n---") {
		if i > 0 {
			// What stands behind a marker is a comment or nothing.
			_, doc, _ = strings.Cut(doc, "\n")
		}
		var o struct {
			Kind     string
			Metadata struct{ Annotations map[string]string }
		}
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			return "", fmt.Errorf("%s, rendered: %w", name, err)
		}
		switch hook := o.Metadata.Annotations["helm.sh/hook"]; {
		case hook == "" && strings.TrimSpace(doc) != "":
			kept = append(kept, doc)
		case hook == "", strings.HasPrefix(hook, "test"):
		default:
			return "", fmt.Errorf("%s: a %s with the hook %s of Helm, which no delivery runs: leave it out by the chart's values, or make it a step", name, o.Kind, hook)
		}
	}
	return strings.Join(kept, "\n---\n"), nil
}
