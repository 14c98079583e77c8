// Package prometheus reads numbers from a Prometheus.
package prometheus

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/api"
	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/metrics"
)

// patience is how long one query may take.
const patience = 30 * time.Second

// Config says where a Prometheus is. The secrets are functions, so that they are read when they are used and kept nowhere.
type Config struct {
	URL      string
	User     string
	Password func() (string, error) // basic auth, with User
	Bearer   func() (string, error)
}

// Provider is a metrics.Provider.
type Provider struct{ api v1.API }

// New returns a provider. It does not connect.
func New(c Config) (*Provider, error) {
	client, err := api.NewClient(api.Config{Address: c.URL, RoundTripper: &authenticated{c: c, next: http.DefaultTransport}})
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "Prometheus at %s: %w", c.URL, err)
	}
	return &Provider{api: v1.NewAPI(client)}, nil
}

// authenticated adds the credentials to each request.
type authenticated struct {
	c    Config
	next http.RoundTripper
}

func (a *authenticated) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.c.Password == nil && a.c.Bearer == nil {
		return a.next.RoundTrip(r)
	}
	r = r.Clone(r.Context())
	if a.c.Password != nil {
		p, err := a.c.Password()
		if err != nil {
			return nil, err
		}
		r.SetBasicAuth(a.c.User, p)
	}
	if a.c.Bearer != nil {
		t, err := a.c.Bearer()
		if err != nil {
			return nil, err
		}
		r.Header.Set("Authorization", "Bearer "+t)
	}
	return a.next.RoundTrip(r)
}

// Query implements metrics.Provider.
func (p *Provider) Query(ctx context.Context, query string, at time.Time) ([]metrics.Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	v, _, _, err := p.api.Query(ctx, query, at)
	if err != nil {
		return nil, kind(err)
	}
	var out []metrics.Sample
	switch r := v.(type) {
	case *model.Scalar:
		out = append(out, metrics.Sample{Value: float64(r.Value), Time: r.Timestamp.Time()})
	case model.Vector:
		for _, s := range r {
			l := map[string]string{}
			for k, v := range s.Metric {
				l[string(k)] = string(v)
			}
			out = append(out, metrics.Sample{Labels: l, Value: float64(s.Value), Time: s.Timestamp.Time()})
		}
	default:
		return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "the query returns a %s, not one number", v.Type()), "aggregate it: sum(rate(…[1m]))")
	}
	return out, nil
}

// kind sorts what Prometheus answered: a query that it does not understand will not be understood later, but one whose
// execution fails (series that match twice while pods are replaced) may work.
func kind(err error) error {
	e, ok := errors.AsType[*v1.Error](err)
	if !ok {
		return fault.WithRemedy(fault.Newf(fault.Transient, "Prometheus cannot be asked: %w", err),
			"check that it runs, and its url: under metricProviders: in sluice.yaml")
	}
	switch e.Type {
	case v1.ErrBadData:
		return fault.Newf(fault.Invalid, "Prometheus refuses the query: %s", e.Msg)
	case v1.ErrClient:
		return fault.WithRemedy(fault.Newf(fault.Denied, "Prometheus refuses the request: %s", e.Msg), "check its credentials in sluice.yaml")
	default:
		return fault.Newf(fault.Transient, "Prometheus: %s", e.Msg)
	}
}
