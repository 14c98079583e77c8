package kubernetes

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// Expose implements platform.Exposer. Nothing is made in the cluster: whoever carries deliveries passes requests on, as Dial
// does, so that no load balancer has to be had and nothing is left when the time is over.
func (p *Platform) Expose(ctx context.Context, key string, service manifest.Ref, ttl time.Duration) (string, error) {
	if p.c.Expose == nil {
		return "", fault.Newf(fault.Invalid, "nobody answers for Service %s of account %s: only a server or a controller exposes Services", service, p.c.Account)
	}
	rec, err := p.journal.load(ctx, service.Namespace, key)
	if err != nil {
		return "", err
	}
	if rec == nil {
		if err := p.exposable(ctx, service); err != nil {
			return "", err
		}
		// The address ends when it was first told to, however often the step is entered.
		rec = &record{Namespace: service.Namespace, Key: key, Address: p.c.Expose(service, time.Now().Add(ttl).UTC().Truncate(time.Second))}
		if rec, err = p.journal.begin(ctx, rec); err != nil {
			return "", err
		}
	}
	return rec.Address, p.journal.finish(ctx, rec)
}

// exposable refuses what no request could be passed on to.
func (p *Platform) exposable(ctx context.Context, service manifest.Ref) error {
	live, err := p.read(ctx, service)
	if err != nil {
		return err
	}
	var s corev1.Service
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(live.Object, &s); err != nil {
		return fault.Newf(fault.Invalid, "Service %s cannot be read: %w", service, err)
	}
	if len(s.Spec.Selector) == 0 {
		return fault.Newf(fault.Invalid, "Service %s has no selector, so it has no pods", service)
	}
	if _, err := targetOf(s, ""); err != nil {
		return fault.WithRemedy(err, "expose a Service with one port, which serves HTTP")
	}
	return nil
}
