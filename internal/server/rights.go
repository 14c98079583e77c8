package server

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/store"
)

func (i identity) owner() bool { return slices.Contains(i.has, config.Owner) }

// permitted refuses a caller. Without a role nothing is permitted; with any role, to look and to decide approvals. Whoever
// starts or steers a delivery has commands run as the user of the server, which is the owner's alone.
func permitted(i identity, needsOwner bool) error {
	switch {
	case i.owner():
		return nil
	case len(i.has) == 0:
		return fault.WithRemedy(fault.Newf(fault.Denied, "%s has no role here and may do nothing", i.user),
			"the owner of the server gives roles in its sluice.yaml, under roles:")
	case needsOwner:
		return fault.WithRemedy(fault.Newf(fault.Denied, "%s has the roles %s, which may look at deliveries and decide approvals; this needs the role %s",
			i.user, i.roles(), config.Owner), "ask an owner to do it, or to give the role in sluice.yaml, under roles:")
	}
	return nil
}

// some lets callers with any role in.
func some(next http.HandlerFunc) http.HandlerFunc { return guarded(false, next) }

// owners lets owners in.
func owners(next http.HandlerFunc) http.HandlerFunc { return guarded(true, next) }

func guarded(needsOwner bool, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := permitted(caller(r.Context()), needsOwner); err != nil {
			refuse(w, status(err), err)
			return
		}
		next(w, r)
	}
}

// decides refuses a signal of a caller who is no owner and decides something else than an approval. Which approvals his roles
// decide is the delivery's to say.
func (s *Server) decides(ctx context.Context, id string, sig delivery.Signal) error {
	i := caller(ctx)
	if i.owner() {
		return nil
	}
	if sig.Kind != delivery.Approve && sig.Kind != delivery.Reject {
		return permitted(i, true)
	}
	d, err := s.work.Store.Load(ctx, id)
	if err != nil {
		return err
	}
	for _, n := range d.Spec.Graph.Nodes {
		if n.Path == sig.Path && n.Kind != plan.KindApproval {
			return fmt.Errorf("step %s is no approval: %w", n.Path, permitted(i, true))
		}
	}
	return nil
}

// shown is a delivery as the caller may see it. What steps were given and have kept holds manifests, and Secrets among them.
func shown(ctx context.Context, d store.Delivery) store.Delivery {
	if caller(ctx).owner() {
		return d
	}
	d.Spec.File = ""
	d.Spec.Graph.Nodes = slices.Clone(d.Spec.Graph.Nodes)
	for i, n := range d.Spec.Graph.Nodes {
		if n.Kind != plan.KindApproval {
			d.Spec.Graph.Nodes[i].Args = nil
		}
	}
	nodes := map[string]delivery.NodeStatus{}
	for path, n := range d.Status.Nodes {
		n.Saved = nil
		nodes[path] = n
	}
	d.Status.Nodes = nodes
	return d
}
