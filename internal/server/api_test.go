package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/store"
)

func TestUnauthorized(t *testing.T) {
	c, dir := inProcess(t, server.Options{})
	start(t, c, spec("one", node(t, "a", plan.KindApproval, plan.ApprovalArgs{})))
	url := info(t, c).URL
	ask := func(method, path, authorization string) (int, string) {
		req, err := http.NewRequestWithContext(limited(t), method, url+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		return do(t, req)
	}
	right := token(t, dir)
	// A token's alphabet has no ~, so this one is wrong whatever its first letter was.
	altered := "~" + right[1:]
	for _, route := range []string{"GET /api/v1/deliveries", "POST /api/v1/deliveries", "GET /api/v1/deliveries/one", "GET /api/v1/deliveries/one/watch",
		"GET /api/v1/deliveries/one/journal", "POST /api/v1/deliveries/one/signals", "GET /api/v1/server", "POST /api/v1/server/stop", "GET /api/", "DELETE /api/v2/x"} {
		method, path, _ := strings.Cut(route, " ")
		for _, wrong := range []string{"", "Bearer", "Bearer ", "Bearer " + altered, "Bearer " + right + "x", "Basic " + right, right} {
			if code, text := ask(method, path, wrong); code != http.StatusUnauthorized || strings.Contains(text, right) {
				t.Errorf("%s with %q answers %d %s", route, wrong, code, text)
			}
		}
	}
	if code, text := ask("GET", "/api/v1/deliveries", "Bearer "+right); code != http.StatusOK || !strings.Contains(text, `"one"`) {
		t.Errorf("with the token: %d %s", code, text)
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if code, text := ask("GET", path, ""); code != http.StatusOK {
			t.Errorf("%s answers %d %s", path, code, text)
		}
	}
}

func TestSecretsAreTheOwners(t *testing.T) {
	_, dir := inProcess(t, server.Options{})
	for _, name := range []string{"api.token", "callback.key", "server.sock", "server.lock"} {
		i, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if i.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, i.Mode())
		}
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	c, _ := inProcess(t, server.Options{})
	waiting := node(t, "a", plan.KindApproval, plan.ApprovalArgs{})
	one := spec("one", waiting)
	start(t, c, one)
	two := spec("two", waiting)
	two.Application = one.Application
	err := c.Start(limited(t), two)
	if running, ok := errors.AsType[*store.ErrRunning](err); !ok || running.ID != "one" || running.Application != one.Application {
		t.Errorf("a second delivery of the application: %v", err)
	}
	if err := c.Start(limited(t), spec("bad", node(t, "x", "unheardOf", nil))); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "unheardOf") {
		t.Errorf("a step that is not built: %v", err)
	}
	if _, err := c.Get(limited(t), "none/../one"); !fault.Is(err, fault.NotFound) {
		t.Errorf("get: %v", err)
	}
	if _, err := c.Journal(limited(t), "none"); !fault.Is(err, fault.NotFound) {
		t.Errorf("journal: %v", err)
	}
	if err := c.Watch(limited(t), "none", func(server.Event) {}); !fault.Is(err, fault.NotFound) {
		t.Errorf("watch: %v", err)
	}
	if _, err := c.Signal(limited(t), "one", delivery.Signal{Key: "k", Kind: delivery.Approve, Path: "b"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("signal: %v", err)
	}
	forged := delivery.Signal{Key: "callback/a", Kind: delivery.Callback, Path: "a", Data: map[string]string{"success": "true"}}
	if _, err := c.Signal(limited(t), "one", forged); !fault.Is(err, fault.Denied) {
		t.Errorf("a callback by the API: %v", err)
	}
}

// TestStartTwice: a client that did not hear the answer asks again.
func TestStartTwice(t *testing.T) {
	c, _ := inProcess(t, server.Options{})
	s := spec("one", node(t, "a", plan.KindApproval, plan.ApprovalArgs{}))
	s.CreatedAt = s.CreatedAt.AddDate(2000, 0, 0)
	start(t, c, s)
	start(t, c, s)
	s.Graph.Context = map[string]string{"another": "delivery"}
	if err := c.Start(limited(t), s); err == nil {
		t.Error("another delivery of the same id was taken for the first")
	}
	all, err := c.List(limited(t))
	if err != nil || len(all) != 1 {
		t.Errorf("%d deliveries, %v", len(all), err)
	}
}

func TestWhoApproves(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	c, _ := inProcess(t, server.Options{})
	start(t, c, spec("one", node(t, "a", plan.KindApproval, plan.ApprovalArgs{Roles: []string{"dba"}})))
	until(t, c, "one", waits("a"))
	// The owner of the data directory may always; what the client says of itself does not count.
	won, err := c.Signal(limited(t), "one", delivery.Signal{Key: "approve/a", Kind: delivery.Approve, Path: "a", By: "mallory", Data: map[string]string{"roles": "intern"}})
	if err != nil || !won {
		t.Fatal(won, err)
	}
	d := until(t, c, "one", done)
	sig := d.Status.Nodes["a"].Signals
	if len(sig) != 1 || sig[0].By != me.Username || sig[0].Data["roles"] != "owner" || d.Status.State != delivery.Succeeded {
		t.Errorf("%s: %+v", d.Status.State, sig)
	}
}

