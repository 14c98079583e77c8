package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

const echo = `
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {selector: {app: echo}, ports: [{port: 7000}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: echo}
spec:
  replicas: 1
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 30
      containers:
      - {name: echo, image: program, env: [{name: SLUICE_TEST_PROGRAM, value: echo}, {name: VERSION, value: one}], readinessProbe: {tcpSocket: {port: 7000}}}`

// pooled opens a connection as a client's pool does, and uses it once.
func (p *Platform) pooled(t *testing.T) (net.Conn, *bufio.Reader) {
	t.Helper()
	p.put(t, "a", echo)
	p.until(t, ref("StatefulSet", "echo"), "ready", isReady)
	at, err := p.Address(t.Context(), ref("Service", "echo"), "")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	fmt.Fprintln(c, "hello")
	if line, err := in.ReadString('\n'); err != nil || line != "one\n" {
		t.Fatal(line, err)
	}
	return c, in
}

// TestPooledConnection: a database is stopped at once although its clients keep idle connections, whatever its grace.
func TestPooledConnection(t *testing.T) {
	t.Parallel()
	p := connect(t)
	_, in := p.pooled(t)
	begun := time.Now()
	if err := p.Scale(t.Context(), "s", ref("StatefulSet", "echo"), 0); err != nil {
		t.Fatal(err)
	}
	p.until(t, ref("StatefulSet", "echo"), "stopped", func(s platform.State) bool { return s.Stopped })
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %s to stop", took)
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the client was not told: %v", err)
	}
}

// TestHeldConnection: a closed Service holds open connections, too: what their clients ask meanwhile does not get through
// before it opens.
func TestHeldConnection(t *testing.T) {
	t.Parallel()
	p := connect(t)
	c, in := p.pooled(t)
	service := []manifest.Ref{ref("Service", "echo")}
	time.Sleep(5 * pondering) // the answer is over when nothing more has come for a while: that is the rule that is tested
	if err := p.Close(t.Context(), "c", service); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(c, "hello")
	if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if line, err := in.ReadString('\n'); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a closed Service let it through: %q, %v", line, err)
	}
	if err := p.Open(t.Context(), "o", service); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	if line, err := in.ReadString('\n'); err != nil || line != "one\n" {
		t.Errorf("after it opened: %q, %v", line, err)
	}
}

// TestFenced: what a client asks behind a fence never reaches the pod that is being stopped; the client is told.
func TestFenced(t *testing.T) {
	t.Parallel()
	p := connect(t)
	c, in := p.pooled(t)
	time.Sleep(5 * pondering)
	if err := p.Close(t.Context(), "c", []manifest.Ref{ref("Service", "echo")}); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(c, "hello")
	if err := p.Scale(t.Context(), "s", ref("StatefulSet", "echo"), 0); err != nil {
		t.Fatal(err)
	}
	if b, err := in.ReadByte(); err == nil {
		t.Errorf("got an answer: %q", b)
	}
	p.until(t, ref("StatefulSet", "echo"), "stopped", func(s platform.State) bool { return s.Stopped })
}

// beside has a Deployment whose versions "one" and "two" run side by side, the new one without traffic.
func (p *Platform) beside(t *testing.T) manifest.Ref {
	t.Helper()
	p.put(t, "a", fmt.Sprintf(web, 1, "one"))
	d := ref("Deployment", "web")
	p.until(t, d, "ready", isReady)
	second := parse(t, fmt.Sprintf(web, 1, "two"))[1:]
	named := platform.Options{Namespace: "n", Annotate: map[string]string{"deploy.armory.io/replica-set-name": "web-second"}}
	if _, err := p.StartCanary(t.Context(), "c", second, named); err != nil {
		t.Fatal(err)
	}
	p.until(t, d, "ready with the canary", func(s platform.State) bool { return s.Ready && s.Replicas == 2 })
	return d
}

// TestUnnamedPort: a port without a name carries HTTP request by request where its pods are probed by HTTP, so that the
// share of a canary is one of requests even over one connection.
func TestUnnamedPort(t *testing.T) {
	t.Parallel()
	p := connect(t)
	d := p.beside(t)
	if err := p.SetWeight(t.Context(), "w", []manifest.Ref{d}, 25); err != nil {
		t.Fatal(err)
	}
	at, err := p.Address(t.Context(), ref("Service", "web"), "80")
	if err != nil || !strings.HasSuffix(at, ":8080") {
		t.Fatal(at, err)
	}
	s := p.until(t, ref("Service", "web"), "ready", isReady)
	if !strings.Contains(s.Message, at+" (its port 80)") {
		t.Errorf("the mapped port is not told: %+v", s)
	}
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	two := 0
	for range 100 {
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: web\r\n\r\n")
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(body), "two") {
			two++
		}
	}
	if two != 25 {
		t.Errorf("of 100 requests the canary got %d", two)
	}
	p.counted(t)
}

