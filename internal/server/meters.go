package server

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/store"
)

// meters are what the server counts. No label grows with the number of deliveries.
type meters struct {
	registry  *prometheus.Registry
	started   prometheus.Counter
	ended     *prometheus.CounterVec
	signals   *prometheus.CounterVec
	callbacks *prometheus.CounterVec
	records   *prometheus.CounterVec
	commits   prometheus.Histogram
	requests  *prometheus.CounterVec
}

func newMeters() *meters {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &meters{
		registry:  prometheus.NewRegistry(),
		started:   prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_deliveries_started_total", Help: "Deliveries that have begun."}),
		ended:     counter("sluice_deliveries_ended_total", "Deliveries that have ended, by how.", "state"),
		signals:   counter("sluice_signals_total", "Signals that were taken in, by kind.", "kind"),
		callbacks: counter("sluice_callbacks_total", "Callbacks of webhooks: first, repeated, refused.", "result"),
		records:   counter("sluice_journal_records_total", "Records that the engine has written, by kind.", "kind"),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sluice_store_commit_duration_seconds",
			Help: "How long it takes to keep a step of a delivery.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}),
		requests: counter("sluice_http_requests_total", "Requests that were answered, by route and status.", "route", "code"),
	}
	m.registry.MustRegister(m.started, m.ended, m.signals, m.callbacks, m.records, m.commits, m.requests,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, s := range []delivery.State{delivery.Succeeded, delivery.Failed, delivery.Cancelled} {
		m.ended.WithLabelValues(strings.ToLower(string(s)))
	}
	for _, r := range []string{"first", "repeated", "refused"} {
		m.callbacks.WithLabelValues(r)
	}
	return m
}

func (m *meters) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *meters) callback(result string) { m.callbacks.WithLabelValues(result).Inc() }

// bodyWithin is how long a request's body may take.
const bodyWithin = time.Minute

// measured counts requests by the pattern that they matched: a path would grow with the deliveries.
func (m *meters) measured(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w, code: http.StatusOK}
		if r.Method == http.MethodPost {
			// Nobody holds a connection by sending a body without end. Where a connection has no deadlines it has none.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyWithin))
		}
		mux.ServeHTTP(rec, r)
		route := r.Pattern
		if route == "" {
			route = "none"
		}
		m.requests.WithLabelValues(route, strconv.Itoa(rec.code)).Inc()
	})
}

type recorder struct {
	http.ResponseWriter
	code int
}

// WriteHeader keeps the status.
func (r *recorder) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}

// Unwrap lets a watch flush.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Keeper is all that a program that carries deliveries needs of a store.
type Keeper interface {
	engine.Store
	store.Journaler
}

// countedStore counts what passes through a store.
type countedStore struct {
	Keeper
	m *meters
}

func (m *meters) counted(s Keeper) Keeper { return countedStore{Keeper: s, m: m} }

// Swap counts records, and deliveries that begin and end: each does so in one commit, its first and its last.
func (c countedStore) Swap(ctx context.Context, id string, at store.Revision, s delivery.Status, records []store.Record) (store.Revision, error) {
	begun := time.Now()
	r, err := c.Keeper.Swap(ctx, id, at, s, records)
	if err != nil {
		return r, err
	}
	c.m.commits.Observe(time.Since(begun).Seconds())
	for _, rec := range records {
		c.m.records.WithLabelValues(rec.Kind).Inc()
	}
	if at == store.First {
		c.m.started.Inc()
	}
	if s.Done {
		c.m.ended.WithLabelValues(strings.ToLower(string(s.State))).Inc()
	}
	return r, nil
}

// Signal counts what was kept.
func (c countedStore) Signal(ctx context.Context, id string, s delivery.Signal) (bool, error) {
	won, err := c.Keeper.Signal(ctx, id, s)
	if won {
		c.m.signals.WithLabelValues(s.Kind).Inc()
	}
	return won, err
}
