package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
)

// lookFor is how long a cluster may take to tell of a workload.
const lookFor = 5 * time.Second

// unfit refuses a plan that no engine can carry out where its targets are.
func (a *app) unfit(ctx context.Context, g plan.Graph) error {
	c, err := config.Load(a.config)
	if err != nil {
		return err
	}
	return errors.Join(meshless(c, g), unreached(c, g), a.unowned(ctx, c, g))
}

// meshless refuses a mesh on this machine.
func meshless(c *config.Config, g plan.Graph) error {
	needs, err := g.Needs()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range needs.Meshes {
		if k, err := c.Account(n); err == nil && k.Kind == config.Local {
			errs = append(errs, fault.WithRemedy(fault.Newf(fault.Invalid, "account %s is this machine, where trafficManagement finds no mesh", n),
				"leave smi and istio out, or name other targets in targets: of the entry; without one each Service shifts its traffic itself"))
		}
	}
	return errors.Join(errs...)
}

// unreached refuses copies for which the configuration names no way.
func unreached(c *config.Config, g plan.Graph) error {
	return eachCopy(g, func(_ *plan.Node, from, to string) error { return c.Streamed(from, to) })
}

// unowned refuses a plan for a database whose workload belongs to an operator, before hours of work end there: it would undo
// what the steps do. A cluster that cannot be asked from here is no reason to refuse; the steps ask again.
func (a *app) unowned(ctx context.Context, c *config.Config, g plan.Graph) error {
	all, err := g.Databases()
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range all {
		k, err := c.Account(d.Account)
		if err != nil || k.Kind != config.Kubernetes {
			continue // what is not configured is told by others
		}
		owner, err := ownerOf(ctx, k, d)
		switch {
		case fault.Is(err, fault.NotFound):
		case err != nil:
			fmt.Fprintf(a.errs, "warning: whether %s of database %s belongs to an operator is not known: %v\n", d.Workload, d.Name, err)
		case owner != "":
			errs = append(errs, fault.WithRemedy(fault.Newf(fault.Denied, "database %s: %s of account %s belongs to %s, whose operator would undo what the delivery does to it",
				d.Name, d.Workload, d.Account, owner), "databases that an operator runs are not built yet"))
		}
	}
	return errors.Join(errs...)
}

// ownerOf returns the object that a database's workload belongs to, "" where it belongs to none.
func ownerOf(ctx context.Context, k config.Account, d plan.Database) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	p, err := kubernetes.Connect(kubernetes.Config{Account: k.Name, Kubeconfig: k.Kubeconfig, Context: k.Context, Adopt: k.Adopt, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return "", err
	}
	ref := d.Workload
	if ref.Namespace == "" {
		ref.Namespace = d.Namespace
	}
	live, err := p.Get(ctx, ref)
	if err != nil {
		return "", err
	}
	if owner := metav1.GetControllerOf(&live); owner != nil {
		return owner.Kind + " " + owner.Name, nil
	}
	return "", nil
}
