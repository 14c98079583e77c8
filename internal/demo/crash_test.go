package demo_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/demo"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/server/wire"
	"github.com/sluice-cd/sluice/internal/store"
	"github.com/sluice-cd/sluice/internal/store/sqlite"
)

// crashEnv makes the server of this test program one that is killed: itself after every record, or the node once per
// phase.
const (
	crashEnv  = "SLUICE_DEMO_CRASH"
	afterAll  = "server"
	perPhase  = "node"
	carrying  = "SLUICE_DEMO_CARRIES" // set in the process that carries deliveries, not in its supervisor
	killsFile = "kills"
)

// crashingServer starts the server again whenever it is killed, at once, as a service manager does.
func crashingServer(args []string) int {
	if os.Getenv(carrying) != "" {
		if err := carry(args); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			return 1
		}
		return 0
	}
	self, err := os.Executable()
	if err != nil {
		return 1
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	for {
		cmd := exec.Command(self, args...)
		cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), carrying+"=1"), os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			return 1
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-told:
			_ = cmd.Process.Signal(syscall.SIGTERM)
			err = <-ended
		case err = <-ended:
		}
		e, ok := errors.AsType[*exec.ExitError](err)
		if ok && e.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
			continue
		}
		if err != nil {
			return 1
		}
		return 0
	}
}

// carry is the server, put together as `sluice server` does but for its store.
func carry(args []string) error {
	f := flag.NewFlagSet("server", flag.ContinueOnError)
	dir, file := f.String("data", "", ""), f.String("config", "", "")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	self, err := os.Executable()
	if err != nil {
		return err
	}
	live, err := wire.NewLive(func() (*config.Config, error) { return config.Load(*file) }, log)
	if err != nil {
		return err
	}
	srv, err := server.Open(server.Options{Dir: *dir, Log: log})
	if err != nil {
		return err
	}
	defer srv.Close()
	st, err := sqlite.Open(ctx, filepath.Join(*dir, "sluice.db"))
	if err != nil {
		return err
	}
	defer st.Close()
	ports := wire.Ports(ctx, wire.Options{Dir: *dir, Config: live, Self: []string{self}, Log: log}, srv.Callback)
	account, err := live.Current().Account("local")
	if err != nil {
		return err
	}
	k := killer{Store: st, file: filepath.Join(*dir, killsFile), node: account.Directory, what: os.Getenv(crashEnv)}
	return srv.Run(ctx, server.Work{Store: k, Steps: wire.Steps(ports, *dir)})
}

// killer is a store that has something killed right after what it has kept. An instant of a delivery is one that has not
// been yet: a step that is entered again after a kill begins with the same records, and would never get further.
type killer struct {
	*sqlite.Store
	file string // one line per kill
	node string // the node's directory
	what string
}

// Swap keeps, and kills.
func (k killer) Swap(ctx context.Context, id string, at store.Revision, s delivery.Status, records []store.Record) (store.Revision, error) {
	rev, err := k.Store.Swap(ctx, id, at, s, records)
	if err != nil {
		return rev, err
	}
	d, err := k.Store.Load(ctx, id)
	if err != nil {
		return rev, err
	}
	for _, r := range records {
		instant := moment(r)
		if k.what == perPhase {
			instant = phase(d.Spec, r)
		}
		first, err := k.first(id + " " + instant)
		if err != nil {
			return rev, err
		}
		if !first {
			continue
		}
		if k.what == afterAll {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way
		}
		if err := killNode(k.node); err != nil {
			return rev, err
		}
	}
	return rev, nil
}

