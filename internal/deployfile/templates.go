package deployfile

import (
	"regexp"
	"slices"
	"strings"
)

// templateKind says where a template stands, and with that which variables it may name.
type templateKind int

const (
	inWebhook templateKind = iota
	inQuery
	inConnection
)

// Substitution is a secret that is named outside of the templates of webhooks, queries and connections.
type Substitution struct {
	Pos   Pos
	Field string
	Name  string
}

// armoryVariables are the names after `armory.` that mean something, by where.
func armoryVariables(in templateKind) []string {
	both := []string{"applicationName", "deploymentId", "environmentName", "replicaSetName", "accountName", "namespace"}
	switch in {
	case inWebhook:
		return append(both, "callbackUri")
	case inQuery:
		return append(both, "startTimeIso8601", "endTimeIso8601", "startTimeEpochSeconds", "endTimeEpochSeconds",
			"startTimeEpochMillis", "endTimeEpochMillis", "intervalSeconds", "intervalMillis", "promQlStepInterval")
	default:
		return nil
	}
}

// variable is one tag in a value, with its place in the file.
type variable struct {
	name string
	at   Pos
}

var variableTag = regexp.MustCompile(`\{\{\{?\s*&?\s*([^{}]*?)\s*\}?\}\}`)

// variables returns the tags of a scalar.
func (r *reader) variables(n *node) []variable {
	var out []variable
	from := n.at
	for _, m := range variableTag.FindAllStringSubmatch(n.text, -1) {
		at := r.locate(m[0], from)
		out = append(out, variable{name: m[1], at: at})
		if at != n.at {
			from = Pos{at.Line, at.Column + 1}
		}
	}
	return out
}

// locate finds text in the file at or after a place; the place itself where it is not found, as in an alias.
func (r *reader) locate(s string, from Pos) Pos {
	for l := from.Line; l >= 1 && l <= len(r.lines); l++ {
		line := []rune(r.lines[l-1])
		begin := 0
		if l == from.Line {
			begin = min(from.Column-1, len(line))
		}
		if i := strings.Index(string(line[begin:]), s); i >= 0 {
			return Pos{l, begin + len([]rune(string(line[begin:])[:i])) + 1}
		}
	}
	return from
}

var legacyVariable = regexp.MustCompile(`\$\{[A-Za-z][\w.-]*\}`)

// checkTemplate warns of variables that render empty.
func (r *reader) checkTemplate(n *node, in templateKind) {
	for _, m := range legacyVariable.FindAllString(n.text, -1) {
		r.warnf(r.locate(m, n.at), "write {{"+m[2:len(m)-1]+"}}", "%s is not substituted: that spelling ended in 2022", m)
	}
	for _, v := range r.variables(n) {
		space, rest, dotted := strings.Cut(v.name, ".")
		switch {
		case dotted && space == "secrets" && rest != "":
		case in == inConnection:
			r.errorf(v.at, "only {{secrets.…}} may stand in a connection", "{{%s}} means nothing in a connection", v.name)
		case dotted && space == "context" && rest != "":
		case dotted && space == "armory":
			known := armoryVariables(in)
			if !slices.Contains(known, rest) && !(in == inWebhook && strings.HasPrefix(rest, "preview.")) {
				r.warnf(v.at, didYouMean(rest, known), "{{%s}} is not known here and becomes empty", v.name)
			}
		default:
			r.warnf(v.at, "variables begin with armory., context. or secrets.", "{{%s}} is not known and becomes empty", v.name)
		}
	}
}

// checkPlain notes secrets in plain text and warns of other variables there: they are not substituted.
func (r *reader) checkPlain(n *node) {
	if !strings.Contains(n.text, "{{") {
		return
	}
	for _, v := range r.variables(n) {
		if name, ok := strings.CutPrefix(v.name, "secrets."); ok {
			r.secrets = append(r.secrets, Substitution{Pos: v.at, Field: n.label, Name: name})
			continue
		}
		r.warnf(v.at, "", "{{%s}} is not substituted in %s: variables belong in webhooks and queries", v.name, n.label)
	}
}
