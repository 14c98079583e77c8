package deployfile

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// What a deploy file may be at most. The YAML parser's time grows with the square of keys and depth, so that a small
// hostile file could keep a server busy for minutes.
const (
	maxBytes = 512 << 10
	maxDepth = 100
	maxNodes = 200_000 // with aliases expanded
)

// kind is what a node is in YAML.
type kind int

const (
	null kind = iota
	boolean
	integer
	float
	text
	list
	mapping
)

func (k kind) String() string {
	return [...]string{"empty", "true or false", "a whole number", "a number", "text", "a list", "a mapping"}[k]
}

// node is a value of the file with its place. Aliases and merge keys are resolved.
type node struct {
	at    Pos    // where the value begins
	key   Pos    // where its key stands; in lists where the item begins
	label string // the key it stands under
	kind  kind
	text  string // of a scalar
	plain bool   // a scalar that is neither quoted nor a block
	pairs []pair
	items []*node
	size  int // number of nodes in it
}

func (n *node) scalar() bool { return n.kind > null && n.kind < list }

type pair struct {
	name  string
	at    Pos
	value *node
}

// source turns text into nodes.
type source struct {
	lines   []string
	anchors map[string]*node
	found   Findings
}

// parseSource returns the root of the first document, nil where there is none to read.
func parseSource(body []byte) (*node, Findings) {
	if len(body) > maxBytes {
		return nil, Findings{{Severity: Error, Pos: Pos{1, 1}, Suggestion: "put manifests and bodies into files of their own",
			Message: fmt.Sprintf("the file has %d bytes; a deploy file has at most %d", len(body), maxBytes)}}
	}
	if !utf8.Valid(body) {
		return nil, Findings{{Severity: Error, Pos: invalidUTF8(body), Message: "the file is not UTF-8 text", Suggestion: "save it as UTF-8"}}
	}
	body = normalise(body)
	s := &source{lines: strings.Split(string(body), "\n"), anchors: map[string]*node{}}
	file := s.parse()
	if file == nil {
		return nil, s.found
	}
	root := s.document(file)
	if root != nil && root.size > maxNodes {
		s.errorf(root.at, "use fewer aliases", "with its aliases expanded the file has more than %d values", maxNodes)
		return nil, s.found
	}
	return root, s.found
}

func invalidUTF8(body []byte) Pos {
	at := Pos{1, 1}
	for len(body) > 0 {
		r, n := utf8.DecodeRune(body)
		if r == utf8.RuneError && n == 1 {
			return at
		}
		if at.Column++; r == '\n' {
			at = Pos{at.Line + 1, 1}
		}
		body = body[n:]
	}
	return at
}

func (s *source) errorf(at Pos, suggestion, format string, args ...any) {
	s.found = append(s.found, Finding{Severity: Error, Pos: at, Message: fmt.Sprintf(format, args...), Suggestion: suggestion})
}

// parse parses the lines. A template that should have been quoted is reported and read as if it had been, so that one
// run finds all of them.
func (s *source) parse() *ast.File {
	const rounds = 10
	for range rounds {
		file, err := parseYAML(strings.Join(s.lines, "\n"))
		if err == nil {
			return file
		}
		at, f := s.explain(err)
		s.found = append(s.found, f)
		if !s.quoteTemplate(at) {
			return nil
		}
	}
	return nil
}

// tooDeepError is a place where the nesting is deeper than any deploy file's.
type tooDeepError struct{ at Pos }

func (e *tooDeepError) Error() string {
	return fmt.Sprintf("the file is nested deeper than %d levels", maxDepth)
}

// parseYAML is the library's parser, fenced in: it neither panics nor works for minutes.
func parseYAML(body string) (file *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the YAML parser cannot read this file: %v", p)
		}
	}()
	if err := plausible(body); err != nil {
		return nil, err
	}
	tokens := lexer.Tokenize(body)
	if err := shallow(tokens); err != nil {
		return nil, err
	}
	return parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
}

