package deployfile

import (
	"fmt"
	"slices"
	"strings"
)

// fields are the keys that a mapping may have. A declaration fills them in; reading and the schema both go by it.
type fields struct {
	at         Pos    // of the mapping, while reading
	blank      bool   // an empty value stands for the mapping
	complained bool   // a key was refused
	what       string // what a key is, for messages; "key"
	keys       []*field
	then       []func(r *reader)
}

// field is one key of a mapping.
type field struct {
	name    string
	doc     string
	value   value
	must    bool
	aliases []string
	gone    string // why an old key is ignored
	misfit  string // why the key may not stand here
	blank   bool   // an empty value is an empty mapping
	hidden  bool   // nobody should write it any more
	at      Pos    // of the key, zero while it was not seen
	node    *node  // what stood there
}

// seen reports whether the key is there and says something.
func (f *field) seen() bool { return f.node != nil && (f.node.kind != null || f.blank) }

// key declares a key with what it means.
func (o *fields) key(name string, v value, doc string) *field {
	f := &field{name: name, doc: doc, value: v}
	o.keys = append(o.keys, f)
	return f
}

// old declares a key that old files hold and nothing reads.
func (o *fields) old(name, why string) {
	o.keys = append(o.keys, &field{name: name, doc: "Ignored: " + why, gone: why, value: anything()})
}

// required refuses a mapping without the key.
func (f *field) required() *field { f.must = true; return f }

// alias declares another spelling, from older files.
func (f *field) alias(names ...string) *field { f.aliases = append(f.aliases, names...); return f }

// unless refuses the key for a reason, if there is one.
func (f *field) unless(reason string) *field { f.misfit = reason; return f }

// orEmpty reads an empty value as an empty mapping.
func (f *field) orEmpty() *field { f.blank = true; return f }

// unoffered keeps the key out of suggestions.
func (f *field) unoffered() *field { f.hidden = true; return f }

// check is called after the keys have been read.
func (o *fields) check(f func(r *reader)) { o.then = append(o.then, f) }

// object is a mapping with declared keys. Its name is the definition's in the schema.
func object(name, doc string, declare func(o *fields)) value {
	return value{
		read: func(r *reader, n *node) {
			if n.kind != mapping && n.kind != null {
				suggestion := "write its keys in the lines below, indented"
				if n.kind == list {
					suggestion = "write its keys without `- `"
				}
				r.want(n, "a mapping", suggestion)
				return
			}
			o := &fields{at: n.key, blank: n.kind == null}
			declare(o)
			o.read(r, n)
		},
		schema: func(d defs) schema { return d.define(name, doc, declare) },
	}
}

// instead says what to write where text stands in place of the mapping.
func (v value) instead(format string) value {
	return value{schema: v.schema, read: func(r *reader, n *node) {
		if n.kind != mapping && n.kind != null && n.kind != list {
			r.want(n, "a mapping", fmt.Sprintf(format, n.text))
			return
		}
		v.read(r, n)
	}}
}

func (o *fields) read(r *reader, n *node) {
	before := r.refused
	for _, p := range n.pairs {
		f, old := o.find(p.name)
		switch {
		case f == nil:
			r.unknownKey(o, n, p)
		case f.gone != "":
			r.notef(p.at, "", "%s is ignored: %s", p.name, f.gone)
		case f.misfit != "":
			r.errorf(p.at, "move it there, or remove it", "%s", f.misfit)
		case f.node != nil:
			r.errorf(p.at, "remove one of the two", "%s and %s mean the same", p.name, f.name)
		default:
			if old {
				r.notef(p.at, fmt.Sprintf("write %s", f.name), "%s is an old spelling of %s", p.name, f.name)
			}
			f.at, f.node = p.at, p.value
			if p.value.kind != null || f.blank {
				f.value.read(r, p.value)
			}
		}
	}
	for _, f := range o.keys {
		if f.must && (f.node == nil || f.node.kind == null) {
			r.errorf(o.at, fmt.Sprintf("add `%s: …`", f.name), "%s needs %s", n.label, f.name)
		}
	}
	o.complained = r.refused > before
	for _, then := range o.then {
		then(r)
		o.complained = r.refused > before
	}
}

// find returns the field of a key, and whether the key is an old spelling of it.
func (o *fields) find(name string) (f *field, old bool) {
	for _, f := range o.keys {
		if f.name == name {
			return f, false
		}
		if slices.Contains(f.aliases, name) {
			return f, true
		}
	}
	return nil, false
}

func (r *reader) unknownKey(o *fields, n *node, p pair) {
	if r.full() {
		r.refused++
		return
	}
	var names, missing []string
	for _, f := range o.keys {
		if f.gone != "" || f.misfit != "" || f.hidden {
			continue
		}
		names = append(names, f.name)
		if f.must && !slices.ContainsFunc(n.pairs, func(q pair) bool { return q.name == f.name }) {
			missing = append(missing, f.name)
		}
	}
	suggestion := didYouMean(p.name, names)
	if nearest(p.name, names) == "" {
		if home := r.home(p.name); home != "" {
			suggestion = p.name + " belongs in " + home
		} else if len(missing) == 1 {
			suggestion = "did you mean " + missing[0] + "?"
		}
	}
	if o.what != "" {
		r.errorf(p.at, suggestion, "there is no %s %q", o.what, p.name)
		return
	}
	r.errorf(p.at, suggestion, "%s has no key %q", n.label, p.name)
}

// home says where a key belongs that stands in the wrong place, if there is only one such place.
func (r *reader) home(key string) string {
	if r.homes == nil {
		r.homes = map[string][]string{}
		d := defs{}
		fileOf(&File{}).schema(d)
		for name, s := range d {
			for k := range s["properties"].(schema) {
				if strings.HasSuffix(name, "Step") {
					name = "a list of steps"
				}
				if !slices.Contains(r.homes[k], name) {
					r.homes[k] = append(r.homes[k], name)
				}
			}
		}
	}
	if homes := r.homes[key]; len(homes) == 1 && homes[0] != "file" {
		return homes[0]
	} else if len(homes) == 1 {
		return "the top of the file"
	}
	return ""
}

// didYouMean returns the nearest of the words that may be meant, else all of them.
func didYouMean(word string, words []string) string {
	if w := nearest(word, words); w != "" {
		return fmt.Sprintf("did you mean %s?", w)
	}
	if len(words) == 0 {
		return ""
	}
	return "known here: " + strings.Join(words, ", ")
}

// nearest returns the word that a misspelled or shortened one may mean, "" where none is near.
func nearest(word string, words []string) string {
	letters := len([]rune(word))
	best, most := "", 2
	if letters > 5 {
		most = (letters+1)/3 + 1
	}
	for _, w := range words {
		if n := len([]rune(w)) - letters; n >= most || -n >= most {
			continue
		}
		d := distance(strings.ToLower(word), strings.ToLower(w))
		if d < most {
			best, most = w, d
		}
	}
	if short := strings.TrimSuffix(word, "s"); best == "" && len(short) >= 3 {
		for _, w := range words {
			if strings.HasPrefix(strings.ToLower(w), strings.ToLower(short)) {
				return w
			}
		}
	}
	return best
}

// distance counts the letters to insert, remove, replace, or exchange with their neighbour, to turn one word into another.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	d := make([][]int, len(x)+1)
	for i := range d {
		d[i] = make([]int, len(y)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(x); i++ {
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(x)][len(y)]
}
