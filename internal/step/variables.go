package step

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/template"
)

// hidden stands where a secret was.
const hidden = "***"

// variables are what the templates of one entry into a step may name: armory.*, context.* and secrets.*. It remembers
// each value that nobody may read in a message, so that scrub can take it out again.
type variables struct {
	call    Call
	ports   Ports
	armory  map[string]string
	context map[string]string
	secret  map[string]bool // values, not names
	unknown []string
	err     error // the first secret that could not be had
}

// variablesOf returns the variables that webhooks and queries share.
func variablesOf(c Call, ports Ports, w plan.Where, context map[string]string) *variables {
	v := &variables{call: c, ports: ports, context: context, secret: map[string]bool{}, armory: map[string]string{
		"applicationName": w.Application,
		"deploymentId":    c.Delivery,
		"environmentName": w.Target,
		"replicaSetName":  w.ReplicaSetName,
		"accountName":     w.Account,
		"namespace":       w.Namespace,
	}}
	for _, path := range w.Previews {
		s, err := read[exposed](c.Siblings(path))
		if err != nil {
			continue // an address that cannot be read is one that is not known, and unknown names render empty
		}
		maps.Copy(v.armory, s.Expose)
	}
	return v
}

// render fills a template in. What is not known becomes empty, as in the dialect, and is kept in unknown.
func (v *variables) render(s string) string {
	out, unknown := template.Render(s, v.lookup)
	for _, u := range unknown {
		if !slices.Contains(v.unknown, u) {
			v.unknown = append(v.unknown, u)
		}
	}
	return out
}

func (v *variables) lookup(name string) (string, bool) {
	prefix, key, _ := strings.Cut(name, ".")
	switch prefix {
	case "armory":
		s, ok := v.armory[key]
		return s, ok
	case "context":
		s, ok := v.context[key]
		return s, ok
	case "secrets":
		s, err := v.ports.Secret(key)
		if err != nil {
			if v.err == nil {
				v.err = fmt.Errorf("secret %s: %w", key, err)
			}
			return "", true
		}
		v.hide(s)
		return s, true
	}
	return "", false
}

// hide keeps a value out of messages.
func (v *variables) hide(s string) {
	if s != "" {
		v.secret[s] = true
	}
}

// scrub takes the hidden values out of a text, also as a URL or JSON spells them. Longer ones go first, so that one which
// holds another does not leave its rest behind.
func (v *variables) scrub(s string) string {
	var spelled []string
	for value := range v.secret {
		spelled = append(spelled, value, url.QueryEscape(value), url.PathEscape(value))
		if quoted, err := json.Marshal(value); err == nil {
			spelled = append(spelled, strings.Trim(string(quoted), `"`))
		}
	}
	slices.SortFunc(spelled, func(a, b string) int { return len(b) - len(a) })
	for _, value := range spelled {
		s = strings.ReplaceAll(s, value, hidden)
	}
	return s
}

// warn shows the names that are not known.
func (v *variables) warn() {
	if len(v.unknown) > 0 && v.call.Progress != nil {
		v.call.Progress("the template names %s, which is not known and stays empty", strings.Join(v.unknown, ", "))
	}
}
