package deployfile

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// reader reads nodes into a File and collects what it finds on the way.
type reader struct {
	found     Findings
	refused   int // errors so far
	lines     []string
	strategy  string              // the one being read, "" elsewhere
	declared  []naming            // names that are declared
	used      []naming            // names that are used
	secrets   []Substitution      // secrets outside of templates
	judged    []judged            // analyses
	limitless []Query             // queries without limits
	homes     map[string][]string // keys → the mappings that have them
}

// maxFindings is how many findings anybody reads.
const maxFindings = 500

func (r *reader) full() bool { return len(r.found) >= maxFindings }

func (r *reader) add(s Severity, at Pos, suggestion, format string, args ...any) {
	if s == Error {
		r.refused++
	}
	if r.full() && (s != Error || r.refused > 1) {
		return
	}
	for i, a := range args {
		if text, ok := a.(string); ok {
			args[i] = brief(text)
		}
	}
	r.found = append(r.found, Finding{Severity: s, Pos: at, Message: fmt.Sprintf(format, args...), Suggestion: brief(suggestion)})
}

// brief is text as a message may show it: on one line, and not longer than one.
func brief(s string) string {
	const most = 240
	runes := []rune(s)
	if len(runes) > most {
		runes = append(runes[:most], '…')
	}
	return printable(string(runes))
}

func (r *reader) errorf(at Pos, suggestion, format string, args ...any) {
	r.add(Error, at, suggestion, format, args...)
}

func (r *reader) warnf(at Pos, suggestion, format string, args ...any) {
	r.add(Warning, at, suggestion, format, args...)
}

func (r *reader) notef(at Pos, suggestion, format string, args ...any) {
	r.add(Note, at, suggestion, format, args...)
}

// want reports a node of the wrong kind.
func (r *reader) want(n *node, what, suggestion string) {
	is := n.kind.String()
	if n.kind == text {
		is = strconv.Quote(brief(n.text))
	} else if n.scalar() {
		is = n.text
	}
	r.errorf(n.at, suggestion, "%s must be %s, not %s", n.label, what, is)
}

// value is what a file may hold at one place. It is bound to where it goes when it is made; so one declaration both reads
// files and describes them as a JSON schema.
type value struct {
	read   func(r *reader, n *node)
	schema func(d defs) schema
}

// asText returns a scalar as it is written.
func (r *reader) asText(n *node, suggestion string) (string, bool) {
	if n.scalar() || n.kind == null {
		return n.text, true
	}
	if suggestion == "" {
		suggestion = fmt.Sprintf("write `%s: TEXT`", n.label)
	}
	r.want(n, "text", suggestion)
	return "", false
}

// textOf is text in which nothing is substituted but secrets.
func textOf(dst *string) value {
	return value{
		read: func(r *reader, n *node) {
			if s, ok := r.asText(n, ""); ok {
				*dst = s
				r.checkPlain(n)
			}
		},
		schema: func(defs) schema { return schema{"type": []string{"string", "number", "boolean"}} },
	}
}

// opaque is text that is never looked into.
func opaque(dst *string) value {
	return value{
		read: func(r *reader, n *node) {
			if s, ok := r.asText(n, "write it as a block: `|` and the text in the lines below"); ok {
				*dst = s
			}
		},
		schema: func(defs) schema { return schema{"type": "string"} },
	}
}

// templateOf is text with variables; known says which of armory.* mean something here.
func templateOf(dst *string, in templateKind) value {
	return value{
		read: func(r *reader, n *node) {
			if s, ok := r.asText(n, "write it as a block: `|` and the text in the lines below"); ok {
				*dst = s
				r.checkTemplate(n, in)
			}
		},
		schema: func(defs) schema { return schema{"type": "string"} },
	}
}

// anything is a value that nobody reads.
func anything() value {
	return value{read: func(*reader, *node) {}, schema: func(defs) schema { return schema{} }}
}

// whole is a whole number within bounds.
func whole[T ~int | ~int64](dst *T, least, most int64) value {
	return value{
		read: func(r *reader, n *node) {
			i, ok := wholeNumber(n)
			switch {
			case !ok && n.kind == text && !n.plain && looksWhole(n.text):
				r.want(n, "a whole number", "remove the quotes: "+strings.TrimSpace(n.text))
			case !ok:
				r.want(n, "a whole number", "write digits only")
			case i < least:
				r.errorf(n.at, fmt.Sprintf("write %d or more", least), "%s is %s; it must be %s", n.label, n.text, bounds(least, most))
			case i > most:
				r.errorf(n.at, fmt.Sprintf("write %d or less", most), "%s is %s; it must be %s", n.label, n.text, bounds(least, most))
			default:
				*dst = T(i)
			}
		},
		schema: func(defs) schema {
			s := schema{"type": "integer"}
			if least > math.MinInt64 {
				s["minimum"] = least
			}
			if most < math.MaxInt64 {
				s["maximum"] = most
			}
			return s
		},
	}
}

