//go:build e2e

package data_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/postgres"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/step/data"
	"github.com/sluice-cd/sluice/internal/store/sqlite"
)

// replicas is a PostgreSQL of three members with streaming replication, as plain as it can be: the first one is the primary
// when there is no data yet, the others copy it, and from then on the data directory alone says who is what.
const replicas = `
apiVersion: v1
kind: Service
metadata: {name: pg}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: pg}, ports: [{name: pg, port: 5432}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: pg}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: pg}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: pg}
data:
  run: |
    set -e
    export PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/data/pg
    if [ "$(id -u)" = 0 ]; then
      chown postgres /data
      exec setpriv --reuid=postgres --regid=postgres --clear-groups sh /etc/pg/run
    fi
    if [ ! -s $PGDATA/PG_VERSION ]; then
      if [ "$HOSTNAME" = pg-0 ]; then
        initdb -U postgres --auth=trust >/dev/null
        printf 'host all all all trust\nhost replication all all trust\n' >> $PGDATA/pg_hba.conf
      else
        until pg_basebackup -D $PGDATA -R -X stream -c fast -d "host=pg-0.pg user=postgres application_name=$HOSTNAME"; do rm -rf $PGDATA; sleep 1; done
      fi
    fi
    postgres -c listen_addresses='*' -c unix_socket_directories=/tmp -c wal_keep_size=64MB -c max_wal_size=128MB -c shared_buffers=16MB &
    trap 'kill -INT $!' TERM INT
    wait $! || wait $!
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: pg}
spec:
  serviceName: pg
  replicas: 3
  selector: {matchLabels: {app: pg}}
  template:
    metadata: {labels: {app: pg}}
    spec:
      terminationGracePeriodSeconds: 20
      containers:
      - name: pg
        image: postgres:15
        command: [sh, /etc/pg/run]
        env: [{name: RELEASE, value: "1"}]
        readinessProbe: {exec: {command: [/usr/lib/postgresql/15/bin/pg_isready, -h, 127.0.0.1]}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}, {name: run, mountPath: /etc/pg}]
      volumes: [{name: run, configMap: {name: pg}}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], storageClassName: cow, resources: {requests: {storage: 1Gi}}}
`

// replicated is three members on a cluster, an engine, and a client that writes all the while.
type replicated struct {
	*site
	cluster *kubernetes.Platform
	ns      string
	pg      *postgres.Engine
}

var pgSet = manifest.Ref{Kind: "StatefulSet", Name: "pg"}

func newReplicated(t *testing.T, ns string) *replicated {
	t.Helper()
	kubeconfig := os.Getenv("LAB_KUBECONFIG")
	if kubeconfig == "" {
		t.Fatal("LAB_KUBECONFIG names no cluster: make lab-up starts one, and lab image gives it postgres:15")
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	p, err := kubernetes.Connect(kubernetes.Config{Account: "lab", Kubeconfig: kubeconfig, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := &replicated{site: &site{t: t, dir: dir}, cluster: p, ns: ns, pg: postgres.New()}
	if r.store, err = sqlite.Open(t.Context(), filepath.Join(dir, "s.db")); err != nil {
		t.Fatal(err)
	}
	ports := step.Ports{HTTP: http.DefaultClient,
		Platform: func(string) (platform.Platform, error) { return p, nil },
		Engine:   func(string) (database.Engine, error) { return r.pg, nil }}
	steps := step.Simple(ports)
	for k, v := range data.Steps(ports, data.Options{Reports: dir, Spill: dir}) {
		steps[k] = v
	}
	r.engine = engine.New(engine.Options{Store: r.store, Steps: steps, Log: log, Progress: func(p engine.Progress) { t.Logf("%s %s", p.Path, p.Line) }})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.engine.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); r.store.Close() })
	r.clear(kubeconfig)
	t.Cleanup(func() { r.clear(kubeconfig) })
	if _, err := p.Apply(t.Context(), "install/"+ns, objects(t, replicas), platform.Options{Namespace: ns}); err != nil {
		t.Fatal(err)
	}
	if err := step.Await(t.Context(), p, 4*time.Minute, "ready", []manifest.Ref{r.set()}, step.Ready); err != nil {
		t.Fatal(err)
	}
	return r
}

// clear makes the namespace be gone, with all that is in it.
func (r *replicated) clear(kubeconfig string) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := dynamic.NewForConfig(config)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	err = c.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Delete(ctx, r.ns, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		r.t.Fatal(err)
	}
	states, err := r.cluster.Watch(ctx, []manifest.Ref{{Kind: "Namespace", Name: r.ns}})
	if err != nil {
		r.t.Fatal(err)
	}
	for s := range states {
		if !s.Exists {
			return
		}
	}
	r.t.Errorf("namespace %s does not go", r.ns)
}

func (r *replicated) set() manifest.Ref {
	ref := pgSet
	ref.Namespace = r.ns
	return ref
}

// dial returns how to reach one member.
func (r *replicated) dial(member string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return r.cluster.DialMember(ctx, manifest.Ref{Kind: "Service", Namespace: r.ns, Name: "pg"}, member, "5432")
	}
}

