//go:build e2e

package data_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
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
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/postgres"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/kube/kubetest"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/metrics"
	"github.com/sluice-cd/sluice/internal/metrics/metricstest"
	"github.com/sluice-cd/sluice/internal/metrics/prometheus"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/step/data"
	"github.com/sluice-cd/sluice/internal/store/sqlite"
)

// Images of PostgreSQL: of an older minor version, of a newer one, and one that nobody has.
const (
	oldImage = "postgres:15.10"
	newImage = "postgres:15"
	noImage  = "nobody/knows:1"
)

// disruptions is how many of the members may be away, as it is delivered with them.
const disruptions = `---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: pg}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: pg}}}
`

// replicas is a PostgreSQL of three members with streaming replication, as plain as it can be: the first one is the primary
// when there is no data yet, the others copy it, and from then on the data directory alone says who is what.
func replicas(image string, settings ...string) string {
	args := ""
	for _, s := range settings {
		args += fmt.Sprintf(", -c, %q", s)
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: pg}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: pg}, ports: [{name: pg, port: 5432}]}
`+disruptions+`---
apiVersion: v1
kind: ConfigMap
metadata: {name: pg}
data:
  run: |
    set -e
    export PGDATA=/data/pg
    if [ "$(id -u)" = 0 ]; then
      chown postgres /data
      exec setpriv --reuid=postgres --regid=postgres --clear-groups sh /etc/pg/run "$@"
    fi
    if [ ! -s $PGDATA/PG_VERSION ]; then
      if [ "$HOSTNAME" = pg-0 ]; then
        initdb -U postgres --auth=trust >/dev/null
        printf 'host all all all trust\nhost replication all all trust\n' >> $PGDATA/pg_hba.conf
        echo 'CREATE TABLE numbers (n int PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())' | postgres --single postgres >/dev/null
      else
        until pg_basebackup -D $PGDATA -R -X stream -c fast -d "host=pg-0.pg user=postgres application_name=$HOSTNAME"; do rm -rf $PGDATA; sleep 1; done
      fi
    fi
    postgres -c listen_addresses='*' -c unix_socket_directories=/tmp -c wal_keep_size=64MB -c max_wal_size=128MB "$@" &
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
        image: %q
        command: [sh, /etc/pg/run]
        args: [-c, shared_buffers=16MB%s]
        readinessProbe: {exec: {command: [pg_isready, -q, -h, 127.0.0.1]}, periodSeconds: 1, timeoutSeconds: 10}
        volumeMounts: [{name: data, mountPath: /data}, {name: run, mountPath: /etc/pg}]
      volumes: [{name: run, configMap: {name: pg}}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], storageClassName: cow, resources: {requests: {storage: 1Gi}}}
