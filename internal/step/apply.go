package step

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
)

// Applied is what steps keep that change objects: what was there before.
type Applied struct {
	Begun   bool              `json:"begun,omitempty"` // the platform may have been asked
	Ended   bool              `json:"ended,omitempty"` // it has answered: Changes is all that it changed
	Changes []platform.Change `json:"changes,omitempty"`
}

// Change has the platform change objects, and keeps itself before and after. What the platform refuses for good is returned
// apart from what may work later.
func (s *Applied) Change(ctx context.Context, save func() error, do func() ([]platform.Change, error)) (refusal, err error) {
	if !s.Begun {
		s.Begun = true
		if err := save(); err != nil {
			return nil, err
		}
	}
	changes, refusal := do()
	if refusal != nil && (ctx.Err() != nil || fault.Is(refusal, fault.Transient)) {
		return nil, refusal
	}
	s.Ended, s.Changes = true, changes
	return refusal, save()
}

// Settle finds out what Change has changed. Where the step was ended before the platform's answer was kept, the same call
// with the same key tells it: a platform that has done it says what it did, another one does it now, to be taken back. It is
// kept, because once it has been taken back the same call must not be made again.
func (s *Applied) Settle(ctx context.Context, save func() error, again func() ([]platform.Change, error)) error {
	if !s.Begun || s.Ended {
		return nil
	}
	// What the platform refuses has changed nothing but what it says.
	_, err := s.Change(ctx, save, again)
	return err
}

// change is Change of a step that keeps nothing else.
func change(ctx context.Context, c Call, do func() ([]platform.Change, error)) (changes []platform.Change, refusal, err error) {
	s, err := read[Applied](c.Saved)
	if err != nil {
		return nil, nil, err
	}
	refusal, err = s.Change(ctx, func() error { return c.Save(ctx, s) }, do)
	return s.Changes, refusal, err
}

// Kept fails where somebody has undone what was applied: what is ready then is not the new version.
func Kept(ctx context.Context, p platform.Platform, changes []platform.Change) error {
	if k, ok := p.(platform.Keeper); ok {
		return k.Kept(ctx, changes)
	}
	return nil
}

// changed is Settle of a step that keeps nothing else, and returns the changes.
func changed(ctx context.Context, c Call, again func() ([]platform.Change, error)) ([]platform.Change, error) {
	s, err := read[Applied](c.Saved)
	if err != nil {
		return nil, err
	}
	err = s.Settle(ctx, func() error { return c.Save(ctx, s) }, again)
	return s.Changes, err
}

// Forget has a platform keep no longer what was there before the changes of a delivery that has ended.
func Forget(ctx context.Context, p platform.Platform, namespace string, c Call) (Outcome, error) {
	if f, ok := p.(platform.Forgetter); ok {
		if err := f.Forget(ctx, namespace, c.Delivery); err != nil {
			return Outcome{}, err
		}
	}
	return Done(delivery.Pass, ""), nil
}

// forgetting is the clean-up of steps that apply objects.
type forgetting struct{ ports Ports }

// Clean has the platform forget what was there before.
func (st forgetting) Clean(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.ApplyArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	p, err := st.ports.Platform(a.Account)
	if err != nil {
		return Outcome{}, err
	}
	return Forget(ctx, p, a.Namespace, c)
}

// apply applies objects and waits until they are ready.
type apply struct{ forgetting }

// Plan says what is applied.
func (apply) Plan(n plan.Node) (plan.Description, error) {
	a, err := read[plan.ApplyArgs](n.Args)
	return plan.Description{Does: fmt.Sprintf("applies %d objects to namespace %s", len(a.Objects), a.Namespace),
		WaitsFor: fmt.Sprintf("all are ready (at most %s)", a.Timeout), UndoneBy: "applying what was there before; what was not there is deleted, except claims"}, err
}

// Options are how a step's objects are applied.
func Options(c Call, a plan.ApplyArgs) platform.Options {
	o := platform.Options{Namespace: a.Namespace, Delivery: c.Delivery, Annotate: a.Annotate, Env: a.Env, Force: a.Force}
	for _, m := range a.Meshes {
		o.Meshes = append(o.Meshes, platform.Mesh(m))
	}
	return o
}

