package docs_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serverWithin is how long a database may take to answer, and to end.
const serverWithin = 30 * time.Second

// twoDatabases starts what data-verify.md compares, and returns the variables that hold the URLs: a shop's database
// before a migration, and a copy of it after one that damaged data.
func twoDatabases(t *testing.T, s *shell) []string {
	t.Helper()
	before, after := filepath.Join(s.root, "before"), filepath.Join(s.root, "after")
	url, stop := startDatabase(t, s, "ferretdb-a", before)
	shop(t, s, "seed", "--database", url, "--ledger", filepath.Join(s.root, "ledger"), "--orders", "500")
	stop()
	if err := os.CopyFS(after, os.DirFS(before)); err != nil {
		t.Fatal(err)
	}
	old, _ := startDatabase(t, s, "ferretdb-a", before)
	migrated, _ := startDatabase(t, s, "ferretdb-b", after)
	shop(t, s, "migrate", "--database", migrated, "--damage", "--seed", "7", "--orders", "500")
	return []string{"OLD=" + old, "NEW=" + migrated}
}

func shop(t *testing.T, s *shell, args ...string) {
	t.Helper()
	if out, err := exec.Command(filepath.Join(s.companions, "shop"), args...).CombinedOutput(); err != nil {
		t.Fatalf("shop %s: %v\n%s", args[0], err, out)
	}
}

// startDatabase starts a server and returns its URL. It ends with the test if it was not ended before.
func startDatabase(t *testing.T, s *shell, program, dir string) (url string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, filepath.Join(s.companions, program), "--listen", "127.0.0.1:0", "--dir", dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = serverWithin
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := cmd.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s did not end well: %v", program, err)
		}
	}
	t.Cleanup(stop)
	first := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		first <- line
	}()
	select {
	case line := <-first:
		address, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
		if !ok {
			t.Fatalf("%s says %q", program, line)
		}
		return "mongodb://" + address + "/shop", stop
	case <-time.After(serverWithin):
		t.Fatalf("%s does not answer", program)
		return "", stop
	}
}
