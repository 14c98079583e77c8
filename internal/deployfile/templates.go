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

// variable is one tag in a value.
type variable struct {
	name string
	tag  string // as it is written
	nth  int    // how many times the same tag came before
}

var variableTag = regexp.MustCompile(`\{\{\{?\s*&?\s*([^{}]*?)\s*\}?\}\}`)

// variables returns the tags of a scalar.
func variables(s string) []variable {
	var out []variable
	seen := map[string]int{}
	for _, m := range variableTag.FindAllStringSubmatch(s, -1) {
		out = append(out, variable{name: m[1], tag: m[0], nth: seen[m[0]]})
		seen[m[0]]++
	}
	return out
}

// locate finds the place of the nth occurrence of a part of a value, counted from 0; where it cannot be found, as in an
// alias, that is the place of the value.
func (r *reader) locate(part string, nth int, n *node) Pos {
	const most = 1000
	for l := n.at.Line; l >= 1 && l <= min(len(r.lines), n.at.Line+most); l++ {
		line := []rune(r.lines[l-1])
		from := 0
		if l == n.at.Line {
			from = min(n.at.Column-1, len(line))
		}
		for rest := string(line[from:]); ; nth-- {
			i := strings.Index(rest, part)
			if i < 0 {
				break
			}
			from += utf8.RuneCountInString(rest[:i])
			if nth == 0 {
				return Pos{l, from + 1}
			}
			from += utf8.RuneCountInString(part)
			rest = rest[i+len(part):]
		}
	}
	return n.at
}

var legacyVariable = regexp.MustCompile(`\$\{[A-Za-z][\w.-]*\}`)

// checkTemplate warns of variables that render empty.
func (r *reader) checkTemplate(n *node, in templateKind) {
	for _, m := range legacyVariable.FindAllString(n.text, -1) {
		r.warnf(r.locate(m, 0, n), "write {{"+m[2:len(m)-1]+"}}", "%s is not substituted: that spelling ended in 2022", m)
	}
	for _, v := range variables(n.text) {
		if r.full() {
			return
		}
		space, rest, dotted := strings.Cut(v.name, ".")
		switch {
		case dotted && space == "secrets" && rest != "":
		case in == inConnection:
			r.errorf(r.locate(v.tag, v.nth, n), "only {{secrets.…}} may stand in a connection", "{{%s}} means nothing in a connection", v.name)
		case dotted && space == "context" && rest != "":
		case dotted && space == "armory":
			known := armoryVariables(in)
			if !slices.Contains(known, rest) && !(in == inWebhook && strings.HasPrefix(rest, "preview.")) {
				r.warnf(r.locate(v.tag, v.nth, n), didYouMean(rest, known), "{{%s}} is not known here and becomes empty", v.name)
			}
		default:
			r.warnf(r.locate(v.tag, v.nth, n), "variables begin with armory., context. or secrets.", "{{%s}} is not known and becomes empty", v.name)
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
			r.secrets = append(r.secrets, Substitution{Pos: r.locate(v.tag, v.nth, n), Field: n.label, Name: name})
			continue
		}
		r.warnf(r.locate(v.tag, v.nth, n), "", "{{%s}} is not substituted in %s: variables belong in webhooks and queries", v.name, n.label)
	}
}
