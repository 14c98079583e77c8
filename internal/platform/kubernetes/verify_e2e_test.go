//go:build e2e

package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	corev1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-cd/sluice/internal/database/postgres"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/verification"
)

// aDatabase is a PostgreSQL that wants a password. Its Service is closed, as behind a fence, and its port is not the server's.
const aDatabase = `
apiVersion: v1
kind: Service
metadata: {name: pg}
spec: {selector: {app: pg, sluice.dev/open: "true"}, ports: [{port: 6000, targetPort: pg}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: pg}
spec:
  serviceName: pg
  selector: {matchLabels: {app: pg}}
  template:
    metadata: {labels: {app: pg}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: pg
        image: postgres:15
        command: [sh, -c]
        args:
        - |
          export PATH=/usr/lib/postgresql/15/bin:$PATH
          mkdir /tmp/pg && chown postgres /tmp/pg && printf hunter2 >/tmp/password
          run="setpriv --reuid=postgres --regid=postgres --clear-groups"
          $run initdb -D /tmp/pg -U postgres --auth=scram-sha-256 --pwfile=/tmp/password >/dev/null
          echo 'host all all all scram-sha-256' >>/tmp/pg/pg_hba.conf
          exec $run postgres -D /tmp/pg -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off
        ports: [{name: pg, containerPort: 5432}]
        readinessProbe: {exec: {command: [/usr/lib/postgresql/15/bin/pg_isready, -h, 127.0.0.1]}, periodSeconds: 1, timeoutSeconds: 10}
`

const manyRows = 400_000

// twins are two databases in a cluster and what is asked of them.
type twins struct {
	*Platform
	t      *testing.T
	task   verification.Task
	errand platform.Errand
}

// compared makes two databases that differ: in 50 of many rows, and in every column of every row of a wide table, so that the
// report is large.
func compared(t *testing.T) *twins {
	p := besideVolumes(t, "verify-old")
	empty(t, p, "verify-new")
	t.Cleanup(func() { empty(t, p, "verify-new") })
	if err := p.makeNamespaces(t.Context(), nil, "verify-new", "d1"); err != nil {
		t.Fatal(err)
	}
	tw := &twins{Platform: p, t: t, task: verification.Task{Engine: "postgres", Seed: fingerprint.NewSeed().String(),
		Checks: []plan.Check{{Name: "orders", Query: "SELECT sum(total) FROM orders"}}},
		errand: platform.Errand{Namespace: "verify-old", Delivery: "d1", Args: []string{verification.CompareCommand}, Parts: 8, Within: 5 * time.Minute}}
	for _, ns := range []string{"verify-old", "verify-new"} {
		if _, err := p.Apply(t.Context(), "d1/"+ns, objectsOf(t, aDatabase), platform.Options{Namespace: ns, Delivery: "d1"}); err != nil {
			t.Fatal(err)
		}
		tw.task.Sites = append(tw.task.Sites, verification.Site{Name: "orders", Namespace: ns, URL: "postgres://postgres:hunter2@pg:6000/postgres?sslmode=disable"})
		tw.errand.Services = append(tw.errand.Services, manifest.Ref{Kind: "Service", Namespace: ns, Name: "pg"})
	}
	for i, ns := range []string{"verify-old", "verify-new"} {
		if err := p.await(t.Context(), manifest.Ref{Kind: "StatefulSet", Namespace: ns, Name: "pg"}, func(s platform.State) bool { return s.Ready }); err != nil {
			t.Fatal(err)
		}
		tw.fill(ns, i)
	}
	tw.errand.Input = tw.input()
	return tw
}

func (tw *twins) input() json.RawMessage {
	tw.t.Helper()
	b, err := json.Marshal(tw.task)
	if err != nil {
		tw.t.Fatal(err)
	}
	return b
}

func (tw *twins) dial(ctx context.Context, namespace, service, port string) (net.Conn, error) {
	return tw.Dial(ctx, manifest.Ref{Kind: "Service", Namespace: namespace, Name: service}, port)
}

func (tw *twins) fill(namespace string, side int) {
	tw.t.Helper()
	c, err := pgx.ParseConfig(tw.task.Sites[side].URL)
	if err != nil {
		tw.t.Fatal(err)
	}
	c.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return tw.dial(ctx, namespace, "pg", "6000") }
	c.LookupFunc = func(_ context.Context, h string) ([]string, error) { return []string{h}, nil }
	s, err := pgx.ConnectConfig(tw.t.Context(), c)
	if err != nil {
		tw.t.Fatal(err)
	}
	defer s.Close(tw.t.Context())
	var names, values []string
	for i := range 250 {
		names = append(names, fmt.Sprintf("c%d text", i))
		values = append(values, fmt.Sprintf("repeat(md5('%d/%d/' || i), 2)", side, i))
	}
	for _, statement := range []string{
		"CREATE TABLE orders (id int PRIMARY KEY, customer text, total numeric(12,2), placed timestamptz)",
		fmt.Sprintf("INSERT INTO orders SELECT i, md5(i::text), i * 1.25, timestamptz '2026-01-01' + i * interval '1 second' FROM generate_series(1, %d) i", manyRows),
		fmt.Sprintf("UPDATE orders SET total = total + %d WHERE id %% %d = 7", side, manyRows/50),
		"CREATE TABLE wide (id int PRIMARY KEY, " + strings.Join(names, ", ") + ")",
		"INSERT INTO wide SELECT i, " + strings.Join(values, ", ") + " FROM generate_series(1, 30) i",
		"ANALYZE",
	} {
		if _, err := s.Exec(tw.t.Context(), statement); err != nil {
			tw.t.Fatal(err)
		}
	}
}