// plausible refuses more open brackets than any text has, before the lexer sees them. It knows neither quotes nor
// comments, and so counts generously.
func plausible(body string) error {
	depth, at := 0, Pos{1, 1}
	for _, c := range body {
		switch c {
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		}
		if depth > 10*maxDepth {
			return &tooDeepError{at}
		}
		if at.Column++; c == '\n' {
			at = Pos{at.Line + 1, 1}
		}
	}
	return nil
}

// shallow refuses nesting that would take the parser minutes and gigabytes.
func shallow(tokens token.Tokens) error {
	flow, line, same := 0, 0, 0
	for _, t := range tokens {
		switch {
		case opens(t):
			flow++
		case closes(t):
			flow--
		case t.Type == token.SequenceEntryType, t.Type == token.MappingKeyType, t.Type == token.AnchorType, t.Type == token.TagType:
			if t.Position.Line != line {
				line, same = t.Position.Line, 0
			}
			same++
		}
		if flow > maxDepth || same > maxDepth {
			return &tooDeepError{position(t)}
		}
	}
	return nil
}

func opens(t *token.Token) bool {
	return t.Type == token.SequenceStartType || t.Type == token.MappingStartType
}

func closes(t *token.Token) bool {
	return t.Type == token.SequenceEndType || t.Type == token.MappingEndType
}

// document returns the first document that holds something.
func (s *source) document(file *ast.File) *node {
	var root *node
	for _, d := range file.Docs {
		if _, directive := d.Body.(*ast.DirectiveNode); directive || d.Body == nil {
			continue
		}
		if root != nil {
			at := position(d.Body.GetToken())
			if d.Start != nil {
				at = position(d.Start)
			}
			s.found = append(s.found, Finding{Severity: Warning, Pos: at, Message: "only the first document of the file is read",
				Suggestion: "put what follows `---` into a file of its own"})
			break
		}
		root = s.node(d.Body, "the file", 0)
	}
	return root
}

func position(t *token.Token) Pos { return Pos{t.Position.Line, t.Position.Column} }

// node converts a value.
func (s *source) node(n ast.Node, label string, depth int) *node {
	if n == nil {
		return &node{at: Pos{1, 1}, label: label, size: 1}
	}
	out := &node{at: s.place(n.GetToken()), label: label, size: 1}
	out.key = out.at
	if depth > maxDepth {
		s.errorf(out.at, "", "the file is nested deeper than %d levels", maxDepth)
		return out
	}
	switch x := n.(type) {
	case *ast.AnchorNode:
		return s.anchor(x, label, depth)
	case *ast.AliasNode:
		name := x.Value.GetToken().Value
		a, ok := s.anchors[name]
		if !ok {
			s.errorf(out.at, fmt.Sprintf("write &%s before the value that is meant", name), "there is no anchor named %q before this alias", name)
			return out
		}
		again := *a
		again.at, again.key, again.label = out.at, out.at, label
		return &again
	case *ast.TagNode:
		inner := s.node(x.Value, label, depth+1)
		if x.Start.Value == "!!str" && inner.kind < text {
			inner.kind, inner.plain = text, false
		}
		return inner
	case *ast.MappingNode:
		s.mapping(out, x, x.IsFlowStyle, depth)
	case *ast.MappingValueNode:
		s.mapping(out, x, false, depth)
	case *ast.SequenceNode:
		out.kind = list
		for _, v := range x.Values {
			item := s.node(v, "an item of "+label, depth+1)
			out.items = append(out.items, item)
			out.size = add(out.size, item.size)
		}
	default:
		s.scalar(out, n)
	}
	return out
}

// anchor converts a value and remembers it. Inside of itself it is not known yet, so no value contains itself.
func (s *source) anchor(x *ast.AnchorNode, label string, depth int) *node {
	n := s.node(x.Value, label, depth+1)
	s.anchors[x.Name.GetToken().Value] = n
	return n
}

// add adds sizes without overflowing: aliases of aliases grow exponentially.
func add(a, b int) int { return min(a+b, 1<<30) }