func (r *replicated) session(ctx context.Context, member string) (*pgx.Conn, error) {
	return connect(ctx, "postgres://postgres@pg:5432/postgres?sslmode=disable", r.dial(member))
}

// roles is how the members are, in their order: "pg-2=primary/2" for the primary of release 2.
func (r *replicated) roles() string {
	r.t.Helper()
	var out []string
	for i := range 3 {
		name := fmt.Sprintf("pg-%d", i)
		role := "follower"
		m, err := r.pg.Member(r.t.Context(), database.URL{Value: "postgres://postgres@pg:5432/postgres", Dial: r.dial(name)})
		switch {
		case err != nil:
			role = "away"
		case m.Primary:
			role = "primary"
		case m.Source == "":
			role = "alone"
		}
		release := ""
		pod, err := r.cluster.Get(r.t.Context(), manifest.Ref{Kind: "Pod", Namespace: r.ns, Name: name})
		if err == nil {
			list, _, _ := unstructured.NestedSlice(pod.Object, "spec", "containers")
			for _, v := range list[0].(map[string]any)["env"].([]any) {
				if e := v.(map[string]any); e["name"] == "RELEASE" {
					release = e["value"].(string)
				}
			}
		}
		out = append(out, name+"="+role+"/"+release)
	}
	return strings.Join(out, " ")
}

func (r *replicated) want(what, roles string) {
	r.t.Helper()
	if got := r.roles(); got != roles {
		r.t.Errorf("%s: the members are %s, not %s", what, got, roles)
	}
}

func (r *replicated) ids() map[string]string {
	r.t.Helper()
	all, err := r.cluster.Members(r.t.Context(), r.set())
	if err != nil {
		r.t.Fatal(err)
	}
	out := map[string]string{}
	for _, m := range all {
		out[m.Name] = m.ID
	}
	return out
}

// object is the StatefulSet as people write it.
func (r *replicated) object() string {
	r.t.Helper()
	o, err := r.cluster.Get(r.t.Context(), r.set())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range []string{"resourceVersion", "generation"} {
		unstructured.RemoveNestedField(o.Object, "metadata", f)
	}
	unstructured.RemoveNestedField(o.Object, "status")
	body, err := json.Marshal(o.Unstructured.Object)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(body)
}

// writer is a client that writes numbers to whoever takes them, and keeps those that were acknowledged.
type writer struct {
	r       *replicated
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	acked   []int
	longest time.Duration
}

func (r *replicated) write() *writer {
	r.t.Helper()
	c, err := r.session(r.t.Context(), "pg-0")
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := c.Exec(r.t.Context(), "CREATE TABLE numbers (n int PRIMARY KEY)"); err != nil {
		r.t.Fatal(err)
	}
	c.Close(r.t.Context())
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{r: r, cancel: cancel}
	w.wg.Go(func() { w.run(ctx) })
	return w
}

func (w *writer) run(ctx context.Context) {
	open := map[string]*pgx.Conn{}
	last := time.Now()
	for n := 0; ctx.Err() == nil; n++ {
		for i := 0; ctx.Err() == nil; i++ {
			name := fmt.Sprintf("pg-%d", i%3)
			within, cancel := context.WithTimeout(ctx, 3*time.Second)
			if open[name] == nil {
				c, err := w.r.session(within, name)
				if err != nil {
					cancel()
					continue
				}
				open[name] = c
			}
			_, err := open[name].Exec(within, "INSERT INTO numbers VALUES ($1) ON CONFLICT DO NOTHING", n)
			cancel()
			if err == nil {
				w.acked = append(w.acked, n)
				w.longest, last = max(w.longest, time.Since(last)), time.Now()
				break
			}
			if open[name].IsClosed() {
				open[name] = nil
			}
		}
	}
}

// end stops the client and counts what is there.
func (w *writer) end() {
	w.r.t.Helper()
	w.cancel()
	w.wg.Wait()
	for i := range 3 {
		name := fmt.Sprintf("pg-%d", i)
		c, err := w.r.session(w.r.t.Context(), name)
		if err != nil {
			w.r.t.Fatal(err)
		}
		var missing int
		deadline := time.Now().Add(30 * time.Second) // followers may be behind by what was written just now
		for {
			if err := c.QueryRow(w.r.t.Context(), "SELECT count(*) FROM unnest($1::int[]) a LEFT JOIN numbers ON n = a WHERE n IS NULL", w.acked).Scan(&missing); err != nil {
				w.r.t.Fatal(err)
			}
			if missing == 0 || time.Now().After(deadline) {
				break
			}
		}
		if missing != 0 {
			w.r.t.Errorf("%s lacks %d of %d acknowledged writes", name, missing, len(w.acked))
		}
		c.Close(w.r.t.Context())
	}
	if len(w.acked) < 100 {
		w.r.t.Errorf("only %d writes were acknowledged", len(w.acked))
	}
	w.r.t.Logf("%d writes were acknowledged, none is missing; the longest wait for one was %s", len(w.acked), w.longest.Round(time.Millisecond))
}