func bounds(least, most int64) string {
	if most >= math.MaxInt32 {
		return fmt.Sprintf("%d or more", least)
	}
	return fmt.Sprintf("between %d and %d", least, most)
}

func looksWhole(s string) bool {
	_, err := strconv.ParseInt(strings.TrimSpace(s), 0, 64)
	return err == nil
}

// wholeNumber reads a whole number, also one written as 10.0.
func wholeNumber(n *node) (int64, bool) {
	if !n.plain || n.kind < integer || n.kind > text {
		return 0, false
	}
	if i, err := strconv.ParseInt(n.text, 0, 64); err == nil {
		return i, true
	}
	f, err := strconv.ParseFloat(n.text, 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return 0, false
	}
	return int64(f), true
}

// number is any finite number. Whole ones are numbers, too, whatever the old schema said.
func number(set func(float64)) value {
	return value{
		read: func(r *reader, n *node) {
			f, err := strconv.ParseFloat(strings.ReplaceAll(n.text, "_", ""), 64)
			if i, ok := wholeNumber(n); ok {
				f, err = float64(i), nil
			}
			switch {
			case n.kind < integer || n.kind > text || err != nil && n.kind != float:
				r.want(n, "a number", "write digits, and a point if need be")
			case n.kind == text && !n.plain:
				r.want(n, "a number", "remove the quotes: "+strings.TrimSpace(n.text))
			case err != nil || math.IsInf(f, 0) || math.IsNaN(f):
				r.errorf(n.at, "leave it away to have no limit", "%s must be a finite number, not %s", n.label, n.text)
			default:
				set(f)
			}
		},
		schema: func(defs) schema { return schema{"type": "number"} },
	}
}

// boolOf is true or false.
func boolOf(dst *bool) value {
	return value{
		read: func(r *reader, n *node) {
			v, ok := map[string]bool{"true": true, "yes": true, "on": true, "false": false, "no": false, "off": false}[strings.ToLower(n.text)]
			if !ok || n.kind == list || n.kind == mapping {
				r.want(n, "true or false", "write true or false")
				return
			}
			if n.kind != boolean {
				r.warnf(n.at, fmt.Sprintf("write %v", v), "%s is text; it is read as %v", n.label, v)
			}
			*dst = v
		},
		schema: func(defs) schema {
			return schema{"anyOf": []schema{{"type": "boolean"}, {"enum": []string{"true", "false", "yes", "no", "on", "off"}, "deprecated": true}}}
		},
	}
}

// oneOf is a word of a list, in any case. The first spelling of a word is what it is read as, those after a bar are
// others that mean the same: "postgres|postgresql". A word in parentheses is read and never offered.
func oneOf(dst *string, words ...string) value {
	var all, main []string
	means := map[string]string{}
	for _, w := range words {
		shown := strings.Trim(w, "()")
		spellings := strings.Split(shown, "|")
		if shown == w {
			main = append(main, spellings[0])
		}
		for _, s := range spellings {
			means[strings.ToLower(s)] = spellings[0]
			all = append(all, s)
		}
	}
	return value{
		read: func(r *reader, n *node) {
			s, ok := r.asText(n, "")
			if !ok {
				return
			}
			if w, known := means[strings.ToLower(s)]; known {
				*dst = w
				return
			}
			r.errorf(n.at, didYouMean(s, main), "%s %q is not one of %s", n.label, s, strings.Join(main, ", "))
		},
		schema: func(defs) schema {
			return schema{"anyOf": []schema{{"enum": main}, {"type": "string", "pattern": anyCase(all), "deprecated": true}}}
		},
	}
}

// anyCase is a pattern that matches the words in upper and lower case; JSON schema's patterns have no flag for it.
func anyCase(words []string) string {
	var b strings.Builder
	b.WriteString("^(")
	for i, w := range words {
		if i > 0 {
			b.WriteByte('|')
		}
		for _, c := range w {
			if lower, upper := strings.ToLower(string(c)), strings.ToUpper(string(c)); lower != upper {
				b.WriteString("[" + upper + lower + "]")
			} else {
				b.WriteRune(c)
			}
		}
	}
	b.WriteString(")$")
	return b.String()
}

