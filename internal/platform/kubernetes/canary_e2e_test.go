//go:build e2e

package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

const served = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-preview, annotations: {sluice.dev/track: preview}}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: program
        env: [{name: SLUICE_TEST_PROGRAM, value: http}, {name: VERSION, value: one}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        lifecycle: {preStop: {sleep: {seconds: 2}}}
`

var (
	web        = manifest.Ref{Kind: "Deployment", Namespace: ns, Name: "web"}
	webService = manifest.Ref{Kind: "Service", Namespace: ns, Name: "web"}
	webPreview = manifest.Ref{Kind: "Service", Namespace: ns, Name: "web-preview"}
)

// shop is a stable version that serves, made by kubectl, and its next version.
type shop struct {
	*Platform
	t      *testing.T
	ctx    context.Context
	next   []manifest.Object
	before map[string]string
}

func newShop(t *testing.T) *shop {
	p, ctx := fresh(t)
	l := theLab(t)
	s := &shop{Platform: p, t: t, ctx: ctx}
	for _, o := range objectsOf(t, served) {
		o = l.adapt(o)
		body, err := o.Unstructured.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		by(t, p, "kubectl-client-side-apply", string(body))
	}
	s.ready(5 * time.Minute)
	s.before = snapshotOf(t, p)
	s.next = []manifest.Object{l.adapt(objectsOf(t, strings.Replace(served, "value: one", "value: two", 1))[2])}
	return s
}

func (s *shop) ready(within time.Duration) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, within)
	defer cancel()
	states, err := s.Watch(ctx, []manifest.Ref{web})
	if err != nil {
		s.t.Fatal(err)
	}
	var last platform.State
	for last = range states {
		if last.Ready {
			return
		}
	}
	s.t.Fatalf("web is not ready: %+v", last)
}

func (s *shop) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *shop) start() []platform.Change {
	s.t.Helper()
	changes, err := s.StartCanary(s.ctx, "d1/start", s.next, inNS)
	s.must(err)
	s.ready(time.Minute)
	return changes
}

// back takes a delivery back as the engine does: by its steps, last first, here some weights and the start before them. What
// the start has changed is as startCanary kept it.
func (s *shop) back(changes []platform.Change, weights ...string) {
	s.t.Helper()
	all := step.Simple(step.Ports{Platform: func(string) (platform.Platform, error) { return s.Platform, nil }})
	undo := func(kind, key string, args, saved any) {
		s.t.Helper()
		call := step.Call{Key: key, Delivery: "d1"}
		for to, v := range map[*json.RawMessage]any{&call.Args: args, &call.Saved: saved} {
			body, err := json.Marshal(v)
			s.must(err)
			*to = body
		}
		if _, err := all[kind].Undo(s.ctx, call); err != nil {
			s.t.Fatalf("the undo of %s: %v", kind, err)
		}
	}
	for _, w := range slices.Backward(weights) {
		undo(plan.KindSetWeight, "d1/"+w, plan.WeightArgs{Deployments: []manifest.Ref{web}, Timeout: 2 * time.Minute}, nil)
	}
	undo(plan.KindStartCanary, "d1", plan.ApplyArgs{Namespace: ns, Objects: s.next, Timeout: 2 * time.Minute},
		map[string]any{"begun": true, "ended": true, "changes": changes})
	s.asBefore()
}

// answers asks a Service a number of times, each time by a new connection, and returns how often each pod answered. A request
// that fails ends it.
func (s *shop) answers(service manifest.Ref, n int) (map[string]int, error) {
	s.t.Helper()
	c, at, pods := client(), "http://"+address(s.ctx, s.Platform, service), map[string]int{}
	for range n {
		req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, at, nil)
		s.must(err)
		resp, err := c.Do(req)
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%s answers with status %d: %s", service, resp.StatusCode, body)
		}
		pods[string(body)]++
	}
	return pods, nil
}

// byTwo counts the answers of the new version.
func byTwo(pods map[string]int) (n int) {
	for pod, times := range pods {
		if strings.HasPrefix(pod, "two") {
			n += times
		}
	}
	return n
}

// twos returns how often the new version answered. All requests must be.
func (s *shop) twos(service manifest.Ref, n int) int {
	s.t.Helper()
	all, err := s.answers(service, n)
	s.must(err)
	return byTwo(all)
}

// sampled waits until a sample of a hundred requests fits: the network follows the objects with a delay, in which it may lead to
// pods that are gone, too.
func (s *shop) sampled(service manifest.Ref, what string, fits func(pods map[string]int) bool) {
	s.t.Helper()
	var got map[string]int
	var err error
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		if got, err = s.answers(service, 100); err == nil && fits(got) {
			return
		}
	}
	s.t.Errorf("%s: %s is answered by %v (%v)", what, service, got, err)
}

// settles waits until the new version answers so many of a hundred.
func (s *shop) settles(service manifest.Ref, what string, least, most int) {
	s.t.Helper()
	s.sampled(service, fmt.Sprintf("%s, %d to %d of 100 by the new version", what, least, most), func(pods map[string]int) bool {
		return byTwo(pods) >= least && byTwo(pods) <= most
	})
}

// spreads waits until so many pods answer, the canary's one among them. Of five, one is silent for a hundred requests once in
// a billion times.
func (s *shop) spreads(service manifest.Ref, pods int) {
	s.t.Helper()
	s.sampled(service, fmt.Sprintf("%d pods, the canary's among them", pods), func(got map[string]int) bool {
		return len(got) == pods && byTwo(got) > 0
	})
}

func (s *shop) undo(changes []platform.Change) {
	s.t.Helper()
	s.must(s.Abort(s.ctx, "d1/abort", []manifest.Ref{web}))
	s.must(s.Revert(s.ctx, "d1/revert", changes))
	s.ready(time.Minute)
	s.asBefore()
}

// asBefore fails unless the shop is as it was, and belongs to whom it did.
func (s *shop) asBefore() {
	s.t.Helper()
	same(s.t, "after the rollback", snapshotOf(s.t, s.Platform), s.before)
	if owners := managersOf(s.t, s.Platform, web); owners["sluice/Update/"] != "" || owners["sluice/Apply/"] != "" || owners["sluice/Update/scale"] != "" {
		s.t.Errorf("fields still belong to Sluice: %v", owners)
	}
	s.settles(webService, "after the rollback", 0, 0)
}

// TestRatio measures the share of a quarter by many requests: at 1 of 4 pods it is 25 %, within four standard deviations of
// what chance gives, and at 0 % the canary gets none.
func TestRatio(t *testing.T) {
	s := newShop(t)
	started := make(chan struct{})
	leaked := make(chan int, 1)
	go func() {
		defer close(leaked)
		n := 0
		for {
			n += s.twos(webService, 20)
			select {
			case <-started:
				leaked <- n + s.twos(webService, 500)
				return
			default:
			}
		}
	}()
	changes := s.start()
	close(started)
	if got := <-leaked; got != 0 {
		t.Errorf("at 0 %% the canary answered %d times", got)
	}
	s.settles(webPreview, "the preview", 100, 100)
	s.must(s.SetWeight(s.ctx, "d1/25", []manifest.Ref{web}, 25))
	s.ready(time.Minute)
	s.spreads(webService, 4)
	const n, sd = 2400, 21
	got := s.twos(webService, n)
	t.Logf("at 25 %% the canary answered %d of %d", got, n)
	if got < n/4-4*sd || got > n/4+4*sd {
		t.Error("that is not the share of one pod of four")
	}
	s.undo(changes)
}

// TestPreviewLeadsElsewhere: a canary is not ready while its preview Service leads to anything else, too, for whoever tests it
// there would test that.
func TestPreviewLeadsElsewhere(t *testing.T) {
	s := newShop(t)
	elsewhere := `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: elsewhere, labels: {kubernetes.io/service-name: web-preview, endpointslice.kubernetes.io/managed-by: somebody}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [192.0.2.1]}]`
	by(t, s.Platform, "kubectl-create", elsewhere)
	changes, err := s.StartCanary(s.ctx, "d1/start", s.next, inNS)
	s.must(err)
	states, err := s.Watch(s.ctx, []manifest.Ref{web})
	s.must(err)
	taken := false
	for st := range states {
		switch {
		case st.Ready && !taken:
			t.Fatal("it is ready although its preview Service leads elsewhere")
		case st.Ready:
			s.undo(changes)
			return
		case !taken && strings.Contains(st.Message, "Service web-preview still leads to 192.0.2.1"):
			s.must(s.dynamic.Resource(endpointSlices()).Namespace(ns).Delete(s.ctx, "elsewhere", metav1.DeleteOptions{}))
			taken = true
		}
	}
	t.Fatal("the canary was not ready")
}

// TestRollbackOfEveryStep takes back a canary from each of its steps; also one whose promotion cannot become ready.
func TestRollbackOfEveryStep(t *testing.T) {
	refs := []manifest.Ref{web}
	for name, steps := range map[string]func(s *shop){
		"started": func(*shop) {},
		"half":    func(s *shop) { s.must(s.SetWeight(s.ctx, "d1/50", refs, 50)) },
		"whole": func(s *shop) {
			s.must(s.SetWeight(s.ctx, "d1/50", refs, 50))
			s.must(s.SetWeight(s.ctx, "d1/100", refs, 100))
		},
		"redirect": func(s *shop) {
			s.must(s.SetWeight(s.ctx, "d1/100", refs, 100))
			s.settles(webService, "redirected", 100, 100)
		},
		"promoted": func(s *shop) {
			s.must(s.SetWeight(s.ctx, "d1/100", refs, 100))
			s.must(s.Promote(s.ctx, "d1/promote", refs))
			s.settles(webService, "promoted", 100, 100)
			s.settles(webPreview, "promoted, by the preview", 100, 100)
		},
		"promotion cut short": func(s *shop) {
			s.must(s.SetWeight(s.ctx, "d1/50", refs, 50))
			ctx, cancel := context.WithTimeout(s.ctx, 300*time.Millisecond)
			defer cancel()
			if err := s.Promote(ctx, "d1/promote", refs); err == nil {
				s.t.Error("the promotion was not cut short")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			changes := s.start()
			steps(s)
			s.undo(changes)
		})
	}
}

// TestCanaryWithAClaim: what mounts a claim gets no canary, which would write to the same volume, and nothing is changed.
func TestCanaryWithAClaim(t *testing.T) {
	s := newShop(t)
	volumes := []string{"spec", "template", "spec", "volumes"}
	all, _, _ := unstructured.NestedSlice(s.next[0].Object, volumes...)
	all = append(all, map[string]any{"name": "data", "persistentVolumeClaim": map[string]any{"claimName": "data"}})
	s.must(unstructured.SetNestedSlice(s.next[0].Object, all, volumes...))
	_, err := s.StartCanary(s.ctx, "d1/start", s.next, inNS)
	for what, err := range map[string]error{"started": err, "asked beforehand": s.CheckCanary(s.ctx, s.next, nil, inNS)} {
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "mounts claim data, which its canary would share") {
			t.Errorf("%s: kind %q: %v", what, fault.KindOf(err), err)
		}
	}
	same(t, "after it was refused", snapshotOf(t, s.Platform), s.before)
}

// TestBrokenCanary: a version that cannot start is told at once, and the stable one serves all the while.
func TestBrokenCanary(t *testing.T) {
	s := newShop(t)
	spec, _, _ := unstructured.NestedSlice(s.next[0].Object, "spec", "template", "spec", "containers")
	spec[0].(map[string]any)["image"] = "nobody/knows:1"
	s.must(unstructured.SetNestedSlice(s.next[0].Object, spec, "spec", "template", "spec", "containers"))
	changes, err := s.StartCanary(s.ctx, "d1/start", s.next, inNS)
	s.must(err)
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	states, err := s.Watch(ctx, []manifest.Ref{web})
	s.must(err)
	var last platform.State
	for last = range states {
		if last.Failed {
			break
		}
	}
	if last.Reason != "ImagePullBackOff" || !strings.Contains(last.Message, "nobody/knows:1") {
		t.Errorf("%+v", last)
	}
	if err := s.SetWeight(s.ctx, "d1/w", []manifest.Ref{web}, 50); !fault.Is(err, fault.Invalid) {
		t.Errorf("traffic for what does not run: %v", err)
	}
	s.settles(webService, "meanwhile", 0, 0)
	s.undo(changes)
}

// TestFailedPromotion: a version that starts as a canary and not as the stable one is taken back by the steps in their order,
// where the first that is undone meets the pods that have failed.
func TestFailedPromotion(t *testing.T) {
	for name, weight := range map[string]int{"half": 50, "redirect": 100} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			s.onlyAsCanary()
			changes := s.start()
			s.must(s.SetWeight(s.ctx, "d1/weight", []manifest.Ref{web}, weight))
			if err := s.Promote(s.ctx, "d1/promote", []manifest.Ref{web}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "CrashLoopBackOff") {
				t.Fatalf("a promotion that cannot start: %v", err)
			}
			s.back(changes, "weight")
		})
	}
}

// onlyAsCanary has the next version start where its pods carry the canary's label, and nowhere else: its program has a name
// there, by that label.
func (s *shop) onlyAsCanary() {
	s.t.Helper()
	folder := theLab(s.t).folder
	s.must(os.Link(filepath.Join(folder, programName), filepath.Join(folder, string(platform.Canary))))
	s.t.Cleanup(func() { s.must(os.Remove(filepath.Join(folder, string(platform.Canary)))) })
	all, _, _ := unstructured.NestedSlice(s.next[0].Object, "spec", "template", "spec", "containers")
	c := all[0].(map[string]any)
	env, _ := c["env"].([]any)
	c["env"] = append(env, map[string]any{"name": "TRACK", "valueFrom": map[string]any{"fieldRef": map[string]any{"fieldPath": "metadata.labels['" + trackLabel + "']"}}})
	c["command"] = []any{"/sluice/$(TRACK)"}
	s.must(unstructured.SetNestedSlice(s.next[0].Object, all, "spec", "template", "spec", "containers"))
}

// TestCanaryDeleted deletes the canary while it has traffic: no later step passes as if there were a new version, and the old
// one comes back with all its replicas.
func TestCanaryDeleted(t *testing.T) {
	s := newShop(t)
	refs := []manifest.Ref{web}
	changes := s.start()
	s.must(s.SetWeight(s.ctx, "d1/50", refs, 50))
	c, err := s.canary(s.ctx, web)
	s.must(err)
	ref := manifest.Ref{Kind: "Deployment", Namespace: ns, Name: c.GetName()}
	s.must(s.dynamic.Resource(deployments()).Namespace(ns).Delete(s.ctx, ref.Name, metav1.DeleteOptions{}))
	s.must(s.await(s.ctx, ref, func(st platform.State) bool { return !st.Exists }))
	for what, err := range map[string]error{"more traffic": s.SetWeight(s.ctx, "d1/75", refs, 75), "the promotion": s.Promote(s.ctx, "d1/promote", refs)} {
		if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "somebody has deleted it") {
			t.Errorf("%s: kind %q: %v", what, fault.KindOf(err), err)
		}
	}
	s.back(changes, "50", "75")
}

// TestCanaryOfAnother: a delivery that was refused because another one has a canary leaves that one alone.
func TestCanaryOfAnother(t *testing.T) {
	s := newShop(t)
	changes := s.start()
	s.must(s.SetWeight(s.ctx, "d1/50", []manifest.Ref{web}, 50))
	if _, err := s.StartCanary(s.ctx, "d2/start", s.next, platform.Options{Namespace: ns, Delivery: "d2"}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second canary: %v", err)
	}
	s.must(s.Abort(s.ctx, "d2/abort", []manifest.Ref{web}))
	s.settles(webService, "after the other delivery was refused", 25, 75)
	s.undo(changes)
}
