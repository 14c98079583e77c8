package deployfile

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"
)

// explanations say, for messages of the YAML parser, what people mostly did and what to do about it.
func explanations() []explanation {
	return []explanation{
		{"found character '\t'", "a tab cannot indent YAML", "indent with spaces"},
		{"tab character", "a tab cannot indent YAML", "indent with spaces"},
		{"could not find end character of", "a quote is opened here and never closed", "close the quote"},
		{"is a reserved character", "a value cannot begin with this character", "quote the value"},
		{"found unknown escape character", "in double quotes a backslash begins an escape, and this one is not known",
			"use single quotes, or write the backslash twice"},
		{"value is not allowed in this context", "this does not belong to what stands before it", "indent the line like its neighbours"},
		{"non-map value is specified", "this line is not `key: value` like its neighbours", "write `key: value`, with a blank after the colon"},
		{"nested deeper", fmt.Sprintf("the file is nested deeper than %d levels", maxDepth), "no deploy file needs so many brackets or dashes"},
		{"unexpected key name", "this line is not `key: value` like its neighbours", "write `key: value`, with a blank after the colon"},
		{"could not find alias value", "an anchor or alias has no name", "quote a value that begins with `*` or `&`"},
		{"undefined alias name", "an alias has no name", "quote a value that begins with `*`"},
		{"undefined anchor name", "an anchor has no name", "quote a value that begins with `&`"},
	}
}

type explanation struct{ says, means, suggestion string }

// explain turns an error of the YAML parser into a finding.
func (s *source) explain(err error) (Pos, Finding) {
	message, at := syntaxError(err)
	f := Finding{Severity: Error, Pos: at, Message: "YAML: " + message}
	if b, ok := s.bareTemplate(at); ok {
		f.Pos = b.at
		f.Message = fmt.Sprintf("the template %s is not quoted, so YAML takes its braces for a mapping", b.tag)
		f.Suggestion = "quote it: " + quoted(b.value)
		return at, f
	}
	switch {
	case strings.Contains(message, "mapping value is not allowed in this context"):
		return at, s.explainColon(at)
	case strings.Contains(message, "must be specified"), strings.Contains(message, "not found"), strings.Contains(message, "could not find flow map"):
		if t := s.unclosed(at); t != nil {
			f.Pos = position(t)
			f.Message, f.Suggestion = fmt.Sprintf("YAML: this %s is not closed", t.Value), "close it, and put commas between what is in it"
			return at, f
		}
	}
	for _, x := range explanations() {
		if strings.Contains(message, x.says) {
			f.Message, f.Suggestion = "YAML: "+x.means, x.suggestion
			break
		}
	}
	return at, f
}

// explainColon says which of two mistakes a mapping is at a place where a value stands already.
func (s *source) explainColon(at Pos) Finding {
	f := Finding{Severity: Error, Pos: at}
	line := []rune(s.lines[min(at.Line, len(s.lines))-1])
	rest := string(line[min(at.Column-1, len(line)):])
	if strings.Contains(rest, ": ") || strings.HasSuffix(rest, ":") || at.Line >= len(s.lines) {
		f.Message, f.Suggestion = "YAML: there is a second `: ` in this value", "quote it: "+quoted(strings.TrimSpace(rest))
		return f
	}
	below := s.lines[at.Line]
	f.Pos = Pos{at.Line + 1, len([]rune(below)) - len([]rune(strings.TrimLeft(below, " "))) + 1}
	f.Message, f.Suggestion = "YAML: this line is indented too deep: the line above it has a value already", "indent the line like its neighbours"
	return f
}

// unclosed returns the innermost bracket that is open at a place.
func (s *source) unclosed(at Pos) *token.Token {
	var open []*token.Token
	for _, t := range lexer.Tokenize(strings.Join(s.lines, "\n")) {
		if p := position(t); p.Line > at.Line || p.Line == at.Line && p.Column >= at.Column && len(open) > 0 {
			break
		}
		if opens(t) {
			open = append(open, t)
		} else if closes(t) {
			open = open[:max(0, len(open)-1)]
		}
	}
	if len(open) == 0 {
		return nil
	}
	return open[len(open)-1]
}

// tag matches a variable tag.
var tag = regexp.MustCompile(`\{\{.*?\}\}`)

// openers end where a value begins that is neither quoted nor in a block: after `key: ` or `- `, and in flow style after
// `key: `, `[` or a comma.
var openers = regexp.MustCompile(`(` +
	`^\s*(?:- +)*[^\s'"#{}\[\],:-][^'"#{}\[\],:]*:\s+|` + // a plain key
	`^\s*(?:- +)*(?:"[^"]*"|'[^']*'):\s+|` + // a quoted one
	`^\s*(?:- +)+|` + // an item
	`[{,]\s*[\w-]+:\s+|[\[,]\s*)`) // flow style

// maxLine is how long a line is at most in which people have forgotten quotes.
const maxLine = 4096

// bare is a template that should have been quoted.
type bare struct {
	tag   string // the first one in it
	at    Pos    // where the value begins
	value string // all of it
}

// bareTemplate finds a tag in an unquoted value, in the line of a syntax error or, where the parser noticed it late, in the
// line before. In a block only a value that begins with the tag is trouble, in flow style any.
func (s *source) bareTemplate(at Pos) (bare, bool) {
	for l := at.Line; l >= max(1, at.Line-1) && l <= len(s.lines); l-- {
		line := s.lines[l-1]
		if len(line) > maxLine || !strings.Contains(line, "{{") {
			continue
		}
		for _, m := range openers.FindAllStringSubmatchIndex(line, -1) {
			opener, rest := line[m[2]:m[3]], line[m[3]:]
			flow := strings.ContainsAny(opener, "{[,")
			t := tag.FindStringIndex(rest)
			if t == nil || strings.HasPrefix(rest, `"`) || strings.HasPrefix(rest, "'") {
				continue
			}
			if t[0] > 0 && (!flow || strings.ContainsAny(rest[:t[0]], ",]}'\" ")) {
				continue
			}
			return bare{rest[t[0]:t[1]], Pos{l, len([]rune(line[:m[3]])) + 1}, bareValue(rest, flow)}, true
		}
	}
	return bare{}, false
}

// bareValue is the part of the line that was meant as one value: in flow style up to the next comma or bracket outside of
// a tag, else up to a comment.
func bareValue(rest string, flow bool) string {
	if !flow {
		v, _, _ := strings.Cut(rest, " #")
		return strings.TrimSpace(v)
	}
	end := 0
	for _, m := range tag.FindAllStringIndex(rest, -1) {
		if strings.ContainsAny(rest[end:m[0]], ",]}") {
			break
		}
		end = m[1]
	}
	if i := strings.IndexAny(rest[end:], ",]}"); i >= 0 {
		return strings.TrimSpace(rest[:end+i])
	}
	return strings.TrimSpace(rest)
}

func quoted(v string) string { return "'" + strings.ReplaceAll(v, "'", "''") + "'" }

// quoteTemplate puts the quotes where explain said they are missing, so that reading can go on.
func (s *source) quoteTemplate(at Pos) bool {
	b, ok := s.bareTemplate(at)
	if !ok {
		return false
	}
	line := []rune(s.lines[b.at.Line-1])
	head, rest := string(line[:b.at.Column-1]), string(line[b.at.Column-1:])
	s.lines[b.at.Line-1] = head + quoted(b.value) + strings.TrimPrefix(rest, b.value)
	return true
}
