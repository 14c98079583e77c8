// Package metrics is the port to where numbers come from.
package metrics

import (
	"context"
	"time"
)

// Sample is one labelled number. Time is when it was true.
type Sample struct {
	Labels map[string]string `json:"labels,omitempty"`
	Value  float64           `json:"value"`
	Time   time.Time         `json:"time"`
}

// Provider answers queries in its own language. A provider that cannot be reached returns an error of kind transient;
// a query that it does not understand, of kind invalid with the provider's words. No result is an empty slice, no error.
type Provider interface {
	Query(ctx context.Context, query string, at time.Time) ([]Sample, error)
}
