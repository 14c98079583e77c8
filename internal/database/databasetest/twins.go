package databasetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// twins clones a stopped server twice, compares the clones, damages one and compares again.
func twins(t *testing.T, h Harness) {
	s := h.New(t)
	s.Fill(t, rows)
	s.Stop(t)
	control := Raise(t, h, Copy(t, s.Dirs()), database.Control)
	candidate := Raise(t, h, Copy(t, s.Dirs()), database.Candidate)
	if r := compare(t, h, control, candidate); r.Verdict != fingerprint.Equal {
		t.Fatalf("undamaged twins: %s: %s, %+v", r.Verdict, r.Reason, r.Schema)
	}
	candidate.Delay(t, 17)
	candidate.Delay(t, 4242)
	candidate.Remove(t, 5)
	r := compare(t, h, control, candidate)
	if r.Verdict != fingerprint.Different || len(r.Schema) > 0 {
		t.Fatalf("damaged twins: %s: %s %+v", r.Verdict, r.Reason, r.Schema)
	}
	for _, x := range r.Tables {
		want := [3]int64{}
		if x.Name.Relation == Orders {
			want = [3]int64{2, 1, 3}
		}
		if x.Changed != want[0] || x.Missing != want[1] || x.Differences() != want[2] {
			t.Errorf("%s: %+v", x.Name, x)
		}
		for _, c := range x.Classes {
			switch c.Class {
			case fingerprint.ClassMissing:
				if c.Examples[0].Key != "5" {
					t.Errorf("missing: %+v", c.Examples)
				}
			case fingerprint.ClassValue:
				if c.Column != Placed || c.Pattern == nil || !c.Pattern.Constant || c.Pattern.Text != "+1h0m0s" || c.Examples[0].Key != "17" ||
					c.Examples[1].Key != "4242" {
					t.Errorf("%+v, pattern %+v", c, c.Pattern)
				}
			default:
				t.Errorf("class %s", c.Class)
			}
		}
	}
	t.Run("production's volumes are prepared without a change", func(t *testing.T) {
		dirs := Copy(t, s.Dirs())
		before := Tree(t, dirs)
		if _, err := h.Engine().Prepare(t.Context(), dirs, database.Upgrade); err != nil {
			t.Fatal(err)
		}
		if after := Tree(t, dirs); after != before {
			t.Error("preparing volumes that become production changed their files")
		}
		if n := len(ids(t, h, Raise(t, h, dirs, database.Production))); n != rows {
			t.Errorf("production has %d rows", n)
		}
	})
}

// compare fingerprints two servers.
func compare(t testing.TB, h Harness, a, b Server) *fingerprint.Report {
	t.Helper()
	x, y := open(t, h, a), open(t, h, b)
	_, from := orders(t, x)
	_, to := orders(t, y)
	plan, err := fingerprint.NewPlan(from, to, fingerprint.PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := fingerprint.Compare(t.Context(), fingerprint.Options{Source: fingerprint.Side{Server: x}, Target: fingerprint.Side{Server: y},
		Plan: plan, Seed: fingerprint.NewSeed(), Workers: 2, SpillDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Raise prepares copied volumes for a role and starts a server on them.
func Raise(t testing.TB, h Harness, dirs []string, r database.Role) Server {
	t.Helper()
	l, err := h.Engine().Prepare(t.Context(), dirs, r)
	if err != nil {
		t.Fatalf("preparing a copy as %s: %v", r, err)
	}
	return h.Start(t, dirs, l)
}

// Copy copies directories file by file with owners and modes, as a driver without snapshots does. Files that vanish
// meanwhile are left out.
func Copy(t testing.TB, dirs []string) []string {
	t.Helper()
	var out []string
	for i, from := range dirs {
		to := filepath.Join(Root(t), fmt.Sprintf("copy-%d", i))
		if err := copyTree(from, to); err != nil {
			t.Fatal(err)
		}
		out = append(out, to)
	}
	return out
}

// Root makes a temporary directory that other users may enter, and removes it at the end of the test.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sluice-database-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		i, err := d.Info()
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return copyEntry(path, filepath.Join(to, rel), i)
	})
}

func copyEntry(path, to string, i fs.FileInfo) error {
	switch {
	case i.IsDir():
		if err := os.MkdirAll(to, i.Mode().Perm()); err != nil {
			return err
		}
	case i.Mode()&fs.ModeSymlink != 0:
		link, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if err := os.Symlink(link, to); err != nil {
			return err
		}
	case i.Mode().IsRegular():
		b, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, b, i.Mode().Perm()); err != nil {
			return err
		}
	default:
		return nil // a socket or a pipe
	}
	s, ok := i.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(to, int(s.Uid), int(s.Gid))
}

