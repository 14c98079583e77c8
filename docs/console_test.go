package docs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// commandWithin is how long one command of a document may take.
const commandWithin = 2 * time.Minute

// command is one line of a console block that begins with "$ ", with what is shown below it.
type command struct {
	line int
	text string
	exit int
	want []string
}

// ofMake reports whether the command is one of make: those need minutes, and TestMakeTargetsExist looks at them.
func (c command) ofMake() bool { return strings.HasPrefix(c.text, "make ") }

var exitMark = regexp.MustCompile(`\s*# exit (\d+)$`)

func (b block) commands() ([]command, error) {
	var all []command
	for i, l := range b.text {
		text, ok := strings.CutPrefix(l, "$ ")
		switch {
		case ok:
			c := command{line: b.line + i, text: text}
			if m := exitMark.FindStringSubmatch(text); m != nil {
				c.text = strings.TrimSuffix(text, m[0])
				c.exit, _ = strconv.Atoi(m[1])
			}
			all = append(all, c)
		case len(all) == 0:
			return nil, fmt.Errorf("line %d: a console block begins with a command", b.line+i)
		default:
			all[len(all)-1].want = append(all[len(all)-1].want, l)
		}
	}
	return all, nil
}

// TestConsole runs the console blocks of each document, in order, in a fresh copy of the examples.
func TestConsole(t *testing.T) {
	runs := 0
	for _, p := range pages(t) {
		blocks, _ := p.blocks()
		var all []command
		for _, b := range blocks {
			if b.mark != "console" {
				continue
			}
			c, err := b.commands()
			if err != nil {
				t.Fatalf("%s: %v", p.path, err)
			}
			all = append(all, c...)
		}
		if len(all) == 0 {
			continue
		}
		for _, c := range all {
			if !c.ofMake() {
				runs++
			}
		}
		t.Run(p.String(), func(t *testing.T) {
			s := newShell(t)
			if p.String() == "data-verify.md" {
				s.env = append(s.env, twoDatabases(t, s)...)
			}
			for _, c := range all {
				if !c.ofMake() {
					s.run(t, p, c)
				}
			}
		})
	}
	if runs < 20 {
		t.Errorf("the documents hold only %d commands that run", runs)
	}
}

// shell is where the commands of one document run.
type shell struct {
	root, folder, companions string
	env                      []string
}

func newShell(t *testing.T) *shell {
	t.Helper()
	// Not t.TempDir: its path is long, and sockets below it would be longer than they may be.
	root, err := os.MkdirTemp("", "docs-")
	if err != nil {
		t.Fatal(err)
	}
	s := &shell{root: root, folder: filepath.Join(root, "examples"), companions: companions(t)}
	t.Cleanup(func() {
		if err := s.end(); err != nil {
			t.Errorf("end what the document started: %v", err)
		}
	})
	if err := os.CopyFS(s.folder, os.DirFS("../examples")); err != nil {
		t.Fatal(err)
	}
	s.env = []string{"PATH=" + binary + string(os.PathListSeparator) + os.Getenv("PATH"), "HOME=" + filepath.Join(root, "home"),
		"SLUICE_DATA=" + filepath.Join(root, "data"), "SLUICE_COMPANIONS=" + s.companions, "TMPDIR=" + root, "LANG=C.UTF-8"}
	return s
}

// companions is the folder of the programs that the examples run.
func companions(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("SLUICE_COMPANIONS")
	if dir == "" {
		dir = "../bin"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ferretdb-a", "ferretdb-b", "shop"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			continue
		}
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not in %s; make companions builds it", name, dir)
		}
		t.Skipf("NOT RUN: the documents need %s, which is not in %s; make companions builds it", name, dir)
	}
	return dir
}

// end stops what the commands started, in the folder of the configuration that they used, and removes the copy. What is
// left running fails the test: a document that leaves something behind must say how to end it.
func (s *shell) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stop := exec.CommandContext(ctx, filepath.Join(binary, "sluice"), "server", "stop", "--all")
	stop.Env, stop.Dir = s.env, s.folder
	out, err := stop.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("sluice server stop --all: %w: %s", err, out)
	}
	errs := []error{err}
	locks, err := filepath.Glob(filepath.Join(s.root, "data", "accounts", "*", "node.lock"))
	errs = append(errs, err)
	for _, l := range locks {
		errs = append(errs, unlocked(l))
	}
	return errors.Join(append(errs, os.RemoveAll(s.root))...)
}

