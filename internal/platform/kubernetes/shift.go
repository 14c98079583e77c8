package kubernetes

import (
	"context"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// shares returns how many pods the two versions have at a share of the canary in percent. An autoscaler decides about the
// stable version's itself.
func shares(n, percent int64, autoscaled bool) (canary, stable int64) {
	switch {
	case percent <= 0:
		return 1, n // one that serves nobody, so that it is known to start
	case autoscaled && percent >= 100:
		return n, n
	case autoscaled:
		return ceil(n*percent, 100-percent), n
	}
	canary = min(n, ceil(n*percent, 100))
	return canary, n - canary
}

func ceil(a, b int64) int64 { return (a + b - 1) / b }

// shifted is a Deployment with its canary, and what is to be known of both.
type shifted struct {
	ref            manifest.Ref
	stable, canary *unstructured.Unstructured // no canary where it was ended, or has never come up
	rec            *record
	start          *entry
	autoscaled     bool
	replicas       int64 // of the stable version alone
	back           bool  // the old version gets all traffic
}

// canaryRef names the canary.
func (s shifted) canaryRef() manifest.Ref {
	return manifest.Ref{Kind: "Deployment", Namespace: s.canary.GetNamespace(), Name: s.canary.GetName()}
}

// each does something for every Deployment that a delivery has begun a canary of. One that it was the first to make has none, and
// all traffic.
func (p *Platform) each(ctx context.Context, key string, refs []manifest.Ref, do func(context.Context, shifted) error) error {
	if len(refs) == 0 {
		return nil
	}
	return p.once(ctx, refs[0].Namespace, key, nil, func([]entry) error {
		for _, ref := range refs {
			s, err := p.shiftedOf(ctx, key, ref)
			if err != nil {
				return err
			}
			if s.start == nil {
				continue
			}
			if err := do(ctx, s); err != nil {
				return err
			}
		}
		return nil
	})
}

// shiftedOf finds what is to be known of a Deployment, by the start of the delivery that a key belongs to.
func (p *Platform) shiftedOf(ctx context.Context, key string, ref manifest.Ref) (shifted, error) {
	s := shifted{ref: ref}
	var err error
	if s.canary, err = p.canary(ctx, ref); err != nil {
		return s, err
	}
	if s.canary != nil {
		if s.rec, s.start, err = p.startOf(ctx, ref, s.canary); err != nil {
			return s, err
		}
		if deliveryOf(s.rec.Key) != deliveryOf(key) {
			s.canary, s.start = nil, nil // another delivery's
		}
	}
	if s.canary == nil {
		if s.rec, s.start, err = p.startBy(ctx, key, ref); err != nil || s.start == nil {
			return s, err
		}
	}
	s.stable, err = p.read(ctx, ref)
	if fault.Is(err, fault.NotFound) && s.canary == nil {
		s.start = nil // whoever has deleted it has left nothing to shift; taking back its change makes it again
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if s.autoscaled, err = p.autoscaled(ctx, ref); err != nil {
		return s, err
	}
	s.replicas = *s.start.Replicas
	if n, ok := replicasOf(s.stable); ok && s.autoscaled {
		s.replicas = n
	}
	return s, nil
}

// lost says that a canary is not there although it was started.
func (s shifted) lost() error {
	return fault.WithRemedy(fault.Newf(fault.Conflict, "the canary of %s is gone: somebody has deleted it since it was started", s.ref),
		"start the delivery again once this one is taken back, and find out who deletes canaries")
}

// SetWeight implements platform.Shifter, by the ratio of the pods. Pods that are added are ready before others are taken away.
// All traffic at once is redirected instead, and the old version stays as it is: so it can have it back at once.
func (p *Platform) SetWeight(ctx context.Context, key string, refs []manifest.Ref, percent int) error {
	return p.each(ctx, key, refs, func(ctx context.Context, s shifted) error {
		if s.canary == nil && percent > 0 {
			return s.lost()
		}
		if len(s.start.Routes) > 0 && percent > 0 {
			return p.byRoutes(ctx, s, percent)
		}
		canary, stable := shares(s.replicas, int64(percent), s.autoscaled)
		only, err := p.pinned(ctx, s.stable)
		if err != nil {
			return err
		}
		switch {
		case percent <= 0:
			return p.none(ctx, &s)
		case percent >= 100 && (only || s.autoscaled):
			if err := p.grow(ctx, s.canaryRef(), s.canary, canary); err != nil {
				return err
			}
			if err := p.lead(ctx, s.stable, s.canary); err != nil {
				return err
			}
			return p.shrink(ctx, s.canaryRef(), s.canary, canary)
		}
		if err := p.grow(ctx, s.canaryRef(), s.canary, canary); err != nil {
			return err
		}
		if err := p.pin(ctx, s.stable, ""); err != nil {
			return err
		}
		if s.autoscaled {
			return p.shrink(ctx, s.canaryRef(), s.canary, canary)
		}
		if err := p.grow(ctx, s.ref, s.stable, stable); err != nil {
			return err
		}
		if err := p.shrink(ctx, s.ref, s.stable, stable); err != nil {
			return err
		}
		return p.shrink(ctx, s.canaryRef(), s.canary, canary)
	})
}

// grow scales a version up, and waits until all of it is ready.
func (p *Platform) grow(ctx context.Context, ref manifest.Ref, live *unstructured.Unstructured, to int64) error {
	if n, _ := replicasOf(live); n < to {
		if err := p.scaleTo(ctx, ref, to); err != nil {
			return err
		}
	}
	return p.becomes(ctx, ref, false, nil)
}

func (p *Platform) shrink(ctx context.Context, ref manifest.Ref, live *unstructured.Unstructured, to int64) error {
	if n, _ := replicasOf(live); n > to {
		return p.scaleTo(ctx, ref, to)
	}
	return nil
}

// Promote implements platform.Shifter: the stable Deployment gets the new version, and when all of it is ready the canary goes.
func (p *Platform) Promote(ctx context.Context, key string, refs []manifest.Ref) error {
	promote := func(ctx context.Context, s shifted) error {
		if s.canary == nil && !s.promoted() {
			return s.lost()
		}
		next := manifest.Object{Unstructured: unstructured.Unstructured{Object: s.start.Next}, Origin: s.ref.String()}
		if s.canary != nil && len(s.start.Subsets) > 0 {
			// The stable subset is of the old version's pods, which end now.
			if err := p.byRoutes(ctx, s, 100); err != nil {
				return err
			}
		}
		if err := p.release(ctx, s); err != nil {
			return err
		}
		if _, says := replicasOf(&next.Unstructured); !says && !s.autoscaled {
			if err := p.scaleTo(ctx, s.ref, s.replicas); err != nil {
				return err
			}
		}
		if err := p.intend(ctx, s, next); err != nil {
			return err
		}
		if err := p.promoteSettings(ctx, s, next); err != nil {
			return err
		}
		after, err := p.write(ctx, next, s.rec.Force)
		if err != nil {
			return err
		}
		s.start.After = after.Object
		if err := p.journal.note(ctx, s.rec); err != nil {
			return err
		}
		if err := p.handOver(ctx, s, false); err != nil {
			return err
		}
		if err := p.keeps(ctx, s.ref, s.start.After); err != nil {
			return err
		}
		return p.endCanary(ctx, s)
	}
	if err := p.each(ctx, key, refs, promote); err != nil {
		return err
	}
	return p.dropCopies(ctx, key, refs)
}

// release lets the Services lead to the stable version's pods of any revision, unless they lead to the canary alone.
func (p *Platform) release(ctx context.Context, s shifted) error {
	return p.unpin(ctx, s, func(hash string, canarys map[string]bool) bool { return !canarys[hash] })
}

// unpin has the Services lead to every version again that lead to one which fits.
func (p *Platform) unpin(ctx context.Context, s shifted, fits func(hash string, canarys map[string]bool) bool) error {
	canarys, err := p.hashes(ctx, s.canary)
	if err != nil {
		return err
	}
	all, _, err := p.servicesOf(ctx, s.ref.Namespace, templateLabels(s.stable))
	if err != nil {
		return err
	}
	for _, ref := range all {
		live, err := p.read(ctx, ref)
		if err != nil {
			return err
		}
		if hash, ok, _ := unstructured.NestedString(live.Object, "spec", "selector", templateHash); ok && fits(hash, canarys) {
			if err := p.require(ctx, ref, templateHash, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// endCanary deletes the canary, after the Services no longer lead to it alone.
func (p *Platform) endCanary(ctx context.Context, s shifted) error {
	if err := p.weigh(ctx, s, asItWas); err != nil {
		return err
	}
	if err := p.preview(ctx, s.stable, ""); err != nil {
		return err
	}
	if err := p.unpin(ctx, s, func(hash string, canarys map[string]bool) bool { return canarys[hash] }); err != nil {
		return err
	}
	if err := p.deleteServices(ctx, s); err != nil || s.canary == nil {
		return err
	}
	in := p.dynamic.Resource(deployments()).Namespace(s.ref.Namespace)
	if err := p.deleteLive(ctx, in, s.canary); err != nil {
		return failed(err, "delete %s", s.canaryRef())
	}
	gone := func(st platform.State) bool { return !st.Exists }
	return failed(p.await(ctx, s.canaryRef(), gone), "wait until %s is gone", s.canaryRef())
}

func isReady(s platform.State) bool { return s.Ready }

func templateSpec(d map[string]any) any {
	spec, _, _ := unstructured.NestedMap(d, "spec", "template")
	return spec
}
