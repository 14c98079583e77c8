package data

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/kube"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/volume"
)

// copyData takes one copy of the running database and makes twins of it in the target: control runs production's own
// version in a namespace beside the target's, candidate's volumes wait under the claims that the target's workload mounts.
//
// The copy is recovered once, by production's own version, and stopped cleanly: both twins are clones of that base, so
// that an undamaged pair is equal to the last bit.
type copyData struct{ base }

// copied is what copyData keeps.
type copied struct {
	Try       int             `json:"try"`
	Cut       *cut            `json:"cut,omitempty"`
	Based     bool            `json:"based,omitempty"`     // the base is recovered and stopped
	Earlier   []copyName      `json:"earlier,omitempty"`   // what the target's claims were bound to before
	Candidate bool            `json:"candidate,omitempty"` // its claims are bound
	Launch    database.Launch `json:"launch"`              // how the candidate must be started
	Site      plan.Site       `json:"site"`
	Control   plan.Site       `json:"control"`
}

// copyName is how a copy of any delivery is found again.
type copyName struct {
	Owner string `json:"owner"`
	ID    string `json:"id"`
}

func (s copied) baseID(c string) string { return c + "/base" }

// Plan says what is copied to where.
func (copyData) Plan(n plan.Node) (plan.Description, error) {
	a, err := args[plan.CopyArgs](n.Args)
	return plan.Description{
		Does: fmt.Sprintf("copies the volumes of %s (%s in %s) while its writers are held for at most %s; starts control on its own version in %s, and binds candidate's claims in %s",
			a.Database.Name, a.Database.Workload, a.Database.Namespace, maxHold(a), a.To.Namespace+"-control", a.To.Namespace),
		UndoneBy: "nothing: production is only read; the twins are deleted when the delivery ends",
	}, err
}

func maxHold(a plan.CopyArgs) time.Duration {
	if a.MaxHold == 0 {
		return hold
	}
	return a.MaxHold
}

// Run copies within the time that the step has. What waiting does not cure fails it: production was only read.
func (st copyData) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.CopyArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	within, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	out, err := st.copy(within, c, a)
	if err == nil {
		return out, nil
	}
	if ctx.Err() == nil && within.Err() != nil {
		err = fault.Newf(fault.Invalid, "the twins of %s were not made within %s: %w", a.Database.Name, a.Timeout, err)
	}
	return refusal(ctx, err)
}

