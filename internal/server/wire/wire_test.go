package wire_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform/local"
	"github.com/sluice-cd/sluice/internal/platform/platformtest"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/server/wire"
	"github.com/sluice-cd/sluice/internal/store"
)

// TestMain makes the test binary be what the program sluice is for these tests: its server, its nodes, and what they run.
func TestMain(m *testing.M) {
	if platformtest.Program() {
		return
	}
	if len(os.Args) < 3 || os.Args[1] != "server" && os.Args[1] != "local-node" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := hidden(ctx, os.Args[1], os.Args[len(os.Args)-1]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func hidden(ctx context.Context, what, dir string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if what == "local-node" {
		return local.RunNode(ctx, dir, log)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	live, err := wire.NewLive(func() (*config.Config, error) { return config.Load(filepath.Join(dir, "sluice.yaml")) }, log)
	if err != nil {
		return err
	}
	return wire.Serve(ctx, wire.Options{Dir: dir, Config: live, Self: []string{self}, Log: log})
}

const within = time.Minute

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	t.Cleanup(cancel)
	return ctx
}

// machine is a data directory with one local account.
type machine struct {
	dir, self string
}

func newMachine(t *testing.T) machine {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m := machine{dir: t.TempDir(), self: self}
	m.configure(t, `accounts: {here: {kind: local}}
images: {program: [`+self+`]}
`)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if c, err := server.Connect(ctx, m.dir); err == nil {
			if _, err := c.Stop(ctx); err != nil {
				t.Error(err)
			}
		}
		if err := m.node(t, ctx).Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	return m
}

func (m machine) configure(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, "sluice.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (m machine) server(t *testing.T) *server.Client {
	t.Helper()
	c, err := server.EnsureRunning(limited(t), m.dir, []string{m.self, "server", m.dir})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (m machine) node(t *testing.T, ctx context.Context) *local.Platform {
	t.Helper()
	dir := wire.AccountDir(m.dir, config.Account{Name: "here"})
	p, err := local.Connect(ctx, local.Config{Dir: dir, Account: "here", NodeCommand: []string{m.self, "local-node", "--dir", dir}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func objects(t *testing.T, version string) []manifest.Object {
	t.Helper()
	var out []manifest.Object
	for _, text := range []string{
		`{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"selector":{"app":"web"},"ports":[{"name":"http","port":80,"targetPort":8080}]}}`,
		`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web"},"spec":{"replicas":2,"selector":{"matchLabels":{"app":"web"}},
		"template":{"metadata":{"labels":{"app":"web"}},"spec":{"terminationGracePeriodSeconds":5,"containers":[{"name":"web","image":"program:` + version + `",
		"env":[{"name":"SLUICE_TEST_PROGRAM","value":"http"},{"name":"VERSION","value":"` + version + `"}],"readinessProbe":{"httpGet":{"path":"/","port":8080}}}]}}}}`,
	} {
		o := manifest.Object{Origin: "web.yaml:1"}
		if err := o.Unstructured.UnmarshalJSON([]byte(text)); err != nil {
			t.Fatal(err)
		}
		out = append(out, o)
	}
	return out
}

func node(t *testing.T, path, kind string, args any, after ...string) plan.Node {
	t.Helper()
	raw, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	return plan.Node{Path: path, Title: path, Target: "prod", Phase: plan.Deploy, Kind: kind, Args: raw, After: after}
}

func spec(id string, nodes ...plan.Node) delivery.Spec {
	return delivery.Spec{ID: id, Application: "web", Graph: plan.Graph{Targets: []plan.Target{{Name: "prod", Account: "here", Namespace: "shop"}}, Nodes: nodes}}
}

func apply(t *testing.T, version string) plan.Node {
	t.Helper()
	return node(t, "prod/apply", plan.KindApply, plan.ApplyArgs{Account: "here", Namespace: "shop", Objects: objects(t, version), Timeout: within})
}

// deliver runs a delivery to its end.
func deliver(t *testing.T, c *server.Client, s delivery.Spec) store.Delivery {
	t.Helper()
	if err := c.Start(limited(t), s); err != nil {
		t.Fatal(err)
	}
	var last store.Delivery
	if err := c.Watch(limited(t), s.ID, func(e server.Event) {
		if e.Delivery != nil {
			last = *e.Delivery
		}
	}); err != nil {
		t.Fatalf("%v; %+v", err, last.Status)
	}
	return last
}

func succeed(t *testing.T, c *server.Client, s delivery.Spec) {
	t.Helper()
	if d := deliver(t, c, s); d.Status.State != delivery.Succeeded {
		t.Fatalf("delivery %s ended %s: %s; %+v", s.ID, d.Status.State, d.Status.Reason, d.Status.Nodes)
	}
}

// ask asks the Service which version answers.
func ask(url string) (string, error) {
	resp, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	v, _, _ := strings.Cut(string(body), " ")
	return v, err
}

func (m machine) url(t *testing.T) string {
	t.Helper()
	at, err := m.node(t, limited(t)).Address(limited(t), manifest.Ref{Kind: "Service", Namespace: "shop", Name: "web"}, "http")
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + at
}

// load asks without a pause until it is stopped; every failure counts.
func load(t *testing.T, url string) (stop func() (asked int64)) {
	var asked atomic.Int64
	end := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				if _, err := ask(url); err != nil {
					t.Errorf("a request failed: %v", err)
					return
				}
				asked.Add(1)
			}
		})
	}
	return func() int64 {
		close(end)
		wg.Wait()
		return asked.Load()
	}
}

// TestDelivery delivers an application, and then a second version of it as a canary, to a local account, while the server
// is killed again and again: no request fails, and the delivery goes on where it was.
func TestDelivery(t *testing.T) {
	m := newMachine(t)
	c := m.server(t)
	succeed(t, c, spec("first", apply(t, "1")))
	url := m.url(t)
	if v, err := ask(url); err != nil || v != "1" {
		t.Fatalf("version %q answers, %v", v, err)
	}
	stop := load(t, url)
	refs := []manifest.Ref{{Kind: "Deployment", Namespace: "shop", Name: "web"}}
	weight := func(w int) plan.WeightArgs {
		return plan.WeightArgs{Account: "here", Namespace: "shop", Deployments: refs, Weight: w, Timeout: within}
	}
	canary := plan.ApplyArgs{Account: "here", Namespace: "shop", Objects: objects(t, "2")[1:], Timeout: within}
	if err := c.Start(limited(t), spec("second", node(t, "start", plan.KindStartCanary, canary), node(t, "w50", plan.KindSetWeight, weight(50), "start"),
		node(t, "approve", plan.KindApproval, plan.ApprovalArgs{}, "w50"), node(t, "promote", plan.KindPromote, weight(100), "approve"))); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		i, err := c.Info(limited(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(i.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c = m.server(t)
	}
	approved := false
	var last *store.Delivery
	err := c.Watch(limited(t), "second", func(e server.Event) {
		if e.Delivery == nil {
			return
		}
		if e.Delivery.Status.Nodes["approve"].Phase == delivery.StepWaiting && !approved {
			approved = true
			if _, err := c.Signal(limited(t), "second", delivery.Signal{Key: "approve/approve", Kind: delivery.Approve, Path: "approve"}); err != nil {
				t.Error(err)
			}
		}
		if e.Delivery.Status.Done && e.Delivery.Status.State != delivery.Succeeded {
			t.Errorf("%s: %s", e.Delivery.Status.State, e.Delivery.Status.Reason)
		}
		last = e.Delivery
	})
	if err != nil {
		t.Fatalf("%v: %+v", err, last)
	}
	if v, err := ask(url); err != nil || v != "2" {
		t.Errorf("version %q answers, %v", v, err)
	}
	if n := stop(); n == 0 {
		t.Error("the load asked nothing")
	} else {
		t.Logf("%d requests, none failed", n)
	}
}

// TestNodeComesBack: what a local account runs is there again when its node died, without a delivery.
func TestNodeComesBack(t *testing.T) {
	m := newMachine(t)
	c := m.server(t)
	succeed(t, c, spec("first", apply(t, "1")))
	url := m.url(t)
	pid, err := m.node(t, limited(t)).PID(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	ctx := limited(t)
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for failed := 0; ; failed++ {
		v, err := ask(url)
		if err == nil && v == "1" {
			t.Logf("requests failed for %s after the node was killed (%d of them)", time.Since(died).Round(time.Millisecond), failed)
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the Service does not come back: %v", err)
		case <-look.C:
		}
	}
}

// TestServerBringsBack: after the machine was restarted, the server alone brings back what ran.
func TestServerBringsBack(t *testing.T) {
	m := newMachine(t)
	c := m.server(t)
	succeed(t, c, spec("first", apply(t, "1")))
	url := m.url(t)
	if _, err := c.Stop(limited(t)); err != nil {
		t.Fatal(err)
	}
	if v, err := ask(url); err != nil || v != "1" {
		t.Fatalf("without a server version %q answers, %v", v, err)
	}
	if err := m.node(t, limited(t)).Shutdown(limited(t)); err != nil {
		t.Fatal(err)
	}
	if v, err := ask(url); err == nil {
		t.Fatalf("after the shutdown version %q answers", v)
	}
	m.server(t)
	ctx := limited(t)
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		v, err := ask(url)
		if err == nil && v == "1" {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the Service does not come back: %v", err)
		case <-look.C:
		}
	}
}

func TestUnknownAccount(t *testing.T) {
	m := newMachine(t)
	c := m.server(t)
	n := apply(t, "1")
	n.Args = json.RawMessage(strings.Replace(string(n.Args), `"account":"here"`, `"account":"there"`, 1))
	if err := c.Start(limited(t), spec("first", n)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(limited(t))
	defer cancel()
	var said string
	// A step that broke is held for a person.
	err := c.Watch(ctx, "first", func(e server.Event) {
		if e.Delivery != nil && e.Delivery.Status.Nodes["prod/apply"].Held {
			said = e.Delivery.Status.Nodes["prod/apply"].Message
			cancel()
		}
	})
	if !strings.Contains(said, `no account named "there"`) || !strings.Contains(said, "did you mean here") {
		t.Errorf("%q, %v", said, err)
	}
}

// TestLive changes a configuration under a running program.
func TestLive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.yaml")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("roles: {ada: [dba]}\n")
	var log strings.Builder
	l, err := wire.NewLive(func() (*config.Config, error) { return config.Load(path) }, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	first := l.Current()
	if l.Current() != first {
		t.Error("an unchanged file was loaded again")
	}
	put("roles: {ada: [dba, sre]}\n")
	if got := l.Current().RolesOf("ada"); len(got) != 2 {
		t.Errorf("after the change: %v", got)
	}
	put("roles: [this is no map\n")
	if got := l.Current().RolesOf("ada"); len(got) != 2 || !strings.Contains(log.String(), "the one before still holds") {
		t.Errorf("while the file is broken: %v, %s", got, log.String())
	}
	put("roles: {}\n")
	if got := l.Current().RolesOf("ada"); len(got) != 0 {
		t.Errorf("after the repair: %v", got)
	}
}
