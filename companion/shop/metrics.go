package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// counted counts the requests that h answers, by their codes, and answers GET /metrics. Where every pod is asked by
// itself, as in a cluster, this is what tells a bad release from a good one.
func counted(h http.Handler) http.Handler {
	registry := prometheus.NewRegistry()
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shop_requests_total", Help: "Requests that were answered."}, []string{"code"})
	registry.MustRegister(requests)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.Handle("GET /healthz", h) // the platform that asks is no customer
	mux.Handle("/", promhttp.InstrumentHandlerCounter(requests, h))
	return mux
}
