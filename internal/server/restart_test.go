package server_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/store"
)

// TestWatchOverCrash watches a delivery while its server is killed: the watch goes on with the successor.
func TestWatchOverCrash(t *testing.T) {
	dir := t.TempDir()
	c := detached(t, dir)
	start(t, c, spec("one", node(t, "a", plan.KindApproval, plan.ApprovalArgs{}), node(t, "b", plan.KindPause, plan.PauseArgs{For: 1}, "a")))
	states := make(chan store.Delivery, 100)
	ended := make(chan error, 1)
	ctx := limited(t)
	go func() {
		ended <- c.Watch(ctx, "one", func(e server.Event) {
			if e.Delivery != nil {
				states <- *e.Delivery
			}
		})
	}()
	reach := func(what string, ok func(store.Delivery) bool) {
		t.Helper()
		for {
			select {
			case d := <-states:
				if ok(d) {
					return
				}
			case <-ctx.Done():
				t.Fatalf("the watch did not tell that %s", what)
			}
		}
	}
	reach("the approval waits", waits("a"))
	killed := info(t, c).PID
	if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	other, err := server.EnsureRunning(ctx, dir, command(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	if won, err := other.Signal(ctx, "one", delivery.Signal{Key: "approve/a", Kind: delivery.Approve, Path: "a"}); err != nil || !won {
		t.Fatal(won, err)
	}
	reach("the delivery has ended", done)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if info(t, other).PID == killed {
		t.Error("the server was not killed")
	}
}

// TestClientRevives: nobody starts a successor, so the watching client does.
func TestClientRevives(t *testing.T) {
	dir := t.TempDir()
	c := detached(t, dir)
	job, urls := receiver(t)
	start(t, c, spec("one", webhook(t, "w", job)))
	url := next(t, urls)
	until(t, c, "one", waits("w"))
	if err := syscall.Kill(info(t, c).PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(limited(t), "one"); err != nil {
		t.Fatal(err)
	}
	if code, text := post(t, url, `{"success": true}`); code != 200 {
		t.Errorf("%d %s", code, text)
	}
	until(t, c, "one", done)
}

// TestStartsAtOnce: several clients find no server at the same time, and end up with the same one.
func TestStartsAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	const clients = 4
	var wg sync.WaitGroup
	pids := make(chan int, clients)
	cmd := command(t, dir)
	ctx := limited(t)
	for range clients {
		wg.Go(func() {
			c, err := server.EnsureRunning(ctx, dir, cmd)
			if err != nil {
				t.Error(err)
				return
			}
			i, err := c.Info(ctx)
			if err != nil {
				t.Error(err)
			}
			pids <- i.PID
		})
	}
	wg.Wait()
	close(pids)
	detached(t, dir)
	seen := map[int]bool{}
	for p := range pids {
		seen[p] = true
	}
	if len(seen) != 1 {
		t.Errorf("the clients talk to the servers %v", seen)
	}
}

// TestTerminated ends a server with SIGTERM: watchers are told, its delivery goes on at the next start.
func TestTerminated(t *testing.T) {
	dir := t.TempDir()
	c := detached(t, dir)
	start(t, c, spec("one", node(t, "a", plan.KindApproval, plan.ApprovalArgs{})))
	watching, told := make(chan struct{}), make(chan error, 1)
	ctx := limited(t)
	go func() {
		var once sync.Once
		told <- c.Watch(ctx, "one", func(server.Event) { once.Do(func() { close(watching) }) })
	}()
	<-watching
	until(t, c, "one", waits("a"))
	pid := info(t, c).PID
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-told; !fault.Is(err, fault.Transient) || !strings.Contains(err.Error(), "sluice deploy watch one") {
		t.Errorf("the watcher got %v", err)
	}
	gone(t, pid)
	if _, err := os.Stat(filepath.Join(dir, "server.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
	c = detached(t, dir)
	if won, err := c.Signal(ctx, "one", delivery.Signal{Key: "approve/a", Kind: delivery.Approve, Path: "a"}); err != nil || !won {
		t.Fatal(won, err)
	}
	if d := until(t, c, "one", done); d.Status.State != delivery.Succeeded {
		t.Errorf("%s: %s", d.Status.State, d.Status.Reason)
	}
}

// gone waits until a process has ended. It was started by this one and then left, so it may be a zombie for an instant.
func gone(t *testing.T, pid int) {
	t.Helper()
	ctx := limited(t)
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for syscall.Kill(pid, 0) == nil {
		select {
		case <-ctx.Done():
			t.Fatalf("process %d goes on", pid)
		case <-look.C:
		}
	}
}

func TestStop(t *testing.T) {
	dir := t.TempDir()
	c := detached(t, dir)
	pid := info(t, c).PID
	if i, err := c.Stop(limited(t)); err != nil || i.PID != pid {
		t.Fatal(i, err)
	}
	if _, err := server.Connect(limited(t), dir); !fault.Is(err, fault.NotFound) {
		t.Errorf("after the stop: %v", err)
	}
}

func TestOneServerPerDirectory(t *testing.T) {
	dir := t.TempDir()
	s, err := server.Open(server.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	_, err = server.Open(server.Options{Dir: dir})
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "pid "+strconv.Itoa(os.Getpid())) {
		t.Errorf("a second server: %v", err)
	}
	url := s.Callback("key")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	again, err := server.Open(server.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Callback("key") != url || again.Callback("other") == url {
		t.Errorf("the callback URL of a key changed from %s to %s", url, again.Callback("key"))
	}
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := server.Open(server.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	at := strings.TrimPrefix(s.URL(), "http://")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = server.Open(server.Options{Dir: dir})
	_, port, _ := net.SplitHostPort(at)
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), port) || !strings.Contains(err.Error(), "server.port") {
		t.Errorf("the kept port is taken: %v", err)
	}
	if _, err = server.Open(server.Options{Dir: dir, Listen: at}); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("the given port is taken: %v", err)
	}
}

func TestExternalURL(t *testing.T) {
	s, err := server.Open(server.Options{Dir: t.TempDir(), ExternalURL: "https://sluice.example.com/"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := s.Callback("k"); !strings.HasPrefix(got, "https://sluice.example.com/callbacks/") {
		t.Error(got)
	}
}

// TestCannotStart: whoever asked for a server is told why none runs.
func TestCannotStart(t *testing.T) {
	for name, x := range map[string]struct {
		command []string
		says    string
	}{
		"it ends at once":         {[]string{"/bin/sh", "-c", "echo the disk is on fire >&2; exit 3"}, "the disk is on fire"},
		"there is no such":        {[]string{"/nowhere/sluice"}, "no such file"},
		"nobody may do so":        {nil, "no server runs"},
		"its directory cannot be": {command(t, "/proc/none"), "choose another one with --data"},
	} {
		_, err := server.EnsureRunning(limited(t), t.TempDir(), x.command)
		if err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDeepDirectory: the address of a socket holds 107 bytes, a path more.
func TestDeepDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 30))
	c := detached(t, dir)
	if got := info(t, c).Data; got != filepath.Clean(dir) {
		t.Error(got)
	}
}

// TestDeadline: a client that gives up says so in the words of its context.
func TestDeadline(t *testing.T) {
	c, _ := inProcess(t, server.Options{})
	start(t, c, spec("one", node(t, "a", plan.KindApproval, plan.ApprovalArgs{})))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.Watch(ctx, "one", func(server.Event) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
