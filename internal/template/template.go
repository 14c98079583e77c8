// Package template renders the variables of deploy files: Mustache's variable tags and nothing else of it.
package template

import (
	"slices"
	"strings"
)

// Render replaces {{name}}, {{ name }}, {{{name}}} and {{&name}} by what lookup returns, unescaped. A name that is not
// known becomes empty, as in Mustache, and is returned once. A tag that is never closed stays as it is.
func Render(s string, lookup func(name string) (string, bool)) (out string, unknown []string) {
	var b strings.Builder
	for {
		start := strings.Index(s, "{{")
		if start < 0 {
			break
		}
		closing := "}}"
		if strings.HasPrefix(s[start:], "{{{") {
			closing = "}}}"
		}
		length := strings.Index(s[start:], closing)
		if length < 0 {
			break
		}
		b.WriteString(s[:start])
		name := strings.TrimSpace(strings.Trim(s[start:start+length], "{&"))
		v, ok := lookup(name)
		if !ok && !slices.Contains(unknown, name) {
			unknown = append(unknown, name)
		}
		b.WriteString(v)
		s = s[start+length+len(closing):]
	}
	b.WriteString(s)
	return b.String(), unknown
}
