package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// within is how long anything may take on a machine that is busy with other things.
const within = 3 * time.Minute

// site is one user's machine: a data directory, a configuration, and the processes that come of them.
type site struct {
	t      *testing.T
	binary string
	dir    string // everything is below it
	data   string
	folder string // where commands are run
	env    []string
	wait   time.Duration // how long a delivery may take
}

// newSite makes one with a configuration. When the test ends, so must everything that ran there.
func newSite(t *testing.T, config string) *site {
	t.Helper()
	// Sockets have short names, and databases that refuse to run as root must reach their volumes.
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, binary: sluiceBinary(t), dir: dir, data: filepath.Join(dir, "data"), folder: dir, wait: within}
	s.env = append(os.Environ(), "SLUICE_DATA="+s.data, "SLUICE_CONFIG="+s.path("sluice.yaml"), "SLUICE_COMPANIONS="+companions(t), "HOME="+dir)
	s.write("sluice.yaml", config)
	t.Cleanup(func() {
		s.end()
		os.RemoveAll(dir)
	})
	return s
}

// with is the site for a subtest.
func (s *site) with(t *testing.T) *site {
	c := *s
	c.t = t
	return &c
}

// webImages is the section images of the application that the test binary is.
func webImages(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text := "images:\n"
	for _, i := range []struct{ image, mode, version string }{{"web:1", "web", "1"}, {"web:2", "web", "2"}, {"web:ill", "ill", "ill"}} {
		text += fmt.Sprintf("  %s: [/usr/bin/env, %s=%s, VERSION=%s, %s]\n", i.image, programEnv, i.mode, i.version, self)
	}
	return text + "  web:crash: [/bin/false]\n"
}

func (s *site) path(name ...string) string { return filepath.Join(append([]string{s.dir}, name...)...) }

// write makes a file below the site's folder and returns its path.
func (s *site) write(name, body string) string {
	s.t.Helper()
	path := s.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// end stops the server and what it runs, and holds that nothing of the site goes on.
func (s *site) end() {
	s.t.Helper()
	r := s.sluice("server", "stop", "--all")
	if r.code != 0 {
		s.t.Errorf("server stop --all ends with %d: %s", r.code, r.errs)
	}
	if s.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(s.data, "server.log"))
		s.t.Logf("server.log:\n%s", log)
	}
	s.eventually("nothing of it runs", func() error {
		if left := s.running(); len(left) > 0 {
			return fmt.Errorf("still running: %s", strings.Join(left, "; "))
		}
		return nil
	})
}

// running returns the command lines of processes that have to do with the site's folder and have all of these variables.
func (s *site) running(variables ...string) []string {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, d := range dirs {
		// A process that ends meanwhile has nothing to read.
		command, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		env, _ := os.ReadFile(filepath.Join(d, "environ"))
		if !bytes.Contains(command, []byte(s.dir)) && !bytes.Contains(env, []byte(s.dir)) {
			continue
		}
		set := strings.Split(string(env), "\x00")
		if !slices.ContainsFunc(variables, func(v string) bool { return !slices.Contains(set, v) }) {
			out = append(out, filepath.Base(d)+" "+string(bytes.ReplaceAll(command, []byte{0}, []byte{' '})))
		}
	}
	return out
}

// eventually waits for what nobody tells.
func (s *site) eventually(what string, holds func() error) {
	s.t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			s.t.Errorf("not in time: %s: %v", what, err)
			return
		case <-tick.C:
		}
	}
}

// result is what a command printed and how it ended.
type result struct {
	out, errs string
	code      int
}

func (s *site) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.binary, args...)
	cmd.Env, cmd.Dir = s.env, s.folder
	return cmd
}

