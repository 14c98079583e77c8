package docs_test

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/deployfile"
)

// node is what the tables need to know of a JSON schema.
type node struct {
	Ref         string          `json:"$ref"`
	Defs        map[string]node `json:"$defs"`
	AnyOf       []node          `json:"anyOf"`
	Properties  map[string]node `json:"properties"`
	Additional  json.RawMessage `json:"additionalProperties"`
	Items       *node           `json:"items"`
	Type        json.RawMessage `json:"type"`
	Enum        []any           `json:"enum"`
	Required    []string        `json:"required"`
	Description string          `json:"description"`
	Deprecated  bool            `json:"deprecated"`
}

// steps are definitions that differ only in which steps they allow: one table stands for all.
var steps = []string{"canaryStep", "beforeStep", "afterStep", "blueGreenStep", "canarySequenceStep"}

// unlisted definitions need no table: they are out of scope, or an old spelling.
var unlisted = []string{"stepsBelow", "functionAlias", "artifact", "lambdaOptions", "providerOptions"}

var keysMark = regexp.MustCompile(`(?s)<!-- keys: (\w+) -->\n(.*?)<!-- end -->`)

// TestKeysOfDeployFiles holds the tables of deploy-file.md against the schema: each definition has its table, each key
// its row, with the schema's own words, and so has where steps may stand. With -update the tables are written anew, in the order in which they are.
func TestKeysOfDeployFiles(t *testing.T) {
	const path = "deploy-file.md"
	body, err := deployfile.Schema()
	if err != nil {
		t.Fatal(err)
	}
	var schema node
	if err := json.Unmarshal(body, &schema); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	made := keysMark.ReplaceAllStringFunc(string(page), func(s string) string {
		m := keysMark.FindStringSubmatch(s)
		seen[m[1]] = true
		var made string
		d, ok := schema.Defs[m[1]]
		switch {
		case m[1] == "steps":
			made = table(allSteps(schema), m[2])
		case m[1] == "places":
			made = places(schema, m[2])
		case ok:
			made = table(d, m[2])
		default:
			t.Errorf("%s: the schema has no definition %s", path, m[1])
			return s
		}
		return fmt.Sprintf("<!-- keys: %s -->\n%s<!-- end -->", m[1], made)
	})
	for name := range schema.Defs {
		if !seen[name] && !slices.Contains(steps, name) && !slices.Contains(unlisted, name) {
			t.Errorf("%s: there is no table of %s; write <!-- keys: %s --> and <!-- end -->", path, name, name)
		}
	}
	if made == string(page) {
		return
	}
	if !*update {
		t.Errorf("%s differs from the schema; go test ./docs -update writes it", path)
		return
	}
	if err := os.WriteFile(path, []byte(made), 0o644); err != nil {
		t.Fatal(err)
	}
}

// allSteps joins the kinds of steps, whose keys differ in where they may stand.
func allSteps(schema node) node {
	all := node{Properties: map[string]node{}}
	for _, name := range steps {
		for k, p := range schema.Defs[name].Properties {
			all.Properties[k] = p
		}
	}
	return all
}

var rowKey = regexp.MustCompile("(?m)^\\| `([^`]+)` \\|")

// table writes the keys of a definition, in the order of the table that is there; new ones come last.
func table(d node, before string) string {
	names, old := d.keys(before)
	var out strings.Builder
	out.WriteString("| key | value | meaning |\n|---|---|---|\n")
	for _, k := range names {
		p := d.Properties[k]
		value := p.value()
		if slices.Contains(d.Required, k) {
			value += ", required"
		}
		fmt.Fprintf(&out, "| `%s` | %s | %s |\n", k, value, strings.ReplaceAll(p.Description, "|", `\|`))
	}
	if len(old) > 0 {
		fmt.Fprintf(&out, "\nRead with a note, from older files: `%s`.\n", strings.Join(old, "`, `"))
	}
	return out.String()
}

// keys returns the keys of a definition in the order of the table that is there, and those that only old files have.
func (n node) keys(before string) (names, old []string) {
	var order []string
	for _, m := range rowKey.FindAllStringSubmatch(before, -1) {
		order = append(order, m[1])
	}
	for k, p := range n.Properties {
		if p.Deprecated || strings.HasPrefix(p.Description, "Old spelling") || strings.HasPrefix(p.Description, "Ignored") {
			old = append(old, k)
		} else {
			names = append(names, k)
		}
	}
	place := func(k string) int {
		if i := slices.Index(order, k); i >= 0 {
			return i
		}
		return len(order)
	}
	slices.Sort(names)
	slices.SortStableFunc(names, func(a, b string) int { return place(a) - place(b) })
	slices.Sort(old)
	return names, old
}

// places writes which step may stand where.
func places(schema node, before string) string {
	names, _ := allSteps(schema).keys(before)
	var out strings.Builder
	out.WriteString("| step | `beforeDeployment` | `afterDeployment` | `canary` | `blueGreen` |\n|---|---|---|---|---|\n")
	for _, k := range names {
		fmt.Fprintf(&out, "| `%s` |", k)
		for _, list := range []string{"beforeStep", "afterStep", "canaryStep", "blueGreenStep"} {
			cell := " "
			if _, ok := schema.Defs[list].Properties[k]; ok {
				cell = " yes "
			}
			out.WriteString(cell + "|")
		}
		out.WriteString("\n")
	}
	return out.String()
}

// value says in words what may stand for a key.
func (n node) value() string {
	switch {
	case n.Ref != "":
		name := strings.TrimPrefix(n.Ref, "#/$defs/")
		switch {
		case slices.Contains(steps, name):
			name = "steps"
		case slices.Contains(unlisted, name):
			return "mapping"
		}
		return fmt.Sprintf("[%s](#%s)", name, strings.ToLower(name))
	case n.Items != nil:
		return "list of " + n.Items.value()
	case len(n.Enum) > 0:
		var words []string
		for _, e := range n.Enum {
			words = append(words, fmt.Sprintf("`%v`", e))
		}
		return strings.Join(words, ", ")
	}
	var parts []string
	for _, a := range n.AnyOf {
		if a.Deprecated || string(a.Type) == `"null"` {
			continue
		}
		if v := a.value(); !slices.Contains(parts, v) {
			parts = append(parts, v)
		}
	}
	if len(parts) == 2 && parts[0] == "list of "+parts[1] {
		return parts[1] + " or a list of them"
	}
	if len(parts) > 0 {
		return strings.Join(parts, " or ")
	}
	switch string(n.Type) {
	case `"integer"`:
		return "whole number"
	case `"number"`:
		return "number"
	case `"boolean"`:
		return "true or false"
	case `"object"`:
		var each node
		if json.Unmarshal(n.Additional, &each) == nil && each.Ref != "" {
			return "name: " + each.value()
		}
		return "name: text"
	case "":
		return "anything"
	default:
		return "text"
	}
}
