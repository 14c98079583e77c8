package kubernetes

import (
	"reflect"
	"slices"
	"strings"
)

// required is what Sluice itself adds to the selectors of Services: a fence, a pinned version, a preview.
func required() []string {
	return []string{openLabel, templateHash, trackLabel}
}

// absent stands for a field that is not there.
type absent struct{}

// takeBack returns what an object should be when our change of it, from before to after, is taken back from what is live now,
// and the paths that others have changed since: these stay as they are. All three are without what only the cluster writes.
func takeBack(before, after, live map[string]any) (map[string]any, []string) {
	var foreign []string
	v := back("", before, after, live, &foreign)
	m, _ := v.(map[string]any)
	return m, foreign
}

func back(path string, before, after, live any, foreign *[]string) any {
	switch {
	case reflect.DeepEqual(live, after), reflect.DeepEqual(live, before):
		return before
	case reflect.DeepEqual(before, after):
		return live // we changed nothing here, and whoever did may have
	}
	if b, a, l, ok := threeMaps(before, after, live); ok {
		m := backMap(path, b, a, l, foreign)
		if _, none := before.(absent); none && len(m) == 0 {
			return absent{}
		}
		return m
	}
	if b, a, l, ok := threeLists(before, after, live); ok {
		return backList(path, b, a, l, foreign)
	}
	*foreign = append(*foreign, strings.TrimPrefix(path, "."))
	return live
}

// threeMaps reads three maps. One that is not there is empty.
func threeMaps(before, after, live any) (b, a, l map[string]any, ok bool) {
	read := make([]map[string]any, 3)
	for i, v := range []any{before, after, live} {
		m, isMap := v.(map[string]any)
		if _, none := v.(absent); !isMap && !none {
			return nil, nil, nil, false
		}
		read[i] = m
	}
	return read[0], read[1], read[2], true
}

func backMap(path string, before, after, live map[string]any, foreign *[]string) map[string]any {
	out := map[string]any{}
	var keys []string
	for _, m := range []map[string]any{before, after, live} {
		for k := range m {
			if !slices.Contains(keys, k) {
				keys = append(keys, k)
			}
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if v := back(path+"."+k, at(before, k), at(after, k), at(live, k), foreign); v != (any)(absent{}) {
			out[k] = v
		}
	}
	return out
}

func at(m map[string]any, key string) any {
	if v, ok := m[key]; ok {
		return v
	}
	return absent{}
}

// backList merges lists of objects that have names, as containers and their environment do.
func backList(path string, before, after, live []any, foreign *[]string) []any {
	out := []any{}
	done := map[string]bool{}
	for _, v := range slices.Concat(before, live, after) {
		n := nameOf(v)
		if done[n] {
			continue
		}
		done[n] = true
		if m := back(path+"["+n+"]", byName(before, n), byName(after, n), byName(live, n), foreign); m != (any)(absent{}) {
			out = append(out, m)
		}
	}
	return out
}

func threeLists(before, after, live any) (b, a, l []any, ok bool) {
	lists := make([][]any, 3)
	for i, v := range []any{before, after, live} {
		list, isList := v.([]any)
		if !isList {
			return nil, nil, nil, false
		}
		seen := map[string]bool{}
		for _, e := range list {
			n := nameOf(e)
			if n == "" || seen[n] {
				return nil, nil, nil, false
			}
			seen[n] = true
		}
		lists[i] = list
	}
	return lists[0], lists[1], lists[2], true
}

func nameOf(v any) string {
	m, _ := v.(map[string]any)
	n, _ := m["name"].(string)
	return n
}

func byName(list []any, name string) any {
	for _, v := range list {
		if nameOf(v) == name {
			return v
		}
	}
	return absent{}
}

// own returns the part of an object that people write: no status, and of the metadata only labels and annotations. What
// Sluice itself adds to selectors and what controllers count in annotations is left out, because others' calls change it.
func own(o map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range o {
		switch k {
		case "apiVersion", "kind", "status", "metadata":
		default:
			out[k] = v
		}
	}
	meta, _ := o["metadata"].(map[string]any)
	for _, k := range []string{"labels", "annotations"} {
		if m, ok := meta[k].(map[string]any); ok {
			if m = without(m, "deployment.kubernetes.io/revision"); len(m) > 0 {
				out["metadata."+k] = m
			}
		}
	}
	spec, _ := out["spec"].(map[string]any)
	if selector, ok := spec["selector"].(map[string]any); ok && o["kind"] == "Service" {
		spec = without(spec, "selector")
		spec["selector"] = without(selector, required()...)
		out["spec"] = spec
	}
	return out
}

// without returns a copy of a map that lacks some keys.
func without(m map[string]any, keys ...string) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		if !slices.Contains(keys, k) {
			out[k] = v
		}
	}
	return out
}

// restore returns a copy of a live object whose own part is another.
func restore(live, want map[string]any) map[string]any {
	out := map[string]any{}
	for _, k := range []string{"apiVersion", "kind", "status"} {
		if v, ok := live[k]; ok {
			out[k] = v
		}
	}
	meta, _ := live["metadata"].(map[string]any)
	meta = without(meta, "labels", "annotations")
	old, _ := live["metadata"].(map[string]any)
	if a, ok := old["annotations"].(map[string]any); ok {
		if v, ok := a["deployment.kubernetes.io/revision"]; ok {
			meta["annotations"] = map[string]any{"deployment.kubernetes.io/revision": v}
		}
	}
	for k, v := range want {
		switch k {
		case "metadata.labels":
			meta["labels"] = v
		case "metadata.annotations":
			a, _ := meta["annotations"].(map[string]any)
			m, _ := v.(map[string]any)
			m = without(m)
			for k, v := range a {
				m[k] = v
			}
			meta["annotations"] = m
		default:
			out[k] = v
		}
	}
	out["metadata"] = meta
	if live["kind"] == "Service" {
		keepSelector(live, out)
	}
	return out
}

// keepSelector carries over what Sluice itself requires of a Service's pods: only Open and the end of a canary take it out.
func keepSelector(live, out map[string]any) {
	liveSpec, _ := live["spec"].(map[string]any)
	has, _ := liveSpec["selector"].(map[string]any)
	spec, _ := out["spec"].(map[string]any)
	selector, _ := spec["selector"].(map[string]any)
	if spec == nil || selector == nil {
		return
	}
	selector = without(selector)
	for _, k := range required() {
		if v, ok := has[k]; ok {
			selector[k] = v
		}
	}
	spec = without(spec)
	spec["selector"] = selector
	out["spec"] = spec
}
