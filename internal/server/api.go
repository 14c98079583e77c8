package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
)

// How much of a request's body is read.
const (
	specLimit     = 64 << 20 // a delivery holds its manifests
	signalLimit   = 1 << 20
	callbackLimit = 64 << 10
)

// routes are what the server answers. Everything under /api/ needs a caller, whom the listener's wrapper has found.
func (s *Server) routes() http.Handler {
	api := http.NewServeMux()
	api.HandleFunc("POST /api/v1/deliveries", owners(answer(s.start)))
	api.HandleFunc("GET /api/v1/deliveries", some(answer(s.list)))
	api.HandleFunc("GET /api/v1/deliveries/{id}", some(answer(s.get)))
	api.HandleFunc("GET /api/v1/deliveries/{id}/journal", owners(answer(s.journal)))
	api.HandleFunc("POST /api/v1/deliveries/{id}/signals", some(answer(s.signal)))
	api.HandleFunc("GET /api/v1/deliveries/{id}/watch", some(s.watch))
	api.HandleFunc("GET /api/v1/server", some(answer(s.about)))
	api.HandleFunc("POST /api/v1/server/stop", owners(answer(s.stopped)))
	mux := http.NewServeMux()
	mux.Handle("/api/", needsCaller(api))
	s.front.carrier, s.front.ready = carrier{s}, s.ready
	s.front.routes(mux)
	return s.front.metrics.measured(mux)
}

// wireError is an error on its way to a client.
type wireError struct {
	Message string            `json:"error"`
	Kind    fault.Kind        `json:"kind,omitempty"`
	Running *store.ErrRunning `json:"running,omitempty"`
}

// status is the HTTP status of an error.
func status(err error) int {
	if _, ok := errors.AsType[*store.ErrRunning](err); ok {
		return http.StatusConflict
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return http.StatusRequestEntityTooLarge
	}
	switch fault.KindOf(err) {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.Denied:
		return http.StatusForbidden
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.Transient:
		return http.StatusServiceUnavailable
	case fault.Lost:
	}
	return http.StatusInternalServerError
}

func refuse(w http.ResponseWriter, code int, err error) {
	e := wireError{Message: err.Error(), Kind: fault.KindOf(err)}
	e.Running, _ = errors.AsType[*store.ErrRunning](err)
	reply(w, code, e)
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// Where the client is gone there is nobody to tell.
	_ = json.NewEncoder(w).Encode(v)
}

// answer makes a handler of a function that returns what is answered.
func answer[T any](f func(*http.Request) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			refuse(w, status(err), err)
			return
		}
		reply(w, http.StatusOK, v)
	}
}

// body reads a request.
func body[T any](r *http.Request, limit int64) (T, error) {
	var v T
	raw, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, limit))
	if err != nil {
		return v, fmt.Errorf("read the request: %w", err)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, fault.Newf(fault.Invalid, "the request cannot be read: %w", err)
	}
	return v, nil
}

// start keeps a delivery. A client whose connection broke may ask again: the same delivery is kept once.
func (s *Server) start(r *http.Request) (struct{}, error) {
	spec, err := body[delivery.Spec](r, specLimit)
	if err != nil {
		return struct{}{}, err
	}
	if spec.ID == "" || spec.Application == "" {
		return struct{}{}, fault.Newf(fault.Invalid, "a delivery needs an id and an application")
	}
	if spec.CreatedAt.IsZero() {
		spec.CreatedAt = time.Now().UTC()
	}
	spec.By = caller(r.Context()).user
	err = s.engine.Start(r.Context(), spec)
	if err != nil && s.kept(r.Context(), spec) {
		return struct{}{}, nil
	}
	return struct{}{}, err
}

// kept reports whether this very delivery has been started before.
func (s *Server) kept(ctx context.Context, spec delivery.Spec) bool {
	d, err := s.work.Store.Load(ctx, spec.ID)
	if err != nil {
		return false
	}
	was, err := json.Marshal(d.Spec)
	if err != nil {
		return false
	}
	now, err := json.Marshal(spec)
	if err != nil {
		return false
	}
	var a, b any
	return json.Unmarshal(was, &a) == nil && json.Unmarshal(now, &b) == nil && reflect.DeepEqual(a, b)
}

func (s *Server) list(r *http.Request) ([]store.Delivery, error) {
	all, err := s.work.Store.List(r.Context(), r.URL.Query().Get("open") == "true")
	if all == nil {
		all = []store.Delivery{}
	}
	for i, d := range all {
		all[i] = shown(r.Context(), d)
	}
	return all, err
}

func (s *Server) get(r *http.Request) (store.Delivery, error) {
	d, err := s.work.Store.Load(r.Context(), r.PathValue("id"))
	return shown(r.Context(), d), err
}

func (s *Server) journal(r *http.Request) ([]store.Record, error) {
	if _, err := s.get(r); err != nil {
		return nil, err
	}
	return s.work.Store.Journal(r.Context(), r.PathValue("id"))
}

// sent is the answer to a signal.
type sent struct {
	Won bool `json:"won"` // false: an earlier signal of the key has won
}

// signal keeps what a person decided. Who it is and which roles that gives is the server's to say, not the client's.
func (s *Server) signal(r *http.Request) (sent, error) {
	sig, err := body[delivery.Signal](r, signalLimit)
	if err != nil {
		return sent{}, err
	}
	if sig.Key == "" {
		return sent{}, fault.Newf(fault.Invalid, "a signal needs a key")
	}
	if sig.Kind == delivery.Callback {
		return sent{}, fault.Newf(fault.Denied, "a callback comes by the URL that its webhook was given")
	}
	if err := s.decides(r.Context(), r.PathValue("id"), sig); err != nil {
		return sent{}, err
	}
	by := caller(r.Context())
	sig.By, sig.At = by.user, time.Time{}
	if sig.Data == nil {
		sig.Data = map[string]string{}
	}
	sig.Data["roles"] = by.roles()
	won, err := s.engine.Signal(r.Context(), r.PathValue("id"), sig)
	return sent{Won: won}, err
}

// Info tells about a running server.
type Info struct {
	PID     int       `json:"pid"`
	URL     string    `json:"url"`
	Data    string    `json:"data"`
	Started time.Time `json:"started"`
	Open    int       `json:"open"` // deliveries that have not ended
}

func (s *Server) about(r *http.Request) (Info, error) {
	open, err := s.work.Store.List(r.Context(), true)
	return Info{PID: os.Getpid(), URL: s.url, Data: s.o.Dir, Started: s.started, Open: len(open)}, err
}

// stopped ends the server. The deliveries go on at the next start.
func (s *Server) stopped(r *http.Request) (Info, error) {
	i, err := s.about(r)
	if err == nil {
		s.o.Log.Info("the server was asked to end", "by", caller(r.Context()).user)
		s.stop()
	}
	return i, err
}
