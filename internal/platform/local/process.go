package local

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a running process of a pod, ours or adopted from a node that died.
type process struct {
	pid  int
	exit chan struct{} // closed when it has ended
	code int           // valid after exit; unknown if another node started it
}

// launch is what is executed.
type launch struct {
	argv, env []string
	dir       string
	logFile   string
	cred      *syscall.Credential
	inside    func(string) string // a text as the pod means it: variables, mount paths, names of Services
}

const unknown = -1

// Marks in a pod's environment, by which a successor finds what its predecessor started.
const (
	markNode = "SLUICE_NODE"
	markPod  = "SLUICE_POD"
	markHash = "SLUICE_POD_HASH"
)

// logRotated is how long the output of a pod may be before it is put aside at the next start of its process.
const logRotated = 64 << 20

// spawn starts a command in a session of its own, so that it outlives the node, with its output in a file.
func spawn(l launch) (*process, error) {
	if err := os.MkdirAll(filepath.Dir(l.logFile), 0o700); err != nil {
		return nil, err
	}
	if i, err := os.Stat(l.logFile); err == nil && i.Size() > logRotated {
		if err := os.Rename(l.logFile, l.logFile+".1"); err != nil {
			return nil, err
		}
	}
	out, err := os.OpenFile(l.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	path, err := exec.LookPath(l.argv[0])
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{Path: path, Args: l.argv, Env: l.env, Dir: l.dir, Stdout: out, Stderr: out, SysProcAttr: &syscall.SysProcAttr{Setsid: true, Credential: l.cred}}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, exit: make(chan struct{})}
	go func() {
		err := cmd.Wait()
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			p.code = e.ExitCode()
			if s, ok := e.Sys().(syscall.WaitStatus); ok && s.Signaled() {
				p.code = 128 + int(s.Signal())
			}
		} else if err != nil {
			p.code = unknown
		}
		close(p.exit)
	}()
	return p, nil
}

// adopt watches a process that another node started. Its exit code cannot be known.
func adopt(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, exit: make(chan struct{}), code: unknown}
	go func() {
		defer func() { _ = unix.Close(fd) }()
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		close(p.exit)
	}()
	return p, nil
}

// stop ends the process and its group: first as asked, from the deadline on by force.
func (p *process) stop(sig syscall.Signal, deadline time.Time) {
	_ = syscall.Kill(-p.pid, sig)
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-p.exit:
	case <-t.C:
	}
	// Whatever of the group is still there goes with it.
	_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	<-p.exit
}

// tail returns the last lines of a file.
func tail(path string, lines int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-64<<10), io.SeekStart)
	}
	body, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(body), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// untilTold ends a context when the program is told to end.
func untilTold(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
}
