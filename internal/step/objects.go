package step

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
)

// expose gives Services a temporary address.
type expose struct{ ports Ports }

// Plan says which.
func (expose) Plan(n plan.Node) (plan.Description, error) {
	a, err := read[plan.ExposeArgs](n.Args)
	return plan.Description{Does: fmt.Sprintf("gives %s a temporary address for %s", strings.Join(a.Services, ", "), a.TTL), UndoneBy: "the address ends by itself"}, err
}

// Run exposes and hands the addresses on as armory.preview.<service>.
func (st expose) Run(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.ExposeArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	p, err := st.ports.Platform(a.Account)
	if err != nil {
		return Outcome{}, err
	}
	e, ok := p.(platform.Exposer)
	if !ok {
		return Outcome{}, fault.Newf(fault.Invalid, "the platform of account %q cannot expose Services", a.Account)
	}
	out := Done(delivery.Pass, "")
	out.Expose = map[string]string{}
	for _, s := range a.Services {
		url, err := e.Expose(ctx, c.Key+"/"+s, manifest.Ref{Kind: "Service", Namespace: a.Namespace, Name: s}, a.TTL)
		if err != nil {
			return verdict(ctx, err)
		}
		out.Expose["preview."+s] = url
		out.Message += fmt.Sprintf("%s is at %s for %s; ", s, url, a.TTL)
	}
	out.Message = strings.TrimSuffix(out.Message, "; ")
	// Later steps of the target find the addresses by what this one has saved.
	return out, c.Save(ctx, exposed{out.Expose})
}

// exposed is what expose keeps.
type exposed struct {
	Expose map[string]string `json:"expose"`
}

// Undo has nothing to take back: the address ends by itself.
func (expose) Undo(context.Context, Call) (Outcome, error) {
	return Done(delivery.Pass, "the address ends by itself"), nil
}

// runJob runs Jobs and waits until they are complete.
type runJob struct{ ports Ports }

// Plan says which.
func (runJob) Plan(n plan.Node) (plan.Description, error) {
	a, err := read[plan.JobArgs](n.Args)
	return plan.Description{Does: fmt.Sprintf("runs job %s in namespace %s", a.Name, a.To.Namespace), WaitsFor: fmt.Sprintf("it is complete (at most %s)", a.Timeout),
		UndoneBy: "nothing: what a test writes is the test's"}, err
}

// Run applies the Jobs and waits.
func (st runJob) Run(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.JobArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	p, err := st.ports.Platform(a.To.Account)
	if err != nil {
		return Outcome{}, err
	}
	_, refusal, err := change(ctx, c, func() ([]platform.Change, error) {
		return p.Apply(ctx, c.Key+"/apply", a.Objects, platform.Options{Namespace: a.To.Namespace, Delivery: c.Delivery})
	})
	switch {
	case err != nil:
		return Outcome{}, err
	case refusal != nil:
		return verdict(ctx, refusal)
	}
	if err := Await(ctx, p, a.Timeout, "complete", refs(a.Objects, a.To.Namespace), Ready); err != nil {
		return verdict(ctx, err)
	}
	return Done(delivery.Pass, "job "+a.Name+" is complete"), nil
}

// Undo has nothing to take back.
func (runJob) Undo(context.Context, Call) (Outcome, error) {
	return Done(delivery.Pass, "what a test writes is the test's"), nil
}

// Clean deletes the Jobs, and what else there was not before them. Claims stay, with what is on them.
func (st runJob) Clean(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.JobArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	p, err := st.ports.Platform(a.To.Account)
	if err != nil {
		return Outcome{}, err
	}
	s, err := read[Applied](c.Saved)
	if err != nil {
		return Outcome{}, err
	}
	if d, ok := p.(platform.Deleter); ok {
		if err := d.Delete(ctx, c.Key+"/clean", c.Delivery, made(s, a)); err != nil {
			return Outcome{}, err
		}
	}
	return Forget(ctx, p, a.To.Namespace, c)
}

// made is what a step's Jobs have brought with them. Where the platform's answer was not kept, that is the Jobs alone.
func made(s Applied, a plan.JobArgs) []manifest.Ref {
	all := refs(a.Objects, a.To.Namespace)
	if !s.Ended {
		return slices.DeleteFunc(all, func(r manifest.Ref) bool { return r.Kind != "Job" })
	}
	return slices.DeleteFunc(all, func(r manifest.Ref) bool {
		created := slices.ContainsFunc(s.Changes, func(c platform.Change) bool { return c.Created && c.Ref == r })
		return r.Kind == "PersistentVolumeClaim" || r.Kind != "Job" && !created
	})
}

// waitFor waits until an object is ready.
type waitFor struct {
	ports Ports
}

// Plan says for what.
func (waitFor) Plan(n plan.Node) (plan.Description, error) {
	a, err := read[plan.WaitForArgs](n.Args)
	return plan.Description{Does: "waits", WaitsFor: fmt.Sprintf("%s is ready (at most %s)", a.Ref, a.Timeout)}, err
}

// Run waits.
func (st waitFor) Run(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.WaitForArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	p, err := st.ports.Platform(a.To.Account)
	if err != nil {
		return Outcome{}, err
	}
	if err := Await(ctx, p, a.Timeout, "ready", []manifest.Ref{a.Ref}, Ready); err != nil {
		return verdict(ctx, err)
	}
	return Done(delivery.Pass, a.Ref.String()+" is ready"), nil
}

// Undo has nothing to take back.
func (waitFor) Undo(context.Context, Call) (Outcome, error) {
	return Done(delivery.Pass, "nothing was changed"), nil
}
