package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// markVariable is in the environment of every program of a cluster, and so of what they start on the host.
const markVariable = "SLUICE_LAB_CLUSTER"

func (c *Cluster) mark() string { return markVariable + "=" + c.dir() }

// process is one that can be told from a later one with the same pid.
type process struct {
	PID int `json:"pid"`
	// Start is when it began, in the kernel's ticks since the machine's start.
	Start uint64 `json:"start"`
}

// run starts a program in the cluster's network namespace, in a session of its own, with its output in the log of that
// name. It goes on when this process ends.
//
// nsenter changes the network namespace only; `ip netns exec` would also mount a fresh /sys that hides the control
// groups, and a mount namespace in which volumes stay private.
func (c *Cluster) run(ctx context.Context, name, program string, args ...string) error {
	log, err := os.OpenFile(c.path("log", name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	command := exec.CommandContext(context.WithoutCancel(ctx), "nsenter", append([]string{"--net=/run/netns/" + c.slot.namespace(), program}, args...)...)
	command.Env = append(os.Environ(), c.mark())
	command.Stdout, command.Stderr = log, log
	command.Dir = c.dir()
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	// A process of ours that ends while we live must not stay a zombie.
	go func() { _ = command.Wait() }()
	start, _, err := stat(command.Process.Pid)
	if err != nil {
		return fmt.Errorf("%s ended at once: %s", name, c.lastLog(name))
	}
	b, err := json.Marshal(process{PID: command.Process.Pid, Start: start})
	if err != nil {
		return err
	}
	return os.WriteFile(c.path("pid", name), b, 0o644)
}

// alive says whether a program of the cluster runs.
func (c *Cluster) alive(name string) bool {
	p, err := c.process(name)
	return err == nil && p.alive()
}

func (c *Cluster) process(name string) (process, error) {
	var p process
	b, err := os.ReadFile(c.path("pid", name))
	if err != nil {
		return p, err
	}
	return p, json.Unmarshal(b, &p)
}

func (p process) alive() bool {
	start, state, err := stat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// kill ends it if it is still the same process.
func (p process) kill() error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	// From here on the descriptor names one process for good.
	if !p.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// gone waits until the processes ended.
func gone(ctx context.Context, all []process) error {
	for _, p := range all {
		for p.alive() {
			if ctx.Err() != nil {
				return fmt.Errorf("process %d does not end: %w", p.PID, ctx.Err())
			}
			fd, err := unix.PidfdOpen(p.PID, 0)
			if err != nil {
				break
			}
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
			_ = unix.Close(fd)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	}
	return nil
}

// stat reads when a process began, and its state.
func stat(pid int) (start uint64, state byte, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The second field is a name in parentheses that may hold anything.
	_, rest, ok := bytes.Cut(b[bytes.LastIndexByte(b, ')')+1:], []byte(" "))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 20 {
		return 0, 0, fmt.Errorf("cannot read /proc/%d/stat", pid)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0][0], err
}

// processes are all that belong to the cluster outside of its pods: by pid file, and by the mark in the environment,
// which also finds what was started just before a kill and the shims that containerd starts.
func (c *Cluster) processes() ([]process, error) {
	var all []process
	files, err := filepath.Glob(c.path("pid", "*"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		// A file that was cut off while it was written is covered by the mark.
		if p, err := c.process(filepath.Base(f)); err == nil && p.alive() {
			all = append(all, p)
		}
	}
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil, err
	}
	mark := []byte(c.mark())
	for _, f := range environments {
		b, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(b, mark) {
			continue
		}
		for variable := range bytes.SplitSeq(b, []byte{0}) {
			if bytes.Equal(variable, mark) {
				pid, err := strconv.Atoi(strings.Split(f, "/")[2])
				if err != nil {
					return nil, err
				}
				if start, _, err := stat(pid); err == nil {
					all = append(all, process{PID: pid, Start: start})
				}
			}
		}
	}
	return all, nil
}

// until repeats a question that offers no event until it is answered with yes, or a program that must answer has ended.
func (c *Cluster) until(ctx context.Context, what string, needs []string, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		for _, name := range needs {
			if !c.alive(name) {
				return fmt.Errorf("%s: %s ended: %s", what, name, c.lastLog(name))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w; the last answer was: %w; %s", what, ctx.Err(), err, c.lastLog(needs...))
		case <-tick.C:
		}
	}
}

// lastLog is the end of programs' logs, for messages.
func (c *Cluster) lastLog(names ...string) string {
	var all strings.Builder
	for _, name := range names {
		b, err := os.ReadFile(c.path("log", name+".log"))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		fmt.Fprintf(&all, "\n--- the end of %s's log:\n%s", name, strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
	return all.String()
}
