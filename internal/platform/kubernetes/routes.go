package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes/traffic"
)

// asItWas is the share of a canary that is over: the routes are as they were before it.
const asItWas = -1

// acceptWithin is how long a gateway may take to take up a route.
const acceptWithin = 30 * time.Second

func httpRoute() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: "gateway.networking.k8s.io", Version: "v1", Kind: "HTTPRoute"}
}

// routesOf returns the HTTPRoutes that share the traffic of a Deployment's Services out, and what the Services of its canary
// will be called. Without any the pods' ratio decides.
func (p *Platform) routesOf(ctx context.Context, stable *unstructured.Unstructured) ([]map[string]any, map[string]string, error) {
	r, err := p.kinds.of(httpRoute())
	if fault.Is(err, fault.NotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	all, _, err := p.servicesOf(ctx, stable.GetNamespace(), templateLabels(stable))
	if err != nil {
		return nil, nil, err
	}
	list, err := p.at(r, stable.GetNamespace()).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		p.kinds.forget() // its definition was taken away since the kinds were asked for
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, failed(err, "list the HTTPRoutes of namespace %s", stable.GetNamespace())
	}
	var routes []map[string]any
	canaries := map[string]string{}
	for _, route := range list.Items {
		found := false
		for _, s := range all {
			if traffic.Routes(route.Object, s.Name) {
				found, canaries[s.Name] = true, s.Name+"-canary"
			}
		}
		if found {
			routes = append(routes, route.Object)
		}
	}
	return routes, canaries, nil
}

// makeServices makes the Services that lead to a canary alone.
func (p *Platform) makeServices(ctx context.Context, e entry, canary manifest.Object) error {
	for service, own := range e.Canaries {
		live, err := p.read(ctx, manifest.Ref{Kind: "Service", Namespace: e.Ref.Namespace, Name: service})
		if err != nil {
			return err
		}
		spec, _, _ := unstructured.NestedMap(live.Object, "spec")
		selector, _ := spec["selector"].(map[string]any)
		selector = without(selector, required()...)
		selector[trackLabel] = string(platform.Canary)
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Service",
			"metadata": map[string]any{"namespace": e.Ref.Namespace, "name": own,
				"labels": map[string]any{canaryOf: labelValue(e.Ref.Name), deliveryLabel: canary.GetLabels()[deliveryLabel]}},
			"spec": map[string]any{"selector": selector, "ports": portsOf(spec)}}}
		in := p.dynamic.Resource(services()).Namespace(e.Ref.Namespace)
		_, err = in.Create(ctx, o, metav1.CreateOptions{FieldManager: manager})
		if apierrors.IsAlreadyExists(err) {
			if err := p.namesFree(ctx, e); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return failed(err, "make Service %s/%s", e.Ref.Namespace, own)
		}
	}
	return nil
}

// namesFree refuses a canary whose Services would have the names of others.
func (p *Platform) namesFree(ctx context.Context, e entry) error {
	for _, own := range e.Canaries {
		live, err := p.dynamic.Resource(services()).Namespace(e.Ref.Namespace).Get(ctx, own, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return failed(err, "read Service %s/%s", e.Ref.Namespace, own)
		}
		if err == nil && live.GetLabels()[canaryOf] != labelValue(e.Ref.Name) {
			return fault.WithRemedy(fault.Newf(fault.Conflict, "Service %s/%s is there already and not a canary's", e.Ref.Namespace, own), "give it another name")
		}
	}
	return nil
}

// takenUp refuses routes that their gateways do not share traffic out by: no weight would count, the first as little as the last.
func (p *Platform) takenUp(ctx context.Context, e entry) error {
	for _, first := range e.Routes {
		route := &unstructured.Unstructured{Object: first}
		if route.GetKind() != httpRoute().Kind {
			continue
		}
		r, err := p.kinds.of(route.GroupVersionKind())
		if err != nil {
			return err
		}
		ref := manifest.Ref{Kind: route.GetKind(), Namespace: e.Ref.Namespace, Name: route.GetName()}
		if err := p.accepted(ctx, p.at(r, e.Ref.Namespace), ref); err != nil {
			return fmt.Errorf("%s can have no canary: %w", e.Ref, err)
		}
	}
	return nil
}

// portsOf copies the ports of a Service without what belongs to it alone.
func portsOf(spec map[string]any) []any {
	list, _ := spec["ports"].([]any)
	var out []any
	for _, v := range list {
		if port, ok := v.(map[string]any); ok {
			out = append(out, without(port, "nodePort"))
		}
	}
	return out
}

