package config

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/sluice-cd/sluice/internal/fault"
)

// reader reads YAML strictly and remembers everything that is wrong with it.
type reader struct {
	path   string // as it was named, for messages
	folder string // what relative paths are relative to
	found  []found
	named  map[string]ast.Node // what anchors stand before
}

type found struct {
	line, column int
	text         string
}

func (r *reader) add(t *token.Token, remedy, text string) {
	f := found{line: 1, column: 1, text: text}
	if t != nil && t.Position != nil {
		f.line, f.column = t.Position.Line, t.Position.Column
	}
	if remedy != "" {
		f.text += " (" + remedy + ")"
	}
	r.found = append(r.found, f)
}

func (r *reader) wrong(n ast.Node, remedy, format string, args ...any) {
	r.add(place(n), remedy, fmt.Sprintf(format, args...))
}

// place is where a node begins: a mapping's own token is the colon after its first key.
func place(n ast.Node) *token.Token {
	if n == nil {
		return nil
	}
	switch v := n.(type) {
	case *ast.MappingNode:
		if len(v.Values) > 0 && !v.IsFlowStyle {
			return v.Values[0].Key.GetToken()
		}
	case *ast.MappingValueNode:
		return v.Key.GetToken()
	}
	return n.GetToken()
}

// err returns all that was found, in the order of the file, and nil if that is nothing.
func (r *reader) err() error {
	if len(r.found) == 0 {
		return nil
	}
	slices.SortStableFunc(r.found, func(a, b found) int {
		if a.line != b.line {
			return a.line - b.line
		}
		return a.column - b.column
	})
	var lines []string
	for _, f := range r.found {
		lines = append(lines, fmt.Sprintf("%s:%d:%d: %s", r.path, f.line, f.column, f.text))
	}
	return fault.Newf(fault.Invalid, "%s", strings.Join(lines, "\n"))
}

// parseYAML is the library's parser, which is known to panic where it should return an error.
func parseYAML(body []byte) (f *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the YAML parser cannot read this file: %v", p)
		}
	}()
	return parser.ParseBytes(body, 0)
}

// document returns the only document of the file, nil where it is empty or cannot be read.
func (r *reader) document(body []byte) ast.Node {
	f, err := parseYAML(body)
	if err != nil {
		if e, ok := errors.AsType[yaml.Error](err); ok {
			r.add(e.GetToken(), "", strings.ReplaceAll(e.GetMessage(), "\t", "tab"))
		} else {
			r.add(nil, "", err.Error())
		}
		return nil
	}
	var docs []*ast.DocumentNode
	for _, d := range f.Docs {
		if d.Body != nil && d.Body.Type() != ast.CommentType {
			docs = append(docs, d)
		}
	}
	if len(docs) == 0 {
		return nil
	}
	if len(docs) > 1 {
		r.wrong(docs[1].Body, "", "a configuration is one document")
	}
	r.named = map[string]ast.Node{}
	ast.Walk(r, docs[0].Body)
	return docs[0].Body
}

// Visit remembers what anchors stand before.
func (r *reader) Visit(n ast.Node) ast.Visitor {
	if a, ok := n.(*ast.AnchorNode); ok {
		r.named[a.Name.GetToken().Value] = a.Value
	}
	return r
}

// resolve returns what stands behind anchors, aliases and tags. An alias of nothing, or of itself, stays what it is.
func (r *reader) resolve(n ast.Node) ast.Node {
	for range 10 {
		switch v := n.(type) {
		case *ast.AnchorNode:
			n = v.Value
		case *ast.TagNode:
			n = v.Value
		case *ast.AliasNode:
			behind, ok := r.named[v.Value.GetToken().Value]
			if !ok {
				return n
			}
			n = behind
		default:
			return n
		}
	}
	return n
}

func null(n ast.Node) bool {
	if n == nil {
		return true
	}
	_, ok := n.(*ast.NullNode)
	return ok
}

// pairs calls each with every key and value of a mapping. What is absent has none.
func (r *reader) pairs(n ast.Node, what string, each func(key string, k, v ast.Node)) {
	n = r.resolve(n)
	if null(n) {
		return
	}
	m, ok := n.(ast.MapNode)
	if !ok {
		r.wrong(n, "", "%s is %s, not keys with values", what, kindOf(n))
		return
	}
	for i := m.MapRange(); i.Next(); {
		each(i.Key().GetToken().Value, i.Key(), i.Value())
	}
}

// keys reads a mapping whose keys are known, and reports whether nothing was wrong with it.
func (r *reader) keys(n ast.Node, what string, known map[string]func(ast.Node)) bool {
	before := len(r.found)
	r.pairs(n, what, func(key string, k, v ast.Node) {
		read, ok := known[key]
		if !ok {
			names := slices.Sorted(maps.Keys(known))
			remedy := "known are " + strings.Join(names, ", ")
			if near := closest(key, names); near != "" {
				remedy = "did you mean " + near + "?"
			}
			r.wrong(k, remedy, "unknown key %q in %s", key, what)
			return
		}
		if !null(r.resolve(v)) {
			read(v)
		}
	})
	return len(r.found) == before
}

// entries reads a mapping whose keys are names that the user gives.
func (r *reader) entries(n ast.Node, what string, each func(name string, n ast.Node)) {
	r.pairs(n, what, func(key string, k, v ast.Node) {
		if null(r.resolve(v)) {
			r.wrong(k, "", "%s of %s has no value", key, what)
			return
		}
		each(key, v)
	})
}

// text reads a single value as it is written: a number or a date is its text.
func (r *reader) text(n ast.Node, what string) string {
	n = r.resolve(n)
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value
	case *ast.LiteralNode:
		return v.Value.Value
	case ast.ScalarNode:
		return v.GetToken().Value
	}
	r.wrong(n, "", "%s is %s, not one value", what, kindOf(n))
	return ""
}

func (r *reader) oneOf(n ast.Node, what string, words ...string) string {
	v := r.text(n, what)
	if !slices.Contains(words, v) {
		remedy := "known are " + strings.Join(words, ", ")
		if near := closest(v, words); near != "" {
			remedy = "did you mean " + near + "?"
		}
		r.wrong(n, remedy, "%s is %q", what, v)
	}
	return v
}

// list reads a list of values; a single value is a list of one.
func (r *reader) list(n ast.Node, what string) []string {
	n = r.resolve(n)
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		if _, ok := n.(ast.ScalarNode); !ok {
			r.wrong(n, "", "%s is %s, not a list", what, kindOf(n))
			return nil
		}
		return []string{r.text(n, what)}
	}
	var out []string
	for _, v := range s.Values {
		if null(r.resolve(v)) {
			r.wrong(s, "", "%s has an empty entry", what)
			continue
		}
		out = append(out, r.text(v, what))
	}
	return out
}

// file reads a path.
func (r *reader) file(n ast.Node, what string) string {
	v := r.text(n, what)
	if v == "" {
		return ""
	}
	return r.absolute(v)
}

func (r *reader) absolute(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(r.folder, path)
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case ast.MapNode:
		return "keys with values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.AliasNode:
		return "an alias"
	default:
		return "a value"
	}
}

// closest returns the word that a misspelt one most likely means, "" where none is near.
func closest(word string, words []string) string {
	best, least := "", max(1, len(word)/3)+1
	for _, w := range words {
		if d := distance(strings.ToLower(word), strings.ToLower(w)); d < least {
			best, least = w, d
		}
	}
	return best
}

// distance is how many letters must be added, removed or replaced to make one word of another.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}
