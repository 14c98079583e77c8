// Package controller carries the deliveries of a cluster: it is elected by a Lease, admits what people create, runs the
// engine, and takes in the callbacks of webhooks.
package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/lease"
	cluster "github.com/sluice-cd/sluice/internal/platform/kubernetes"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/store"
	"github.com/sluice-cd/sluice/internal/store/kubernetes"
)

// LeaseName is what the Lease is called that the controllers of a namespace are elected by.
const LeaseName = "sluice-controller"

// keySecret holds what callback URLs are signed with.
const keySecret = "sluice-callback-key"

// Options say which controller it is.
type Options struct {
	Credentials *rest.Config
	Namespace   string // where deliveries are
	Identity    string // of this process; no other has it

	Duration, Deadline, Retry time.Duration // of the Lease, see lease.Config

	Listen string // host:port for health, metrics and callbacks
	URL    string // what callback URLs begin with
	Roles  func(user string) []string
	// Steps makes the steps that this program can do, and the locks of what they change. What is guarded sends nothing once this process no longer leads.
	Steps func(callback func(key string) string, guard Guard) (map[string]step.Step, engine.Locks)
	// Shown, where it is set, is told what the process shows to everybody, before the steps are made.
	Shown func(*server.Front)
	// Beside, where it is set, runs beside the engine while this process leads.
	Beside func(context.Context, engine.Store)
	Log    *slog.Logger
}

// Guard stands before what a process sends: requests, and writes to connections.
type Guard struct {
	Wrap func(http.RoundTripper) http.RoundTripper
	Conn func(net.Conn) net.Conn
}

// controller is one process that takes part.
type controller struct {
	o      Options
	leader *lease.Leader
	store  *kubernetes.Store
	engine *engine.Engine
}

// Run takes part in the election and carries the deliveries whenever this process leads. It returns nil when ctx ends, and
// an error where this process lost the Lease: then it must end, and another one be started.
func Run(ctx context.Context, o Options) error {
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	c := &controller{o: o}
	var err error
	if c.leader, err = lease.New(lease.Config{Credentials: o.Credentials, Namespace: o.Namespace, Name: LeaseName, Identity: o.Identity,
		Duration: o.Duration, Deadline: o.Deadline, Retry: o.Retry, Log: o.Log}); err != nil {
		return err
	}
	guarded := rest.CopyConfig(o.Credentials)
	cluster.Guard(guarded, c.leader.Guard, c.leader.Conn)
	// The process may be asked for its health before it has read what there is.
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return fault.WithRemedy(fault.Newf(fault.Conflict, "listen on %s: %w", o.Listen, err), "choose another address with --listen")
	}
	defer listener.Close()
	if c.store, err = kubernetes.Open(ctx, kubernetes.Config{Credentials: guarded, Anybody: o.Credentials, Namespace: o.Namespace, Roles: o.Roles, Log: o.Log}); err != nil {
		return err
	}
	defer c.store.Close()
	key, err := c.store.Key(ctx, keySecret)
	if err != nil {
		return err
	}
	front := server.NewFront(key, o.URL)
	if o.Shown != nil {
		o.Shown(front)
	}
	counted := front.Counted(c.store)
	steps, locks := o.Steps(front.Callback, Guard{c.leader.Guard, c.leader.Conn})
	c.engine = engine.New(engine.Options{Store: counted, Steps: steps, Locks: locks, Log: o.Log})
	return c.serve(ctx, listener, front.Handler(carrier{c}, c.ready), counted)
}

// serve answers requests and takes part in the election until one of both ends.
func (c *controller) serve(ctx context.Context, l net.Listener, h http.Handler, st engine.Store) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	web := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(c.o.Log.Handler(), slog.LevelDebug)}
	failed := make(chan error, 1)
	go func() {
		if err := web.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("answer on %s: %w", l.Addr(), err)
			cancel()
		}
	}()
	err := c.leader.Run(ctx, func(ctx context.Context) error { return c.lead(ctx, st) })
	down, end := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer end()
	if e := web.Shutdown(down); e != nil {
		_ = web.Close()
	}
	select {
	case e := <-failed:
		return e
	default:
	}
	if errors.Is(err, context.Canceled) && !errors.Is(err, lease.ErrLost) {
		return nil
	}
	return err
}

// catchUp is how long a new leader waits to be told what the one before it has written.
const catchUp = time.Minute

// lead carries the deliveries until ctx ends.
func (c *controller) lead(ctx context.Context, st engine.Store) error {
	if err := c.store.CatchUp(ctx, catchUp); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { c.store.Collect(ctx) })
	wg.Go(func() { c.tend(ctx) })
	if c.o.Beside != nil {
		wg.Go(func() { c.o.Beside(ctx, st) })
	}
	return c.engine.Run(ctx)
}

// ready says why this process cannot take anything in. One that waits for its election can: callbacks are kept by all.
func (c *controller) ready(context.Context) error { return nil }

// carrier takes callbacks in, whoever leads.
type carrier struct{ *controller }

var _ server.Refresher = carrier{}

// Load implements server.Carrier.
func (c carrier) Load(ctx context.Context, id string) (store.Delivery, error) {
	return c.store.Load(ctx, id)
}

// Refresh implements server.Refresher.
func (c carrier) Refresh(ctx context.Context, id string) error { return c.store.Refresh(ctx, id) }

// Signal implements server.Carrier.
func (c carrier) Signal(ctx context.Context, id string, s delivery.Signal) (bool, error) {
	return c.engine.Signal(ctx, id, s)
}
