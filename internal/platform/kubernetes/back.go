package kubernetes

import (
	"context"
	"errors"
	"reflect"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/sluice-cd/sluice/internal/fault"
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
	s.back = true
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
	err := p.handOver(ctx, *s, true)
	if err != nil {
		return err
	}
	s.stable, err = p.read(ctx, s.ref) // which ReplicaSet is its newest is another than before
	return err
}

// handOver waits until the stable Deployment is ready. Where chance shares the traffic out among all pods, the canary's go as the
// stable ones come: a quota may leave no room for all of both.
func (p *Platform) handOver(ctx context.Context, s shifted, patient bool) error {
	apart, err := p.pinned(ctx, s.stable)
	if err != nil {
		return err
	}
	if apart || s.canary == nil || s.autoscaled || len(s.start.Routes) > 0 {
		return p.becomes(ctx, s.ref, patient, nil)
	}
	has, _ := replicasOf(s.canary)
	come := func(now platform.State) error {
		to := max(1, s.replicas-int64(now.Replicas))
		if to >= has {
			return nil
		}
		has = to
		return p.makeRoom(ctx, s, to)
	}
	for {
		if err := p.becomes(ctx, s.ref, patient, come); err != nil {
			return err
		}
		// What was seen may be how it was while room was made.
		if live, err := p.read(ctx, s.ref); err != nil || computed(s.ref, live).Ready {
			return err
		}
	}
}

// makeRoom leaves a canary that many pods. Where the stable Deployment lacks room for its own, it is scaled anew once there is
// some: by itself its controller tries again after ever longer times.
func (p *Platform) makeRoom(ctx context.Context, s shifted, left int64) error {
	if err := p.scaleTo(ctx, s.canaryRef(), left); err != nil {
		return err
	}
	live, err := p.read(ctx, s.ref)
	if err != nil || short(live) == "" {
		return err
	}
	if err := p.fewer(ctx, s.canary, int(left)); err != nil {
		return err
	}
	if live, err = p.read(ctx, s.ref); err != nil {
		return err
	}
	want, _ := replicasOf(live)
	has, _, _ := unstructured.NestedInt64(live.Object, "status", "replicas")
	if has >= want {
		return nil
	}
	if err := p.scaleTo(ctx, s.ref, has); err != nil {
		return err
	}
	if _, err := p.observed(ctx, s.ref); err != nil {
		return err
	}
	return p.scaleBack(ctx, s.ref, want)
}

// fewer waits until a Deployment has no more pods than that, those that are ending included.
func (p *Platform) fewer(ctx context.Context, d *unstructured.Unstructured, most int) error {
	in, of := p.dynamic.Resource(pods()).Namespace(d.GetNamespace()), selectorOf(d).String()
	for {
		list, err := in.List(ctx, metav1.ListOptions{LabelSelector: of})
		if err != nil || len(list.Items) <= most {
			return failed(err, "list the pods of Deployment %s/%s", d.GetNamespace(), d.GetName())
		}
		w, err := in.Watch(ctx, metav1.ListOptions{LabelSelector: of, ResourceVersion: list.GetResourceVersion()})
		if err != nil {
			return failed(err, "watch the pods of Deployment %s/%s", d.GetNamespace(), d.GetName())
		}
		for e := range w.ResultChan() {
			if e.Type == watch.Deleted || e.Type == watch.Error {
				break
			}
		}
		w.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// becomes waits until a version is ready, and tells on the way how it is. Where it is not before ctx has no more time, the error
// says what it lacks. Whoever is patient does not give up before, however it looks.
func (p *Platform) becomes(ctx context.Context, ref manifest.Ref, patient bool, tell func(platform.State) error) error {
	start, last := time.Now(), platform.State{}
	err := p.states(ctx, ref, func(now platform.State) (bool, error) {
		last = now
		if now.Failed && !patient {
			return false, fault.Newf(fault.Invalid, "%s failed: %s: %s", ref, now.Reason, now.Message)
		}
		if tell != nil {
			if err := tell(now); err != nil {
				return false, err
			}
		}
		return now.Ready, nil
	})
	if errors.Is(err, context.DeadlineExceeded) && last.Exists {
		return fault.Newf(fault.Invalid, "%s is not ready after %s: %s: %s", ref, time.Since(start).Round(time.Second), last.Reason, last.Message)
	}
	return err
}
