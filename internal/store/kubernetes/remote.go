package kubernetes

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
	"github.com/sluice-cd/sluice/internal/store"
)

// Remote starts deliveries that a controller carries out, and decides about them, with the credentials of a person. It
// writes no status.
type Remote struct {
	c *client
	o Config
}

// NewRemote makes a remote of the deliveries of a namespace.
func NewRemote(o Config) (*Remote, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	c, err := newClient(o.Credentials, o.Namespace)
	return &Remote{c: c, o: o}, err
}

// me is the name by which the cluster knows whoever asks.
func (r *Remote) me(ctx context.Context) (string, error) {
	scheme := runtime.NewScheme()
	if err := authenticationv1.AddToScheme(scheme); err != nil {
		return "", err
	}
	web, err := rest.HTTPClientFor(r.o.Credentials)
	if err != nil {
		return "", fault.Newf(fault.Invalid, "the credentials cannot be used: %w", err)
	}
	c, err := kubernetes.Client(r.o.Credentials, web, authenticationv1.SchemeGroupVersion, scheme)
	if err != nil {
		return "", err
	}
	out := &authenticationv1.SelfSubjectReview{}
	err = c.Post().Resource("selfsubjectreviews").Body(&authenticationv1.SelfSubjectReview{}).Do(ctx).Into(out)
	return out.Status.UserInfo.Username, kubernetes.Fault(err, "ask the cluster who you are")
}

// Start keeps a delivery and returns when the controller has admitted it. While another one of the application runs the
// error is a *store.ErrRunning.
func (r *Remote) Start(ctx context.Context, spec delivery.Spec) error {
	var err error
	if spec.By, err = r.me(ctx); err != nil {
		return err
	}
	if _, err := r.c.submit(ctx, spec); err != nil {
		return err
	}
	admitted := false
	err = r.follow(ctx, spec.ID, func(d *v1alpha1.Delivery, _ *mirror) (bool, error) {
		admitted = d.Status.Revision > 0
		if by := d.Status.BlockedBy; by != "" && d.Status.Done {
			return true, &store.ErrRunning{ID: by, Application: spec.Application}
		}
		// The first status of a delivery that is refused is its last.
		if d.Status.Done && d.Status.Revision == 1 && d.Status.Phase == string(delivery.Failed) {
			return true, fault.Newf(fault.Invalid, "delivery %s is refused: %s", d.Name, d.Status.Reason)
		}
		return admitted, nil
	})
	if err != nil && !admitted {
		return fault.WithRemedy(err, "delivery %s is in the cluster and goes on when a controller takes it: sluice deploy watch %s", spec.ID, spec.ID)
	}
	return err
}

// Get returns a delivery. Whoever may not read its Secrets gets the steps of its plan without their arguments, and of a state
// that is in Secrets what the status itself says.
func (r *Remote) Get(ctx context.Context, id string) (store.Delivery, error) {
	_, out, _, err := r.read(ctx, id)
	return out, err
}

// read returns a delivery, and whether its state is the whole one.
func (r *Remote) read(ctx context.Context, id string) (d *v1alpha1.Delivery, out store.Delivery, whole bool, err error) {
	d, err = get[v1alpha1.Delivery](ctx, r.c, deliveries, id)
	if fault.Is(err, fault.NotFound) {
		return nil, out, false, fault.Newf(fault.NotFound, "there is no delivery %q in namespace %s", id, r.c.namespace)
	}
	if err != nil {
		return nil, out, false, err
	}
	if out.Spec, err = r.c.plan(ctx, d); apierrors.IsForbidden(err) {
		out.Spec, err = outline(d), nil
	}
	if err != nil {
		return d, out, false, remedied(err)
	}
	d, out.Status, whole, err = r.state(ctx, d)
	out.Revision = store.Revision(d.Status.Revision)
	if err != nil || out.Status.Done {
		return d, out, whole, err
	}
	all, err := r.actionsOf(ctx, d.Name)
	if err != nil {
		return d, out, whole, err
	}
	for _, a := range all {
		if !slices.Contains(d.Status.Taken, a.Name) {
			out.Signals = append(out.Signals, store.Signal{Seq: out.Status.Seen + int64(len(out.Signals)) + 1, Signal: signalOf(a)})
		}
	}
	return d, out, whole, nil
}

