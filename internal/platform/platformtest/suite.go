// Package platformtest is the conformance suite of package platform: every implementation runs it.
package platformtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// Harness gives the suite a platform of its own, and how it is reached and its programs are named there.
type Harness struct {
	Platform platform.Platform
	Image    string                                                 // of the program, see Program
	URL      func(ctx context.Context, service manifest.Ref) string // an HTTP Service as clients reach it
	Address  func(ctx context.Context, service manifest.Ref) string // any other, host:port

	// What follows is for a platform that is not this machine; the zero values fit one that is.
	Adapt   func(o manifest.Object) manifest.Object // makes the suite's objects run there
	Client  *http.Client                            // asks the HTTP Service
	Chance  bool                                    // pods and connections are shared out, not requests: shares are exact only in the mean
	Pulls   bool                                    // an image that nobody knows is found out when a pod starts
	Refuses bool                                    // a closed Service refuses connections and does not hold them
	Drain   int                                     // for how many seconds a pod serves on after it was told to end
	Within  time.Duration                           // every state is reached by then
}

const within = 30 * time.Second

func (h Harness) within() time.Duration { return max(h.Within, within) }

func (h Harness) client() *http.Client {
	if h.Client == nil {
		return http.DefaultClient
	}
	return h.Client
}

// objects are parsed and made to run on the platform.
func (h Harness) objects(t *testing.T, text string, args ...any) []manifest.Object {
	t.Helper()
	all := objects(t, text, args...)
	if h.Adapt != nil {
		for i, o := range all {
			all[i] = h.Adapt(o)
		}
	}
	return all
}

// deployment is a version of the web server.
func (h Harness) deployment(t *testing.T, replicas int, image, version string) []manifest.Object {
	t.Helper()
	text := webDeployment
	if h.Drain > 0 {
		text = strings.Replace(text, "terminationGracePeriodSeconds: 5", fmt.Sprintf("terminationGracePeriodSeconds: %d", h.Drain+5), 1) +
			fmt.Sprintf("\n        lifecycle: {preStop: {sleep: {seconds: %d}}}", h.Drain)
	}
	return h.objects(t, text, replicas, image, version)
}

// Run runs every test; those of optional abilities where the platform has them.
func Run(t *testing.T, make func(t *testing.T) Harness) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Harness)
	}{
		{"apply, watch, revert", applyRevert}, {"a key is used once", keys}, {"dial reaches a ready pod", dial}, {"a Job ends", jobs},
		{"what cannot start says why", cannotStart}, {"a rollout loses no request", rollout}, {"weights are shares of requests", weights},
		{"an aborted canary leaves no trace", abort}, {"a fence holds and loses nothing", fence}, {"delete refuses what is another's", deleteOthers},
		{"logs are kept", logs},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, make(t)) })
	}
}

func objects(t *testing.T, text string, args ...any) []manifest.Object {
	t.Helper()
	var out []manifest.Object
	for _, doc := range strings.Split(fmt.Sprintf(text, args...), "\n---\n") {
		o := manifest.Object{Origin: "suite.yaml:1"}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatal(err)
		}
		out = append(out, o)
	}
	return out
}

const webService = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 8080}]`

const webDeployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: %s
        env: [{name: SLUICE_TEST_PROGRAM, value: http}, {name: VERSION, value: %q}]
        readinessProbe: {httpGet: {path: /, port: 8080}}`

const echo = `
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports: [{name: line, port: 7000}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: echo}
spec:
  replicas: 1
  serviceName: echo
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: echo
        image: %s
        env: [{name: SLUICE_TEST_PROGRAM, value: echo}, {name: VERSION, value: one}]
        readinessProbe: {tcpSocket: {port: 7000}}
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}`

