package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"reflect"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"sigs.k8s.io/yaml"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
	"github.com/sluice-cd/sluice/internal/platform/local"
	"github.com/sluice-cd/sluice/internal/server/wire"
)

// liveDiff is one object of the manifests against the live one, as programs read it.
type liveDiff struct {
	Target  string `json:"target"`
	Account string `json:"account"`
	Object  string `json:"object"`
	State   string `json:"state"`          // unchanged, changed, created
	Diff    string `json:"diff,omitempty"` // unified
}

// planDiff shows what differs between the manifests and what is live. Whatever keeps it from telling is exit code 2.
func (a *app) planDiff(ctx context.Context, f startFlags) error {
	all, err := a.liveDiffs(ctx, f)
	if err != nil {
		return &exit{exitUnable, err}
	}
	err = a.show(all, func(w io.Writer) error {
		for _, d := range all {
			if _, err := io.WriteString(w, d.Diff); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return &exit{exitUnable, err}
	}
	for _, d := range all {
		if d.Diff != "" {
			return &exit{exitFailure, nil}
		}
	}
	return nil
}

func (a *app) liveDiffs(ctx context.Context, f startFlags) ([]liveDiff, error) {
	if f.file == "" {
		return nil, errors.New("give the deploy file with -f FILE")
	}
	spec, m, err := a.compile(a.fetcher(ctx), f, planID)
	if err != nil {
		return nil, err
	}
	c, err := config.Load(a.config)
	if err != nil {
		return nil, err
	}
	out := []liveDiff{}
	var errs []error
	for _, t := range spec.Graph.Targets {
		p, err := a.dryRunner(c, t.Account)
		var differences []platform.Difference
		if err == nil {
			differences, err = p.DryRun(ctx, m.objects[t.Name], platform.Options{Namespace: t.Namespace})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("target %s: %w", t.Name, err))
			continue
		}
		for _, v := range differences {
			d := liveDiff{Target: t.Name, Account: t.Account, Object: v.Applied.Ref().String()}
			if d.State, d.Diff, err = differ(t.Name, v); err != nil {
				return nil, err
			}
			out = append(out, d)
		}
	}
	return out, errors.Join(errs...)
}

// dryRunner reaches an account without starting anything there.
func (a *app) dryRunner(c *config.Config, account string) (platform.DryRunner, error) {
	k, err := c.Account(account)
	if err != nil {
		return nil, err
	}
	if k.Kind == config.Kubernetes {
		return kubernetes.Connect(kubernetes.Config{Account: k.Name, Kubeconfig: k.Kubeconfig, Context: k.Context, Adopt: k.Adopt, Log: slog.New(slog.DiscardHandler)})
	}
	dir, err := a.dataDir()
	if err != nil {
		return nil, err
	}
	return local.DeclaredIn(wire.AccountDir(dir, k)), nil
}

// differ compares an object as it is with what it would be, by what people write.
func differ(target string, v platform.Difference) (state, text string, err error) {
	name := target + "/" + v.Applied.Ref().String()
	var live map[string]any
	if v.Live != nil {
		live = written(*v.Live)
	}
	applied := written(v.Applied)
	if v.Applied.GetKind() == "Secret" {
		hide(live, applied)
	}
	var texts [2][]byte
	for i, o := range []map[string]any{live, applied} {
		if o == nil {
			continue
		}
		if texts[i], err = yaml.Marshal(o); err != nil {
			return "", "", fmt.Errorf("%s: %w", v.Applied.Origin, err)
		}
	}
	d := diff.Diff("live/"+name, texts[0], "applied/"+name, texts[1])
	// Its first line names a program that was not run.
	_, d, _ = bytes.Cut(d, []byte("\n"))
	switch {
	case v.Live == nil:
		return "created", string(d), nil
	case len(d) > 0:
		return "changed", string(d), nil
	}
	return "unchanged", "", nil
}

// written is the part of an object that people write: without its status, without what only a cluster writes, and without
// what each delivery writes anew.
func written(o manifest.Object) map[string]any {
	out := o.DeepCopy().Object
	delete(out, "status")
	if meta, ok := out["metadata"].(map[string]any); ok {
		for _, k := range []string{"managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink"} {
			delete(meta, k)
		}
	}
	withoutOurs(out)
	return out
}

// ours reports whether each delivery writes a label, an annotation or a variable of a container anew.
func ours(name string) bool {
	switch name {
	case "sluice.dev/delivery", "kubectl.kubernetes.io/last-applied-configuration", "deployment.kubernetes.io/revision",
		"ARMORY_APPLICATION_NAME", "ARMORY_DEPLOYMENT_ID", "ARMORY_ENVIRONMENT_NAME", "ARMORY_REPLICA_SET_NAME":
		return true
	}
	return strings.HasPrefix(name, "deploy.armory.io/")
}

// withoutOurs leaves out what each delivery writes anew, in the object and in the templates of its pods.
func withoutOurs(v any) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			withoutOurs(e)
		}
	case map[string]any:
		for _, k := range []string{"labels", "annotations"} {
			if m, ok := v[k].(map[string]any); ok {
				maps.DeleteFunc(m, func(name string, _ any) bool { return ours(name) })
				if len(m) == 0 {
					delete(v, k)
				}
			}
		}
		if env, ok := v["env"].([]any); ok {
			var rest []any
			for _, e := range env {
				m, _ := e.(map[string]any)
				if name, _ := m["name"].(string); !ours(name) {
					rest = append(rest, e)
				}
			}
			v["env"] = rest
			if len(rest) == 0 {
				delete(v, "env")
			}
		}
		for k, e := range v {
			if k != "data" && k != "stringData" {
				withoutOurs(e)
			}
		}
	}
}

// hide replaces the values of a Secret so that it still shows which of them differ.
func hide(live, applied map[string]any) {
	for _, field := range []string{"data", "stringData"} {
		was, will := values(live, field), values(applied, field)
		for k, v := range was {
			next, both := will[k]
			switch {
			case both && !reflect.DeepEqual(v, next):
				was[k], will[k] = "*** (before)", "*** (after)"
			case both:
				was[k], will[k] = "***", "***"
			default:
				was[k] = "***"
			}
		}
		for k := range will {
			if _, both := was[k]; !both {
				will[k] = "***"
			}
		}
	}
}

// values are what a field of a Secret holds by name. What is not of that form is replaced whole.
func values(secret map[string]any, field string) map[string]any {
	v, ok := secret[field]
	if !ok {
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		secret[field] = "***"
	}
	return m
}
