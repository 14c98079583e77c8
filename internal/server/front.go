package server

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
)

// Front is what a program that carries deliveries shows to everybody who reaches it: its health, its counters, and the
// callbacks of webhooks, and what steps have exposed.
type Front struct {
	key     []byte // signs capabilities
	url     string // what callback URLs begin with
	metrics *meters
	carrier Carrier
	exposed http.Handler // passes requests on to Services, nil where nothing is exposed
	ready   func(context.Context) error
}

// Carrier is where callbacks go.
type Carrier interface {
	Load(ctx context.Context, id string) (store.Delivery, error)
	// Signal checks and keeps a signal. It reports false where an earlier one of the key has won.
	Signal(ctx context.Context, id string, s delivery.Signal) (bool, error)
}

// Refresher is a Carrier that may lag behind what others have written.
type Refresher interface {
	// Refresh has Load return what is written now. A delivery that is not there is an error of kind not found.
	Refresh(ctx context.Context, id string) error
}

// NewFront makes a front that hands out callback URLs, which begin with url, under a key of 32 bytes. The same key makes
// the same URLs.
func NewFront(key []byte, url string) *Front {
	return &Front{key: key, url: strings.TrimRight(url, "/"), metrics: newMeters()}
}

// Callback returns the capability URL of one invocation. The same key gives the same URL for the life of the front's key.
func (f *Front) Callback(key string) string { return f.url + "/callbacks/" + capability(f.key, key) }

// Counted counts what passes through a store.
func (f *Front) Counted(s Keeper) Keeper { return f.metrics.counted(s) }

// Handler answers. ready says why the program does not carry deliveries, nil if it does.
func (f *Front) Handler(c Carrier, ready func(context.Context) error) http.Handler {
	f.carrier, f.ready = c, ready
	mux := http.NewServeMux()
	f.routes(mux)
	return f.metrics.measured(mux)
}

func (f *Front) routes(mux *http.ServeMux) {
	mux.Handle("GET /metrics", f.metrics.handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := f.ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ready\n")
	})
	mux.HandleFunc("POST /callbacks/{capability}/callback", f.callback)
	mux.HandleFunc("POST /oauth/token", f.issue)
	mux.HandleFunc("/exposed/{capability}", f.serveExposed)
	mux.HandleFunc("/exposed/{capability}/{path...}", f.serveExposed)
}

// carrier takes a server's callbacks to its store and engine.
type carrier struct{ s *Server }

// Load implements Carrier.
func (c carrier) Load(ctx context.Context, id string) (store.Delivery, error) {
	return c.s.work.Store.Load(ctx, id)
}

// Signal implements Carrier.
func (c carrier) Signal(ctx context.Context, id string, sig delivery.Signal) (bool, error) {
	return c.s.engine.Signal(ctx, id, sig)
}

// ready says why the server does not carry deliveries: the engine does not run, or their store does not answer.
func (s *Server) ready(ctx context.Context) error {
	if !s.carrying.Load() {
		return fault.Newf(fault.Transient, "the server is starting or ending")
	}
	if _, err := s.work.Store.Load(ctx, ""); err != nil && !fault.Is(err, fault.NotFound) {
		return fault.Newf(fault.Transient, "the store does not answer: %w", err)
	}
	return nil
}