// TestWeightInForce: once a weight is told to be set the next request is shared by it, and where the new version has all of
// the traffic nothing goes to the old one, not even while no pod of the new one is ready.
func TestWeightInForce(t *testing.T) {
	t.Parallel()
	p := connect(t)
	d := p.beside(t)
	at, err := p.Address(t.Context(), ref("Service", "web"), "80")
	if err != nil {
		t.Fatal(err)
	}
	of := func(n int, weight int, want string) {
		t.Helper()
		if err := p.SetWeight(t.Context(), fmt.Sprintf("w%d", n), []manifest.Ref{d}, weight); err != nil {
			t.Fatal(err)
		}
		if got := get(t, at); !strings.HasPrefix(got, want) {
			t.Fatalf("after the weight %d, the %d. that was set, %q answers", weight, n, got)
		}
	}
	for n := 0; n < 100; n += 2 {
		of(n, 100, "two")
		of(n+1, 0, "one")
	}
	of(100, 100, "two")
	pid := 0
	if _, err := fmt.Sscan(strings.TrimPrefix(get(t, at), "two "), &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(within); ; {
		got, next := get(t, at), 0
		if strings.HasPrefix(got, "one") {
			t.Fatal("while the new version restarted the old one answered")
		}
		// What the process that was killed had accepted has failed with it.
		if _, err := fmt.Sscan(strings.TrimPrefix(got, "two "), &next); err == nil && next != pid {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the new version does not come back: %q", got)
		}
	}
}

// get asks over a connection of its own.
func get(t *testing.T, at string) string {
	t.Helper()
	client := &http.Client{Timeout: within, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + at)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// counted checks the counters of the requests before: by track, with codes and latencies.
func (p *Platform) counted(t *testing.T) {
	t.Helper()
	url, err := p.MetricsURL(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`sluice_service_requests_total{code="200",namespace="n",replica_set="web-second",service="web",track="canary"} 25`,
		`sluice_service_requests_total{code="200",namespace="n",replica_set="",service="web",track="stable"} 75`,
		`sluice_service_request_duration_seconds_count{namespace="n",replica_set="web-second",service="web",track="canary"} 25`,
		`sluice_service_request_duration_seconds_count{namespace="n",replica_set="",service="web",track="stable"} 75`,
	} {
		if !strings.Contains(string(body), want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
}

// TestBrokenAnswer: a pod that breaks an answer off has failed that request, and is not waited for when it is stopped.
func TestBrokenAnswer(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", strings.Replace(fmt.Sprintf(web, 1, "one"), "value: http", "value: broken", 1))
	d := ref("Deployment", "web")
	p.until(t, d, "ready", isReady)
	at, err := p.Address(t.Context(), ref("Service", "web"), "")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + at + "/break")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("the answer was whole")
	}
	begun := time.Now()
	if err := p.Scale(t.Context(), "s", d, 0); err != nil {
		t.Fatal(err)
	}
	p.until(t, d, "stopped", func(s platform.State) bool { return s.Stopped })
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("it took %s to stop", took)
	}
	url, err := p.MetricsURL(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Body.Close()
	body, err := io.ReadAll(m.Body)
	if err != nil || !strings.Contains(string(body), `code="502"`) {
		t.Errorf("the failure was not counted: %s, %v", body, err)
	}
}

// TestPortTaken: where a port of a Service is taken nothing of the call is kept, and the Service listens as it did.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", fmt.Sprintf(web, 1, "one"))
	p.until(t, ref("Deployment", "web"), "ready", isReady)
	at, err := p.Address(t.Context(), ref("Service", "web"), "")
	if err != nil {
		t.Fatal(err)
	}
	host, _, _ := net.SplitHostPort(at)
	l, err := net.Listen("tcp", host+":9090")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	next := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: first}\n---" + strings.Replace(fmt.Sprintf(web, 1, "two"), "port: 80,", "port: 9090,", 1)
	_, err = p.Apply(t.Context(), "b", parse(t, next), platform.Options{Namespace: "n"})
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "9090") || !strings.Contains(err.Error(), "give the Service another port") {
		t.Errorf("%v", err)
	}
	if _, err := p.Get(t.Context(), ref("ConfigMap", "first")); !fault.Is(err, fault.NotFound) {
		t.Errorf("half of the call was kept: %v", err)
	}
	if got := p.answer(t); !strings.HasPrefix(got, "one") {
		t.Error(got)
	}
}

// TestShutDownTold: who watches a node that is shut down does not start a successor.
func TestShutDownTold(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", fmt.Sprintf(web, 1, "one"))
	p.until(t, ref("Deployment", "web"), "ready", isReady)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	states, err := p.Watch(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	var last platform.State
	for last = range states {
	}
	if last.Reason != shutDown || ctx.Err() != nil {
		t.Errorf("the watch ended with %+v, %v", last, ctx.Err())
	}
	if all, err := marked(p.c.Dir); err != nil || len(all) > 0 {
		t.Errorf("still running: %v, %v", all, err)
	}
}
