package docs_test

import (
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sluice-cd/sluice/internal/cli"
)

var link = regexp.MustCompile(`\]\(([^()\s]+)\)`)

// TestLinksLead looks up every relative link, and the heading that it names.
func TestLinksLead(t *testing.T) {
	found := 0
	for _, p := range pages(t) {
		_, prose := p.blocks()
		for i, l := range strings.Split(prose, "\n") {
			for _, m := range link.FindAllStringSubmatch(l, -1) {
				u, err := url.Parse(m[1])
				if err != nil {
					t.Errorf("%s:%d: %v", p.path, i+1, err)
					continue
				}
				if u.IsAbs() {
					continue
				}
				found++
				to := p.path
				if u.Path != "" {
					to = filepath.Join(filepath.Dir(p.path), u.Path)
				}
				if _, err := os.Stat(to); err != nil {
					t.Errorf("%s:%d: the link %s leads nowhere", p.path, i+1, m[1])
				} else if u.Fragment != "" && !hasHeading(t, to, u.Fragment) {
					t.Errorf("%s:%d: %s has no heading #%s", p.path, i+1, to, u.Fragment)
				}
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d links were found", found)
	}
}

// hasHeading reports whether a document has a heading whose anchor, as code hosts make it, is the given one.
func hasHeading(t *testing.T, path, anchor string) bool {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, prose := page{path, string(body)}.blocks()
	for l := range strings.Lines(prose) {
		text, ok := strings.CutPrefix(strings.TrimLeft(strings.TrimSpace(l), "#"), " ")
		if strings.HasPrefix(l, "#") && ok && anchorOf(text) == anchor {
			return true
		}
	}
	return false
}

var notInAnchors = regexp.MustCompile(`[^\p{L}\p{N} _-]`)

func anchorOf(heading string) string {
	return strings.ReplaceAll(notInAnchors.ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), ""), " ", "-")
}

var (
	inlineCode = regexp.MustCompile("`([^`]+)`")
	flagName   = regexp.MustCompile(`(?:^|[\s(])--([a-z][a-zA-Z-]*)`)
	shortFlag  = regexp.MustCompile(`(?:^|\s)-([a-zA-Z])\b`)
)

// TestNamedFlagsAndCommandsExist looks up what the prose writes as code: commands of sluice with their flags, and flags
// alone.
func TestNamedFlagsAndCommandsExist(t *testing.T) {
	root := cli.New(strings.NewReader(""), io.Discard, io.Discard)
	root.InitDefaultHelpFlag()
	root.InitDefaultCompletionCmd()
	found := 0
	for _, p := range pages(t) {
		if strings.HasPrefix(p.path, "decisions") {
			continue
		}
		_, prose := p.blocks()
		for i, l := range strings.Split(prose, "\n") {
			for _, m := range inlineCode.FindAllStringSubmatch(l, -1) {
				text := m[1]
				names := flagName.FindAllStringSubmatch(text, -1)
				of := root
				if args, ok := strings.CutPrefix(text, "sluice "); ok {
					found++
					c, err := named(root, strings.Fields(args))
					if err != "" {
						t.Errorf("%s:%d: `%s`: %s", p.path, i+1, text, err)
						continue
					}
					of = c
				} else if !strings.HasPrefix(text, "-") {
					continue // of another program
				} else if len(names) == 0 {
					names = shortFlag.FindAllStringSubmatch(text, -1)
				}
				for _, n := range names {
					found++
					if !hasFlag(of, n[1], of == root) {
						t.Errorf("%s:%d: `%s`: there is no flag %s", p.path, i+1, text, n[1])
					}
				}
			}
		}
	}
	if found < 40 {
		t.Errorf("only %d flags and commands were found", found)
	}
}

// named returns the command that words name. Words that are no command are its arguments, which are written large.
func named(root *cobra.Command, words []string) (*cobra.Command, string) {
	c := root
	for _, w := range words {
		if strings.HasPrefix(w, "-") || w == "…" || w != strings.ToLower(w) {
			break
		}
		i := -1
		for k, s := range c.Commands() {
			if s.Name() == w && !s.Hidden {
				i = k
			}
		}
		if i < 0 {
			if c.HasSubCommands() {
				return nil, c.CommandPath() + " has no command " + w
			}
			break
		}
		c = c.Commands()[i]
	}
	return c, ""
}

// hasFlag reports whether a command has a flag; with below also whether one of its commands has.
func hasFlag(c *cobra.Command, name string, below bool) bool {
	for _, set := range []*pflag.FlagSet{c.Flags(), c.InheritedFlags(), c.PersistentFlags()} {
		if f := set.Lookup(name); f != nil {
			return true
		}
		if len(name) == 1 && set.ShorthandLookup(name) != nil {
			return true
		}
	}
	if below {
		for _, s := range c.Commands() {
			if hasFlag(s, name, true) {
				return true
			}
		}
	}
	return false
}
