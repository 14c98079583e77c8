// Package docs_test holds the documents to what the program does: blocks marked console are run and what they print is
// compared, tables of keys are made of the schema, and every link, flag, command and make target that is named exists.
package docs_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of keys anew")

// binary is the folder of a real build of sluice.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := withBuild(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func withBuild(m *testing.M) (int, error) {
	var err error
	if binary, err = os.MkdirTemp("", "sluice-docs-bin-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(binary)
	out, err := exec.Command("go", "build", "-o", filepath.Join(binary, "sluice"), "../cmd/sluice").CombinedOutput()
	if err != nil {
		return 1, fmt.Errorf("build sluice: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// page is a document.
type page struct {
	path string // relative to this folder
	text string
}

func (p page) String() string { return filepath.Base(p.path) }

// pages returns the README and the other documents of the root, of docs, and of the examples.
func pages(t *testing.T) []page {
	t.Helper()
	var all []page
	for _, pattern := range []string{"../*.md", "*.md", "decisions/*.md", "../examples/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			body, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, page{f, string(body)})
		}
	}
	if len(all) < 10 {
		t.Fatalf("only %d documents are found", len(all))
	}
	return all
}

// block is a fenced block, with the line at which its text begins.
type block struct {
	mark string
	line int
	text []string
}

// blocks takes a document apart: its fenced blocks, and the prose with blank lines in their place.
func (p page) blocks() (blocks []block, prose string) {
	var out []string
	var open *block
	for i, l := range strings.Split(p.text, "\n") {
		mark, fence := strings.CutPrefix(strings.TrimSpace(l), "```")
		switch {
		case fence && open == nil:
			open = &block{mark: mark, line: i + 2}
		case fence:
			blocks, open = append(blocks, *open), nil
		case open != nil:
			open.text = append(open.text, l)
		default:
			out = append(out, l)
			continue
		}
		out = append(out, "")
	}
	return blocks, strings.Join(out, "\n")
}

var makeTarget = regexp.MustCompile(`(?:\x60|^\$ )make ([a-z][a-z-]*)`)

func TestMakeTargetsExist(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, p := range pages(t) {
		for i, l := range strings.Split(p.text, "\n") {
			for _, m := range makeTarget.FindAllStringSubmatch(l, -1) {
				found++
				if !bytes.Contains(makefile, []byte("\n"+m[1]+":")) {
					t.Errorf("%s:%d: the Makefile has no target %s", p.path, i+1, m[1])
				}
			}
		}
	}
	if found == 0 {
		t.Error("no make target is named anywhere")
	}
}

func TestReadmeShowsCommandsAndTour(t *testing.T) {
	body, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"$ make demo\n", "$ make test\n"} {
		if !bytes.Contains(body, []byte(want)) {
			t.Errorf("README.md does not show %q", want)
		}
	}
	_, tour, _ := bytes.Cut(body, []byte("<!-- demo: begin -->"))
	tour, _, ended := bytes.Cut(tour, []byte("<!-- demo: end -->"))
	for _, want := range []string{"Delivery 1 of 3", "Delivery 2 of 3", "Delivery 3 of 3", "What became of them"} {
		if !ended || !bytes.Contains(tour, []byte(want)) {
			t.Errorf("the tour of README.md, between its two comments, does not show %q", want)
		}
	}
}