var (
	web   = manifest.Ref{Kind: "Deployment", Namespace: "suite", Name: "web"}
	webs  = manifest.Ref{Kind: "Service", Namespace: "suite", Name: "web"}
	ech   = manifest.Ref{Kind: "StatefulSet", Namespace: "suite", Name: "echo"}
	echos = manifest.Ref{Kind: "Service", Namespace: "suite", Name: "echo"}
	opts  = platform.Options{Namespace: "suite", Delivery: "d1"}
)

func (h Harness) apply(t *testing.T, key string, o []manifest.Object) []platform.Change {
	t.Helper()
	c, err := h.Platform.Apply(t.Context(), key, o, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// until waits for a state of one object.
func (h Harness) until(t *testing.T, ref manifest.Ref, what string, ok func(platform.State) bool) platform.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), h.within())
	defer cancel()
	states, err := h.Platform.Watch(ctx, []manifest.Ref{ref})
	if err != nil {
		t.Fatal(err)
	}
	var last platform.State
	for s := range states {
		if last = s; ok(s) {
			return s
		}
	}
	t.Fatalf("%s is not %s: %+v", ref, what, last)
	return last
}

func ready(s platform.State) bool { return s.Ready }

func (h Harness) get(t *testing.T, client *http.Client) (string, error) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.URL(t.Context(), webs), strings.NewReader("body"))
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, body)
	}
	return string(body), err
}

// answers fails unless the Service answers with a version. Where changes reach a Service with a delay, it is asked again for
// a while.
func (h Harness) answers(t *testing.T, version string) {
	t.Helper()
	h.eventually(t, "answer "+version, func() (string, bool) {
		got, err := h.get(t, h.client())
		return fmt.Sprintf("%q, %v", got, err), err == nil && strings.HasPrefix(got, version)
	})
}

// eventually tries once, or, where the platform's network follows its objects with a delay, for a while.
func (h Harness) eventually(t *testing.T, what string, try func() (string, bool)) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(within); ; <-tick.C {
		got, ok := try()
		if ok {
			return
		}
		if !h.Chance || time.Now().After(end) {
			t.Fatalf("want %s, got %s", what, got)
		}
	}
}

func applyRevert(t *testing.T, h Harness) {
	h.apply(t, "a", h.objects(t, webService))
	h.apply(t, "b", h.deployment(t, 2, h.Image, "one"))
	if s := h.until(t, web, "ready", ready); s.Replicas != 2 {
		t.Errorf("%d replicas run, want 2", s.Replicas)
	}
	changes := h.apply(t, "c", h.deployment(t, 1, h.Image, "two"))
	if len(changes) != 1 || changes[0].Created || changes[0].PreImage == nil {
		t.Fatalf("changes %+v", changes)
	}
	h.until(t, web, "ready with one replica", func(s platform.State) bool { return s.Ready && s.Replicas == 1 })
	h.answers(t, "two ")
	if err := h.Platform.Revert(t.Context(), "r", changes); err != nil {
		t.Fatal(err)
	}
	h.until(t, web, "back", func(s platform.State) bool { return s.Ready && s.Replicas == 2 })
	h.answers(t, "one ")
	missing := manifest.Ref{Kind: "Deployment", Namespace: "suite", Name: "none"}
	if s := h.until(t, missing, "sent", func(platform.State) bool { return true }); s.Exists {
		t.Error("what does not exist is said to exist")
	}
}

func keys(t *testing.T, h Harness) {
	first := h.apply(t, "a", h.deployment(t, 1, h.Image, "one"))
	h.until(t, web, "ready", ready)
	again := h.apply(t, "a", h.deployment(t, 1, h.Image, "two"))
	if !first[0].Created || !again[0].Created {
		t.Errorf("the same key gives %+v and %+v", first, again)
	}
	h.apply(t, "s", h.objects(t, webService))
	h.answers(t, "one ")
}