`, image, args)
}

// replicated is three members on a cluster, an engine whose judge asks a Prometheus, and somebody who asks the members all the
// while.
type replicated struct {
	*site
	kubeconfig string
	cluster    *kubernetes.Platform
	ns         string
	witness    *witness
	lines      chan string // what steps say while they run
}

func newReplicated(t *testing.T, ns string) *replicated {
	t.Helper()
	kubeconfig := os.Getenv("LAB_KUBECONFIG")
	if kubeconfig == "" {
		t.Fatal("LAB_KUBECONFIG names no cluster: make lab-up starts one, and lab image gives it " + oldImage + " and " + newImage)
	}
	p, err := kubernetes.Connect(kubernetes.Config{Account: "lab", Kubeconfig: kubeconfig, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	r := &replicated{site: &site{t: t, dir: t.TempDir()}, kubeconfig: kubeconfig, cluster: p, ns: ns, lines: make(chan string, 1000)}
	r.clear()
	t.Cleanup(r.clear)
	r.carryOut()
	if _, err := p.Apply(t.Context(), "install/"+ns, objects(t, replicas(oldImage)), platform.Options{Namespace: ns}); err != nil {
		t.Fatal(err)
	}
	if err := step.Await(t.Context(), p, 4*time.Minute, "ready", []manifest.Ref{r.set()}, step.Ready); err != nil {
		t.Fatal(err)
	}
	r.witness.begin()
	return r
}

// carryOut begins to carry deliveries out, which are judged by what a Prometheus scrapes of the witness.
func (r *replicated) carryOut() {
	r.t.Helper()
	r.witness = &witness{r: r, seen: map[string][]sight{}}
	told := httptest.NewServer(r.witness)
	r.t.Cleanup(told.Close)
	numbers, err := prometheus.New(prometheus.Config{URL: metricstest.Prometheus(r.t, companion(r.t, "prometheus"), told.URL)})
	if err != nil {
		r.t.Fatal(err)
	}
	pg := postgres.New()
	ports := step.Ports{HTTP: http.DefaultClient,
		Platform: func(string) (platform.Platform, error) { return r.cluster, nil },
		Metrics:  func(string) (metrics.Provider, error) { return numbers, nil },
		Engine:   func(string) (database.Engine, error) { return pg, nil }}
	steps := step.Simple(ports)
	for k, v := range data.Steps(ports, data.Options{Reports: r.dir, Spill: r.dir}) {
		steps[k] = v
	}
	if r.store, err = sqlite.Open(r.t.Context(), filepath.Join(r.dir, "s.db")); err != nil {
		r.t.Fatal(err)
	}
	r.engine = engine.New(engine.Options{Store: r.store, Steps: steps, Log: slog.New(slog.NewTextHandler(r.t.Output(), nil)),
		Progress: func(p engine.Progress) {
			r.t.Logf("%s %s", p.Path, p.Line)
			select {
			case r.lines <- p.Line:
			default: // nobody has waited for any of so many
			}
		}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.engine.Run(ctx) })
	r.t.Cleanup(func() { cancel(); wg.Wait(); r.store.Close() })
}

// client writes what Sluice does not.
func (r *replicated) client() dynamic.Interface {
	r.t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", r.kubeconfig)
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := dynamic.NewForConfig(config)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// clear makes the namespace be gone, with all that is in it.
func (r *replicated) clear() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	err := r.client().Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Delete(ctx, r.ns, metav1.DeleteOptions{})
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

// says waits until a step says this, within a minute.
func (r *replicated) says(id, what string) {
	r.t.Helper()
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	for {
		select {
		case line := <-r.lines:
			if strings.Contains(line, what) {
				return
			}
		case <-late.C:
			d, err := r.store.Load(r.t.Context(), id)
			r.t.Fatalf("no step says %q (%v): %s %s\n%s", what, err, d.Status.State, d.Status.Reason, steps(d))
		}
	}
}

// budget has somebody say how many members may be away.
func (r *replicated) budget(away int) {
	r.t.Helper()
	if _, err := r.client().Resource(schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}).Namespace(r.ns).Patch(r.t.Context(), "pg",
		types.MergePatchType, fmt.Appendf(nil, `{"spec":{"maxUnavailable":%d}}`, away), metav1.PatchOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *replicated) set() manifest.Ref {
	return manifest.Ref{Kind: "StatefulSet", Namespace: r.ns, Name: "pg"}
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

// ends is how pods were ended since an instant, by the API server's own word: by whom, how, and which.
func (r *replicated) ends(since time.Time) (out []string) {
	r.t.Helper()
	for _, c := range kubetest.Calls(r.t, r.kubeconfig, since, true) {
		how := ""
		switch {
		case c.On.Resource != "pods" || c.On.Namespace != r.ns || !c.Did():
		case c.On.Subresource == "eviction":
			how = "evicts"
		case strings.HasPrefix(c.Verb, "delete"):
			how = "deletes"
		}
		if how == "" {
			continue
		}
		// In the lab the cluster's own controllers have an administrator's name, as Sluice has.
		who := c.UserAgent[strings.LastIndex(c.UserAgent, "/")+1:]
		out = append(out, fmt.Sprintf("%s %s %s", who, how, c.On.Name))
	}
	return out
}