// deleteServices deletes the Services that lead to a canary alone.
func (p *Platform) deleteServices(ctx context.Context, s shifted) error {
	in := p.dynamic.Resource(services()).Namespace(s.ref.Namespace)
	for _, own := range s.start.Canaries {
		live, err := in.Get(ctx, own, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && live.GetLabels()[canaryOf] != labelValue(s.ref.Name) {
			continue
		}
		if err == nil {
			err = p.deleteLive(ctx, in, live)
		}
		if err != nil {
			return failed(err, "delete Service %s/%s", s.ref.Namespace, own)
		}
	}
	return nil
}

// byRoutes gives a canary its share by the weights of routes. The stable version keeps its pods. Whoever asks its Service past the
// routes gets it until the canary has all traffic.
func (p *Platform) byRoutes(ctx context.Context, s shifted, percent int) error {
	pods := min(s.replicas, ceil(s.replicas*int64(percent), 100))
	if err := p.grow(ctx, s.canaryRef(), s.canary, pods); err != nil {
		return err
	}
	var err error
	if len(s.start.Subsets) > 0 {
		err = p.pin(ctx, s.stable, "") // a subset is of the pods that the Service leads to
	} else if percent < 100 {
		err = p.lead(ctx, s.stable, s.stable)
	}
	if err != nil {
		return err
	}
	if err := p.weigh(ctx, s, percent); err != nil {
		return err
	}
	if percent >= 100 && len(s.start.Subsets) == 0 {
		if err := p.lead(ctx, s.stable, s.canary); err != nil {
			return err
		}
	}
	return p.shrink(ctx, s.canaryRef(), s.canary, pods)
}

// weigh sets the weights of all routes, and waits until the gateways have taken them up: until then they do not count. On the way
// back they are waited for, too, but not asked.
func (p *Platform) weigh(ctx context.Context, s shifted, percent int) error {
	split := traffic.Split{Canaries: s.start.Canaries, Subsets: s.start.Subsets, Percent: percent}
	routes := slices.Clone(s.start.Routes)
	if percent < 0 {
		slices.Reverse(routes) // whoever refers to another goes back before it
	}
	for _, first := range routes {
		route := &unstructured.Unstructured{Object: first}
		ref := manifest.Ref{Kind: route.GetKind(), Namespace: s.ref.Namespace, Name: route.GetName()}
		r, err := p.kinds.of(route.GroupVersionKind())
		if err != nil {
			return err
		}
		in := p.at(r, s.ref.Namespace)
		if percent < 0 && ofCanary(route, s.ref) {
			err = p.unmake(ctx, in, ref, s.ref)
		} else {
			err = p.share(ctx, in, ref, first, split)
		}
		// A mesh does not tell when it has taken something up: what share it gives is measured.
		if err == nil && ref.Kind == httpRoute().Kind {
			err = p.accepted(ctx, in, ref)
			if err != nil && s.back && ctx.Err() == nil {
				p.log.Warn("traffic goes back to the old version by a route that is not accepted", "account", p.c.Account, "route", ref.String(), "because", err)
				p.event(ctx, route, "NotAccepted", err.Error())
				err = nil // what a gateway lacked before, or lacks now, does not keep the old version away
			}
		}
		if fault.Is(err, fault.NotFound) && percent <= 0 {
			continue // a route that is gone leads nobody to the canary
		}
		if fault.Is(err, fault.Conflict) && s.canary == nil {
			p.leave(ctx, route, err.Error()) // it may be another since the promotion
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// share gives one route the weights of a split, or, as it was, those that it had.
func (p *Platform) share(ctx context.Context, in dynamic.ResourceInterface, ref manifest.Ref, first map[string]any, split traffic.Split) error {
	at := traffic.At(ref.Kind)
	want, wanted, _ := unstructured.NestedSlice(first, at...)
	if split.Percent >= 0 {
		var err error
		if want, err = traffic.With(first, split); err != nil {
			return err
		}
		wanted = true
	}
	return p.patch(ctx, in, ref, func(live *unstructured.Unstructured) ([]operation, error) {
		now, there, _ := unstructured.NestedSlice(live.Object, at...)
		if there == wanted && reflect.DeepEqual(now, want) {
			return nil, nil
		}
		if !traffic.Ours(first, now, split) {
			return nil, fault.WithRemedy(fault.Newf(fault.Conflict, "%s of %s were changed by somebody else since the canary began", at[len(at)-1], ref),
				"put them back, or end the canary by hand")
		}
		var ops []operation
		switch path := pointer(at...); {
		case !there:
			ops = append(ops, operation{Op: "add", Path: path, Value: want})
		case !wanted:
			ops = append(ops, operation{Op: "test", Path: path, Value: now}, operation{Op: "remove", Path: path})
		default:
			ops = append(ops, operation{Op: "test", Path: path, Value: now}, operation{Op: "replace", Path: path, Value: want})
		}
		if split.Percent < 0 {
			ops = append(ops, disown(live)...)
		}
		return ops, nil
	})
}

// accepted waits until the gateways of a route have taken up what it says now.
func (p *Platform) accepted(ctx context.Context, in dynamic.ResourceInterface, ref manifest.Ref) error {
	within, cancel := context.WithTimeout(ctx, acceptWithin)
	defer cancel()
	for {
		live, err := in.Get(within, ref.Name, metav1.GetOptions{})
		if err != nil {
			return unaccepted(ctx, within, ref, err)
		}
		w, err := in.Watch(within, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", ref.Name).String(),
			ResourceVersion: live.GetResourceVersion()})
		if err != nil {
			return unaccepted(ctx, within, ref, err)
		}
		ok, why := traffic.Accepted(live.Object)
		for !ok && why == nil {
			e, open := <-w.ResultChan()
			if !open {
				break
			}
			if o, isObject := e.Object.(*unstructured.Unstructured); isObject {
				ok, why = traffic.Accepted(o.Object)
			}
		}
		w.Stop()
		switch {
		case ok:
			return nil
		case why != nil:
			return fault.Newf(fault.Invalid, "no gateway shares traffic out by %s: %w", ref, why)
		case within.Err() != nil:
			return unaccepted(ctx, within, ref, within.Err())
		}
	}
}

func unaccepted(ctx, within context.Context, ref manifest.Ref, err error) error {
	if ctx.Err() == nil && within.Err() != nil && errors.Is(err, context.DeadlineExceeded) {
		return fault.WithRemedy(fault.Newf(fault.Transient, "no gateway has taken up %s within %s", ref, acceptWithin), "see the status of the route and the log of the gateway")
	}
	return failed(err, "see whether %s is taken up", ref)
}