// first notes an instant durably, and reports whether it is new.
func (k killer) first(instant string) (bool, error) {
	body, err := os.ReadFile(k.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if slices.Contains(strings.Split(string(body), "\n"), instant) {
		return false, nil
	}
	f, err := os.OpenFile(k.file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if _, err := f.WriteString(instant + "\n"); err != nil {
		return false, err
	}
	return true, f.Sync()
}

// moment names what a record says without how often the step was entered.
func moment(r store.Record) string {
	var data any
	if json.Unmarshal(r.Data, &data) != nil {
		return r.Kind + " " + r.Path
	}
	body, err := json.Marshal(timeless(data))
	if err != nil {
		return r.Kind + " " + r.Path
	}
	return r.Kind + " " + r.Path + " " + string(body)
}

// timeless leaves out what differs from entry to entry of the same step: the number of the entry and of the try, instants
// and lengths of time, messages. What was saved is JSON in base64, as encoding/json writes bytes.
func timeless(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for name, x := range v {
			switch name {
			case "entry", "try", "message", "error", "evidence", "held", "took", "cutAt", "at", "since", "seed":
				continue
			case "saved":
				var inner any
				if text, ok := x.(string); ok && json.Unmarshal(unbase64(text), &inner) == nil {
					x = inner
				}
			}
			out[name] = timeless(x)
		}
		return out
	case []any:
		var out []any
		for _, x := range v {
			out = append(out, timeless(x))
		}
		return out
	}
	return v
}

func unbase64(s string) []byte {
	var b []byte
	quoted, _ := json.Marshal(s)
	_ = json.Unmarshal(quoted, &b)
	return b
}

// phase names the part of the delivery that a record belongs to.
func phase(s delivery.Spec, r store.Record) string {
	var a delivery.Action
	_ = json.Unmarshal(r.Data, &a)
	i := slices.IndexFunc(s.Graph.Nodes, func(n plan.Node) bool { return n.Path == r.Path })
	if i < 0 {
		return "created"
	}
	n := s.Graph.Nodes[i]
	if r.Kind != "intent" {
		a.Kind = "run" // an outcome comes in the phase of its intent, which was first
	}
	return fmt.Sprintf("%s %s %s", n.Target, n.Phase, a.Kind)
}

// killNode kills the process that owns production's listeners.
func killNode(dir string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		args, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || !bytes.Contains(args, []byte("\x00local-node\x00--dir\x00"+dir+"\x00")) {
			continue
		}
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
			continue
		}
		return syscall.Kill(pid, syscall.SIGKILL)
	}
	return nil // its successor has not started yet
}

// TestKilled plays the demo unkilled, with the server killed after every record, and with the node killed once per phase.
// All three end alike: the acts themselves check the outcomes, that no request failed but those of the faulty release, and
// the ledger; here what is left on the machine is compared.
func TestKilled(t *testing.T) {
	takesMinutes(t)
	want, _ := played(t, "")
	for _, name := range []string{"processes", "listeners", "locks", "volumes"} {
		if len(want[name]) == 0 {
			t.Fatalf("an unkilled run leaves no %s: there is nothing to compare", name)
		}
	}
	t.Logf("an unkilled run leaves %d processes, %d listeners, %d locks, %d claims and copies, %d mounts",
		len(want["processes"]), len(want["listeners"]), len(want["locks"]), len(want["volumes"]), len(want["mounts"]))
	for _, c := range []struct {
		what  string
		least int
	}{{afterAll, 150}, {perPhase, 12}} {
		t.Run(c.what, func(t *testing.T) {
			got, kills := played(t, c.what)
			t.Logf("%d kills", kills)
			if kills < c.least {
				t.Errorf("only %d kills", kills)
			}
			for name, w := range want {
				if !slices.Equal(got[name], w) {
					t.Errorf("%s left by an unkilled run:\n  %s\nby this one:\n  %s", name, strings.Join(w, "\n  "), strings.Join(got[name], "\n  "))
				}
			}
		})
	}
}

// played plays the demo and returns what it leaves on the machine before it ends, and how many kills there were.
func played(t *testing.T, crash string) (map[string][]string, int) {
	t.Helper()
	if crash != "" {
		t.Setenv(crashEnv, crash)
	}
	o := options(t)
	o.Keep, o.Patience = true, 20*time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Minute)
	defer cancel()
	seen := o.Out.(*screen)
	ended := make(chan error, 1)
	go func() { ended <- demo.Run(ctx, o) }()
	playing, played := context.WithCancel(ctx)
	go func() {
		defer played()
		_ = seen.until(ctx, "Everything is still running")
	}()
	select {
	case err := <-ended:
		t.Fatalf("it ended early: %v\n%s", err, seen)
	case <-playing.Done():
	}
	left := remains(t, o.Dir)
	kills := 0
	if body, err := os.ReadFile(filepath.Join(o.Dir, "data", killsFile)); err == nil {
		kills = bytes.Count(body, []byte("\n"))
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("%v\n%s", err, seen)
	}
	return left, kills
}

