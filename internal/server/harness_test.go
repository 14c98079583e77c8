package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/store"
	"github.com/sluice-cd/sluice/internal/store/sqlite"
)

// childEnv makes the test binary be a server of that directory.
const childEnv = "SLUICE_TEST_SERVER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := serve(ctx, dir, server.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv(userEnv) != "" {
		askAsAnother()
		return
	}
	os.Exit(m.Run())
}

// serve runs a real server with the real steps that need no platform.
func serve(ctx context.Context, dir string, o server.Options) error {
	o.Dir = dir
	s, err := server.Open(o)
	if err != nil {
		return err
	}
	defer s.Close()
	st, err := sqlite.Open(ctx, filepath.Join(dir, "sluice.db"))
	if err != nil {
		return err
	}
	defer st.Close()
	return s.Run(ctx, server.Work{Store: st, Steps: step.Simple(step.Ports{Callback: s.Callback, HTTP: http.DefaultClient})})
}

// command starts the test binary as the server of a directory.
func command(t *testing.T, dir string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{"/usr/bin/env", childEnv + "=" + dir, self}
}

const within = time.Minute

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	t.Cleanup(cancel)
	return ctx
}

// inProcess runs a server in this process and returns a client of it.
func inProcess(t *testing.T, o server.Options) (*server.Client, string) {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, dir, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server ended: %v", err)
		}
	})
	return await(t, dir, ended), dir
}

// await returns a client once the server of a directory answers.
func await(t *testing.T, dir string, ended <-chan error) *server.Client {
	t.Helper()
	ctx := limited(t)
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		c, err := server.Connect(ctx, dir)
		if err == nil {
			return c
		}
		select {
		case e := <-ended:
			t.Fatalf("the server ended: %v", e)
		case <-ctx.Done():
			t.Fatalf("the server does not answer: %v", err)
		case <-look.C:
		}
	}
}

// detached starts a server as the command line does. It is stopped with the test.
func detached(t *testing.T, dir string) *server.Client {
	t.Helper()
	c, err := server.EnsureRunning(limited(t), dir, command(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		c, err := server.Connect(ctx, dir)
		if err != nil {
			return // the test has ended it
		}
		if _, err := c.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return c
}

func info(t *testing.T, c *server.Client) server.Info {
	t.Helper()
	i, err := c.Info(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// token is what opens the API on TCP.
func token(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "api.token"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func node(t *testing.T, path, kind string, args any, after ...string) plan.Node {
	t.Helper()
	raw, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	return plan.Node{Path: path, Title: path, Target: "prod eu (blue)", Phase: plan.Before, Kind: kind, Args: raw, After: after}
}

func spec(id string, nodes ...plan.Node) delivery.Spec {
	return delivery.Spec{ID: id, Application: "app " + id, Graph: plan.Graph{Targets: []plan.Target{{Name: "prod eu (blue)"}}, Nodes: nodes}}
}

func start(t *testing.T, c *server.Client, s delivery.Spec) {
	t.Helper()
	if err := c.Start(limited(t), s); err != nil {
		t.Fatal(err)
	}
}

// until watches a delivery until it is as wanted.
func until(t *testing.T, c *server.Client, id string, ok func(store.Delivery) bool) store.Delivery {
	t.Helper()
	ctx, cancel := context.WithCancel(limited(t))
	defer cancel()
	var last store.Delivery
	found := false
	err := c.Watch(ctx, id, func(e server.Event) {
		if e.Delivery != nil && !found {
			last = *e.Delivery
			if found = ok(last); found {
				cancel()
			}
		}
	})
	if !found {
		t.Fatalf("delivery %s is not as wanted: %v, %+v", id, err, last.Status)
	}
	return last
}

func done(d store.Delivery) bool { return d.Status.Done }

func waits(path string) func(store.Delivery) bool {
	return func(d store.Delivery) bool { return d.Status.Nodes[path].Phase == delivery.StepWaiting }
}

// receiver is a job that is triggered by webhooks: it hands on the callback URLs that it was given.
func receiver(t *testing.T) (url string, callbacks <-chan string) {
	t.Helper()
	ch := make(chan string, 16)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		ch <- string(body)
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, ch
}

func webhook(t *testing.T, path, url string, after ...string) plan.Node {
	t.Helper()
	return node(t, path, plan.KindWebhook, plan.WebhookArgs{Name: path, Method: "POST", URI: url, Body: "{{armory.callbackUri}}/callback"}, after...)
}

// post sends a body and returns the status and the answer.
func post(t *testing.T, url, body string, headers ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(limited(t), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return do(t, req)
}

func do(t *testing.T, req *http.Request) (int, string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func next(t *testing.T, ch <-chan string) string {
	t.Helper()
	select {
	case s := <-ch:
		return s
	case <-limited(t).Done():
		t.Fatal("the webhook was not sent")
		return ""
	}
}