// Run applies and waits.
func (st apply) Run(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.ApplyArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	p, err := st.ports.Platform(a.Account)
	if err != nil {
		return Outcome{}, err
	}
	changes, refusal, err := change(ctx, c, func() ([]platform.Change, error) { return p.Apply(ctx, c.Key+"/apply", a.Objects, Options(c, a)) })
	switch {
	case err != nil:
		return Outcome{}, err
	case refusal != nil:
		return Done(delivery.Fail, refusal.Error()), nil
	}
	if err := Await(ctx, p, a.Timeout, "ready", refs(a.Objects, a.Namespace), Ready); err != nil {
		return verdict(ctx, err)
	}
	if err := Kept(ctx, p, changes); err != nil {
		return verdict(ctx, err)
	}
	return Done(delivery.Pass, fmt.Sprintf("%d objects are ready", len(a.Objects))), nil
}

// Undo puts back what was there.
func (st apply) Undo(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.ApplyArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	p, err := st.ports.Platform(a.Account)
	if err != nil {
		return Outcome{}, err
	}
	changes, err := changed(ctx, c, func() ([]platform.Change, error) { return p.Apply(ctx, c.Key+"/apply", a.Objects, Options(c, a)) })
	if err != nil {
		return Outcome{}, err
	}
	if err := p.Revert(ctx, c.Key+"/revert", changes); err != nil {
		return Outcome{}, err
	}
	var back []manifest.Ref
	for _, ch := range changes {
		if ch.PreImage != nil && ch.Ref.Kind != "Job" {
			back = append(back, ch.Ref)
		}
	}
	if err := Await(ctx, p, a.Timeout, "ready", back, Ready); err != nil {
		return Outcome{}, fmt.Errorf("the version before does not come back: %w", err)
	}
	return Done(delivery.Pass, "what was there before is back"), nil
}

// startCanary brings the new version of Deployments up beside the old one.
type startCanary struct{ forgetting }

// Plan says what starts.
func (startCanary) Plan(n plan.Node) (plan.Description, error) {
	a, err := read[plan.ApplyArgs](n.Args)
	return plan.Description{Does: fmt.Sprintf("starts the new version of %d Deployment(s) in namespace %s beside the old one, without traffic", len(a.Objects), a.Namespace),
		WaitsFor: fmt.Sprintf("it is ready (at most %s)", a.Timeout), UndoneBy: "giving all traffic to the old version and ending the new one"}, err
}

func (st startCanary) shifter(account string) (platform.Platform, platform.Shifter, error) {
	return shifterOf(st.ports, account)
}

func shifterOf(ports Ports, account string) (platform.Platform, platform.Shifter, error) {
	p, err := ports.Platform(account)
	if err != nil {
		return nil, nil, err
	}
	s, ok := p.(platform.Shifter)
	if !ok {
		return nil, nil, fault.Newf(fault.Invalid, "the platform of account %q cannot shift traffic", account)
	}
	return p, s, nil
}

// within gives a platform that long for what waits for pods.
func within(ctx context.Context, timeout time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return do(ctx)
}

// begin starts a canary. Where the platform cannot keep changed settings from the old version, they are applied before.
func begin(ctx context.Context, p platform.Platform, s platform.Shifter, c Call, a plan.ApplyArgs) ([]platform.Change, error) {
	if apart, ok := p.(platform.Separator); ok {
		return apart.StartCanaryWith(ctx, c.Key+"/start", a.Objects, a.Settings, Options(c, a))
	}
	var settings []platform.Change
	if len(a.Settings) > 0 {
		var err error
		if settings, err = p.Apply(ctx, c.Key+"/settings", a.Settings, Options(c, a)); err != nil {
			return settings, err
		}
	}
	changes, err := s.StartCanary(ctx, c.Key+"/start", a.Objects, Options(c, a))
	return append(settings, changes...), err
}

// Run starts and waits.
func (st startCanary) Run(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.ApplyArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	p, s, err := st.shifter(a.Account)
	if err != nil {
		return Outcome{}, err
	}
	kept, err := read[Applied](c.Saved)
	if err == nil && a.Recovers && !kept.Ended {
		err = recovered(ctx, p, c, refs(a.Objects, a.Namespace))
	}
	if err != nil {
		return Outcome{}, err
	}
	_, refusal, err := change(ctx, c, func() ([]platform.Change, error) { return begin(ctx, p, s, c, a) })
	switch {
	case err != nil:
		return Outcome{}, err
	case refusal != nil:
		return Done(delivery.Fail, refusal.Error()), nil
	}
	if err := Await(ctx, p, a.Timeout, "ready", refs(a.Objects, a.Namespace), Ready); err != nil {
		return verdict(ctx, err)
	}
	return Done(delivery.Pass, "the new version is ready"), nil
}

