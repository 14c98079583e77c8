package kubernetes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// kubectls are the managers of kubectl, whose fields are taken over without being told to: a person's command is not a
// controller that will set them again.
func kubectls() []string {
	return []string{"kubectl-client-side-apply", "kubectl-create", "kubectl-replace", "kubectl", "kubectl-edit", "kubectl-patch", "kubectl-set",
		"kubectl-scale", "kubectl-rollout", "kubectl-label", "kubectl-annotate", "kubectl-expose", "kubectl-autoscale", "before-first-apply"}
}

// partial are those of them that own single fields beside a manifest. What they set and the manifest does not name stays.
func partial() []string {
	return []string{"kubectl-edit", "kubectl-patch", "kubectl-set", "kubectl-scale", "kubectl-rollout", "kubectl-label", "kubectl-annotate"}
}

// conflict is a field that another manager owns with another value.
type conflict struct{ field, manager string }

// conflicts reads from the refusal of an apply which fields others own.
func conflicts(err error) []conflict {
	var out []conflict
	for _, c := range causes(err, metav1.CauseTypeFieldManagerConflict) {
		// The message is: conflict with "NAME" [with subresource "x"] [using v1 [at TIME]].
		m := c.Message
		if i := strings.IndexByte(m, '"'); i >= 0 {
			if q, err := strconv.QuotedPrefix(m[i:]); err == nil {
				m, _ = strconv.Unquote(q)
			}
		}
		out = append(out, conflict{c.Field, m})
	}
	return out
}

// adopted reports whether all conflicts are with managers whose fields are taken over.
func (p *Platform) adopted(all []conflict) bool {
	return !slices.ContainsFunc(all, func(c conflict) bool { return c.manager != manager && !slices.Contains(p.c.Adopt, c.manager) })
}

// contested says who holds which field with which value, and which value is wanted.
func (p *Platform) contested(o manifest.Object, live *unstructured.Unstructured, all []conflict) error {
	var lines, managers []string
	for _, c := range all {
		if c.manager == manager || slices.Contains(p.c.Adopt, c.manager) {
			continue
		}
		has, wants := "(hidden)", "(hidden)"
		if o.GetKind() != "Secret" {
			has, wants = show(valueAt(live.Object, c.field)), show(valueAt(o.Object, c.field))
		}
		lines = append(lines, fmt.Sprintf("%s is held by %q with %s, the manifest says %s", c.field, c.manager, has, wants))
		if !slices.Contains(managers, c.manager) {
			managers = append(managers, c.manager)
		}
	}
	err := fault.Newf(fault.Conflict, "%s: %s cannot be applied: %s", o.Origin, o.Ref(), strings.Join(lines, "; "))
	return fault.WithRemedy(err, "let %s no longer manage it, or name it under adopt: of account %s if it never sets the field again; "+
		"sluice deploy start --force-conflicts takes it over once",
		strings.Join(managers, ", "), p.c.Account)
}

func show(v any, ok bool) string {
	if !ok {
		return "nothing"
	}
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	if len(body) > 200 {
		return string(body[:200]) + "…"
	}
	return string(body)
}

// valueAt finds what a path of managed fields names: .spec.template.spec.containers[name="web"].image
func valueAt(v any, path string) (any, bool) {
	for path != "" {
		switch path[0] {
		case '.':
			path = path[1:]
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			m, ok := v.(map[string]any)
			if !ok {
				return nil, false
			}
			// Keys of maps may hold dots, so that the longest key that fits is meant.
			key := path[:end]
			for k := range m {
				if len(k) > len(key) && strings.HasPrefix(path, k) && (len(path) == len(k) || path[len(k)] == '.' || path[len(k)] == '[') {
					key = k
				}
			}
			if v, ok = m[key]; !ok {
				return nil, false
			}
			path = path[len(key):]
		case '[':
			var selector string
			if selector, path = bracket(path); selector == "" {
				return nil, false
			}
			list, ok := v.([]any)
			if !ok {
				return nil, false
			}
			if v, ok = element(list, selector); !ok {
				return nil, false
			}
		default:
			return nil, false
		}
	}
	return v, true
}

// bracket splits what stands in the first brackets from the rest. Quoted text may hold brackets.
func bracket(path string) (inside, rest string) {
	quoted := false
	for i := 1; i < len(path); i++ {
		switch {
		case path[i] == '\\' && quoted:
			i++
		case path[i] == '"':
			quoted = !quoted
		case path[i] == ']' && !quoted:
			return path[1:i], path[i+1:]
		}
	}
	return "", ""
}

// element finds the element of a list by its index, its value or its keys.
func element(list []any, selector string) (any, bool) {
	if i, err := strconv.Atoi(selector); err == nil {
		if i < 0 || i >= len(list) {
			return nil, false
		}
		return list[i], true
	}
	want := map[string]any{}
	for _, pair := range pairs(selector) {
		k, text, _ := strings.Cut(pair, "=")
		var value any
		if json.Unmarshal([]byte(text), &value) != nil {
			return nil, false
		}
		want[k] = value
	}
	for _, e := range list {
		m, ok := e.(map[string]any)
		fits := ok
		for k, value := range want {
			if k == "" {
				fits = e == value
			} else {
				fits = fits && m[k] == value
			}
		}
		if fits {
			return e, true
		}
	}
	return nil, false
}

// pairs splits at the commas outside of quotes.
func pairs(s string) []string {
	var out []string
	start, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && quoted:
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ',' && !quoted:
			out = append(out, s[start:i])
			start = i + 1
		}
	}
	return append(out, s[start:])
}