// remains is what a demo has on the machine: processes, listeners, mounts, locks and volumes, with names that differ from
// run to run made alike.
func remains(t *testing.T, dir string) map[string][]string {
	t.Helper()
	left := map[string][]string{"mounts": nil}
	owners := map[string]string{} // inode of a socket → process
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	pids := map[string]string{}
	for _, e := range entries {
		name := nameOf(e.Name(), dir)
		if name == "" {
			continue
		}
		pids[e.Name()] = name
		left["processes"] = append(left["processes"], name)
		fds, _ := filepath.Glob("/proc/" + e.Name() + "/fd/*")
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:[") {
				owners[strings.Trim(to, "socket:[]")] = name
			}
		}
	}
	for _, l := range fields(t, "/proc/net/tcp") {
		const listening = "0A"
		if len(l) > 9 && l[3] == listening && owners[l[9]] != "" {
			left["listeners"] = append(left["listeners"], owners[l[9]])
		}
	}
	for _, l := range fields(t, "/proc/mounts") {
		if strings.Contains(strings.Join(l, " "), dir) {
			left["mounts"] = append(left["mounts"], strings.Join(l, " "))
		}
	}
	for _, l := range fields(t, "/proc/locks") {
		// POSIX locks of databases come and go with each statement.
		if len(l) > 4 && l[1] == "FLOCK" && pids[l[4]] != "" {
			left["locks"] = append(left["locks"], pids[l[4]])
		}
	}
	left["volumes"] = volumes(t, filepath.Join(dir, "node"))
	for _, l := range left {
		slices.Sort(l)
	}
	return left
}

// nameOf names a process of the demo: a pod by its name, another one by its command; "" for all others.
func nameOf(pid, dir string) string {
	args, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
	if err != nil || pid == fmt.Sprint(os.Getpid()) || pid == "self" || pid == "thread-self" {
		return ""
	}
	env, _ := os.ReadFile(filepath.Join("/proc", pid, "environ"))
	pod := ""
	for v := range strings.SplitSeq(string(env), "\x00") {
		if name, ok := strings.CutPrefix(v, "SLUICE_POD="); ok {
			pod = "pod " + alike(name)
		}
	}
	argv := strings.Split(string(args), "\x00")
	switch {
	case pod != "" && strings.Contains(string(env), "SLUICE_NODE="+dir):
		return pod
	case !strings.Contains(string(args), dir):
		return ""
	case len(argv) > 1 && argv[1] == "server" && strings.Contains(string(env), crashEnv+"=") && !strings.Contains(string(env), carrying+"="):
		return "" // the supervisor, which only killed runs have
	}
	return filepath.Base(argv[0]) + " " + argv[1]
}

func fields(t *testing.T, file string) [][]string {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all [][]string
	for l := range strings.Lines(string(body)) {
		all = append(all, strings.Fields(l))
	}
	return all
}

// volumes lists the claims with whether their files are there, and the copies.
func volumes(t *testing.T, node string) []string {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(node, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	var state struct{ Claims map[string]string }
	if err := json.Unmarshal(body, &state); err != nil {
		t.Fatal(err)
	}
	var all []string
	for claim, dir := range state.Claims {
		_, err := os.Stat(dir)
		rel, _ := filepath.Rel(node, dir)
		all = append(all, fmt.Sprintf("claim %s is %s, there: %v", alike(claim), alike(rel), err == nil))
	}
	copies, err := os.ReadDir(filepath.Join(node, "volumes", ".copies"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range copies {
		all = append(all, "copy "+alike(c.Name()))
	}
	return all
}

// Names of deliveries and revisions, and how often a step tried.
var (
	chance = regexp.MustCompile(`\b[0-9a-f]{8,16}\b`)
	tries  = regexp.MustCompile(`(~1|/)cut(~1|/)\d+`)
)

func alike(s string) string {
	return tries.ReplaceAllString(chance.ReplaceAllString(s, "x"), "${1}cut${2}n")
}
