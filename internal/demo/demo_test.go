package demo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/cli"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/demo"
)

// TestMain also is Sluice itself for what the tests start: the server, the node, and the process that holds writers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "server":
			if os.Getenv(crashEnv) != "" {
				os.Exit(crashingServer(os.Args[1:]))
			}
			os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		case "local-node", "quiesce-helper":
			os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		}
	}
	os.Exit(m.Run())
}

// long reports whether the tests that take minutes are to run.
func long() bool { return os.Getenv("SLUICE_LONG") != "" }

func takesMinutes(t *testing.T) {
	t.Helper()
	if !long() {
		t.Skip("NOT TESTED: this takes minutes; SLUICE_LONG=1 runs it, as make test does in its second part")
	}
}

// options are a demo that this test program carries out, in a directory short enough for sockets.
func options(t *testing.T, targets ...string) demo.Options {
	t.Helper()
	for _, name := range []string{"shop", "ferretdb-a", "ferretdb-b", "prometheus"} {
		if _, err := os.Stat(filepath.Join(os.Getenv("SLUICE_COMPANIONS"), name)); errors.Is(err, fs.ErrNotExist) {
			if os.Getenv("CI") != "" {
				t.Fatalf("there is no %s in $SLUICE_COMPANIONS", name)
			}
			t.Skipf("NOT TESTED: there is no %s in $SLUICE_COMPANIONS; `make companions` builds it", name)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "d")
	t.Cleanup(func() {
		if left := processes(t, dir); len(left) > 0 {
			t.Errorf("still running: %q", left)
		}
		if t.Failed() {
			t.Log("logs are in", dir)
			return
		}
		os.RemoveAll(filepath.Dir(dir))
	})
	return demo.Options{Self: []string{self}, Dir: dir, Seed: 5, Out: &screen{}, Compile: func(file string) (delivery.Spec, error) {
		return cli.Compile(os.Stderr, file, targets...)
	}}
}

// screen keeps what the spectators see.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// until waits until the spectators see something.
func (s *screen) until(ctx context.Context, says string) error {
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !strings.Contains(s.String(), says) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
	}
	return nil
}

// processes returns the commands of the processes that have to do with a directory, by their arguments or environment.
func processes(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		args, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || e.Name() == "self" || e.Name() == "thread-self" || e.Name() == fmt.Sprint(os.Getpid()) {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil {
			env = nil // another user's
		}
		if bytes.Contains(args, []byte(dir)) || bytes.Contains(env, []byte("SLUICE_NODE="+dir)) {
			found = append(found, strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	return found
}

// TestGate has the gate in staging name exactly what damaging migrations have done, and nothing else.
func TestGate(t *testing.T) {
	seeds := []uint64{1, 2}
	o := options(t, "staging")
	o.Orders = 2000
	if long() {
		o.Orders = demo.DefaultOrders
		seeds = nil
		for i := range uint64(20) {
			seeds = append(seeds, 100+i)
		}
	}
	var judged []uint64
	err := demo.Gate(t.Context(), o, seeds, func(seed uint64, rows int, err error) {
		judged = append(judged, seed)
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
			return
		}
		t.Logf("seed %d: %d differences, exactly those that were made", seed, rows)
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(judged, seeds) {
		t.Errorf("judged were %v of %v", judged, seeds)
	}
}

// TestDemo plays all three acts.
func TestDemo(t *testing.T) {
	takesMinutes(t)
	o := options(t)
	if err := demo.Run(t.Context(), o); err != nil {
		t.Errorf("%v\n%s", err, o.Out)
	}
	said := fmt.Sprint(o.Out)
	for _, want := range []string{"stopped at the gate", "rolled back, both", "promoted", "and nothing else", "read by the old one"} {
		if !strings.Contains(said, want) {
			t.Errorf("nothing says %q:\n%s", want, said)
		}
	}
	t.Log(said)
}

// TestInterrupted ends the demo in the middle of a delivery: nothing keeps running.
func TestInterrupted(t *testing.T) {
	o := options(t)
	o.Orders = 500
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- demo.Run(ctx, o) }()
	if err := o.Out.(*screen).until(ctx, "copy orders"); err != nil {
		t.Errorf("%v\n%s", err, o.Out)
	}
	if len(processes(t, o.Dir)) < 5 {
		t.Errorf("running are only %q", processes(t, o.Dir))
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	// The clean-up of options looks for processes that were left.
}

// TestDirectoryInUse leaves what is in a directory alone.
func TestDirectoryInUse(t *testing.T) {
	o := options(t)
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(o.Dir, "mine")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := demo.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("%v", err)
	}
	if there, err := os.ReadDir(o.Dir); err != nil || len(there) != 1 {
		t.Errorf("%v, %v", there, err)
	}
}

// TestCompanionsMissing says which programs are needed, and how to get them.
func TestCompanionsMissing(t *testing.T) {
	t.Setenv("SLUICE_COMPANIONS", t.TempDir())
	err := demo.Run(t.Context(), demo.Options{Out: &screen{}})
	if err == nil || !strings.Contains(err.Error(), "ferretdb-a") || !strings.Contains(err.Error(), "make demo") {
		t.Errorf("%v", err)
	}
}
