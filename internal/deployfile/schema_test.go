package deployfile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// compiled returns the schema as a validator knows it, and as data.
func compiled(t *testing.T) (*jsonschema.Schema, map[string]any) {
	t.Helper()
	body, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("deploy-file.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("deploy-file.json")
	if err != nil {
		t.Fatal(err)
	}
	return s, doc.(map[string]any)
}

// instance reads YAML as a validator of JSON wants it.
func instance(t *testing.T, body []byte) any {
	t.Helper()
	j, err := yaml.YAMLToJSON(body)
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(j))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestSchemaAcceptsExamples holds the schema against files that people copy.
func TestSchemaAcceptsExamples(t *testing.T) {
	s, _ := compiled(t)
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(files, func(f string) bool { return filepath.Base(f) == "armory.yaml" }) {
		t.Fatal("examples/armory.yaml is missing")
	}
	for _, path := range files {
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(body, []byte("\ntargets:")) {
			continue // a configuration
		}
		if err := s.Validate(instance(t, body)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if _, found := Parse(path, body); found.HasErrors() {
			var out bytes.Buffer
			_ = found.Write(&out, path, body)
			t.Errorf("%s is refused:\n%s", path, out.String())
		}
	}
}

// TestSchemaRefuses holds the schema against broken files whose mistake is one of shape.
func TestSchemaRefuses(t *testing.T) {
	s, _ := compiled(t)
	for _, pattern := range []string{"unknown-*", "type-*", "range-weight", "range-retries", "word-*", "step-weight-before", "step-copy-after",
		"step-text", "strategy-steps-*", "manifest-text"} {
		files, err := filepath.Glob("testdata/broken/" + pattern + ".yaml")
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, err)
		}
		for _, path := range files {
			body, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if s.Validate(instance(t, body)) == nil {
				t.Errorf("the schema accepts %s", path)
			}
		}
	}
}

// writer makes random files that the schema allows. It knows nothing of the dialect but the schema.
type writer struct {
	r    *rand.Rand
	defs map[string]any
	used map[string]bool // definition/key
}

// value returns something that a schema allows.
func (w *writer) value(s map[string]any, depth int) any {
	if ref, ok := s["$ref"].(string); ok {
		name := strings.TrimPrefix(ref, "#/$defs/")
		return w.object(name, w.defs[name].(map[string]any), depth)
	}
	if choices, ok := s["anyOf"].([]any); ok {
		choice := choices[w.r.IntN(len(choices))].(map[string]any)
		if choice["type"] == "null" && w.r.IntN(3) > 0 {
			choice = choices[0].(map[string]any)
		}
		return w.value(choice, depth)
	}
	if words, ok := s["enum"].([]any); ok {
		return words[w.r.IntN(len(words))]
	}
	if p, ok := s["pattern"].(string); ok {
		return w.word(p)
	}
	kind, _ := s["type"].(string)
	if kinds, ok := s["type"].([]any); ok {
		kind = kinds[w.r.IntN(len(kinds))].(string)
	}
	switch kind {
	case "null":
		return nil
	case "boolean":
		return w.r.IntN(2) == 0
	case "integer", "number":
		return 1 + w.r.IntN(20)
	case "array":
		out := []any{}
		for range w.r.IntN(3) {
			out = append(out, w.value(s["items"].(map[string]any), depth+1))
		}
		return out
	case "object":
		out := map[string]any{}
		item, named := s["additionalProperties"].(map[string]any)
		for i := range w.r.IntN(3) {
			if named {
				out[fmt.Sprintf("name %d", i)] = w.value(item, depth+1)
			}
		}
		if required, ok := s["required"].([]any); ok {
			for _, k := range required {
				out[k.(string)] = "x"
			}
		}
		return out
	}
	return []any{"x", "a b", "{{secrets.s}}", "1", "two\nlines", "true", ": #", "é"}[w.r.IntN(8)]
}