// sluice runs a command.
func (s *site) sluice(args ...string) result {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	cmd := s.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok || ctx.Err() != nil {
		s.t.Fatalf("sluice %s: %v, %v\n%s", strings.Join(args, " "), err, ctx.Err(), errs.String())
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// must runs a command that has to succeed.
func (s *site) must(args ...string) result {
	s.t.Helper()
	r := s.sluice(args...)
	if r.code != 0 {
		s.t.Fatalf("sluice %s ends with %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.errs)
	}
	return r
}

// start starts a delivery and returns its id.
func (s *site) start(file string, args ...string) string {
	s.t.Helper()
	r := s.must(append([]string{"deploy", "start", "-f", file, "-o", "json"}, args...)...)
	var started struct{ DeploymentID string }
	if err := json.Unmarshal([]byte(r.out), &started); err != nil || started.DeploymentID == "" {
		s.t.Fatalf("deploy start prints %q: %v", r.out, err)
	}
	return started.DeploymentID
}

// delivery is what `deploy status -o json` prints.
type delivery struct {
	ID, Status, Reason string
	Targets            []struct{ Name, Status, Reason string }
	Steps              []step
}

type step struct {
	Ref, Status, Phase, Verdict, Message string
	Started                              time.Time `json:"startedAtIso8601"`
	Ended                                time.Time `json:"completedAtIso8601"`
}

// step returns one step by its path.
func (d delivery) step(ref string) step {
	i := slices.IndexFunc(d.Steps, func(s step) bool { return s.Ref == ref })
	if i < 0 {
		return step{Ref: ref, Status: "not a step"}
	}
	return d.Steps[i]
}

func (d delivery) target(name string) string {
	for _, t := range d.Targets {
		if t.Name == name {
			return t.Status
		}
	}
	return "not a target"
}

func (d delivery) final() bool {
	return d.Status == "SUCCEEDED" || d.Status == "FAILED" || d.Status == "CANCELLED"
}

// String lists the steps, for messages.
func (d delivery) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", d.Status, d.Reason)
	for _, s := range d.Steps {
		fmt.Fprintf(&b, "  %-18s %-55s %s\n", s.Phase, s.Ref, s.Message)
	}
	return b.String()
}

func (s *site) status(id string) delivery {
	s.t.Helper()
	var d delivery
	if err := json.Unmarshal([]byte(s.must("deploy", "status", id, "-o", "json").out), &d); err != nil {
		s.t.Fatal(err)
	}
	return d
}

// until waits until a delivery satisfies a condition. It is asked whenever the watch tells of something new.
func (s *site) until(id, what string, is func(delivery) bool) delivery {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.wait)
	defer cancel()
	watch := s.command(ctx, "deploy", "watch", id)
	out, err := watch.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := watch.Start(); err != nil {
		s.t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = watch.Wait() // it is killed, or ends as the delivery did
	}()
	told := make(chan struct{}, 1)
	go func() {
		defer close(told)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			select {
			case told <- struct{}{}:
			default: // several lines are one reason to ask
			}
		}
	}()
	for {
		_, more := <-told
		d := s.status(id)
		switch {
		case is(d):
			return d
		case d.final():
			s.t.Fatalf("the delivery ended before it was %s\n%s", what, d)
		case !more:
			s.t.Fatalf("the delivery is not %s in time\n%s", what, d)
		}
	}
}

// waiting returns a condition: a step waits for a person.
func waiting(ref string) func(delivery) bool {
	return func(d delivery) bool { return d.step(ref).Status == "AWAITING_APPROVAL" }
}

// ended waits until a delivery has ended, and holds how.
func (s *site) ended(id, status string) delivery {
	s.t.Helper()
	d := s.until(id, "at its end", delivery.final)
	if d.Status != status {
		s.t.Fatalf("the delivery has not ended as %s\n%s", status, d)
	}
	return d
}

// address returns where a Service of the account local is reached.
func (s *site) address(service string) string {
	s.t.Helper()
	var st struct {
		Accounts []struct{ Services []string }
	}
	r := s.must("server", "status", "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &st); err != nil {
		s.t.Fatal(err)
	}
	for _, a := range st.Accounts {
		for _, v := range a.Services {
			if at, ok := strings.CutPrefix(v, service+" at "); ok {
				return at
			}
		}
	}
	s.t.Fatalf("Service %s is not among\n%s", service, r.out)
	return ""
}
