package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	goyaml "go.yaml.in/yaml/v2"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"

	"github.com/sluice-cd/sluice/internal/fault"
)

// Parse reads the objects of a file: YAML of any number of documents, or JSON, as kubectl reads it. Lists are flattened.
// The error names everything that is wrong, one line each, with file and line.
func Parse(origin string, body []byte) ([]Object, error) {
	var objects []Object
	var errs []error
	for _, d := range documents(body) {
		found, err := d.objects(origin)
		objects = append(objects, found...)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fault.Newf(fault.Invalid, "%w", err)
	}
	return objects, nil
}

// document is one part of a file between separators. First is its first line, start the first that says something.
type document struct {
	first, start int
	body         []byte
}

// separates reports whether a line begins with a marker between documents.
func separates(line []byte, marker string) (rest []byte, ok bool) {
	rest, ok = bytes.CutPrefix(line, []byte(marker))
	return rest, ok && (len(rest) == 0 || bytes.ContainsAny(rest[:1], " \t\r\n"))
}

// documents cuts a file at the lines that begin with --- or, which is rare, with three dots.
func documents(body []byte) []document {
	var out []document
	line, at := 1, document{first: 1}
	flush := func() {
		if at.start > 0 {
			out = append(out, at)
		}
	}
	for text := range bytes.Lines(body) {
		rest, begins := separates(text, "---")
		_, ends := separates(text, "...")
		if begins || ends {
			flush()
			// What stands behind the marker on its own line still belongs to the document that begins.
			if ends {
				rest = []byte("\n")
			}
			at = document{first: line, body: append([]byte("   "), rest...)}
			text = rest
		} else {
			at.body = append(at.body, text...)
		}
		if says := bytes.TrimSpace(text); at.start == 0 && len(says) > 0 && says[0] != '#' && !bytes.HasPrefix(text, []byte("%")) {
			at.start = line
		}
		line++
	}
	flush()
	return out
}

// lineOf finds the line that the YAML library counts from the begin of a document.
var lineOf = regexp.MustCompile(`^(?:error converting YAML to JSON: )?yaml: (?:unmarshal errors:\n\s+)?(?:line (\d+): )?`)

// objects reads one document.
func (d document) objects(origin string) ([]Object, error) {
	j, err := yaml.YAMLToJSONStrict(d.body)
	if err != nil {
		text, line := err.Error(), d.start
		if m := lineOf.FindStringSubmatch(text); m != nil {
			text = text[len(m[0]):]
			if n, err := strconv.Atoi(m[1]); err == nil {
				line = d.first + n - 1
			}
		}
		return nil, fmt.Errorf("%s:%d: %s%s", origin, line, text, templated(d.body))
	}
	if at, ok := d.trailing(); ok {
		return nil, fmt.Errorf("%s:%d: what follows does not belong to the object above: check the indentation", origin, at)
	}
	where := fmt.Sprintf("%s:%d", origin, d.start)
	var v any
	if err := json.Unmarshal(j, &v); err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if v == nil {
		return nil, nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s: a Kubernetes object has keys with values; this is %s", where, typeName(v))
	}
	return flatten(where, m)
}

// trailing returns the line after which the YAML library reads nothing more without saying so: one that is indented less
// than the first ends the object.
func (d document) trailing() (line int, ok bool) {
	dec := goyaml.NewDecoder(bytes.NewReader(d.body))
	var v any
	if dec.Decode(&v) != nil {
		return 0, false
	}
	err := dec.Decode(&v)
	if err == nil || errors.Is(err, io.EOF) {
		return d.start, err == nil
	}
	if m := lineOf.FindStringSubmatch(err.Error()); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			return d.first + n - 1, true
		}
	}
	return d.start, true
}

// templated explains the commonest reason why a manifest is no YAML.
func templated(body []byte) string {
	if bytes.Contains(body, []byte("{{")) {
		return " (it holds {{…}}: manifests are not templates; render them before, with helm template or kustomize build)"
	}
	return ""
}

func typeName(v any) string {
	switch v.(type) {
	case []any:
		return "a list"
	case string:
		return "text"
	default:
		return fmt.Sprintf("the value %v", v)
	}
}

// flatten returns an object, or the objects of a list.
func flatten(where string, m map[string]any) ([]Object, error) {
	o := Object{Unstructured: unstructured.Unstructured{Object: m}, Origin: where}
	if items, ok := m["items"].([]any); ok && strings.HasSuffix(o.GetKind(), "List") {
		var out []Object
		var errs []error
		for i, item := range items {
			at := fmt.Sprintf("%s items[%d]", where, i)
			im, ok := item.(map[string]any)
			if !ok {
				errs = append(errs, fmt.Errorf("%s: a Kubernetes object has keys with values; this is %s", at, typeName(item)))
				continue
			}
			found, err := flatten(at, im)
			out, errs = append(out, found...), append(errs, err)
		}
		return out, errors.Join(errs...)
	}
	if err := check(o); err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	return []Object{o}, nil
}

// check finds what would make an object useless before anything is applied.
func check(o Object) error {
	kind, isText := o.Object["kind"].(string)
	api, _ := o.Object["apiVersion"].(string)
	meta, isMap := o.Object["metadata"].(map[string]any)
	name, nameIsText := meta["name"].(string)
	_, namespaceIsText := meta["namespace"].(string)
	group, _, _ := strings.Cut(api, "/")
	switch {
	case kind == "" && !isText && o.Object["kind"] != nil:
		return errors.New("kind is not text")
	case kind == "":
		return errors.New("it has no kind")
	case api == "":
		return fmt.Errorf("%s has no apiVersion", kind)
	case group == "kustomize.config.k8s.io":
		return fmt.Errorf("%s is a file of kustomize: name its folder as the path of the manifests", kind)
	case !isMap:
		return fmt.Errorf("%s has no metadata", kind)
	case name == "" && meta["name"] != nil && !nameIsText:
		return fmt.Errorf("the name of %s is not text: write it in quotes", kind)
	case name == "" && meta["generateName"] != nil:
		return fmt.Errorf("%s has generateName and no name: Sluice must find the object again, so give it a name", kind)
	case name == "":
		return fmt.Errorf("%s has no metadata.name", kind)
	case meta["namespace"] != nil && !namespaceIsText:
		return fmt.Errorf("the namespace of %s %s is not text: write it in quotes", kind, name)
	}
	return nil
}
