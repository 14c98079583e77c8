package kubernetes

import (
	"encoding/base64"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// templates are where pod templates are, by kind.
func templateOf(kind string) []string {
	switch kind {
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job":
		return []string{"spec", "template"}
	case "CronJob":
		return []string{"spec", "jobTemplate", "spec", "template"}
	}
	return nil
}

// render makes of a manifest's object what is applied. Its name and namespace are decided by the caller.
func render(o manifest.Object, opts platform.Options) (manifest.Object, error) {
	o = manifest.Object{Unstructured: *o.DeepCopy(), Origin: o.Origin}
	unstructured.RemoveNestedField(o.Object, "status")
	for _, f := range []string{"managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink"} {
		unstructured.RemoveNestedField(o.Object, "metadata", f)
	}
	if o.GetKind() == "Secret" {
		if err := plain(o); err != nil {
			return o, err
		}
	}
	twin := ""
	if q := opts.Quarantine; q != nil && q.Suffix != "" {
		switch o.GetKind() {
		case "Deployment", "StatefulSet", "DaemonSet", "Job", "Service":
			o.SetName(o.GetName() + q.Suffix)
			twin = strings.Trim(q.Suffix, "-.")
		}
	}
	if opts.Delivery != "" {
		label(o.Object, []string{"metadata", "labels"}, deliveryLabel, labelValue(opts.Delivery))
	}
	if err := claim(o, opts.Claims); err != nil {
		return o, err
	}
	if twin != "" {
		distinguish(o, twin)
	}
	at := templateOf(o.GetKind())
	if at == nil {
		return o, nil
	}
	if opts.Delivery != "" {
		label(o.Object, slices.Concat(at, []string{"metadata", "labels"}), deliveryLabel, labelValue(opts.Delivery))
	}
	for k, v := range opts.Annotate {
		if had, _, _ := unstructured.NestedString(o.Object, slices.Concat(at, []string{"metadata", "annotations", k})...); k == revisionName && had != "" {
			continue // each Deployment has a name of its own for its version
		}
		label(o.Object, slices.Concat(at, []string{"metadata", "annotations"}), k, v)
	}
	return o, containers(o, at, opts)
}

// plain moves a Secret's text to where the cluster keeps it: text is written and never read, so that nobody would own it.
func plain(o manifest.Object) error {
	text, ok, err := unstructured.NestedMap(o.Object, "stringData")
	if err != nil {
		return invalid(o, "has a stringData that is none", err)
	}
	if !ok {
		return nil
	}
	for k, v := range text {
		s, ok := v.(string)
		if !ok {
			return invalid(o, "has a value in stringData that is no text: "+k, nil)
		}
		if err := unstructured.SetNestedField(o.Object, base64.StdEncoding.EncodeToString([]byte(s)), "data", k); err != nil {
			return invalid(o, "has a data that is none", err)
		}
	}
	unstructured.RemoveNestedField(o.Object, "stringData")
	return nil
}

// distinguish keeps the pods of a twin and those of the workload beside it apart: each is selected by its own alone.
func distinguish(o manifest.Object, twin string) {
	switch o.GetKind() {
	case "Service":
		if _, ok, _ := unstructured.NestedMap(o.Object, "spec", "selector"); ok {
			label(o.Object, []string{"spec", "selector"}, twinLabel, twin)
		}
	case "Deployment", "StatefulSet", "DaemonSet":
		label(o.Object, []string{"spec", "selector", "matchLabels"}, twinLabel, twin)
		label(o.Object, []string{"spec", "template", "metadata", "labels"}, twinLabel, twin)
	}
}

// claim binds a claim to a volume that exists.
func claim(o manifest.Object, to map[string]string) error {
	volume, ok := to[o.GetName()]
	if o.GetKind() != "PersistentVolumeClaim" || !ok {
		return nil
	}
	return unstructured.SetNestedField(o.Object, volume, "spec", "volumeName")
}

// containers adds environment to every container, and the quarantine to the first.
func containers(o manifest.Object, at []string, opts platform.Options) error {
	path := slices.Concat(at, []string{"spec", "containers"})
	list, ok, err := unstructured.NestedSlice(o.Object, path...)
	if err != nil || !ok {
		return invalid(o, "has no list of containers", err)
	}
	for i, v := range list {
		c, ok := v.(map[string]any)
		if !ok {
			return invalid(o, "has a container that is none", nil)
		}
		env := maps.Clone(opts.Env)
		if q := opts.Quarantine; q != nil && i == 0 {
			if env == nil {
				env = map[string]string{}
			}
			maps.Copy(env, q.Env)
			args, _, err := unstructured.NestedSlice(c, "args")
			if err != nil {
				return invalid(o, "has args that are no list", err)
			}
			for _, a := range q.Args {
				args = append(args, a)
			}
			if len(args) > 0 {
				c["args"] = args
			}
		}
		if err := setEnv(o, c, env); err != nil {
			return err
		}
	}
	return unstructured.SetNestedSlice(o.Object, list, path...)
}

func setEnv(o manifest.Object, c map[string]any, env map[string]string) error {
	if len(env) == 0 {
		return nil
	}
	list, _, err := unstructured.NestedSlice(c, "env")
	if err != nil {
		return invalid(o, "has an env that is no list", err)
	}
	list = slices.DeleteFunc(list, func(v any) bool {
		e, _ := v.(map[string]any)
		n, _ := e["name"].(string)
		_, replaced := env[n]
		return replaced
	})
	for _, n := range slices.Sorted(maps.Keys(env)) {
		list = append(list, map[string]any{"name": n, "value": env[n]})
	}
	c["env"] = list
	return nil
}

func invalid(o manifest.Object, what string, err error) error {
	if err != nil {
		return fault.Newf(fault.Invalid, "%s: %s %s: %w", o.Origin, o.Ref(), what, err)
	}
	return fault.Newf(fault.Invalid, "%s: %s %s", o.Origin, o.Ref(), what)
}

// label sets one key of a map of strings. What a manifest has there of another type is left for the cluster to refuse,
// which says it better.
func label(o map[string]any, at []string, key, value string) {
	_ = unstructured.SetNestedField(o, value, slices.Concat(at, []string{key})...)
}