// state returns the state of a delivery, whole or what its status itself says where its Secrets may not be read, and the
// delivery that it is of.
func (r *Remote) state(ctx context.Context, known *v1alpha1.Delivery) (d *v1alpha1.Delivery, st delivery.Status, whole bool, err error) {
	d, st, err = r.c.current(ctx, known)
	if apierrors.IsForbidden(err) {
		return d, summary(d), false, nil
	}
	return d, st, err == nil, remedied(err)
}

// outline is what everybody may know of a plan.
func outline(d *v1alpha1.Delivery) delivery.Spec {
	s := delivery.Spec{ID: d.Name, Application: d.Spec.Application, CreatedAt: d.CreationTimestamp.UTC(), By: d.Spec.By, EnqueueOne: d.Spec.EnqueueOne}
	known := map[string]bool{}
	for _, step := range d.Spec.Steps {
		s.Graph.Nodes = append(s.Graph.Nodes, plan.Node{Path: step.Path, Title: step.Title, Target: step.Target, Phase: plan.Phase(step.Phase), Kind: step.Type, After: step.After})
		if !known[step.Target] {
			known[step.Target] = true
			s.Graph.Targets = append(s.Graph.Targets, plan.Target{Name: step.Target})
		}
	}
	return s
}

// List returns all deliveries, newest first, with the outlines of their plans. One whose state is lost is shown by what its
// status itself says.
func (r *Remote) List(ctx context.Context) ([]store.Delivery, error) {
	all, err := list[v1alpha1.DeliveryList](ctx, r.c, deliveries, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var out []store.Delivery
	for i := range all.Items {
		d, st, _, err := r.state(ctx, &all.Items[i])
		if fault.Is(err, fault.NotFound) {
			continue // it was deleted meanwhile
		}
		if fault.Is(err, fault.Lost) {
			st, err = summary(d), nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, store.Delivery{Spec: outline(d), Status: st, Revision: store.Revision(d.Status.Revision)})
	}
	slices.SortFunc(out, func(a, b store.Delivery) int {
		return cmp.Or(b.Spec.CreatedAt.Compare(a.Spec.CreatedAt), strings.Compare(a.Spec.ID, b.Spec.ID))
	})
	return out, nil
}

// Journal returns the journal of a delivery.
func (r *Remote) Journal(ctx context.Context, id string) ([]store.Record, error) {
	d, err := get[v1alpha1.Delivery](ctx, r.c, deliveries, id)
	if err != nil {
		return nil, err
	}
	return r.c.records(ctx, d)
}

// Watch tells the present state of a delivery and then every change, until it has ended.
func (r *Remote) Watch(ctx context.Context, id string, f func(store.Delivery)) error {
	first, err := r.Get(ctx, id)
	if err != nil {
		return err
	}
	f(first)
	if first.Status.Done {
		return nil
	}
	at := first.Revision
	return r.follow(ctx, id, func(d *v1alpha1.Delivery, _ *mirror) (bool, error) {
		if store.Revision(d.Status.Revision) <= at {
			return false, nil
		}
		d, st, _, err := r.state(ctx, d)
		if err != nil {
			return true, err
		}
		at = store.Revision(d.Status.Revision)
		f(store.Delivery{Spec: first.Spec, Status: st, Revision: at})
		return st.Done, nil
	})
}

// follow calls f with a delivery and what follows it, and again after each change of either, until f says that it is enough.
func (r *Remote) follow(ctx context.Context, id string, f func(*v1alpha1.Delivery, *mirror) (enough bool, err error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var hub store.Hub
	events := hub.Watch(ctx)
	m, err := newMirror(r.c, id, r.o.Log, hub.Publish)
	if err != nil {
		return err
	}
	ready, wait := m.run(ctx)
	defer wait()
	defer cancel()
	if err := ready(ctx); err != nil {
		return err
	}
	hub.Publish(id)
	seen := false
	for range events {
		d := m.delivery(r.c.namespace, id)
		if d == nil && seen {
			return fault.Newf(fault.NotFound, "delivery %s was deleted", id)
		}
		if d == nil {
			continue
		}
		seen = true
		if enough, err := f(d, m); enough || err != nil {
			return err
		}
	}
	return ctx.Err()
}
