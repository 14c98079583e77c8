package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/metrics"
	"github.com/sluice-cd/sluice/internal/metrics/prometheus"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/store"
	"github.com/sluice-cd/sluice/internal/store/sqlite"
)

// childVariable holds, in a process that is to be killed, what it is to do.
const childVariable = "SLUICE_TEST_ENGINE"

// order is what a child process is told.
type order struct {
	Dir    string    `json:"dir"`
	Shape  string    `json:"shape"`
	Hooks  string    `json:"hooks"` // URL of the receiver
	KillAt int64     `json:"killAt"`
	Base   time.Time `json:"base"` // when its clock began
}

// fuse kills the process at one of the points that it passes: nothing is flushed, closed or told.
type fuse struct {
	at     int64
	passed atomic.Int64
}

func (f *fuse) point() {
	if f.passed.Add(1) == f.at {
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			panic(err)
		}
		select {}
	}
}

// fused is a store that may blow right before and right after each commit.
type fused struct {
	engine.Store
	fuse *fuse
}

func (s fused) Create(ctx context.Context, spec delivery.Spec) (store.Revision, error) {
	s.fuse.point()
	defer s.fuse.point()
	return s.Store.Create(ctx, spec)
}

func (s fused) Swap(ctx context.Context, id string, at store.Revision, st delivery.Status, r []store.Record) (store.Revision, error) {
	s.fuse.point()
	defer s.fuse.point()
	return s.Store.Swap(ctx, id, at, st, r)
}

func (s fused) Signal(ctx context.Context, id string, sig delivery.Signal) (bool, error) {
	s.fuse.point()
	defer s.fuse.point()
	return s.Store.Signal(ctx, id, sig)
}

// fusedTransport may blow when a webhook has been answered and nobody knows.
type fusedTransport struct{ fuse *fuse }

func (t fusedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := http.DefaultTransport.RoundTrip(r)
	t.fuse.point()
	return res, err
}

// hurried is a clock that runs two hundred times as fast and goes on where it was after a restart.
type hurried struct{ base time.Time }

const hurry = 200

func (c hurried) Now() time.Time { return c.base.Add(hurry * time.Since(c.base)).UTC() }

func (c hurried) After(d time.Duration) (<-chan time.Time, func()) {
	return engine.Wall{}.After(d / hurry)
}

// TestMain is the child where it is told to be one.
func TestMain(m *testing.M) {
	told := os.Getenv(childVariable)
	if told == "" {
		os.Exit(m.Run())
	}
	if err := child([]byte(told)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// child carries the delivery of one shape out, until it is done or the fuse blows.
func child(told []byte) error {
	var o order
	if err := json.Unmarshal(told, &o); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	f := &fuse{at: o.KillAt}
	db, err := sqlite.Open(ctx, filepath.Join(o.Dir, "sluice.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	rec, err := openRecorder(o.Dir, f, db)
	if err != nil {
		return err
	}
	prom, err := prometheus.New(prometheus.Config{URL: o.Hooks})
	if err != nil {
		return err
	}
	e := engine.New(engine.Options{Store: fused{db, f}, Clock: hurried{o.Base}, Steps: step.Simple(step.Ports{
		Platform: func(string) (platform.Platform, error) { return rec, nil },
		Metrics:  func(string) (metrics.Provider, error) { return prom, nil },
		Secret:   func(name string) (string, error) { return "secret-of-" + name, nil },
		Callback: func(key string) string { return "http://sluice/" + url.PathEscape(key) },
		HTTP:     &http.Client{Transport: fusedTransport{f}},
	})})
	stop, err := listen(o.Dir, e)
	if err != nil {
		return err
	}
	defer stop()
	events, err := db.Watch(ctx)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	s := shapes()[o.Shape]
	if err := e.Start(ctx, s.spec(o.Hooks)); err != nil && !fault.Is(err, fault.Conflict) { // it exists after a kill
		return err
	}
	if err := drive(ctx, o, s, e, db, events); err != nil {
		return err
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		return err
	}
	fmt.Println(f.passed.Load())
	return nil
}

// drive does what people do in this shape, until the delivery is done.
func drive(ctx context.Context, o order, s shape, e *engine.Engine, db engine.Store, events <-chan store.Event) error {
	for {
		d, err := db.Load(ctx, "d")
		if err != nil {
			return err
		}
		if d.Status.Done {
			return nil
		}
		if s.people != nil {
			sig := s.people(d.Spec, d.Status)
			if sig.Kind == delivery.Retry {
				if err := os.WriteFile(filepath.Join(o.Dir, "unstuck"), nil, 0o600); err != nil {
					return err
				}
			}
			if sig.Kind != "" {
				if _, err := e.Signal(ctx, "d", sig); err != nil && !fault.Is(err, fault.Conflict) {
					return err
				}
			}
		}
		if _, ok := <-events; !ok {
			return ctx.Err()
		}
	}
}

// listen takes callbacks in on a socket in the directory, which is the same after a restart. A callback is acknowledged
// when it is kept, or when its step no longer waits.
func listen(dir string, e *engine.Engine) (func(), error) {
	path := filepath.Join(dir, "socket")
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/d/"), "/1/callback")
		_, err := e.Signal(r.Context(), "d", delivery.Signal{Kind: delivery.Callback, Key: "callback/" + path, Path: path,
			Data: map[string]string{"success": r.URL.Query().Get("success"), "mdMessage": "the job is done"}})
		if err != nil && !fault.Is(err, fault.Conflict) {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})}
	go func() { _ = server.Serve(l) }()
	return func() { _ = server.Close() }, nil
}