// Tree writes directories down: path, mode, owner and content of every file.
func Tree(t testing.TB, dirs []string) string {
	t.Helper()
	var b strings.Builder
	for n, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			i, err := d.Info()
			if err != nil {
				return err
			}
			rel, _ := filepath.Rel(dir, path)
			fmt.Fprintf(&b, "%d %s %s", n, rel, i.Mode())
			switch {
			case i.Mode()&fs.ModeSymlink != 0:
				link, err := os.Readlink(path)
				if err != nil {
					return err
				}
				b.WriteString(" → " + link)
			case i.Mode().IsRegular():
				content, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				fmt.Fprintf(&b, " %d %x", len(content), checksum(content))
			}
			b.WriteByte('\n')
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// writing is a client that inserts orders one after another and remembers when each was begun and acknowledged.
type writing struct {
	stop  context.CancelFunc
	group *errgroup.Group
	log   chan []write
	acked chan struct{} // taken by whoever waits for an acknowledgement
}

type write struct {
	id           int64
	begun, acked time.Time
}

// startWriting writes until stopped. An insert that fails ends it.
func startWriting(t testing.TB, s Server, first int64) *writing {
	ctx, cancel := context.WithCancel(t.Context())
	w := &writing{stop: cancel, group: &errgroup.Group{}, log: make(chan []write, 1), acked: make(chan struct{})}
	w.group.Go(func() error {
		var log []write
		defer func() { w.log <- log }()
		for id := first; ctx.Err() == nil; id++ {
			x := write{id: id, begun: time.Now()}
			if err := s.Insert(context.WithoutCancel(ctx), id); err != nil {
				return fmt.Errorf("insert of order %d: %w", id, err)
			}
			x.acked = time.Now()
			log = append(log, x)
			select {
			case w.acked <- struct{}{}:
			default:
			}
		}
		return nil
	})
	t.Cleanup(cancel)
	w.await(t, 20)
	return w
}

// await waits for that many more acknowledged writes.
func (w *writing) await(t testing.TB, n int) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for range n {
		select {
		case <-w.acked:
		case log := <-w.log:
			w.log <- log
			t.Fatalf("the writer ended: %v", w.group.Wait())
		case <-deadline:
			t.Fatalf("%d inserts took more than 30 s", n)
		}
	}
}

// finish stops writing and returns what was written, and the longest time that one insert took.
func (w *writing) finish(t testing.TB) ([]write, time.Duration) {
	t.Helper()
	w.stop()
	if err := w.group.Wait(); err != nil {
		t.Error(err)
	}
	log, worst := <-w.log, time.Duration(0)
	for _, x := range log {
		worst = max(worst, x.acked.Sub(x.begun))
	}
	return log, worst
}

// holdRequest is what a child of the test is told.
type holdRequest struct {
	URL    string
	Frozen bool
	Dirs   []string
	Hold   time.Duration
}

const holdVariable = "SLUICE_DATABASETEST_HOLD"

// holdUntilKilled is the child of dies: it takes a lease, says so and waits for its death.
func holdUntilKilled(t *testing.T, h Harness) bool {
	text := os.Getenv(holdVariable)
	if text == "" {
		return false
	}
	var r holdRequest
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	lease, err := h.Engine().(database.Quiescer).Quiesce(t.Context(),
		database.QuiesceRequest{ID: "child", URL: database.URL{Value: r.URL}, Dirs: r.Dirs, MaxHold: r.Hold})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("held")
	<-lease.Lost()
	return true
}

// holdInChild starts a process that takes a lease and returns when it has it.
func holdInChild(t *testing.T, s Server, hold time.Duration) *exec.Cmd {
	t.Helper()
	r, err := json.Marshal(holdRequest{URL: s.URL().Value, Dirs: s.Dirs(), Hold: hold})
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(t.Name(), "/")
	cmd := exec.Command(os.Args[0], "-test.run=^"+name+"$", "-test.v")
	cmd.Env = append(os.Environ(), holdVariable+"="+string(r))
	out := &lines{want: "held", seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	select {
	case <-out.seen:
	case <-time.After(30 * time.Second):
		t.Fatalf("the child does not hold after 30 s: %s", out.text.String())
	}
	return cmd
}

// lines waits for a line of a child's output.
type lines struct {
	want string
	text bytes.Buffer
	seen chan struct{}
	done bool
}

func (l *lines) Write(b []byte) (int, error) {
	l.text.Write(b)
	if !l.done && strings.Contains(l.text.String(), l.want+"\n") {
		l.done = true
		close(l.seen)
	}
	return len(b), nil
}