func (w *writer) object(name string, s map[string]any, depth int) map[string]any {
	out := map[string]any{}
	properties := s["properties"].(map[string]any)
	required, _ := s["required"].([]any)
	for _, k := range slices.Sorted(keysOf(properties)) {
		must := slices.Contains(required, any(k))
		if !must && (depth > 12 || w.r.IntN(3) > 0) {
			continue
		}
		w.used[name+"/"+k] = true
		out[k] = w.value(properties[k].(map[string]any), depth+1)
	}
	return out
}

func keysOf(m map[string]any) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// word returns a word that a pattern of the schema matches: ^([Aa][Bb]|…)$.
func (w *writer) word(pattern string) string {
	words := strings.Split(strings.TrimSuffix(strings.TrimPrefix(pattern, "^("), ")$"), "|")
	var b strings.Builder
	s := words[w.r.IntN(len(words))]
	for i := 0; i < len(s); i++ {
		if s[i] != '[' {
			b.WriteByte(s[i])
			continue
		}
		b.WriteByte(s[i+1+w.r.IntN(2)])
		i += 3
	}
	return b.String()
}

// shapeless are the messages that say a file's shape is wrong, as a schema would. A file that the schema allows never gets
// one of them.
var shapeless = []string{"has no key", "there is no step", "must be a", "must be text", "must be true", "must be a whole", "is not one of",
	"may not stand in"}

// TestSchemaAndParserAgree makes random files that the schema allows: the parser must understand every key and every shape
// in them; a file reads the same in whatever style its YAML is written; and in the end every key was used.
func TestSchemaAndParserAgree(t *testing.T) {
	s, doc := compiled(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := &writer{r: rand.New(rand.NewPCG(seed, 1)), defs: doc["$defs"].(map[string]any), used: map[string]bool{}}
	for n := 0; n < 1500 || n < 20_000 && len(w.missing()) > 0; n++ {
		file := w.value(map[string]any{"$ref": "#/$defs/file"}, 0)
		block, err := yaml.Marshal(file)
		if err != nil {
			t.Fatal(err)
		}
		flow, err := json.Marshal(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(instance(t, flow)); err != nil {
			t.Fatalf("the test's own file is not valid: %v\n%s", err, block)
		}
		read, found := Parse("deploy.yaml", block)
		for _, x := range found {
			for _, m := range shapeless {
				if strings.Contains(x.Message, m) && !strings.Contains(x.Message, "must be a finite") && !strings.Contains(x.Message, "it must be") {
					t.Fatalf("%s\n%s", x.Message, block)
				}
			}
		}
		again, foundAgain := Parse("deploy.yaml", flow)
		if !reflect.DeepEqual(withoutPlaces(read), withoutPlaces(again)) {
			t.Fatalf("read differently in block and in flow style:\n%s\n%s\n%+v\n%+v", block, flow, withoutPlaces(read), withoutPlaces(again))
		}
		if a, b := messages(found), messages(foundAgain); !slices.Equal(a, b) {
			t.Fatalf("other findings in block and in flow style:\n%s\n%s\n%s", block, strings.Join(a, "\n"), strings.Join(b, "\n"))
		}
	}
	if never := w.missing(); len(never) > 0 {
		t.Errorf("no random file had %s", strings.Join(never, ", "))
	}
}

// missing are the keys of the schema that no file has had yet.
func (w *writer) missing() []string {
	var out []string
	for name, d := range w.defs {
		for k := range d.(map[string]any)["properties"].(map[string]any) {
			if !w.used[name+"/"+k] {
				out = append(out, name+"/"+k)
			}
		}
	}
	slices.Sort(out)
	return out
}

var lineNumber = regexp.MustCompile(`in line \d+`)

func messages(found Findings) []string {
	var out []string
	for _, x := range found {
		out = append(out, string(x.Severity)+": "+lineNumber.ReplaceAllString(x.Message, "in a line"))
	}
	slices.Sort(out)
	return out
}

// withoutPlaces takes the places out of a file.
func withoutPlaces(f *File) any {
	body, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		panic(err)
	}
	var strip func(v any)
	strip = func(v any) {
		switch x := v.(type) {
		case map[string]any:
			delete(x, "Pos")
			for _, y := range x {
				strip(y)
			}
		case []any:
			for _, y := range x {
				strip(y)
			}
		}
	}
	strip(v)
	return v
}
