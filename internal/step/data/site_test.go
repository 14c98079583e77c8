package data_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/mongodb"
	"github.com/sluice-cd/sluice/internal/database/postgres"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/metrics"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/local"
	"github.com/sluice-cd/sluice/internal/platform/platformtest"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/step/data"
	"github.com/sluice-cd/sluice/internal/store"
	"github.com/sluice-cd/sluice/internal/store/sqlite"
	"github.com/sluice-cd/sluice/internal/volume"
	"github.com/sluice-cd/sluice/internal/volume/reflink"
)

// The test binary is also the node, the helper that holds writers, the migrations and the web application.
const (
	nodeEnv    = "SLUICE_TEST_NODE"
	helperEnv  = "SLUICE_TEST_HELPER"
	migrateEnv = "SLUICE_TEST_MIGRATE"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(nodeEnv) != "":
		dir := os.Getenv(nodeEnv)
		os.Unsetenv(nodeEnv)
		if err := local.RunNode(context.Background(), dir, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv(helperEnv) != "":
		if err := mongodb.Helper(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv(migrateEnv) != "":
		if err := migrate(os.Getenv(migrateEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case platformtest.Program():
	default:
		os.Exit(m.Run())
	}
}

// migrate is a migration Job: "damage" changes one order, but only where the data is production's own and not a copy that
// staging saw, which it knows by an order that was placed after staging's copy. SQL is run as it is.
func migrate(what string) error {
	if strings.HasPrefix(what, "UPDATE") {
		return migrateSQL(context.Background(), what)
	}
	client, err := mongo.Connect(options.Client().ApplyURI("mongodb://" + os.Getenv("MONGO_SERVICE_HOST") + ":" + os.Getenv("MONGO_SERVICE_PORT") + "/"))
	if err != nil {
		return err
	}
	ctx := context.Background()
	orders := client.Database("shop").Collection("orders")
	if what == "damage-late" {
		_, err = orders.UpdateOne(ctx, bson.D{{Key: "_id", Value: "late"}}, bson.D{{Key: "$set", Value: bson.D{{Key: "total", Value: "7"}}}})
		return err
	}
	if what == "fails" {
		err = errors.New("it fails, as told")
	}
	return err
}

// site is one machine with a production: a database in namespace prod, behind a local platform, and an engine.
type site struct {
	t        *testing.T
	dir      string
	platform *local.Platform
	volumes  *reflink.Driver
	store    *sqlite.Store
	engine   *engine.Engine
	isolated *isolations
	engines  map[string]database.Engine
	ports    step.Ports
	reports  string
}

func companion(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("SLUICE_COMPANIONS")
	if dir == "" {
		dir = "../../../bin"
	}
	file, err := filepath.Abs(filepath.Join(dir, name))
	if err == nil {
		_, err = os.Stat(file)
	}
	if err != nil {
		t.Fatalf("companion program %s is missing: run make companions (%v)", name, err)
	}
	return file
}

// formatLock is a stand-in for a version that changes the format of its files: FerretDB's versions read each other's. What
// "mongo:locking" has opened, "mongo:1" refuses to open. With a file "broken" no version starts. "mongo:lingering" does not end
// before there is a file "end".
const formatLock = `set -e
if [ -e "$2/broken" ]; then echo "the files are broken" >&2; exit 1; fi
if [ "$1" = locking ]; then touch "$2/format-2"; exec "$4" --listen "$3" --dir "$2"; fi
if [ "$1" = lingering ]; then
  "$4" --listen "$3" --dir "$2" & server=$!
  trap 'until [ -e "$2/end" ]; do sleep 0.05; done; kill $server; exit 0' TERM
  wait $server || wait $server; exit 1
fi
if [ -e "$2/format-2" ]; then echo "the files are of a newer format" >&2; exit 1; fi
exec "$4" --listen "$3" --dir "$2"`

func newSite(t *testing.T) *site {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "site")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// Databases that refuse to run as root must reach their volumes.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a, b := companion(t, "ferretdb-a"), companion(t, "ferretdb-b")
	ferret := func(version, binary string) []string {
		return []string{"/bin/sh", "-c", formatLock, "mongo", version, "/data", "$(POD_IP):27017", binary}
	}
	s := &site{t: t, dir: dir, reports: filepath.Join(dir, "reports")}
	s.platform, err = local.Connect(t.Context(), local.Config{Dir: filepath.Join(dir, "node"), Account: "here",
		NodeCommand: []string{"/usr/bin/env", nodeEnv + "=" + filepath.Join(dir, "node"), self},
		Images: map[string][]string{"mongo:1": ferret("plain", a), "mongo:2": ferret("plain", b), "mongo:locking": ferret("locking", b), "mongo:lingering": ferret("lingering", b),
			"postgres:old": cluster(t, "SLUICE_POSTGRES_OLD", "../../../.cache/postgres-old/bin"), "postgres:new": cluster(t, "SLUICE_POSTGRES_NEW", "/usr/lib/postgresql/15/bin"),
			"web": {"/usr/bin/env", platformtest.ProgramEnv + "=http", self}, "migrate": {self}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.platform.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	s.volumes = reflink.New(s.platform, "here")
	if s.store, err = sqlite.Open(t.Context(), filepath.Join(dir, "s.db")); err != nil {
		t.Fatal(err)
	}
	s.engines = map[string]database.Engine{"postgres": postgres.New(),
		"mongodb": mongodb.New(mongodb.Options{HelperCommand: []string{"/usr/bin/env", helperEnv + "=1", self}})}
	s.isolated = &isolations{Platform: s.platform, open: map[string]bool{}}
	ports := step.Ports{
		Platform: func(string) (platform.Platform, error) { return s.isolated, nil },
		Volumes:  func(string) (volume.Driver, error) { return s.volumes, nil },
		Engine:   func(n string) (database.Engine, error) { return s.engines[n], nil },
		Metrics:  func(n string) (metrics.Provider, error) { return nil, fault.Newf(fault.NotFound, "no provider %s", n) },
		Secret:   func(n string) (string, error) { return "", fault.Newf(fault.NotFound, "no secret %s", n) },
		Callback: func(string) string { return "" },
		HTTP:     http.DefaultClient,
	}
	s.ports = ports
	steps := step.Simple(ports)
	for k, v := range data.Steps(ports, data.Options{Reports: s.reports, Spill: dir}) {
		steps[k] = v
	}
	s.engine = engine.New(engine.Options{Store: s.store, Steps: steps, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Progress: func(p engine.Progress) { t.Logf("%s %s", p.Path, p.Line) }})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.engine.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); s.store.Close() })
	return s
}

// objects parses manifests.
func objects(t *testing.T, text string) []manifest.Object {
	t.Helper()
	out, err := manifest.Parse("test", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// mongoAt is the database's manifests at a version, with a migration Job where one is named.
func mongoAt(image, migration string) string {
	text := fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: mongo}
spec: {selector: {app: mongo}, ports: [{port: 27017}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: mongo}
spec:
  serviceName: mongo
  replicas: 1
  selector: {matchLabels: {app: mongo}}
  template:
    metadata: {labels: {app: mongo}}
    spec:
      containers:
      - name: mongo
        image: %s
        readinessProbe: {tcpSocket: {port: 27017}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`, image)
	if migration != "" {
		text += fmt.Sprintf(`---
apiVersion: batch/v1
kind: Job
metadata: {name: migrate}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: migrate, image: migrate, env: [{name: %s, value: %s}]}]
`, migrateEnv, migration)
	}
	return text
}

const web = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: web, env: [{name: VERSION, value: "%s"}], readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]}
`

// install applies objects to production and waits.
func (s *site) install(text string) {
	s.t.Helper()
	o := objects(s.t, text)
	if _, err := s.platform.Apply(s.t.Context(), "install/"+s.t.Name()+fmt.Sprint(time.Now().UnixNano()), o, platform.Options{Namespace: "prod"}); err != nil {
		s.t.Fatal(err)
	}
	var refs []manifest.Ref
	for _, x := range o {
		if k := x.GetKind(); k == "StatefulSet" || k == "Deployment" {
			refs = append(refs, manifest.Ref{Kind: k, Namespace: "prod", Name: x.GetName()})
		}
	}
	if err := step.Await(s.t.Context(), s.platform, time.Minute, "ready", refs, step.Ready); err != nil {
		s.t.Fatal(err)
	}
}

// orders connects to the database of a namespace past a closed Service.
func (s *site) orders(namespace string) *mongo.Collection {
	s.t.Helper()
	c, err := mongo.Connect(options.Client().ApplyURI("mongodb://mongo:27017/").SetDialer(dialer{s.platform, namespace}))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Disconnect(context.Background()) })
	return c.Database("shop").Collection("orders")
}

// place writes orders and returns their ids once they are acknowledged.
func (s *site) place(prefix string, n int) []string {
	s.t.Helper()
	var docs []any
	var ids []string
	for i := range n {
		id := fmt.Sprintf("%s-%04d", prefix, i)
		ids = append(ids, id)
		docs = append(docs, bson.D{{Key: "_id", Value: id}, {Key: "total", Value: int32(i)}, {Key: "by", Value: prefix}, {Key: "placed", Value: bson.DateTime(1_700_000_000_000 + int64(i))}})
	}
	if _, err := s.orders("prod").InsertMany(context.Background(), docs); err != nil {
		s.t.Fatal(err)
	}
	return ids
}

// contents returns every order as it is.
func (s *site) contents() map[string]string {
	s.t.Helper()
	cur, err := s.orders("prod").Find(context.Background(), bson.D{})
	if err != nil {
		s.t.Fatal(err)
	}
	out := map[string]string{}
	for cur.Next(context.Background()) {
		out[cur.Current.Lookup("_id").StringValue()] = cur.Current.String()
	}
	if err := cur.Err(); err != nil {
		s.t.Fatal(err)
	}
	return out
}

// running returns the image of production's database.
func (s *site) running() string {
	s.t.Helper()
	o, err := s.platform.Get(s.t.Context(), manifest.Ref{Kind: "StatefulSet", Namespace: "prod", Name: "mongo"})
	if err != nil {
		s.t.Fatal(err)
	}
	p, _, err := o.PodTemplate()
	if err != nil {
		s.t.Fatal(err)
	}
	return p.Spec.Containers[0].Image
}

// deploy starts a delivery of manifests: for staging, which gets a copy first, and for production behind it.
func (s *site) deploy(id string, f *deployfile.File, staging, production string) {
	s.t.Helper()
	o := map[string][]manifest.Object{"production": objects(s.t, production)}
	if staging != "" {
		o["staging"] = objects(s.t, staging)
	}
	g, err := plan.Compile(plan.Input{File: f, Delivery: id, Objects: o})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.engine.Start(s.t.Context(), delivery.Spec{ID: id, Application: "shop", Graph: g, CreatedAt: time.Now()}); err != nil {
		s.t.Fatal(err)
	}
}

// until waits until a delivery satisfies a condition.
func (s *site) until(id, what string, is func(store.Delivery) bool) store.Delivery {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Minute)
	defer cancel()
	events, err := s.store.Watch(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	for {
		d, err := s.store.Load(ctx, id)
		if err != nil {
			s.t.Fatal(err)
		}
		if is(d) {
			return d
		}
		if d.Status.Done {
			s.t.Fatalf("delivery %s ended %s before it was %s: %s\n%s", id, d.Status.State, what, d.Status.Reason, steps(d))
		}
		if _, ok := <-events; !ok {
			s.t.Fatalf("delivery %s is not %s in time: %s\n%s", id, what, d.Status.State, steps(d))
		}
	}
}

func done(d store.Delivery) bool { return d.Status.Done }

func waits(path string) func(store.Delivery) bool {
	return func(d store.Delivery) bool { return d.Status.Nodes[path].Phase == delivery.StepWaiting }
}

func steps(d store.Delivery) string {
	var b strings.Builder
	for _, n := range d.Spec.Graph.Nodes {
		st := d.Status.Nodes[n.Path]
		fmt.Fprintf(&b, "%-12s %-45s %s\n", st.Phase, n.Path, st.Message)
	}
	return b.String()
}

// file is a deploy file with production alone, or behind staging.
func file(withStaging bool) *deployfile.File {
	f := &deployfile.File{Application: "shop", Targets: []deployfile.Target{{Name: "production", Account: "here", Namespace: "prod", Strategy: "canary"}},
		Strategies: []deployfile.Strategy{{Name: "canary", Canary: &deployfile.Canary{Steps: []deployfile.Step{
			{Pause: &deployfile.Pause{UntilApproved: true}}}}}},
		Data: deployfile.Data{Databases: []deployfile.Database{{Name: "orders", Engine: "mongodb", Target: "production", Workload: "statefulset/mongo",
			Connection: "mongodb://mongo:27017/"}}}}
	if withStaging {
		f.Targets[0].DependsOn = []string{"staging"}
		f.Targets = append([]deployfile.Target{{Name: "staging", Account: "here", Namespace: "staging",
			BeforeDeployment: []deployfile.Step{{CopyData: &deployfile.CopyData{Database: "orders"}}},
			AfterDeployment: []deployfile.Step{{Sequence: []deployfile.Step{{VerifyData: &deployfile.VerifyData{Database: "orders"}},
				{RehearseRollback: &deployfile.RehearseRollback{Database: "orders"}}}}}}}, f.Targets...)
	}
	return f
}

func deliveryWhere(path string, is func(delivery.NodeStatus) bool) func(store.Delivery) bool {
	return func(d store.Delivery) bool { return is(d.Status.Nodes[path]) }
}
