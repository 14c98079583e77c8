//go:build e2e

package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/kube"
	"github.com/sluice-cd/sluice/internal/kube/kubetest"
	"github.com/sluice-cd/sluice/internal/lease"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
	"github.com/sluice-cd/sluice/internal/server/wire"
	"github.com/sluice-cd/sluice/internal/store"
	cluster "github.com/sluice-cd/sluice/internal/store/kubernetes"
)

// The tests run on the cluster that LAB_KUBECONFIG names. Controllers are this test's own binary, so that they can be killed.
const (
	childVariable = "SLUICE_TEST_CONTROLLER" // the namespace of the deliveries, in a process that is a controller
	afterVariable = "SLUICE_TEST_AFTER"      // it ends or stops itself after so many status writes; 0: never
	stopVariable  = "SLUICE_TEST_STOP"       // it stops, and is not killed
	agentVariable = "SLUICE_TEST_AGENT"      // how it calls itself in its requests
	dirVariable   = "SLUICE_TEST_DIR"        // its folder, which whoever kills it removes

	// lostLease is the exit code of a controller that could not renew its Lease in time, as on a machine that stands still. One with
	// a short lease is forgiven that as often as forgiven says.
	lostLease = 3
	forgiven  = 3
)

func TestMain(m *testing.M) {
	if ns := os.Getenv(childVariable); ns != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		err := child(ctx, ns)
		if err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
		}
		switch {
		case errors.Is(err, lease.ErrLost):
			os.Exit(lostLease)
		case err != nil:
			os.Exit(1)
		}
		return
	}
	out, err := kubectl("apply", "--server-side", "--force-conflicts", "-f", "../../config/crd")
	if err != nil {
		fmt.Fprintf(os.Stderr, "the definitions cannot be installed: %v\n%s", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func kubectl(args ...string) (string, error) {
	out, err := exec.Command("kubectl", append([]string{"--kubeconfig", os.Getenv("LAB_KUBECONFIG")}, args...)...).CombinedOutput()
	return string(out), err
}

func credentials() (*rest.Config, error) {
	return kubernetes.Credentials(kubernetes.Config{Account: "lab", Kubeconfig: os.Getenv("LAB_KUBECONFIG")})
}

// child is a controller, with a short lease where it will be killed or stopped.
func child(ctx context.Context, namespace string) error {
	c, err := credentials()
	if err != nil {
		return err
	}
	c.QPS, c.UserAgent = -1, os.Getenv(agentVariable)
	after, err := strconv.ParseInt(os.Getenv(afterVariable), 10, 64)
	if err != nil {
		return err
	}
	sig := syscall.SIGKILL
	if os.Getenv(stopVariable) != "" {
		sig = syscall.SIGSTOP
	}
	var written atomic.Int64
	c.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return trip(func(r *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(r)
			if err == nil && resp.StatusCode < 300 && r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/status") && written.Add(1) == after {
				_ = syscall.Kill(os.Getpid(), sig)
			}
			return resp, err
		})
	})
	conf := &config.Config{Accounts: map[string]config.Account{"lab": {Name: "lab", Kind: config.Kubernetes, Kubeconfig: os.Getenv("LAB_KUBECONFIG")}}}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	duration, deadline, retry := 15*time.Second, 10*time.Second, time.Second
	if after > 0 {
		duration, deadline, retry = 3*time.Second, 2*time.Second, 500*time.Millisecond
	}
	return wire.Control(ctx, wire.ControlOptions{Options: wire.Options{Dir: os.Getenv(dirVariable), Listen: "127.0.0.1:0", Config: wire.Fixed(conf), Log: log},
		Credentials: c, Namespace: namespace, Identity: fmt.Sprintf("pid-%d", os.Getpid()), URL: "http://127.0.0.1",
		Duration: duration, Deadline: deadline, Retry: retry})
}

type trip func(*http.Request) (*http.Response, error)