func members() *deployfile.File {
	return &deployfile.File{Application: "shop", Targets: []deployfile.Target{{Name: "production", Account: "lab", Namespace: "set"}},
		Strategies: []deployfile.Strategy{{Name: "one-by-one", Canary: &deployfile.Canary{Steps: []deployfile.Step{
			{SetWeight: &deployfile.SetWeight{Weight: 1}}, {Pause: &deployfile.Pause{UntilApproved: true}},
			{SetWeight: &deployfile.SetWeight{Weight: 34}}, {Pause: &deployfile.Pause{UntilApproved: true}}}}}},
		Data: deployfile.Data{Databases: []deployfile.Database{{Name: "orders", Engine: "postgres", Target: "production", Workload: "statefulset/pg",
			Connection: "postgres://postgres@pg:5432/postgres", Upgrade: deployfile.Upgrade{Strategy: "one-by-one"}}}}}
}

func (r *replicated) deliver(id, text string) {
	r.t.Helper()
	f := members()
	f.Targets[0].Namespace = r.ns
	g, err := plan.Compile(plan.Input{File: f, Delivery: id, Objects: map[string][]manifest.Object{"production": objects(r.t, text)}})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.engine.Start(r.t.Context(), delivery.Spec{ID: id, Application: "shop", Graph: g, CreatedAt: time.Now()}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *replicated) approve(id, path string) {
	r.t.Helper()
	r.until(id, "at "+path, waits(path))
	if _, err := r.engine.Signal(r.t.Context(), id, delivery.Signal{Kind: delivery.Approve, Key: "approve/" + path, Path: path}); err != nil {
		r.t.Fatal(err)
	}
}

func release(n string) string { return strings.Replace(replicas, `value: "1"`, `value: "`+n+`"`, 1) }

// TestMembersBad: an image that nobody has sticks at the last ordinal, the other two serve, and the way back ends exactly the
// pod that sticks.
func TestMembersBad(t *testing.T) {
	r := newReplicated(t, "k-members-bad")
	r.want("before", "pg-0=primary/1 pg-1=follower/1 pg-2=follower/1")
	before, ids := r.object(), r.ids()
	w := r.write()
	r.deliver("bad", strings.Replace(replicas, "image: postgres:15", "image: nobody/knows:1", 1))
	d := r.until("bad", "done", done)
	if d.Status.State != delivery.Failed || !strings.Contains(d.Status.Reason, "ImagePullBackOff: pod pg-2") || !strings.Contains(d.Status.Reason, "nobody/knows:1") {
		t.Errorf("it ended %s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
	}
	w.end()
	if w.longest > 3*time.Second {
		t.Errorf("a client waited %s for a write", w.longest)
	}
	after := r.ids()
	if after["pg-0"] != ids["pg-0"] || after["pg-1"] != ids["pg-1"] || after["pg-2"] == ids["pg-2"] {
		t.Errorf("the pods were %v and are %v", ids, after)
	}
	if got := r.object(); got != before {
		t.Errorf("the StatefulSet is\n%s\nand was\n%s", got, before)
	}
	r.want("after", "pg-0=primary/1 pg-1=follower/1 pg-2=follower/1")
}

// TestMembersGood: the strategy's steps stand between the members, the primary goes last and steps down before; the next
// delivery meets the primary at the last ordinal, is taken back half-way, and no write is lost by any of it.
func TestMembersGood(t *testing.T) {
	r := newReplicated(t, "k-members-good")
	w := r.write()
	const first, second = "production/deploy/orders/members/2-approval", "production/deploy/orders/members/4-approval"
	r.deliver("good", release("2"))
	r.until("good", "after the first member", waits(first))
	r.want("after the first member", "pg-0=primary/1 pg-1=follower/1 pg-2=follower/2")
	r.approve("good", first)
	r.until("good", "after the second member", waits(second))
	r.want("after the second member", "pg-0=primary/1 pg-1=follower/2 pg-2=follower/2")
	r.approve("good", second)
	if d := r.until("good", "done", done); d.Status.State != delivery.Succeeded {
		t.Fatalf("it ended %s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
	} else {
		t.Log(steps(d))
	}
	r.want("promoted", "pg-0=follower/2 pg-1=follower/2 pg-2=primary/2")
	before := r.object()
	if strings.Contains(before, `"partition":3`) {
		t.Errorf("the partition is left behind: %s", before)
	}

	r.deliver("back", release("3"))
	r.approve("back", first)
	r.until("back", "after the second member", waits(second))
	r.want("after the second member", "pg-0=primary/2 pg-1=follower/3 pg-2=follower/3")
	if _, err := r.engine.Signal(t.Context(), "back", delivery.Signal{Kind: delivery.Rollback, Key: "rollback/production", Path: "production"}); err != nil {
		t.Fatal(err)
	}
	if d := r.until("back", "done", done); strings.Contains(steps(d), "undo failed") {
		t.Errorf("it ended %s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
	} else {
		t.Log(steps(d))
	}
	r.want("taken back", "pg-0=primary/2 pg-1=follower/2 pg-2=follower/2")
	if got := r.object(); got != before {
		t.Errorf("the StatefulSet is\n%s\nand was\n%s", got, before)
	}
	w.end()
}