// optional makes what is read into only when it is there.
func optional[T any](dst **T, v func(*T) value) value {
	return value{
		read: func(r *reader, n *node) {
			x := new(T)
			v(x).read(r, n)
			*dst = x
		},
		schema: func(d defs) schema { return v(new(T)).schema(d) },
	}
}

// listOf is a list.
func listOf[T any](dst *[]T, item func(*T) value) value {
	return value{
		read: func(r *reader, n *node) {
			if n.kind != list {
				suggestion := "put `- ` before each item"
				if n.kind != mapping {
					suggestion = fmt.Sprintf("write `%s: [%s]`", n.label, n.text)
				}
				r.want(n, "a list", suggestion)
				return
			}
			for _, x := range n.items {
				if x.kind == null {
					r.errorf(x.at, "remove the dash", "an item of %s is empty", n.label)
					continue
				}
				var v T
				item(&v).read(r, x)
				*dst = append(*dst, v)
			}
		},
		schema: func(d defs) schema { return schema{"type": "array", "items": item(new(T)).schema(d)} },
	}
}

// listOrOne is a list, or one item without it.
func listOrOne[T any](dst *[]T, item func(*T) value) value {
	v := listOf(dst, item)
	return value{
		read: func(r *reader, n *node) {
			if n.kind == mapping {
				one := *n
				n = &node{at: n.at, key: n.key, label: n.label, kind: list, items: []*node{&one}}
			}
			v.read(r, n)
		},
		schema: func(d defs) schema { return schema{"anyOf": []schema{v.schema(d), item(new(T)).schema(d)}} },
	}
}

// named is a mapping from names to things, kept in the order of the file. A list of things that have a key `name` is read
// like it.
func named[T any](dst *[]T, item func(name string, at Pos, t *T) value) value {
	return value{
		read: func(r *reader, n *node) {
			pairs := n.pairs
			switch n.kind {
			case mapping:
			case list:
				pairs = r.namedItems(n)
			default:
				r.want(n, "a mapping from names", "write each name as a key: `name:`")
				return
			}
			for _, p := range pairs {
				if strings.TrimSpace(p.name) == "" {
					r.errorf(p.at, "", "a name in %s is empty", n.label)
					continue
				}
				var v T
				item(p.name, p.at, &v).read(r, p.value)
				*dst = append(*dst, v)
			}
		},
		schema: func(d defs) schema {
			return schema{"anyOf": []schema{
				{"type": "object", "additionalProperties": item("", Pos{}, new(T)).schema(d)},
				{"type": "array", "items": schema{"type": "object", "required": []string{"name"}}, "deprecated": true},
			}}
		},
	}
}

// namedItems reads a list of things with a key `name` as pairs.
func (r *reader) namedItems(n *node) []pair {
	var out []pair
	for _, x := range n.items {
		rest := *x
		rest.pairs = nil
		p := pair{at: x.at, value: &rest}
		found := false
		for _, k := range x.pairs {
			if k.name == "name" {
				p.name, p.at, found = k.value.text, k.value.at, true
			} else {
				rest.pairs = append(rest.pairs, k)
			}
		}
		if !found {
			r.errorf(x.at, "add `name: …`", "an item of %s has no name", n.label)
			continue
		}
		out = append(out, p)
	}
	return out
}

// dictionary is a mapping from words to text.
func dictionary(dst *map[string]string) value {
	return value{
		read: func(r *reader, n *node) {
			if n.kind != mapping {
				r.want(n, "a mapping from names to text", "write `name: value` in the lines below")
				return
			}
			out := map[string]string{}
			for _, p := range n.pairs {
				if s, ok := r.asText(p.value, ""); ok {
					out[p.name] = s
				}
			}
			*dst = out
		},
		schema: func(defs) schema {
			return schema{"type": "object", "additionalProperties": schema{"type": []string{"string", "number", "boolean", "null"}}}
		},
	}
}

// orScalar reads a scalar by another value, with a warning that says what was meant.
func (v value) orScalar(other value, meant string) value {
	return value{
		read: func(r *reader, n *node) {
			if n.kind == mapping || n.kind == null {
				v.read(r, n)
				return
			}
			before := len(r.found)
			other.read(r, n)
			if len(r.found) == before {
				r.warnf(n.at, fmt.Sprintf(meant, n.text), "%s is written in short", n.label)
			}
		},
		schema: func(d defs) schema {
			short := other.schema(d)
			short["deprecated"] = true
			return schema{"anyOf": []schema{v.schema(d), short}}
		},
	}
}
