//go:build e2e

package controller_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
	cluster "github.com/sluice-cd/sluice/internal/store/kubernetes"
)

const (
	benchVariable = "SLUICE_BENCH_DELIVERIES" // how many; make bench-controller sets it
	mostResident  = 150 << 20
	minute        = time.Minute
)

// TestResting rests many deliveries in a step that waits for approval: the controller stays small and asks the API server
// nothing. Then all are approved at once, and the next step of each starts.
func TestResting(t *testing.T) {
	count, err := strconv.Atoi(os.Getenv(benchVariable))
	if err != nil {
		t.Skip("make bench-controller runs it")
	}
	l := newLab(t)
	c, err := credentials()
	if err != nil {
		t.Fatal(err)
	}
	c.QPS, c.UserAgent = -1, "watcher"
	st, err := cluster.Open(t.Context(), cluster.Config{Credentials: c, Namespace: l.deliveries})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	remote, err := cluster.NewRemote(cluster.Config{Credentials: c, Namespace: l.deliveries})
	if err != nil {
		t.Fatal(err)
	}
	ctl := l.start(t, "resting", 0, false)
	reached := newReached(t, st)
	begun := time.Now()
	var g errgroup.Group
	g.SetLimit(16)
	for i := range count {
		g.Go(func() error { return remote.Start(t.Context(), l.resting(t, fmt.Sprintf("r%04d", i))) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	reached.all(t, count, "prod/deploy/approval")
	t.Logf("%d deliveries started and rest after %s", count, time.Since(begun).Round(time.Second))

	since := time.Now().UTC()
	time.Sleep(minute) // the passing of time is what is measured
	until := time.Now().UTC()
	rss := resident(t, ctl.Process.Pid)
	t.Logf("resident memory of the controller: %d MiB", rss>>20)
	if rss > mostResident {
		t.Errorf("the controller has %d MiB resident, at most %d MiB", rss>>20, mostResident>>20)
	}
	audit := filepath.Join(filepath.Dir(filepath.Dir(os.Getenv("LAB_KUBECONFIG"))), "log", "audit.log")
	verbs := map[string]int{}
	for _, e := range audited(t, audit, since, until, "resting") {
		if e.UserAgent == "resting" || e.UserAgent == "sluice" && strings.Contains(e.RequestURI, l.app) {
			verbs[e.Verb]++
		}
	}
	t.Logf("requests of the controller in a minute of rest, by verb: %v", verbs)
	if verbs["get"]+verbs["list"] > 0 {
		t.Errorf("the resting controller reads: %v", verbs)
	}

	var mu sync.Mutex
	sent := map[string]time.Time{}
	var all sync.WaitGroup
	for i := range count {
		all.Go(func() {
			id := fmt.Sprintf("r%04d", i)
			const path = "prod/deploy/approval"
			mu.Lock()
			sent[id] = time.Now()
			mu.Unlock()
			if _, err := st.Signal(t.Context(), id, delivery.Signal{Key: "approve/" + path, Kind: delivery.Approve, Path: path, By: "admin"}); err != nil {
				t.Error(err)
			}
		})
	}
	at := reached.all(t, count, "prod/deploy/wait")
	all.Wait()
	var took []time.Duration
	for id, s := range sent {
		took = append(took, at[id].Sub(s))
	}
	slices.Sort(took)
	t.Logf("%d approvals at once: the next step of each has started; median %s, p99 %s, all %s", count, took[len(took)/2].Round(time.Millisecond),
		took[len(took)*99/100].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	t.Logf("resident memory of the controller after that: %d MiB", resident(t, ctl.Process.Pid)>>20)
}

// resting is a delivery of an application of its own that waits for approval, and then for a day.
func (l lab) resting(t *testing.T, id string) delivery.Spec {
	t.Helper()
	objects, err := json.Marshal(plan.ApplyArgs{Account: "lab", Namespace: l.app, Objects: l.objects(t, "1"), Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	wait, err := json.Marshal(plan.PauseArgs{For: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return delivery.Spec{ID: id, Application: id, CreatedAt: time.Now().UTC(), Graph: plan.Graph{Application: id, Targets: []plan.Target{{Name: "prod", Account: "lab", Namespace: l.app}},
		Nodes: []plan.Node{
			{Path: "prod/deploy/approval", Target: "prod", Phase: plan.Deploy, Kind: plan.KindApproval, Args: json.RawMessage(`{}`)},
			{Path: "prod/deploy/wait", Target: "prod", Phase: plan.Deploy, Kind: plan.KindPause, Args: wait, After: []string{"prod/deploy/approval"}},
			// Never reached: a delivery has its manifests with it.
			{Path: "prod/deploy/apply", Target: "prod", Phase: plan.Deploy, Kind: plan.KindApply, Args: objects, After: []string{"prod/deploy/wait"}},
		}}}
}

// reached tells when steps of deliveries have begun.
type reached struct {
	mu    sync.Mutex
	at    map[string]map[string]time.Time // path → id → when
	event chan struct{}
}

func newReached(t *testing.T, st *cluster.Store) *reached {
	t.Helper()
	r := &reached{at: map[string]map[string]time.Time{}, event: make(chan struct{}, 1)}
	events, err := st.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for e := range events {
			d, err := st.Load(t.Context(), e.ID)
			now := time.Now()
			if err != nil {
				continue
			}
			r.mu.Lock()
			for path, n := range d.Status.Nodes {
				// A step that asks for approval rests once it waits.
				if n.Phase == delivery.StepPending || n.Phase == delivery.StepRunning && path == "prod/deploy/approval" {
					continue
				}
				if r.at[path] == nil {
					r.at[path] = map[string]time.Time{}
				}
				if _, known := r.at[path][e.ID]; !known {
					r.at[path][e.ID] = now
				}
			}
			r.mu.Unlock()
			select {
			case r.event <- struct{}{}:
			default:
			}
		}
	}()
	return r
}

// all waits until a step of so many deliveries has begun, and returns when each did.
func (r *reached) all(t *testing.T, count int, path string) map[string]time.Time {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	for {
		r.mu.Lock()
		have := len(r.at[path])
		if have == count {
			defer r.mu.Unlock()
			return r.at[path]
		}
		r.mu.Unlock()
		select {
		case <-r.event:
		case <-ctx.Done():
			t.Fatalf("step %s of %d deliveries has begun, of %d it should", path, have, count)
		}
	}
}

// resident is the memory of a process.
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(body), "VmRSS:")
	var kib int64
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
