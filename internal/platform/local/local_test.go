package local

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/platformtest"
)

const nodeEnv = "SLUICE_TEST_NODE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(nodeEnv); dir != "" {
		os.Unsetenv(nodeEnv)
		if err := RunNode(context.Background(), dir, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
			slog.Error("node", "error", err)
			os.Exit(1)
		}
		return
	}
	if platformtest.Program() {
		return
	}
	os.Exit(m.Run())
}

func connect(t *testing.T) *Platform {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "node")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p, err := Connect(t.Context(), Config{Dir: dir, Account: "test", Images: map[string][]string{"program": {self}},
		NodeCommand: []string{"/usr/bin/env", nodeEnv + "=" + dir, self}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if left, err := marked(dir); err != nil || len(left) > 0 {
			t.Errorf("after the shutdown %v still run (%v)", left, err)
		}
	})
	return p
}

func (p *Platform) serviceAddress(t *testing.T, ref manifest.Ref) string {
	s, err := loadState(p.c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	r := s.Objects[key(ref)]
	return net.JoinHostPort(s.Addresses[key(ref)], strconv.Itoa(servicePorts(r.Object)[0].listen))
}

func TestConformance(t *testing.T) {
	t.Parallel()
	platformtest.Run(t, func(t *testing.T) platformtest.Harness {
		p := connect(t)
		return platformtest.Harness{Platform: p, Image: "program",
			URL:     func(_ context.Context, s manifest.Ref) string { return "http://" + p.serviceAddress(t, s) },
			Address: func(_ context.Context, s manifest.Ref) string { return p.serviceAddress(t, s) }}
	})
}

// TestNodeKilled kills the node: its successor goes on with the same processes.
func TestNodeKilled(t *testing.T) {
	t.Parallel()
	p := connect(t)
	objects := []manifest.Object{}
	for _, text := range []string{`{"apiVersion":"v1","kind":"Service","metadata":{"name":"echo"},"spec":{"selector":{"app":"echo"},"ports":[{"port":7000}]}}`,
		`{"apiVersion":"apps/v1","kind":"StatefulSet","metadata":{"name":"echo"},"spec":{"replicas":1,"template":{"metadata":{"labels":{"app":"echo"}},
		"spec":{"containers":[{"name":"echo","image":"program","env":[{"name":"SLUICE_TEST_PROGRAM","value":"echo"}],"readinessProbe":{"tcpSocket":{"port":7000}}}]}}}}`} {
		o := manifest.Object{Origin: "test.yaml:1"}
		if err := o.Unstructured.UnmarshalJSON([]byte(text)); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	if _, err := p.Apply(t.Context(), "a", objects, platform.Options{Namespace: "n"}); err != nil {
		t.Fatal(err)
	}
	ref := manifest.Ref{Kind: "StatefulSet", Namespace: "n", Name: "echo"}
	untilReady := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		states, err := p.Watch(ctx, []manifest.Ref{ref})
		if err != nil {
			t.Fatal(err)
		}
		for s := range states {
			if s.Ready {
				return
			}
		}
		t.Fatal("the workload did not become ready")
	}
	untilReady()
	before, err := marked(p.c.Dir)
	if err != nil || len(before) != 1 {
		t.Fatalf("%v, %v", before, err)
	}
	if err := syscall.Kill(nodePID(t, p.c.Dir), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	untilReady()
	after, err := marked(p.c.Dir)
	if err != nil || len(after) != 1 || after[0].pid != before[0].pid {
		t.Errorf("before %v, after %v (%v): the pod was not adopted", before, after, err)
	}
	c, err := p.Dial(t.Context(), manifest.Ref{Kind: "Service", Namespace: "n", Name: "echo"}, "")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// nodePID finds the node by the socket's directory in its environment.
func nodePID(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		env, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		if strings.Contains(string(env), nodeEnv+"="+dir+"\x00") && !strings.Contains(string(env), markPod) {
			return pid
		}
	}
	t.Fatal("the node is not found")
	return 0
}