// Undo ends the new version. Where it was promoted already, that has been taken back before.
func (st startCanary) Undo(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.ApplyArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	p, shift, err := st.shifter(a.Account)
	if err != nil {
		return Outcome{}, err
	}
	changes, err := changed(ctx, c, func() ([]platform.Change, error) { return begin(ctx, p, shift, c, a) })
	if err != nil {
		return Outcome{}, err
	}
	if err := within(ctx, a.Timeout, func(ctx context.Context) error { return shift.Abort(ctx, c.Key+"/abort", refs(a.Objects, a.Namespace)) }); err != nil {
		return Outcome{}, err
	}
	if err := p.Revert(ctx, c.Key+"/revert", changes); err != nil {
		return Outcome{}, err
	}
	var back []manifest.Ref
	for _, ch := range changes {
		if !ch.Created {
			back = append(back, ch.Ref)
		}
	}
	if err := Await(ctx, p, a.Timeout, "ready", back, Ready); err != nil {
		return Outcome{}, fmt.Errorf("the old version is not ready: %w", err)
	}
	return Done(delivery.Pass, "the old version has all traffic"), nil
}

// setWeight shifts traffic; to the whole of it for the redirection of blueGreen.
type setWeight struct{ ports Ports }

// Plan says how much.
func (setWeight) Plan(n plan.Node) (plan.Description, error) {
	a, err := read[plan.WeightArgs](n.Args)
	return plan.Description{Does: fmt.Sprintf("gives the new version %d %% of the traffic", a.Weight), UndoneBy: "giving all traffic to the old version"}, err
}

// Run shifts and waits for the pods that the share needs.
func (st setWeight) Run(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.WeightArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	p, s, err := shifterOf(st.ports, a.Account)
	if err != nil {
		return Outcome{}, err
	}
	if err := within(ctx, a.Timeout, func(ctx context.Context) error { return s.SetWeight(ctx, c.Key+"/weight", a.Deployments, a.Weight) }); err != nil {
		return verdict(ctx, err)
	}
	if err := Await(ctx, p, a.Timeout, "ready", a.Deployments, Ready); err != nil {
		return verdict(ctx, err)
	}
	return Done(delivery.Pass, fmt.Sprintf("the new version gets %d %%", a.Weight)), nil
}

// Undo takes all traffic from the new version.
func (st setWeight) Undo(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.WeightArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	_, s, err := shifterOf(st.ports, a.Account)
	if err != nil {
		return Outcome{}, err
	}
	err = within(ctx, a.Timeout, func(ctx context.Context) error { return s.SetWeight(ctx, c.Key+"/undo", a.Deployments, 0) })
	return Done(delivery.Pass, "the old version gets all traffic"), err
}

// promote makes the new version the stable one.
type promote struct{ ports Ports }

// Plan says so.
func (promote) Plan(n plan.Node) (plan.Description, error) {
	a, err := read[plan.WeightArgs](n.Args)
	return plan.Description{Does: fmt.Sprintf("makes the new version of %d Deployment(s) the stable one and ends the old one", len(a.Deployments)),
		UndoneBy: "starting the old version again"}, err
}

// Run promotes and waits until the old version is gone.
func (st promote) Run(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.WeightArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	p, s, err := shifterOf(st.ports, a.Account)
	if err != nil {
		return Outcome{}, err
	}
	if err := within(ctx, a.Timeout, func(ctx context.Context) error { return s.Promote(ctx, c.Key+"/promote", a.Deployments) }); err != nil {
		return verdict(ctx, err)
	}
	if err := Await(ctx, p, a.Timeout, "ready", a.Deployments, Ready); err != nil {
		return verdict(ctx, err)
	}
	return Done(delivery.Pass, "the new version is the stable one"), nil
}

// Undo leaves it to the start of the canary, which knows what ran before.
func (promote) Undo(context.Context, Call) (Outcome, error) {
	return Done(delivery.Pass, "the start of the new version is taken back next"), nil
}