// byJob has a Job compare.
func (tw *twins) byJob(ctx context.Context, key string) (verification.Answer, error) {
	var a verification.Answer
	result, err := tw.Run(ctx, key, tw.errand)
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(result[0], &a)
}

// found is what a report says, without what the run cost.
func found(t *testing.T, a verification.Answer) string {
	t.Helper()
	r := *a.Report
	r.Started, r.Cost, r.Source.Info.Position, r.Target.Info.Position = time.Time{}, fingerprint.Cost{}, "", ""
	a.Report = &r
	b, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestAJobComparesBesideTheData holds that a Job finds what a comparison from here finds, although its report fills several
// Secrets; that it says how far it is; and that one that nobody waits for any more is found again.
func TestAJobComparesBesideTheData(t *testing.T) {
	tw := compared(t)
	start := time.Now()
	here, err := tw.task.Compare(t.Context(), postgres.New(), tw.dial, verification.Options{Spill: t.TempDir(), Progress: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	far := time.Since(start)
	if n := here.Report.Tables[0].Changed; n != 50 || len(here.Findings) != 1 {
		t.Fatalf("from here %d of 50 changed rows are found, %v", n, here.Findings)
	}

	// Whoever waits first gives up once the Job has begun to read.
	var mu sync.Mutex
	var lines []string
	start = time.Now()
	key := abandoned(t, "d1/compare", func(ctx context.Context, giveUp func(), key string) error {
		tw.errand.Progress = func(line string) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, line)
			t.Log("the Job: " + line)
			giveUp()
		}
		_, err := tw.byJob(ctx, key)
		return err
	})
	jobs, err := tw.List(t.Context(), "Job", "verify-old")
	if err != nil || len(jobs) != 1 {
		t.Fatalf("%d Jobs, %v", len(jobs), err)
	}
	of := jobs[0].GetUID()
	policies, err := tw.List(t.Context(), "NetworkPolicy", "verify-old")
	if err != nil || len(policies) != 1 {
		t.Errorf("%d policies keep the Job from others, %v", len(policies), err)
	}
	secrets, err := tw.List(t.Context(), "Secret", "verify-old")
	if err != nil {
		t.Fatal(err)
	}
	secrets = slices.DeleteFunc(secrets, func(o manifest.Object) bool { return !strings.HasPrefix(o.GetName(), jobs[0].GetName()) })
	if len(secrets) != 9 {
		t.Errorf("%d Secrets", len(secrets))
	}
	for _, s := range secrets {
		if o := s.GetOwnerReferences(); len(o) != 1 || o[0].UID != of {
			t.Errorf("Secret %s would outlive its Job", s.GetName())
		}
	}
	rights(t, tw.Platform, jobs[0].GetName(), secrets)
	beside, err := tw.byJob(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	near := time.Since(start)
	if a, b := found(t, here), found(t, beside); a != b {
		t.Errorf("from here: %.2000s\nbeside the data: %.2000s", a, b)
	}
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(strings.Join(lines, "\n"), "postgres.public.orders, ") {
		t.Errorf("the Job said %q", lines)
	}
	t.Logf("%d rows a side, a report of %d KiB: from here %s, by a Job %s with the start of its pod; the Job said last: %s", manyRows, len(found(t, here))>>10,
		far.Round(time.Millisecond), near.Round(time.Millisecond), lines[len(lines)-1])
	nothingLeft(tw.t, tw.Platform, "verify-old")

	tw.errand.Args, tw.errand.Progress = []string{verification.FingerprintCommand}, nil
	tw.task.Sites, tw.errand.Services = tw.task.Sites[:1], tw.errand.Services[:1]
	tw.errand.Input = tw.input()
	result, err := tw.Run(t.Context(), "d1/fingerprint", tw.errand)
	var d fingerprint.Digest
	if err == nil {
		err = json.Unmarshal(result[0], &d)
	}
	if err != nil || len(d.Tables) != 2 || d.Tables[0].Rows != manyRows || d.Tables[0].Root != here.Report.Tables[0].SourceRoot {
		t.Errorf("the fingerprint: %.300s, %v", result, err)
	}
	nothingLeft(tw.t, tw.Platform, "verify-old")

	// One that nobody comes back to is ended with the copies that it reads.
	abandoned(t, "d1/nobody", func(ctx context.Context, giveUp func(), key string) error {
		tw.errand.Progress = func(string) { giveUp() }
		_, err := tw.Run(ctx, key, tw.errand)
		return err
	})
	if err := tw.End(t.Context(), "verify-old", "d1"); err != nil {
		t.Fatal(err)
	}
	nothingLeft(tw.t, tw.Platform, "verify-old")
}

// abandoned has nobody wait for an errand any more once it has said something, and returns its key. What is done before it is heard is
// done again, under another key.
func abandoned(t *testing.T, key string, run func(ctx context.Context, giveUp func(), key string) error) string {
	t.Helper()
	for i := range 5 {
		ctx, giveUp := context.WithCancel(t.Context())
		try := fmt.Sprintf("%s/%d", key, i)
		err := run(ctx, giveUp, try)
		giveUp()
		switch {
		case errors.Is(err, context.Canceled):
			return try
		case err != nil:
			t.Fatal(err)
		}
	}
	t.Fatalf("%s was done five times before it was heard", key)
	return ""
}

// rights holds that a Job's own account may write its results, and nothing else: it can read nothing, not even these.
func rights(t *testing.T, p *Platform, job string, its []manifest.Object) {
	t.Helper()
	const in = "verify-old"
	for _, s := range its {
		kind, _, _ := unstructured.NestedString(s.Object, "type")
		for verb, may := range map[string]bool{"patch": kind == "sluice.dev/result", "get": false, "update": false, "delete": false} {
			reviewed(t, p, in, job, verb, "secrets", s.GetName(), may)
		}
	}
	for _, asked := range [][]string{{"create", "secrets"}, {"list", "secrets"}, {"patch", "secrets"}, {"get", "configmaps"}, {"list", "pods"}, {"create", "pods"}} {
		reviewed(t, p, in, job, asked[0], asked[1], "", false)
	}
}

// reviewed asks the API server whether an account may do something.
func reviewed(t *testing.T, p *Platform, namespace, account, verb, resource, name string, want bool) {
	t.Helper()
	review := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": map[string]any{
		"user":               "system:serviceaccount:" + namespace + ":" + account,
		"resourceAttributes": map[string]any{"namespace": namespace, "verb": verb, "resource": resource, "name": name}}}}
	answer, err := p.dynamic.Resource(schema.GroupVersionResource{Group: "authorization.k8s.io", Version: "v1", Resource: "subjectaccessreviews"}).
		Create(t.Context(), review, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, _, _ := unstructured.NestedBool(answer.Object, "status", "allowed"); got != want {
		t.Errorf("may a Job %s %s %q? %t, want %t", verb, resource, name, got, want)
	}
}