// copy cuts, recovers the base and starts control.
func (st copyData) copy(ctx context.Context, c step.Call, a plan.CopyArgs) (step.Outcome, error) {
	s, err := saved[copied](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	p, err := st.at(a.Database.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	to, err := st.at(a.To.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	if err := reaches(p, to, a.Database); err != nil {
		return step.Outcome{}, err
	}
	live, err := st.live(ctx, p, a.Database)
	if err != nil {
		return step.Outcome{}, err
	}
	target, _, _, err := split(a.Objects, a.Database.Workload)
	if err != nil {
		return step.Outcome{}, err
	}
	for _, purpose := range []string{"base", "control"} {
		if err := vacant(ctx, to, beside(a.To, purpose).Namespace); err != nil {
			return step.Outcome{}, err
		}
	}
	s.Try++
	s.Site, s.Control = a.To, beside(a.To, "control")
	if err := c.Save(ctx, s); err != nil {
		return step.Outcome{}, err
	}
	sides := copying{from: p, to: to, classes: target.otherClasses(live.workload)}
	if sides.theirs, err = exists(ctx, to, manifest.Ref{Kind: "Namespace", Name: a.To.Namespace}); err != nil {
		return step.Outcome{}, err
	}
	if sides.others, err = st.others(ctx, a.Database); err != nil {
		return step.Outcome{}, err
	}
	took, err := st.makeTwins(ctx, c, sides, a, live, target, &s)
	if err != nil {
		return step.Outcome{}, err
	}
	out := step.Done(delivery.Pass, fmt.Sprintf("twins of %s: %s; %s", a.Database.Name, s.Cut, took))
	out.Evidence = map[string]any{"level": s.Cut.Level, "method": s.Cut.Method, "bytes": s.Cut.Bytes, "heldMillis": s.Cut.Held.Milliseconds(),
		"recoverMillis": took.base.Milliseconds(), "streamedBytes": took.streamed, "twinsMillis": took.twins.Milliseconds(),
		"relations": len(s.Cut.Census.Relations), "version": live.images(), "notes": append(s.Cut.Notes, s.Launch.Notes...)}
	return out, nil
}

// copying is where a copy comes from and goes to.
type copying struct {
	from, to place
	theirs   bool                // the target's namespace was there before
	others   []platform.Endpoint // what no copy must reach
	classes  map[string]string   // of the target's claims, where they are not production's
}

// phases are how long the parts of a copy took that come after the cut.
type phases struct {
	base, twins time.Duration
	streamed    int64 // to the target's account, which does not share the storage
}

func (t phases) String() string {
	streamed := ""
	if t.streamed > 0 {
		streamed = size(t.streamed) + " streamed and "
	}
	return fmt.Sprintf("%srecovered in %s, twins in %s", streamed, t.base, t.twins)
}

// makeTwins makes the copies one of another: the cut, the base, and of that the twins side by side. That their quarantines hold is
// proven meanwhile.
func (st copyData) makeTwins(ctx context.Context, c step.Call, sides copying, a plan.CopyArgs, l live, target workload, s *copied) (took phases, err error) {
	base, control, candidate := st.raisings(c, sides, a, l, target, s)
	proofs := &proofs{base: st.base, c: c, p: sides.to, db: a.Database}
	ctx, end := proofs.begin(ctx)
	defer end()
	if !s.Based {
		base.isolated = proofs.of(ctx, base)
	}
	control.isolated = proofs.of(ctx, control)
	if s.Cut == nil {
		if err := st.cutSource(ctx, c, sides.from, a, l, s); err != nil {
			return took, err
		}
	}
	began := time.Now()
	free, err := st.makeRoom(ctx, c, sides, a, target, s)
	if err != nil {
		return took, err
	}
	if free && !s.Candidate {
		candidate.isolated = proofs.of(ctx, candidate)
	}
	if err := st.recover(ctx, c, sides, a, base, s); err != nil {
		return took, err
	}
	took.base, began = since(began), time.Now()
	from, err := sides.to.find(ctx, c.Delivery, s.baseID(c.Key))
	if err != nil {
		return took, err
	}
	control.from, candidate.from = from, from
	if i := from.Info(); i.Method == volume.Stream {
		took.streamed = i.Bytes
	}
	twins, within := errgroup.WithContext(ctx)
	twins.Go(func() error { return st.candidate(within, c, sides, a, candidate, s) })
	twins.Go(func() error {
		if err := st.raise(within, c, sides.to, a.Database, control); err != nil {
			return fmt.Errorf("control: %w", err)
		}
		return nil
	})
	err = twins.Wait()
	took.twins = since(began)
	return took, err
}

// raisings say how the copies are started, but for what they are cloned from.
func (st copyData) raisings(c step.Call, sides copying, a plan.CopyArgs, l live, target workload, s *copied) (base, control, candidate raising) {
	base = raising{namespace: beside(a.To, "base").Namespace, others: sides.others, workload: l.workload, objects: l.bundle(), role: database.Control,
		copyID: s.baseID(c.Key), upKey: fmt.Sprintf("%s/base/up/%d", c.Key, s.Try), timeout: a.Timeout}
	control = base
	control.namespace, control.copyID, control.upKey = s.Control.Namespace, c.Key+"/control", fmt.Sprintf("%s/control/up/%d", c.Key, s.Try)
	candidate = raising{namespace: a.To.Namespace, theirs: sides.theirs, replace: a.Replace, classes: sides.classes, others: sides.others, workload: target,
		role: database.Candidate, copyID: c.Key + "/candidate"}
	return base, control, candidate
}

// reaches refuses copies that no driver carries: a directory of this machine is behind the claims of its own account only.
func reaches(from, to place, db plan.Database) error {
	if from.account == to.account {
		return nil
	}
	for _, p := range []place{from, to} {
		if _, ok := p.Platform.(volume.Binder); ok {
			return fault.Newf(fault.Invalid, "database %s runs in account %q and the twins belong in %q: copies from or to another account are built for clusters only",
				db.Name, from.account, to.account)
		}
	}
	return nil
}

// beside returns the site of copies with one purpose.
func beside(at plan.Site, purpose string) plan.Site {
	return plan.Site{Account: at.Account, Namespace: at.Namespace + "-" + purpose}
}

func (st copyData) cutSource(ctx context.Context, c step.Call, p place, a plan.CopyArgs, l live, s *copied) error {
	for try := 1; try < s.Try; try++ {
		if err := p.discard(ctx, c.Delivery, cutID(c.Key, try)); err != nil {
			return err
		}
	}
	k, err := st.take(ctx, c, p, a.Database, a.Database.Namespace, l.sources, cutID(c.Key, s.Try), a.MaxHold)
	if err != nil {
		return err
	}
	s.Cut = &k
	c.Progress("copied: %s", k)
	return c.Save(ctx, *s)
}

func cutID(key string, try int) string { return fmt.Sprintf("%s/cut/%d", key, try) }

// makeRoom stops the target's workload and deletes the copies of an earlier delivery where claims are volumes: the claims
// of the base bear the same names in every delivery, and the earlier base cannot go before what was cloned from it. A
// directory has a name of its own, so there the earlier candidate runs until the next one is ready. It reports whether nothing
// of the target's workload runs now.
func (st copyData) makeRoom(ctx context.Context, c step.Call, sides copying, a plan.CopyArgs, target workload, s *copied) (free bool, err error) {
	if _, directories := sides.to.Platform.(volume.Binder); directories || s.Based {
		return false, nil
	}
	if err := st.noteEarlier(ctx, c, sides, a, target, s); err != nil {
		return false, err
	}
	if len(s.Earlier) == 0 {
		there, err := exists(ctx, sides.to, target.ref(a.To.Namespace))
		return !there, err
	}
	if err := st.vacate(ctx, c, sides.to, target.ref(a.To.Namespace), s.Try); err != nil {
		return false, err
	}
	return true, sides.forget(ctx, s.Earlier)
}

// recover makes the base: production's own version starts on a clone of the copy, is held against the census, and is
// stopped cleanly.
func (st copyData) recover(ctx context.Context, c step.Call, sides copying, a plan.CopyArgs, r raising, s *copied) error {
	if s.Based {
		return nil
	}
	p := sides.to
	from, err := sides.from.find(ctx, c.Delivery, s.Cut.ID)
	if err != nil {
		return err
	}
	r.from = from
	if err := st.raise(ctx, c, p, a.Database, r); err != nil {
		return fmt.Errorf("recover the copy: %w", err)
	}
	server, err := st.open(ctx, p, a.Database, r.namespace)
	if err != nil {
		return err
	}
	err = covers(ctx, server, s.Cut.Census)
	if e := server.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err := st.stop(ctx, c, p, r.namespace, r.objects, fmt.Sprintf("%s/base/down/%d", c.Key, s.Try)); err != nil {
		return err
	}
	s.Based = true
	return c.Save(ctx, *s)
}

// candidate binds the claims that the target's workload mounts to a clone of the base. What ran on them is stopped
// first, and copies that an earlier delivery left there are deleted.
func (st copyData) candidate(ctx context.Context, c step.Call, sides copying, a plan.CopyArgs, r raising, s *copied) (err error) {
	if s.Candidate {
		return sides.forget(ctx, s.Earlier)
	}
	p := sides.to
	if err := st.noteEarlier(ctx, c, sides, a, r.workload, s); err != nil {
		return err
	}
	if err := st.vacate(ctx, c, p, r.workload.ref(r.namespace), s.Try); err != nil {
		return err
	}
	if s.Launch, err = st.ready(ctx, c, p, a.Database, r); err != nil {
		return err
	}
	s.Candidate = true
	if err := c.Save(ctx, *s); err != nil {
		return err
	}
	return sides.forget(ctx, s.Earlier)
}

// noteEarlier keeps which copies of earlier deliveries the target's claims are bound to: once they are bound anew nothing
// tells it.
func (st copyData) noteEarlier(ctx context.Context, c step.Call, sides copying, a plan.CopyArgs, target workload, s *copied) error {
	earlier, err := st.earlier(ctx, c, sides, a, target)
	if err != nil {
		return err
	}
	for _, e := range earlier {
		if !slices.Contains(s.Earlier, e) {
			s.Earlier = append(s.Earlier, e)
		}
	}
	return c.Save(ctx, *s)
}

// exists reports whether there is an object. Whoever may not look works with what was made for him.
func exists(ctx context.Context, p place, ref manifest.Ref) (bool, error) {
	get, err := optional[platform.Getter](p, "read live objects")
	if err != nil {
		return false, err
	}
	_, err = get.Get(ctx, ref)
	switch {
	case fault.Is(err, fault.NotFound):
		return false, nil
	case err != nil && !fault.Is(err, fault.Denied):
		return false, err
	}
	return true, nil
}

// vacant refuses a namespace for copies that somebody else made, before production is asked for anything. Where namespaces
// may not be read, or are none of a cluster's, whatever runs there is refused by itself.
func vacant(ctx context.Context, p place, namespace string) error {
	get, err := optional[platform.Getter](p, "read live objects")
	if err != nil {
		return err
	}
	o, err := get.Get(ctx, manifest.Ref{Kind: "Namespace", Name: namespace})
	switch {
	case fault.Is(err, fault.NotFound) || fault.Is(err, fault.Denied):
		return nil
	case err != nil:
		return err
	case o.GetLabels()[kube.ManagedByLabel] != kube.Manager:
		return fault.WithRemedy(fault.Newf(fault.Denied, "namespace %s of account %s is where a copy of its own would run, and somebody else made it", namespace, p.account),
			"rename it, or delete it if nothing needs it: Sluice makes it with the label %s=%s", kube.ManagedByLabel, kube.Manager)
	}
	return nil
}

// vacate stops a workload that still runs on the claims which are about to be bound anew.
func (b base) vacate(ctx context.Context, c step.Call, p place, ref manifest.Ref, try int) error {
	if there, err := exists(ctx, p, ref); err != nil || !there {
		return err
	}
	f, err := optional[platform.Fencer](p, "stop a workload")
	if err != nil {
		return err
	}
	c.Progress("stopping %s, whose volumes are replaced", ref)
	if err := f.Scale(ctx, fmt.Sprintf("%s/vacate/%d", c.Key, try), ref, 0); err != nil {
		return err
	}
	return step.Await(ctx, p, time.Minute, "stopped", []manifest.Ref{ref}, step.Stopped)
}

// earlier returns the copies that are bound to the target's claims now, with what they were cloned from. A claim that Sluice
// did not make is refused.
func (st copyData) earlier(ctx context.Context, c step.Call, sides copying, a plan.CopyArgs, target workload) ([]copyName, error) {
	all, err := sides.to.volumes.List(ctx, "")
	if err == nil && sides.from.account != sides.to.account {
		var there []volume.Copy
		there, err = sides.from.volumes.List(ctx, "")
		all = append(all, there...)
	}
	if err != nil {
		return nil, err
	}
	var found []copyName
	for _, claim := range target.claims {
		pl := volume.Place{Account: sides.to.account, Namespace: a.To.Namespace, Claim: claim}
		bound, err := boundTo(ctx, sides.to, all, pl)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, k := range bound {
			if k.Info().Owner != c.Delivery {
				found = append(found, withParents(all, k)...)
			}
		}
		if len(bound) == 0 && !a.Replace {
			return nil, fault.WithRemedy(fault.Newf(fault.Denied, "claim %s of namespace %s was not made by Sluice", claim, a.To.Namespace),
				"set `replace: true` in copyData to bind it to the copy instead; its files are kept")
		}
	}
	return found, nil
}

// boundTo returns the copies that a claim is bound to, none where it is not Sluice's, or an error of kind NotFound.
func boundTo(ctx context.Context, p place, all []volume.Copy, claim volume.Place) ([]volume.Copy, error) {
	holds := func(i volume.CopyInfo) bool {
		return slices.ContainsFunc(i.Places, func(pl volume.Place) bool { return pl.Bare() == claim })
	}
	if bind, ok := p.Platform.(volume.Binder); ok {
		dir, err := bind.Bound(ctx, claim)
		if err != nil {
			return nil, err
		}
		holds = func(i volume.CopyInfo) bool { return slices.Contains(i.Dirs, dir) }
	} else {
		ref := manifest.Ref{Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Claim}
		if there, err := exists(ctx, p, ref); err != nil {
			return nil, err
		} else if !there {
			return nil, fault.Newf(fault.NotFound, "there is no %s", ref)
		}
	}
	var out []volume.Copy
	for _, k := range all {
		if holds(k.Info()) {
			out = append(out, k)
		}
	}
	return out, nil
}

// withParents names a copy and those that it was cloned from.
func withParents(all []volume.Copy, k volume.Copy) []copyName {
	names := []copyName{{Owner: k.Info().Owner, ID: k.ID()}}
	for _, p := range all {
		if p.Info().Owner == k.Info().Owner && p.ID() == k.Info().Parent {
			return append(names, withParents(all, p)...)
		}
	}
	return names
}

// forget deletes copies of ended deliveries, clones first, as far as nothing else needs them. Those that are gone already
// are well.
func (s copying) forget(ctx context.Context, copies []copyName) error {
	for _, k := range copies {
		p := s.to
		found, err := p.find(ctx, k.Owner, k.ID)
		if fault.Is(err, fault.NotFound) {
			p = s.from // where the cut is
			found, err = p.find(ctx, k.Owner, k.ID)
		}
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if err := p.volumes.Delete(ctx, found); err != nil && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.Denied) {
			return err
		}
	}
	return nil
}

// Undo has nothing to take back: production was only read.
func (copyData) Undo(context.Context, step.Call) (step.Outcome, error) {
	return step.Done(delivery.Pass, "production was only read"), nil
}

// Clean deletes control. Candidate stays in the target, as the environment that was asked for, until the next copy.
func (st copyData) Clean(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.CopyArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[copied](c.Saved)
	if err != nil || s.Try == 0 {
		return step.Done(delivery.Pass, ""), err
	}
	p, err := st.at(a.Database.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	to, err := st.at(a.To.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	live, err := st.live(ctx, p, a.Database)
	if err != nil {
		return step.Outcome{}, err
	}
	return step.Done(delivery.Pass, ""), st.remove(ctx, c, p, to, a, live, s)
}

// remove ends and deletes what this copy made and nothing needs. What of it fails does not keep the rest.
func (st copyData) remove(ctx context.Context, c step.Call, p, to place, a plan.CopyArgs, l live, s copied) error {
	var failed []error
	for _, purpose := range []string{"control", "base"} {
		failed = append(failed, st.clear(ctx, c, to, beside(a.To, purpose).Namespace, l.bundle(), c.Key+"/clean/"+purpose))
	}
	gone, cuts := []string{c.Key + "/control"}, []string{}
	if !s.Candidate {
		failed = append(failed, st.release(ctx, c, to, a.To.Namespace))
		gone = append(gone, c.Key+"/candidate", s.baseID(c.Key))
		for try := s.Try; try > 0; try-- {
			cuts = append(cuts, cutID(c.Key, try))
		}
	}
	return errors.Join(append(failed, to.discard(ctx, c.Delivery, gone...), p.discard(ctx, c.Delivery, cuts...))...)
}