func (s *source) mapping(out *node, m ast.MapNode, flow bool, depth int) {
	out.kind = mapping
	if !flow {
		out.at = Pos{} // a block begins with its first key
	}
	var merged []*node
	seen := map[string]Pos{}
	for it := m.MapRange(); it.Next(); {
		p := pair{at: s.place(it.Key().GetToken())}
		if out.at == (Pos{}) {
			out.at, out.key = p.at, p.at
		}
		if _, merge := it.Key().(*ast.MergeKeyNode); merge {
			merged = append(merged, s.node(it.Value(), "<<", depth+1))
			continue
		}
		var ok bool
		if p.name, ok = keyText(it.Key()); !ok {
			s.errorf(p.at, "write a word as the key", "a key must be a single word or text")
			continue
		}
		if first, twice := seen[p.name]; twice {
			s.errorf(p.at, "remove one of the two", "the key %q is already in line %d", p.name, first.Line)
			continue
		}
		seen[p.name] = p.at
		p.value = s.node(it.Value(), p.name, depth+1)
		p.value.key = p.at
		out.pairs = append(out.pairs, p)
		out.size = add(out.size, p.value.size)
	}
	for _, v := range merged {
		s.merge(out, v, seen)
	}
}

// merge adds the pairs of a merge key that the mapping does not have itself.
func (s *source) merge(out, from *node, seen map[string]Pos) {
	switch from.kind {
	case mapping:
		for _, p := range from.pairs {
			if _, own := seen[p.name]; !own {
				seen[p.name] = p.at
				out.pairs = append(out.pairs, p)
				out.size = add(out.size, p.value.size)
			}
		}
	case list:
		for _, v := range from.items {
			s.merge(out, v, seen)
		}
	case null:
	default:
		s.errorf(from.at, "", "`<<` merges mappings; this is %s", from.kind)
	}
}

func keyText(k ast.MapKeyNode) (string, bool) {
	var n ast.Node = k
	if m, ok := n.(*ast.MappingKeyNode); ok {
		n = m.Value
	}
	switch x := n.(type) {
	case *ast.StringNode:
		return x.Value, true
	case *ast.LiteralNode:
		return x.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode, *ast.InfinityNode, *ast.NanNode:
		return x.GetToken().Value, true
	}
	return "", false
}

func (s *source) scalar(out *node, n ast.Node) {
	t := n.GetToken()
	out.text, out.plain = t.Value, true
	switch x := n.(type) {
	case *ast.NullNode:
		out.kind, out.text = null, ""
	case *ast.BoolNode:
		out.kind = boolean
	case *ast.IntegerNode:
		out.kind = integer
	case *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		out.kind = float
	case *ast.StringNode:
		out.kind, out.text = text, x.Value
		out.plain = t.Type != token.SingleQuoteType && t.Type != token.DoubleQuoteType
	case *ast.LiteralNode:
		out.kind, out.text, out.plain = text, x.Value.Value, false
	default:
		s.errorf(out.at, "", "this is neither a mapping nor a list nor a value")
	}
}

// place is where a token begins. The library is off by some columns where blanks follow a value; where its place does not
// show the token, the nearest place in the line that does is taken.
func (s *source) place(t *token.Token) Pos {
	at := position(t)
	first, _, _ := strings.Cut(strings.TrimSpace(t.Origin), "\n")
	if at.Line < 1 || at.Line > len(s.lines) || first == "" {
		return at
	}
	line := []rune(s.lines[at.Line-1])
	shows := func(column int) bool {
		return column >= 1 && column <= len(line) && strings.HasPrefix(string(line[column-1:]), first)
	}
	for d := range len(line) {
		if shows(at.Column - d) {
			return Pos{at.Line, at.Column - d}
		}
		if shows(at.Column + d) {
			return Pos{at.Line, at.Column + d}
		}
	}
	return at
}

// syntaxError is the library's error with its place.
func syntaxError(err error) (message string, at Pos) {
	if e, ok := errors.AsType[*tooDeepError](err); ok {
		return e.Error(), e.at
	}
	if e, ok := errors.AsType[yaml.Error](err); ok && e.GetToken() != nil && e.GetToken().Position != nil {
		return e.GetMessage(), position(e.GetToken())
	}
	return err.Error(), Pos{1, 1}
}