// userEnv makes the test binary be a client of that directory that approves.
const (
	userEnv  = "SLUICE_TEST_ANOTHER"
	userAsks = "SLUICE_TEST_ASKS"
)

// askAsAnother asks for one thing and prints the error.
func askAsAnother() {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	c, err := server.Connect(ctx, os.Getenv(userEnv))
	switch what := os.Getenv(userAsks); {
	case err != nil:
	case what == "get":
		d, e := c.Get(ctx, "one")
		fmt.Printf("sees %d step of %s\n", len(d.Spec.Graph.Nodes), d.Spec.ID)
		err = e
	case what == "start":
		err = c.Start(ctx, delivery.Spec{ID: "other", Application: "other"})
	case what == "stop":
		_, err = c.Stop(ctx)
	case what == "cancel":
		_, err = c.Signal(ctx, "one", delivery.Signal{Key: "cancel", Kind: delivery.CancelAll})
	default:
		_, err = c.Signal(ctx, "one", delivery.Signal{Key: "approve/a", Kind: delivery.Approve, Path: "a", By: "root", Data: map[string]string{"roles": "owner,dba"}})
	}
	fmt.Println(err)
}

// TestRolesOfAnotherUser does what roles permit as another user of the machine: of the group that may connect, and not of it.
// It needs root to become one.
func TestRolesOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user; TestWhoApproves has covered this one's own roles, and TestRights all others'")
	}
	name := os.Getenv("SLUICE_TEST_USER")
	if name == "" {
		name = "sluice-test"
	}
	other, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("the tests need a user to run servers as: useradd --system %s (%v)", name, err)
	}
	group, err := user.LookupGroupId(other.Gid)
	if err != nil {
		t.Fatal(err)
	}
	var roles atomic.Pointer[map[string][]string]
	roles.Store(&map[string][]string{})
	_, closed := inProcess(t, server.Options{})
	c, dir := inProcess(t, server.Options{SocketGroup: group.Name, Roles: func(u string) []string { return (*roles.Load())[u] }})
	start(t, c, spec("one", node(t, "a", plan.KindApproval, plan.ApprovalArgs{Roles: []string{"dba"}})))
	until(t, c, "one", waits("a"))
	ask := func(dir, what string) string {
		t.Helper()
		uid, _ := strconv.Atoi(other.Uid)
		gid, _ := strconv.Atoi(other.Gid)
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(limited(t), self)
		cmd.Env = []string{userEnv + "=" + dir, userAsks + "=" + what}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	open(t, closed)
	open(t, filepath.Dir(dir))
	for _, x := range []struct {
		roles            []string
		dir, asks, wants string
	}{
		{dir: closed, asks: "approve", wants: "is closed to this user"},
		{dir: dir, asks: "approve", wants: name + " has no role here and may do nothing"},
		{dir: dir, asks: "get", wants: name + " has no role here and may do nothing"},
		{roles: []string{"intern"}, dir: dir, asks: "get", wants: "sees 1 step of one"},
		{roles: []string{"intern"}, dir: dir, asks: "approve", wants: name + " has none of the roles"},
		{roles: []string{"intern"}, dir: dir, asks: "cancel", wants: "this needs the role owner"},
		{roles: []string{"intern", "dba"}, dir: dir, asks: "start", wants: "this needs the role owner"},
		{roles: []string{"intern", "dba"}, dir: dir, asks: "stop", wants: "this needs the role owner"},
		{roles: []string{"intern", "dba"}, dir: dir, asks: "approve", wants: "<nil>"},
		{roles: []string{"owner"}, dir: dir, asks: "start", wants: "<nil>"},
	} {
		roles.Store(&map[string][]string{name: x.roles})
		if out := ask(x.dir, x.asks); !strings.Contains(out, x.wants) {
			t.Errorf("%s with the roles %v: %s", x.asks, x.roles, out)
		}
	}
	d := until(t, c, "one", done)
	if sig := d.Status.Nodes["a"].Signals; len(sig) != 1 || sig[0].By != name || sig[0].Data["roles"] != "intern,dba" {
		t.Errorf("%+v", sig)
	}
}

