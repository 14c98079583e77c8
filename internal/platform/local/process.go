package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
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

const unknown = -1

// Marks in a pod's environment, by which a successor finds what its predecessor started.
const (
	markNode = "SLUICE_NODE"
	markPod  = "SLUICE_POD"
	markHash = "SLUICE_POD_HASH"
)

// spawn starts a command in a session of its own, so that it outlives the node, with its output in a file.
func spawn(argv, env []string, dir, logFile string, cred *syscall.Credential) (*process, error) {
	if err := os.MkdirAll(filepath.Dir(logFile), 0o755); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{Path: path, Args: argv, Env: env, Dir: dir, Stdout: out, Stderr: out, SysProcAttr: &syscall.SysProcAttr{Setsid: true, Credential: cred}}
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
		defer unix.Close(fd)
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

// found is a process that carries a node's mark.
type found struct {
	pid       int
	pod, hash string
}

// marked finds the processes that nodes of this directory started and that lead their sessions. A pid alone could be
// another program's by now; the environment is the process's own and ends with it.
func marked(dir string) ([]found, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for the pods of an earlier node: %w", err)
	}
	var all []found
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil {
			continue // another user's, or gone
		}
		f := found{pid: pid}
		ours := false
		for v := range bytes.SplitSeq(env, []byte{0}) {
			name, value, _ := strings.Cut(string(v), "=")
			switch name {
			case markNode:
				ours = value == dir
			case markPod:
				f.pod = value
			case markHash:
				f.hash = value
			}
		}
		if sid, err := unix.Getsid(pid); ours && f.pod != "" && err == nil && sid == pid {
			all = append(all, f)
		}
	}
	return all, nil
}

// stop ends the process and its group: first as asked, after the grace by force.
func (p *process) stop(sig syscall.Signal, grace time.Duration) {
	_ = syscall.Kill(-p.pid, sig)
	t := time.NewTimer(grace)
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

// RunDetached is for programs that must not end with the terminal they were started from.
func untilTold(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
}
