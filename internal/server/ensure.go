package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/fault"
)

const (
	startWithin  = 30 * time.Second      // how long a server may take until it answers
	lookEvery    = 10 * time.Millisecond // how often it is asked while it starts
	reviveAfter  = time.Second           // how long somebody else has time to start the successor of one that died
	revivedByAll = 30 * time.Second      // how long a successor is waited for where this client can start none
	logRotated   = 10 << 20              // a log longer than this is put aside at the next start
)

// EnsureRunning reaches the server of a data directory. Where none answers it is started by the command, detached: it goes
// on when this program ends, and writes to server.log in the directory.
func EnsureRunning(ctx context.Context, dir string, command []string) (*Client, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	c := newClient(dir, command)
	err = c.answers(ctx)
	if err == nil {
		return c, nil
	}
	if e := c.barred(err); e != nil {
		return nil, e
	}
	if own, err := owner(dir); err == nil && os.Geteuid() != 0 && int(own) != os.Geteuid() {
		return nil, fault.WithRemedy(fault.Newf(fault.NotFound, "no server runs in %s, which belongs to %s", dir, userName(own)), "ask for it to be started")
	}
	return c, c.startServer(ctx)
}

// answers asks whether the server carries deliveries.
func (c *Client) answers(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sluice/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return gone(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return fault.Newf(fault.Transient, "%w: %s", errGone, strings.TrimSpace(string(why)))
	}
	return nil
}

// revive waits for the successor of a server that died. Whoever runs servers here, a service manager or another client,
// is first given the time to start it.
func (c *Client) revive(ctx context.Context) error {
	within := reviveAfter
	if len(c.command) == 0 {
		within = revivedByAll
	}
	wait, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := c.untilAnswers(wait, nil)
	if err == nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	if len(c.command) == 0 {
		return fault.WithRemedy(fault.Newf(fault.Transient, "the server of %s has ended", c.dir), "start one with sluice server --data %s", c.dir)
	}
	return c.startServer(ctx)
}

// untilAnswers returns when the server answers, when ended is closed, or when ctx ends.
func (c *Client) untilAnswers(ctx context.Context, ended <-chan struct{}) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		err := c.answers(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			return err
		case <-look.C:
		}
	}
}

// startServer starts a server in a session of its own and waits until it answers. Two clients may do so at the same time:
// one of the servers gets the lock, and both clients get that one.
func (c *Client) startServer(ctx context.Context) error {
	if len(c.command) == 0 {
		return fault.Newf(fault.NotFound, "no server runs in %s", c.dir)
	}
	if err := directory(c.dir); err != nil {
		return err
	}
	ended, err := c.detach(ctx)
	if err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	err = c.untilAnswers(within, ended)
	if err != nil && within.Err() == nil && c.locked() {
		// Ours has ended because another one has the directory: that one is still starting.
		err = c.untilAnswers(within, nil)
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case within.Err() != nil:
		return fault.WithRemedy(fault.Newf(fault.Transient, "the server of %s does not answer after %s; the end of its log:\n%s", c.dir, startWithin, c.logTail()),
			"run it in the foreground to see what it does: %s", strings.Join(c.command, " "))
	}
	return fault.WithRemedy(fault.Newf(fault.Invalid, "the server of %s ended at once:\n%s", c.dir, c.logTail()),
		"run it in the foreground to see what it does: %s", strings.Join(c.command, " "))
}

// detach starts the command and returns a channel that is closed when it has ended.
func (c *Client) detach(ctx context.Context) (<-chan struct{}, error) {
	name := filepath.Join(c.dir, logFile)
	if i, err := os.Stat(name); err == nil && i.Size() > logRotated {
		if err := os.Rename(name, name+".1"); err != nil {
			return nil, fmt.Errorf("put the server's log aside: %w", err)
		}
	}
	out, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the server's log: %w", err)
	}
	defer out.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), c.command[0], c.command[1:]...) // it outlives whoever starts it
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = out, out, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fault.WithRemedy(fmt.Errorf("start the server: %w", err), "start it yourself: sluice server --data %s", c.dir)
	}
	ended := make(chan struct{})
	go func() {
		// How it ended stands in the log.
		_ = cmd.Wait()
		close(ended)
	}()
	return ended, nil
}

// locked reports whether a server owns the data directory.
func (c *Client) locked() bool {
	f, err := os.Open(filepath.Join(c.dir, lockFile))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// logTail is the end of the detached server's log.
func (c *Client) logTail() string {
	body, err := os.ReadFile(filepath.Join(c.dir, logFile))
	if err != nil {
		return "(the log cannot be read)"
	}
	lines := strings.Split(strings.TrimRight(string(body), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}

// Stop ends the server and returns when its process is gone. The deliveries go on at the next start.
func (c *Client) Stop(ctx context.Context) (Info, error) {
	i, err := c.Info(ctx)
	if err != nil {
		return i, err
	}
	// A descriptor of the process cannot come to mean another one, as its number could.
	fd, err := unix.PidfdOpen(i.PID, 0)
	if err != nil {
		return i, fmt.Errorf("watch the server's process %d: %w", i.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := c.ask(ctx, http.MethodPost, "server/stop", nil, nil); err != nil {
		return i, err
	}
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if n > 0 {
			return i, nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return i, err
		}
	}
	return i, ctx.Err()
}