func dial(t *testing.T, h Harness) {
	h.apply(t, "a", h.objects(t, echo, h.Image))
	h.until(t, ech, "ready", ready)
	c, err := h.Platform.Dial(t.Context(), echos, "line")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := say(t, c); got != "one" {
		t.Errorf("got %q", got)
	}
	if _, err := h.Platform.Dial(t.Context(), manifest.Ref{Kind: "Service", Namespace: "suite", Name: "none"}, ""); !fault.Is(err, fault.NotFound) {
		t.Errorf("a Service that does not exist: %v", err)
	}
}

func say(t *testing.T, c net.Conn) string {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(c, "?")
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(buf[:n]))
}

const job = `
apiVersion: batch/v1
kind: Job
metadata: {name: %s}
spec:
  backoffLimit: 1
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: job, image: %s, env: [{name: SLUICE_TEST_PROGRAM, value: %s}]}`

func jobs(t *testing.T, h Harness) {
	h.apply(t, "a", append(h.objects(t, job, "good", h.Image, "ok"), h.objects(t, job, "bad", h.Image, "fail")...))
	h.until(t, manifest.Ref{Kind: "Job", Namespace: "suite", Name: "good"}, "complete", ready)
	s := h.until(t, manifest.Ref{Kind: "Job", Namespace: "suite", Name: "bad"}, "failed", func(s platform.State) bool { return s.Failed })
	if !strings.Contains(s.Message, "nothing is well") || !strings.Contains(s.Message, "exit code 3") {
		t.Errorf("the message tells neither the exit code nor the last lines: %s", s.Message)
	}
}

func cannotStart(t *testing.T, h Harness) {
	_, err := h.Platform.Apply(t.Context(), "a", h.deployment(t, 1, "nobody/knows:1", "x"), opts)
	if h.Pulls {
		s := h.until(t, web, "failed", func(s platform.State) bool { return s.Failed })
		if err != nil || s.Reason != "ImagePullBackOff" || !strings.Contains(s.Message, "nobody/knows:1") {
			t.Errorf("an image that nobody knows: %v, %+v", err, s)
		}
	} else if err == nil || !strings.Contains(err.Error(), "command") || !strings.Contains(err.Error(), "suite.yaml") {
		t.Errorf("a container without a command: %v", err)
	}
	h.apply(t, "b", h.objects(t, strings.Replace(webDeployment, "value: http", "value: fail", 1), 1, h.Image, "x"))
	s := h.until(t, web, "failed", func(s platform.State) bool { return s.Failed })
	if s.Reason != "CrashLoopBackOff" || !strings.Contains(s.Message, "nothing is well") {
		t.Errorf("%+v", s)
	}
}

// load asks without a pause until it is told to stop, and counts by version.
func (h Harness) load(t *testing.T) (stop func() map[string]int) {
	var mu sync.Mutex
	counts := map[string]int{}
	var failed atomic.Value
	end := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			client := h.Client
			if client == nil {
				client = &http.Client{Transport: &http.Transport{}}
				defer client.CloseIdleConnections()
			}
			for {
				select {
				case <-end:
					return
				default:
				}
				got, err := h.get(t, client)
				if err != nil {
					failed.Store(err)
					return
				}
				v, _, _ := strings.Cut(got, " ")
				mu.Lock()
				counts[v]++
				mu.Unlock()
			}
		})
	}
	return func() map[string]int {
		close(end)
		wg.Wait()
		if err := failed.Load(); err != nil {
			t.Errorf("a request failed: %v", err)
		}
		return counts
	}
}

func rollout(t *testing.T, h Harness) {
	h.apply(t, "a", append(h.objects(t, webService), h.deployment(t, 2, h.Image, "one")...))
	h.until(t, web, "ready", ready)
	stop := h.load(t)
	h.apply(t, "b", h.deployment(t, 2, h.Image, "two"))
	h.until(t, web, "on the new version", func(s platform.State) bool { return s.Ready })
	h.answers(t, "two ")
	if n := stop(); n["one"] == 0 || n["two"] == 0 {
		t.Errorf("requests by version: %v", n)
	}
}
