package local

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluice-cd/sluice/internal/manifest"
)

// counters are what the Services of a node count, by track.
type counters struct {
	registry    *prometheus.Registry
	requests    *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
	connections *prometheus.CounterVec
}

func newCounters() *counters {
	of := []string{"namespace", "service", "track", "replica_set"}
	c := &counters{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_service_requests_total",
			Help: "HTTP requests that a Service carried, by the track of the pod and the status code."}, append(of, "code")),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "sluice_service_request_duration_seconds",
			Help: "From the request's arrival to its answer's end.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}, of),
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_service_connections_total",
			Help: "Connections other than HTTP that a Service carried."}, of),
	}
	c.registry.MustRegister(c.requests, c.seconds, c.connections)
	return c
}

// request counts one request; one that found no pod counts for the stable track.
func (c *counters) request(s manifest.Ref, p *pod, code int, took time.Duration) {
	l := labels(s, p)
	c.requests.WithLabelValues(append(l, strconv.Itoa(code))...).Inc()
	c.seconds.WithLabelValues(l...).Observe(took.Seconds())
}

func (c *counters) connection(s manifest.Ref, p *pod) {
	c.connections.WithLabelValues(labels(s, p)...).Inc()
}

func labels(s manifest.Ref, p *pod) []string {
	l := []string{s.Namespace, s.Name, "stable", ""}
	if p != nil {
		l[2], l[3] = string(p.where()), p.revision
	}
	return l
}

func (c *counters) handler() http.Handler {
	return promhttp.HandlerFor(c.registry, promhttp.HandlerOpts{})
}
