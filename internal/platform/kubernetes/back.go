package kubernetes

import (
	"context"
	"reflect"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// Abort implements platform.Shifter. A promotion that has begun is taken back first.
func (p *Platform) Abort(ctx context.Context, key string, refs []manifest.Ref) error {
	abort := func(ctx context.Context, s shifted) error {
		if err := p.none(ctx, &s); err != nil {
			return err
		}
		if err := p.endCanary(ctx, s); err != nil {
			return err
		}
		return p.pin(ctx, s.stable, "")
	}
	if err := p.each(ctx, key, refs, abort); err != nil {
		return err
	}
	return p.dropCopies(ctx, key, refs)
}

// none gives the old version all traffic: at once where its pods can carry it, else as soon as they can. Steps are undone last
// first, so that this also comes first after a promotion: the old version is what is waited for, and not what has failed.
func (p *Platform) none(ctx context.Context, s *shifted) error {
	begun := s.promoted()
	if begun {
		if err := p.demote(ctx, *s); err != nil {
			return err
		}
	}
	share := 0
	if s.canary == nil {
		// What leads to a canary that is gone leads nowhere.
		share = asItWas
		if err := p.pin(ctx, s.stable, ""); err != nil {
			return err
		}
	}
	// A subset of the old version's pods leads nowhere before they are back.
	if later := begun && len(s.start.Subsets) > 0; !later {
		if err := p.weigh(ctx, *s, share); err != nil {
			return err
		}
	}
	n, _, _ := unstructured.NestedInt64(s.stable.Object, "status", "readyReplicas")
	carries := !begun && 2*n >= s.replicas && computed(s.ref, s.stable).Ready
	if carries {
		if err := p.favour(ctx, *s); err != nil {
			return err
		}
	}
	if over := begun && s.canary == nil; !over && !s.autoscaled { // a promotion that is over has scaled it already
		if err := p.scaleBack(ctx, s.ref, s.replicas); err != nil {
			return err
		}
	}
	if !carries {
		if err := p.returns(ctx, s); err != nil {
			return err
		}
		if err := p.weigh(ctx, *s, share); err != nil {
			return err
		}
		if err := p.favour(ctx, *s); err != nil {
			return err
		}
	}
	if s.canary == nil {
		return nil
	}
	return p.shrink(ctx, s.canaryRef(), s.canary, 1)
}

// favour has the Services lead to the old version alone, where there is another.
func (p *Platform) favour(ctx context.Context, s shifted) error {
	if s.canary == nil {
		return nil
	}
	return p.lead(ctx, s.stable, s.stable)
}

// promoted reports whether the stable Deployment no longer has the old version's template.
func (s shifted) promoted() bool {
	return !reflect.DeepEqual(templateSpec(s.stable.Object), templateSpec(s.start.Before))
}

// demote gives the stable Deployment the old version's template, and what it reads, back.
func (p *Platform) demote(ctx context.Context, s shifted) error {
	if err := p.revertSettings(ctx, s); err != nil {
		return err
	}
	return p.revert(ctx, s.rec.Key, *s.start)
}

// returns waits until the old version is ready, whatever it goes through until then: what else could be waited for?
func (p *Platform) returns(ctx context.Context, s *shifted) error {
	err := p.states(ctx, s.ref, func(st platform.State) (bool, error) { return st.Ready, nil })
	if err != nil {
		return err
	}
	s.stable, err = p.read(ctx, s.ref) // which ReplicaSet is its newest is another than before
	return err
}
