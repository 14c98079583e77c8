package kubernetes

import (
	"context"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes/traffic"
)

// routed notes what shares the traffic of a Deployment out: what of a mesh is named, else the HTTPRoutes that there are.
func (p *Platform) routed(ctx context.Context, e *entry, stable *unstructured.Unstructured, opts platform.Options) error {
	if len(opts.Meshes) == 0 {
		var err error
		e.Routes, e.Canaries, err = p.routesOf(ctx, stable)
		return err
	}
	all, _, err := p.servicesOf(ctx, stable.GetNamespace(), templateLabels(stable))
	if err != nil {
		return err
	}
	leads := func(service string) bool {
		return slices.ContainsFunc(all, func(r manifest.Ref) bool { return r.Name == service })
	}
	for _, m := range opts.Meshes {
		if m.TrafficSplit != "" {
			err = p.splitBySMI(ctx, e, m, leads, opts.Delivery)
		} else {
			err = p.splitByIstio(ctx, e, stable, m, leads)
		}
		if err != nil {
			return err
		}
	}
	// What cannot be shared out is told before anything is changed.
	split := traffic.Split{Canaries: e.Canaries, Subsets: e.Subsets}
	for _, r := range e.Routes {
		if _, err := traffic.With(r, split); err != nil {
			return err
		}
	}
	return nil
}

// meshed reports whether a mesh was named for a Deployment.
func (e entry) meshed() bool {
	return slices.ContainsFunc(e.Routes, func(r map[string]any) bool { return r["kind"] != httpRoute().Kind })
}

// unshared refuses objects of a mesh that lead to no Deployment which has a canary.
func unshared(entries []entry, meshes []platform.Mesh) error {
	if !slices.ContainsFunc(entries, func(e entry) bool { return e.Next != nil && !setting(e.Ref.Kind) }) {
		return nil // the first version of all has no canary
	}
	for _, m := range meshes {
		kind, name := "VirtualService", m.VirtualService
		if m.TrafficSplit != "" {
			kind, name = "TrafficSplit", m.TrafficSplit
		}
		if !slices.ContainsFunc(entries, func(e entry) bool {
			return slices.ContainsFunc(e.Routes, func(r map[string]any) bool {
				o := &unstructured.Unstructured{Object: r}
				return o.GetKind() == kind && o.GetName() == name
			})
		}) {
			return fault.WithRemedy(fault.Newf(fault.Invalid, "trafficManagement names %s %s, whose Service leads to no Deployment of the target", kind, name),
				"see the Service that it is about, and its selector")
		}
	}
	return nil
}

// splitByIstio notes a VirtualService with its DestinationRule. The stable subset is of the pods that the Deployment has now.
func (p *Platform) splitByIstio(ctx context.Context, e *entry, stable *unstructured.Unstructured, m platform.Mesh, leads func(string) bool) error {
	rule, err := p.read(ctx, manifest.Ref{Kind: "DestinationRule", Namespace: e.Ref.Namespace, Name: m.DestinationRule})
	if err != nil {
		return err
	}
	host, _, _ := unstructured.NestedString(rule.Object, "spec", "host")
	service := traffic.Host(host, e.Ref.Namespace)
	if !leads(service) {
		return nil // to pods of another Deployment
	}
	virtual, err := p.read(ctx, manifest.Ref{Kind: "VirtualService", Namespace: e.Ref.Namespace, Name: m.VirtualService})
	if err != nil {
		return err
	}
	all, err := p.setsOf(ctx, stable)
	if err != nil {
		return err
	}
	rs := newest(stable, all)
	if rs == nil {
		return fault.Newf(fault.Transient, "%s has no ReplicaSet yet", e.Ref)
	}
	e.Routes = append(e.Routes, rule.Object, virtual.Object)
	e.Subsets = append(e.Subsets, traffic.Subsets{Service: service, VirtualService: m.VirtualService, Route: m.Route, DestinationRule: m.DestinationRule,
		Active: m.ActiveSubset, Canary: m.CanarySubset, ActiveLabels: map[string]string{templateHash: rs.GetLabels()[templateHash]},
		CanaryLabels: map[string]string{trackLabel: string(platform.Canary)}})
	return nil
}

// splitBySMI notes a TrafficSplit, as it is or as it is to be made.
func (p *Platform) splitBySMI(ctx context.Context, e *entry, m platform.Mesh, leads func(string) bool, delivery string) error {
	if !leads(m.RootService) {
		return nil
	}
	r, err := p.kinds.named("TrafficSplit")
	if err != nil {
		return err
	}
	live, err := p.at(r, e.Ref.Namespace).Get(ctx, m.TrafficSplit, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		live, err = &unstructured.Unstructured{Object: map[string]any{"apiVersion": r.kind.GroupVersion().String(), "kind": r.kind.Kind,
			"metadata": map[string]any{"name": m.TrafficSplit, "namespace": e.Ref.Namespace,
				"labels": map[string]any{canaryOf: labelValue(e.Ref.Name), deliveryLabel: labelValue(delivery)}},
			"spec": map[string]any{"service": m.RootService, "backends": []any{map[string]any{"service": m.RootService, "weight": int64(100)}}}}}, nil
	}
	if err != nil {
		return failed(err, "read TrafficSplit %s/%s", e.Ref.Namespace, m.TrafficSplit)
	}
	e.Routes = append(e.Routes, live.Object)
	if e.Canaries == nil {
		e.Canaries = map[string]string{}
	}
	maps.Copy(e.Canaries, map[string]string{m.RootService: m.CanaryService})
	return nil
}

// ofCanary reports whether an object was made for the canary of a Deployment.
func ofCanary(o *unstructured.Unstructured, of manifest.Ref) bool {
	return o.GetLabels()[canaryOf] == labelValue(of.Name)
}

// makeSplits makes the TrafficSplits that are not there.
func (p *Platform) makeSplits(ctx context.Context, e entry) error {
	for _, first := range e.Routes {
		o := &unstructured.Unstructured{Object: first}
		if !ofCanary(o, e.Ref) {
			continue
		}
		r, err := p.kinds.of(o.GroupVersionKind())
		if err != nil {
			return err
		}
		if _, err := p.at(r, e.Ref.Namespace).Create(ctx, o, metav1.CreateOptions{FieldManager: manager}); err != nil && !apierrors.IsAlreadyExists(err) {
			return failed(err, "make %s %s/%s", o.GetKind(), e.Ref.Namespace, o.GetName())
		}
	}
	return nil
}

// unmake deletes what was made for the canary of a Deployment.
func (p *Platform) unmake(ctx context.Context, in dynamic.ResourceInterface, ref, of manifest.Ref) error {
	live, err := in.Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil {
		return failed(err, "read %s", ref)
	}
	if !ofCanary(live, of) {
		return nil // somebody has made another one since
	}
	return failed(p.deleteLive(ctx, in, live), "delete %s", ref)
}