// TestSocketGroup lets this user's own group connect, which every user may do.
func TestSocketGroup(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct{ dir, socket os.FileMode }{"": {0o700, 0o600}, group.Name: {0o710, 0o660}} {
		dir := filepath.Join(t.TempDir(), "data")
		s, err := server.Open(server.Options{Dir: dir, SocketGroup: name})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for path, mode := range map[string]os.FileMode{dir: want.dir, filepath.Join(dir, "server.sock"): want.socket} {
			i, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if path == dir && os.Geteuid() == 0 {
				mode |= 0o011 // pods of other users pass through root's
			}
			if i.Mode().Perm() != mode {
				t.Errorf("group %q: %s has mode %v, not %v", name, path, i.Mode().Perm(), mode)
			}
		}
	}
	_, err = server.Open(server.Options{Dir: t.TempDir(), SocketGroup: "no-such-group"})
	if err == nil || !strings.Contains(err.Error(), `server.socketGroup is "no-such-group"`) {
		t.Errorf("a group that there is not: %v", err)
	}
}

// open lets others pass through the folders above a directory, and run this binary.
func open(t *testing.T, dir string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir, self} {
		for ; p != "/"; p = filepath.Dir(p) {
			i, err := os.Stat(p)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(p, os.TempDir()+"/") {
				if err := os.Chmod(p, i.Mode()|0o055); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func TestMetrics(t *testing.T) {
	c, _ := inProcess(t, server.Options{})
	values := map[string]string{}
	scrape := func() []string {
		req, err := http.NewRequestWithContext(limited(t), http.MethodGet, info(t, c).URL+"/metrics", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		_, text := do(t, req)
		var series []string
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "#") {
				s, value, _ := strings.Cut(strings.TrimSpace(line), " ")
				series, values[s] = append(series, s), value
			}
		}
		return series
	}
	run := func(id string) {
		start(t, c, spec(id, node(t, "p", plan.KindPause, plan.PauseArgs{For: 1})))
		until(t, c, id, done)
		if _, err := c.Get(limited(t), id); err != nil {
			t.Fatal(err)
		}
	}
	run("first")
	scrape()
	before := scrape()
	for i := range 5 {
		run("another-" + strconv.Itoa(i))
	}
	after := scrape()
	for _, s := range after {
		if !strings.HasPrefix(s, "sluice_") && !strings.HasPrefix(s, "go_") && !strings.HasPrefix(s, "process_") {
			t.Errorf("a metric is not Sluice's: %s", s)
		}
		if !slices.Contains(before, s) {
			t.Errorf("deliveries make new series: %s", s)
		}
	}
	for _, s := range []string{"sluice_deliveries_started_total", `sluice_deliveries_ended_total{state="succeeded"}`} {
		if values[s] != "6" {
			t.Errorf("%s is %q after 6 deliveries", s, values[s])
		}
	}
}

func TestJournal(t *testing.T) {
	c, _ := inProcess(t, server.Options{})
	start(t, c, spec("one", node(t, "p", plan.KindPause, plan.PauseArgs{For: 1})))
	until(t, c, "one", done)
	records, err := c.Journal(limited(t), "one")
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, r := range records {
		kinds = append(kinds, r.Kind)
		if !json.Valid(r.Data) {
			t.Errorf("record %d: %s", r.Seq, r.Data)
		}
	}
	if kinds[0] != "created" || !slices.Contains(kinds, "intent") || !slices.Contains(kinds, "outcome") {
		t.Errorf("%v", kinds)
	}
}

// TestPromptness approves one step after another. Nothing is polled: from a decision to the start of the next step it
// takes as long as two commits. (The bound of the 99th percentile is the benchmark's; here a busy machine counts.)
func TestPromptness(t *testing.T) {
	c, _ := inProcess(t, server.Options{})
	const steps = 25
	var nodes []plan.Node
	for i := range steps {
		after := []string{"s" + strconv.Itoa(i-1)}
		if i == 0 {
			after = nil
		}
		nodes = append(nodes, node(t, "s"+strconv.Itoa(i), plan.KindApproval, plan.ApprovalArgs{}, after...))
	}
	start(t, c, spec("one", nodes...))
	approved := 0
	ctx := limited(t)
	if err := c.Watch(ctx, "one", func(e server.Event) {
		path := "s" + strconv.Itoa(approved)
		if e.Delivery != nil && approved < steps && waits(path)(*e.Delivery) {
			approved++
			if _, err := c.Signal(ctx, "one", delivery.Signal{Key: "approve/" + path, Kind: delivery.Approve, Path: path}); err != nil {
				t.Error(err)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	records, err := c.Journal(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	decided := map[string]time.Time{}
	var took []time.Duration
	for _, r := range records {
		var i int
		if r.Kind == "signal" {
			decided[r.Path] = r.At
		} else if n, _ := fmt.Sscanf(r.Path, "s%d", &i); n == 1 && i > 0 && r.Kind == "intent" && r.Entry == 1 {
			took = append(took, r.At.Sub(decided["s"+strconv.Itoa(i-1)]))
		}
	}
	if len(took) != steps-1 {
		t.Fatalf("%d of %d steps followed a decision", len(took), steps-1)
	}
	slices.Sort(took)
	t.Logf("from a decision to the next step: median %s, slowest %s", took[len(took)/2], took[len(took)-1])
}