func (f trip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// lab is two namespaces of the cluster: one with deliveries, one that they go to.
type lab struct {
	deliveries, app string
	account         string // what the controller calls the cluster
	remote          *cluster.Remote
}

func newLab(t *testing.T) lab {
	t.Helper()
	name := unique(t)
	l := lab{deliveries: name, app: name + "-app", account: "lab", remote: remote(t, name)}
	namespace(t, l.deliveries)
	namespace(t, l.app)
	return l
}

// unique is a name for what a test makes.
func unique(t *testing.T) string {
	return fmt.Sprintf("sluice-%s-%d", strings.ToLower((t.Name() + "xxxx")[4:9]), time.Now().UnixNano()%1e10)
}

// namespace makes a namespace for as long as the test runs.
func namespace(t *testing.T, name string) {
	t.Helper()
	if out, err := kubectl("create", "namespace", name); err != nil {
		t.Fatal(out)
	}
	t.Cleanup(func() {
		letGo(name)
		if out, err := kubectl("delete", "namespace", name, "--wait=false"); err != nil {
			t.Error(out)
		}
	})
}

// letGo has the deliveries that a failed test has left wait for no controller.
func letGo(namespace string) {
	names, _ := kubectl("-n", namespace, "get", "deliveries", "-o", "name")
	for n := range strings.FieldsSeq(names) {
		_, _ = kubectl("-n", namespace, "patch", n, "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	}
}

// remote starts the deliveries of a namespace and decides about them.
func remote(t *testing.T, namespace string) *cluster.Remote {
	t.Helper()
	c, err := credentials()
	if err != nil {
		t.Fatal(err)
	}
	r, err := cluster.NewRemote(cluster.Config{Credentials: c, Namespace: namespace})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// start starts a controller that ends or stops itself after some status writes.
func (l lab) start(t *testing.T, agent string, after int, stop bool) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+l.deliveries, afterVariable+"="+strconv.Itoa(after), agentVariable+"="+agent,
		dirVariable+"="+t.TempDir())
	if stop {
		cmd.Env = append(cmd.Env, stopVariable+"=yes")
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

func (l lab) objects(t *testing.T, version string) []manifest.Object {
	t.Helper()
	out, err := manifest.Parse("web.yaml", []byte(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: "lab/tool:1", args: [pause], env: [{name: VERSION, value: "`+version+`"}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// spec is a delivery of a canary with an approval, or for version 1 of what it is beside.
func (l lab) spec(t *testing.T, id, version string) delivery.Spec {
	t.Helper()
	var nodes []plan.Node
	after := []string(nil)
	add := func(path, kind string, args any) {
		raw, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, plan.Node{Path: "prod/deploy/" + path, Title: path, Target: "prod", Phase: plan.Deploy, Kind: kind, Args: raw, After: after})
		after = []string{"prod/deploy/" + path}
	}
	objects := plan.ApplyArgs{Account: l.account, Namespace: l.app, Objects: l.objects(t, version), Timeout: time.Minute}
	weight := func(w int) plan.WeightArgs {
		return plan.WeightArgs{Account: l.account, Namespace: l.app, Deployments: []manifest.Ref{{Kind: "Deployment", Namespace: l.app, Name: "web"}}, Weight: w, Timeout: time.Minute}
	}
	if version == "1" {
		add("apply", plan.KindApply, objects)
	} else {
		add("start", plan.KindStartCanary, objects)
		add("half", plan.KindSetWeight, weight(50))
		add("approval", plan.KindApproval, plan.ApprovalArgs{})
		add("promote", plan.KindPromote, weight(100))
	}
	return delivery.Spec{ID: id, Application: "web", CreatedAt: time.Now().UTC(), Graph: plan.Graph{Application: "web",
		Targets: []plan.Target{{Name: "prod", Account: l.account, Namespace: l.app}}, Nodes: nodes}}
}

// ends waits until a delivery has ended, and approves it when it asks.
func (l lab) ends(t *testing.T, id string) store.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var last store.Delivery
	err := l.remote.Watch(ctx, id, func(d store.Delivery) {
		last = d
		if d.Status.Nodes["prod/deploy/approval"].Phase == delivery.StepWaiting {
			const path = "prod/deploy/approval"
			if _, err := l.remote.Signal(ctx, id, delivery.Signal{Key: "approve/" + path, Kind: delivery.Approve, Path: path}); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatalf("%v; %+v", err, last.Status)
	}
	if last.Status.State != delivery.Succeeded {
		t.Fatalf("delivery %s ended %s: %s", id, last.Status.State, last.Status.Reason)
	}
	if kept, err := kubectl("-n", l.app, "get", "secrets", "-l", "sluice.dev/journal,"+kube.DeliveryLabel+"="+id, "-o", "name"); err != nil || kept != "" {
		t.Errorf("what was there before delivery %s is still kept (%v): %s", id, err, kept)
	}
	return last
}

// generation counts how often what is wanted of the Deployment has changed.
func (l lab) generation(t *testing.T) int {
	t.Helper()
	out, err := kubectl("-n", l.app, "get", "deployment", "web", "-o", "jsonpath={.metadata.generation}")
	n, e := strconv.Atoi(out)
	if err != nil || e != nil {
		t.Fatal(out)
	}
	return n
}

func (l lab) begin(t *testing.T, id, version string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.remote.Start(ctx, l.spec(t, id, version)); err != nil {
		t.Fatal(err)
	}
}

// TestKilledAfterEveryWrite kills the controller after each status write of a delivery. It ends as one that nobody
// disturbed: the Deployment was changed exactly as often, and nothing is left beside it.
func TestKilledAfterEveryWrite(t *testing.T) {
	l := newLab(t)
	calm := l.start(t, "calm", 0, false)
	l.begin(t, "first", "1")
	l.ends(t, "first")
	before := l.generation(t)
	l.begin(t, "second", "2")
	want := l.ends(t, "second")
	changes := l.generation(t) - before
	if err := calm.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := calm.Wait(); err != nil {
		t.Fatalf("a controller that is told to end: %v", err)
	}
	begun := make(chan error, 1)
	go func() { begun <- l.remote.Start(t.Context(), l.spec(t, "third", "3")) }()
	done := make(chan store.Delivery, 1)
	kills, lost, followed := 0, 0, false
	for ended := false; !ended; {
		cmd := l.start(t, "killed", 1, false)
		gone := make(chan error, 1)
		go func() { gone <- cmd.Wait() }()
		if kills == 1 && !followed {
			followed = true
			if err := <-begun; err != nil {
				t.Fatal(err)
			}
			go func() {
				defer close(done) // also where it did not end, which is told by then
				done <- l.ends(t, "third")
			}()
		}
		select {
		case err := <-gone:
			e, ok := errors.AsType[*exec.ExitError](err)
			if ok && e.ExitCode() == lostLease && lost < forgiven {
				lost++
				continue
			}
			if !ok || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the controller ended by itself: %v", err)
			}
			kills++
		case got, ok := <-done:
			_ = cmd.Process.Kill()
			<-gone // the clean-up must not wait for it as well
			if !ok {
				t.FailNow()
			}
			ended = true
			if len(got.Status.Nodes) != len(want.Status.Nodes) {
				t.Errorf("%d steps, %d of the undisturbed one", len(got.Status.Nodes), len(want.Status.Nodes))
			}
		}
	}
	before += changes
	if got := l.generation(t) - before; got != changes {
		t.Errorf("the Deployment was changed %d times, %d times by the undisturbed delivery", got, changes)
	}
	left, err := kubectl("-n", l.app, "get", "deployments", "-o", "jsonpath={.items[*].metadata.name} {.items[*].spec.template.spec.containers[0].env[?(@.name=='VERSION')].value}")
	if err != nil || left != "web 3" {
		t.Errorf("in the end there is %s", left)
	}
	if _, err := l.remote.Journal(t.Context(), "third"); err != nil {
		t.Error(err)
	}
	t.Logf("killed %d times", kills)
	if kills < 8 {
		t.Errorf("the controller was killed only %d times", kills)
	}
}

// TestStandbyTakesOver kills a leader in the middle of a delivery while another controller stands by.
func TestStandbyTakesOver(t *testing.T) {
	l := newLab(t)
	first := l.start(t, "first", 10, false)
	l.begin(t, "a", "1")
	l.ends(t, "a")
	l.start(t, "second", 0, false)
	l.begin(t, "b", "2")
	_ = first.Wait()
	if s := first.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != syscall.SIGKILL {
		t.Fatalf("the leader ended by itself: %v", first.ProcessState)
	}
	l.ends(t, "b")
}

// TestLocked finds the application locked in its namespace while it is delivered, and the controller waiting while somebody
// else has it.
func TestLocked(t *testing.T) {
	l := newLab(t)
	l.start(t, "first", 0, false)
	l.begin(t, "a", "1")
	l.ends(t, "a")
	p, err := kubernetes.Connect(kubernetes.Config{Account: "lab", Kubeconfig: os.Getenv("LAB_KUBECONFIG")})
	if err != nil {
		t.Fatal(err)
	}
	lock := func(want string) {
		t.Helper()
		if other, err := p.Lock(t.Context(), l.app, "web", "elsewhere", time.Minute); err != nil || other != want {
			t.Errorf("the application is locked by %q, want %q (%v)", other, want, err)
		}
	}
	l.begin(t, "b", "2")
	l.until(t, "b", func(d store.Delivery) bool {
		return d.Status.Nodes["prod/deploy/approval"].Phase == delivery.StepWaiting
	})
	lock("b")
	l.ends(t, "b")
	l.gone(t, "b")
	lock("")
	l.begin(t, "c", "3")
	l.until(t, "c", func(d store.Delivery) bool { return d.Status.Waits != "" })
	if why, err := kubectl("-n", l.deliveries, "wait", "delivery/c", `--for=jsonpath={.status.conditions[?(@.type=="Reconciling")].reason}=WaitingForLock`, "--timeout=30s"); err != nil {
		t.Errorf("the delivery does not say that it waits: %s", why)
	}
	if left, err := kubectl("-n", l.app, "get", "deployments", "-o", "jsonpath={.items[*].metadata.name}"); err != nil || left != "web" {
		t.Errorf("something was changed without the lock: %s", left)
	}
	if err := p.Unlock(t.Context(), l.app, "web", "elsewhere"); err != nil {
		t.Fatal(err)
	}
	l.ends(t, "c")
}

// gone waits until the lock of the application is given back.
func (l lab) gone(t *testing.T, id string) {
	t.Helper()
	if out, err := kubectl("-n", l.app, "wait", "--for=delete", "leases", "--all", "--timeout=30s"); err != nil {
		t.Fatalf("delivery %s keeps its lock: %s", id, out)
	}
}

// TestStoppedLeaderDoesNothing stops a leader between a status write and what it was to do next, for longer than two lease
// periods. When it goes on it ends, and sends nothing but reads.
func TestStoppedLeaderDoesNothing(t *testing.T) {
	if len(kubetest.AuditLogs(t, os.Getenv("LAB_KUBECONFIG"))) == 0 {
		t.Skip("the cluster keeps no audit log beside its kubeconfig, as those of the lab do: what a leader asks for cannot be told")
	}
	for _, after := range []int{2, 3, 5, 7} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			l := newLab(t)
			calm := l.start(t, "calm", 0, false)
			l.begin(t, "a", "1")
			l.ends(t, "a")
			if err := calm.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := calm.Wait(); err != nil {
				t.Fatal(err)
			}
			begun := make(chan error, 1)
			go func() { begun <- l.remote.Start(t.Context(), l.spec(t, "b", "2")) }()
			stopped := l.stopped(t, after)
			at := time.Now()
			if err := <-begun; err != nil {
				t.Fatal(err)
			}
			l.start(t, "successor", 0, false)
			l.ends(t, "b")
			time.Sleep(time.Until(at.Add(7 * time.Second))) // more than two lease periods: the passing of time is what is tested
			resumed := time.Now().UTC()
			if err := stopped.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if err := stopped.Wait(); err == nil {
				t.Error("a controller that lost its Lease ended as if all was well")
			}
			for _, e := range audited(t, resumed, time.Now().UTC(), "successor") {
				if e.UserAgent == "stopped" && !e.Reads() {
					t.Errorf("the stopped leader sent %s %s", e.Verb, e.RequestURI)
				}
				// Nobody has anything to do any more, so whatever changes the application's namespace is the stopped leader's.
				if strings.Contains(e.RequestURI, "/namespaces/"+l.app+"/") && e.UserAgent == "sluice" && !e.Reads() {
					t.Errorf("after the leader went on: %s %s", e.Verb, e.RequestURI)
				}
			}
		})
	}
}

// stopped starts a leader that stops itself after some status writes, and waits until it has.
func (l lab) stopped(t *testing.T, after int) *exec.Cmd {
	t.Helper()
	for lost := 0; ; lost++ {
		cmd := l.start(t, "stopped", after, true)
		var status syscall.WaitStatus
		_, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil)
		switch {
		case err == nil && status.Stopped():
			return cmd
		case err != nil || status.ExitStatus() != lostLease || lost == forgiven:
			t.Fatalf("the leader did not stop: %v %v", status, err)
		}
	}
}

// audited returns the requests that the API server has received between two instants. It has them all when there is a later
// one of a controller that leads, which renews its Lease all the time.
func audited(t *testing.T, since, until time.Time, leader string) (out []kubetest.Call) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	again := time.NewTicker(500 * time.Millisecond)
	defer again.Stop()
	for {
		all := kubetest.Calls(t, os.Getenv("LAB_KUBECONFIG"), since, false)
		if slices.ContainsFunc(all, func(c kubetest.Call) bool { return c.UserAgent == leader && c.At.After(until) }) {
			return slices.DeleteFunc(all, func(c kubetest.Call) bool { return c.At.After(until) })
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the audit log tells nothing of %s", leader)
		case <-again.C:
		}
	}
}