// TestAJobThatCannotCompareSaysWhy lets it lack memory, a node, a permission and a database, and forges its result.
func TestAJobThatCannotCompareSaysWhy(t *testing.T) {
	tw := compared(t)
	for name, c := range map[string]struct {
		with func()
		want string
	}{
		"memory": {func() { tw.c.Jobs.Limits = corev1.ResourceList{"memory": quantity.MustParse("20Mi")} }, "OOMKilled"},
		"a node": {func() {
			tw.c.Jobs.Limits, tw.c.Grace = corev1.ResourceList{"cpu": quantity.MustParse("1000")}, time.Second
		}, "Insufficient cpu"},
		"a Service that is not meant": {func() { tw.task.Sites[1].Namespace = "verify-other" }, "Service pg in namespace verify-other was refused: it is not meant"},
		"the right password":          {func() { tw.task.Sites[0].URL = strings.Replace(tw.task.Sites[0].URL, "hunter2", "hunter3", 1) }, "password authentication failed"},
	} {
		jobs, grace, sites := tw.c.Jobs, tw.c.Grace, append([]verification.Site{}, tw.task.Sites...)
		c.with()
		tw.errand.Input = tw.input()
		start := time.Now()
		_, err := tw.byJob(t.Context(), "d1/lacks/"+name)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("a Job that lacks %s: %v", name, err)
		}
		if took := time.Since(start); took > 3*time.Minute {
			t.Errorf("that a Job lacks %s is told after %s", name, took)
		}
		t.Logf("a Job that lacks %s: %.300v", name, err)
		nothingLeft(tw.t, tw.Platform, "verify-old")
		tw.c.Jobs, tw.c.Grace, tw.task.Sites = jobs, grace, sites
	}

	tw.errand.Input = tw.input()
	in := tw.dynamic.Resource(secrets()).Namespace("verify-old")
	forged := make(chan error, 1)
	go func() {
		name := "sluice-errand-" + strings.TrimPrefix(name("d1/forged"), "sluice-")[:12]
		w, err := in.Watch(t.Context(), metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
		if err == nil {
			defer w.Stop()
			<-w.ResultChan()
			_, err = in.Patch(t.Context(), name, types.MergePatchType, []byte(`{"stringData":{"result":"equal","seal":"x","parts":"1","whole":"x"}}`), metav1.PatchOptions{})
		}
		forged <- err
	}()
	_, err := tw.byJob(t.Context(), "d1/forged")
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "was not written by the Job that it was made for") {
		t.Errorf("a forged result: %v", err)
	}
	if err := <-forged; err != nil {
		t.Fatal(err)
	}
	nothingLeft(tw.t, tw.Platform, "verify-old")
}
