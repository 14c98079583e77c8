package sqlite

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/store"
)

// writerVariable holds, in a process that is to be killed, the file that it writes to.
const writerVariable = "SLUICE_TEST_STORE"

// TestMain is the writer where it is told to be one.
func TestMain(m *testing.M) {
	path := os.Getenv(writerVariable)
	if path == "" {
		os.Exit(m.Run())
	}
	err := write(context.Background(), path, os.Stdout)
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// write goes on with one delivery for ever, and says what the store has acknowledged: the revision, or a signal's key.
func write(ctx context.Context, path string, told io.Writer) error {
	s, err := Open(ctx, path)
	if err != nil {
		return err
	}
	if _, err := s.Load(ctx, "a"); err != nil {
		if _, err := s.Create(ctx, delivery.Spec{ID: "a", Application: "app"}); err != nil {
			return err
		}
	}
	for {
		d, err := s.Load(ctx, "a")
		if err != nil {
			return err
		}
		for _, sig := range d.Signals {
			d.Status.Seen = sig.Seq
		}
		d.Status.Begun++
		rev, err := s.Swap(ctx, "a", d.Revision, d.Status, []store.Record{{Kind: "intent", Entry: d.Status.Begun}, {Kind: "outcome", Entry: d.Status.Begun}})
		if err != nil {
			return err
		}
		fmt.Fprintf(told, "swap %d\n", rev)
		key := fmt.Sprint("k", rev)
		if _, err := s.Signal(ctx, "a", delivery.Signal{Key: key}); err != nil {
			return err
		}
		fmt.Fprintf(told, "signal %s\n", key)
	}
}

// killed runs the writer until it has told of n lines, kills it, and returns what it told.
func killed(t *testing.T, path string, n int) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), writerVariable+"="+path)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for sc := bufio.NewScanner(out); sc.Scan(); {
		if lines = append(lines, sc.Text()); len(lines) == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || len(lines) < n {
		t.Fatalf("the writer ended by itself after %d lines: %v %s", len(lines), err, errs.String())
	}
	return lines
}

// TestKilledWriter kills a writer again and again. Whatever it was told to be kept is there, what it was not told of is
// there wholly or not at all, and the file needs no repair.
func TestKilledWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	told := map[string]bool{}
	last := 0
	for round := range 12 {
		for _, line := range killed(t, path, 1+rand.IntN(12)) {
			told[line] = true
			if rev, ok := strings.CutPrefix(line, "swap "); ok {
				if _, err := fmt.Sscan(rev, &last); err != nil {
					t.Fatal(err)
				}
			}
		}
		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		d, err := s.Load(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if int(d.Revision) < last || int(d.Revision) > last+1 || d.Status.Begun != int(d.Revision)-1 {
			t.Fatalf("round %d: revision %d with %d begun, the writer was told of %d", round, d.Revision, d.Status.Begun, last)
		}
		j, err := s.Journal(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		count := map[string]int{}
		for _, r := range j {
			if count[r.Kind]++; r.Kind == "signal" {
				var sig delivery.Signal
				if err := json.Unmarshal(r.Data, &sig); err != nil {
					t.Fatal(err)
				}
				delete(told, "signal "+sig.Key)
			}
		}
		for line := range told {
			if strings.HasPrefix(line, "signal") {
				t.Errorf("round %d: %s was acknowledged and is lost", round, line)
			}
		}
		if count["intent"] != d.Status.Begun || count["outcome"] != d.Status.Begun {
			t.Errorf("round %d: %d begun, but %v", round, d.Status.Begun, count)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
