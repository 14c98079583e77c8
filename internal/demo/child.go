package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// child is a program that the demo itself runs: what stands outside of production and watches it.
type child struct {
	name  string
	cmd   *exec.Cmd
	said  chan string   // its first line
	ended chan struct{} // closed when it has ended
	err   error         // how; valid after ended
}

// grace is how long a child may take to end when it is asked to.
const grace = 15 * time.Second

// begin starts a program whose output goes to a log file of its name. It gets a process group of its own, so that Ctrl-C
// reaches the demo alone, and goes on when ctx ends: things end in their order.
func begin(ctx context.Context, dir, name string, argv ...string) (*child, error) {
	log, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		log.Close()
		return nil, err
	}
	c := &child{name: name, cmd: exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...), said: make(chan string, 1), ended: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr, c.cmd.SysProcAttr = w, log, &syscall.SysProcAttr{Setpgid: true}
	err = c.cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		log.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer log.Close()
		defer r.Close()
		in := bufio.NewReader(r)
		if line, err := in.ReadString('\n'); err == nil {
			c.said <- strings.TrimSpace(line)
		}
		_, _ = io.Copy(log, in)
		if c.err = c.cmd.Wait(); c.err == nil {
			c.err = errors.New("exit code 0")
		}
		close(c.ended)
	}()
	return c, nil
}

// saying waits for the child's first line and returns what follows the prefix in it.
func (c *child) saying(ctx context.Context, prefix string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	select {
	case line := <-c.said:
		rest, ok := strings.CutPrefix(line, prefix)
		if !ok {
			return "", fmt.Errorf("%s says %q", c.name, line)
		}
		return rest, nil
	case <-c.ended:
		return "", fmt.Errorf("%s ended at once: %w", c.name, c.err)
	case <-ctx.Done():
		return "", fmt.Errorf("%s does not say that it runs: %w", c.name, ctx.Err())
	}
}

// alive returns an error if the child has ended by itself.
func (c *child) alive() error {
	select {
	case <-c.ended:
		return fmt.Errorf("%s has ended by itself: %w", c.name, c.err)
	default:
		return nil
	}
}

// stop ends the child. One that has ended already, or was never started, is well.
func (c *child) stop() error {
	if c == nil {
		return nil
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", c.name, err)
	}
	select {
	case <-c.ended:
		return nil
	case <-time.After(grace):
	}
	err := c.cmd.Process.Kill()
	<-c.ended
	return errors.Join(fmt.Errorf("%s did not end within %s and was killed", c.name, grace), err)
}