// unlocked returns an error while the owner of a lock still runs.
func unlocked(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return fmt.Errorf("the process that holds %s still runs: %w", path, err)
	}
	return nil
}

// run runs one command and compares what it prints. The folder that it ends in is that of the next one.
func (s *shell) run(t *testing.T, p page, c command) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandWithin)
	defer cancel()
	where, err := os.CreateTemp(s.root, "folder-")
	if err != nil {
		t.Fatal(err)
	}
	where.Close()
	cmd := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", "trap 'pwd >\"$FOLDER\"' EXIT\n"+c.text)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, io.Writer(&out), s.folder
	cmd.Env = append(s.env, "FOLDER="+where.Name())
	// A server that the command starts keeps none of its pipes, but a hung one must not hang the test.
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	code := 0
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		code = e.ExitCode()
	} else if err != nil {
		t.Fatalf("%s:%d: %s: %v\n%s", p.path, c.line, c.text, err, out.String())
	}
	if code != c.exit {
		t.Fatalf("%s:%d: %s: exit code %d, not %d\n%s", p.path, c.line, c.text, code, c.exit, out.String())
	}
	if err := shows(c.want, out.String()); err != nil {
		t.Fatalf("%s:%d: %s: %v\nit printed\n%s", p.path, c.line, c.text, err, out.String())
	}
	if body, err := os.ReadFile(where.Name()); err == nil && len(body) > 0 {
		s.folder = strings.TrimSpace(string(body))
	}
}

// shows compares what a document shows with what was printed: line by line, where … stands for anything within a line,
// and alone for any number of lines. Blanks are alike however many they are. Where nothing is shown anything may be
// printed.
func shows(want []string, got string) error {
	for len(want) > 0 && strings.TrimSpace(want[len(want)-1]) == "" {
		want = want[:len(want)-1]
	}
	if len(want) == 0 {
		return nil
	}
	var re strings.Builder
	re.WriteString(`^`)
	for i, l := range want {
		if strings.TrimSpace(l) == "…" {
			re.WriteString(`(?:.*\n)*?`)
		} else {
			parts := anything.Split(squeeze(l), -1)
			for j, p := range parts {
				parts[j] = regexp.QuoteMeta(p)
			}
			re.WriteString(strings.Join(parts, `.*?`) + `\n`)
		}
		// What has matched so far names the line that does not.
		if !regexp.MustCompile(re.String()).MatchString(squeezed(got)) {
			return fmt.Errorf("line %d of what is shown does not follow: %s", i+1, l)
		}
	}
	if !regexp.MustCompile(re.String() + `$`).MatchString(squeezed(got)) {
		return errors.New("more is printed than is shown")
	}
	return nil
}

var (
	blanks   = regexp.MustCompile(`[ \t]+`)
	anything = regexp.MustCompile(` ?… ?`)
)

func squeeze(l string) string {
	return strings.TrimRight(blanks.ReplaceAllString(l, " "), " ")
}

func squeezed(text string) string {
	var out strings.Builder
	for l := range strings.Lines(text) {
		out.WriteString(squeeze(strings.TrimRight(l, "\n")) + "\n")
	}
	return out.String()
}

func TestShows(t *testing.T) {
	for _, c := range []struct {
		name, want, got string
		ok              bool
	}{
		{"the same", "a\nb", "a\nb\n", true},
		{"blanks", "a  b", "a       b  \n", true},
		{"within a line", "a … c", "a b b c\n", true},
		{"nothing within a line", "a … c", "a c\n", true},
		{"any lines", "a\n…\nd", "a\nb\nc\nd\n", true},
		{"no line between", "a\n…\nb", "a\nb\n", true},
		{"another line", "a\nc", "a\nb\n", false},
		{"another order", "…\nb\n…\na\n…", "a\nb\n", false},
		{"more than is shown", "a", "a\nb\n", false},
		{"less than is shown", "a\nb", "a\n", false},
		{"a point is a point", "a.c", "abc\n", false},
		{"nothing is shown", "", "whatever\n", true},
	} {
		if err := shows(strings.Split(c.want, "\n"), c.got); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
