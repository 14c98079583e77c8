package deployfile

import (
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
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

// variable is a tag in a value.
type variable struct {
	name string
	tag  string // as it is written
}

var variableTag = regexp.MustCompile(`\{\{\{?\s*&?\s*([^{}]*?)\s*\}?\}\}`)

// variables returns the tags of a scalar, each once.
func variables(s string) []variable {
	var out []variable
	seen := map[string]bool{}
	for _, m := range variableTag.FindAllStringSubmatch(s, -1) {
		if !seen[m[0]] {
			seen[m[0]] = true
			out = append(out, variable{name: m[1], tag: m[0]})
		}
	}
	return out
}

// locate finds the place where a part of a value stands first; where it cannot be found, as in an alias, that is the place
// of the value.
func (r *reader) locate(part string, n *node) Pos {
	const most = 1000
	for l := n.at.Line; l >= 1 && l <= min(len(r.lines), n.at.Line+most); l++ {
		line, from := r.lines[l-1], 0
		if l == n.at.Line {
			for range n.at.Column - 1 {
				_, size := utf8.DecodeRuneInString(line[from:])
				from += size
			}
		}
		if i := strings.Index(line[from:], part); i >= 0 {
			return Pos{l, utf8.RuneCountInString(line[:from+i]) + 1}
		}
	}
	return n.at
}

var legacyVariable = regexp.MustCompile(`\$\{[A-Za-z][\w.-]*\}`)

// checkTemplate warns of variables that render empty.
func (r *reader) checkTemplate(n *node, in templateKind) {
	for _, m := range legacyVariable.FindAllString(n.text, -1) {
		r.warnf(r.locate(m, n), "write {{"+m[2:len(m)-1]+"}}", "%s is not substituted: that spelling ended in 2022", m)
	}
	for _, v := range variables(n.text) {
		if r.full() {
			return
		}
		space, rest, dotted := strings.Cut(v.name, ".")
		switch {
		case dotted && space == "secrets" && rest != "":
		case in == inConnection:
			r.errorf(r.locate(v.tag, n), "only {{secrets.…}} may stand in a connection", "{{%s}} means nothing in a connection", v.name)
		case dotted && space == "context" && rest != "":
		case dotted && space == "armory":
			known := armoryVariables(in)
			if !slices.Contains(known, rest) && !(in == inWebhook && strings.HasPrefix(rest, "preview.")) {
				r.warnf(r.locate(v.tag, n), didYouMean(rest, known), "{{%s}} is not known here and becomes empty", v.name)
			}
		default:
			r.warnf(r.locate(v.tag, n), "variables begin with armory., context. or secrets.", "{{%s}} is not known and becomes empty", v.name)
		}
	}
}

// checkPlain notes secrets in plain text and warns of other variables there: they are not substituted.
func (r *reader) checkPlain(n *node) {
	if !strings.Contains(n.text, "{{") {
		return
	}
	for _, v := range variables(n.text) {
		if r.full() {
			return
		}
		if name, ok := strings.CutPrefix(v.name, "secrets."); ok {
			r.secrets = append(r.secrets, Substitution{Pos: r.locate(v.tag, n), Field: n.label, Name: name})
			continue
		}
		r.warnf(r.locate(v.tag, n), "", "{{%s}} is not substituted in %s: variables belong in webhooks and queries", v.name, n.label)
	}
}
