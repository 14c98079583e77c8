package kubernetes

import (
	"context"
	"fmt"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// preview has the preview Services lead to the new version alone, or, with no track, to what there is.
func (p *Platform) preview(ctx context.Context, stable *unstructured.Unstructured, track string) error {
	_, previews, err := p.servicesOf(ctx, stable.GetNamespace(), templateLabels(stable))
	if err != nil {
		return err
	}
	for _, s := range previews {
		if err := p.require(ctx, s, trackLabel, track); err != nil {
			return err
		}
	}
	return nil
}

// followPreviews also follows where the preview Services of a Deployment with a canary lead: their endpoints come after their selectors and
// after the pods, and whoever tests the new version through them until then tests the old one.
func (w *watcher) followPreviews(ctx context.Context, ref manifest.Ref, d *unstructured.Unstructured) error {
	if c, err := w.p.canary(ctx, ref); c == nil || err != nil {
		return err
	}
	previews, err := w.p.previewsOf(ctx, d)
	for _, s := range previews {
		w.watch(ctx, endpointsOf(s))
		w.watch(ctx, serviceAt(s))
	}
	w.previews[ref] = previews
	return err
}

// previewsOf returns the preview Services of a Deployment. Whoever may not see where they lead is told so, and not left waiting for it.
func (p *Platform) previewsOf(ctx context.Context, d *unstructured.Unstructured) ([]manifest.Ref, error) {
	_, previews, err := p.servicesOf(ctx, d.GetNamespace(), templateLabels(d))
	if err != nil {
		return nil, err
	}
	for _, s := range previews {
		led := endpointsOf(s)
		if _, err := p.dynamic.Resource(led.GroupVersionResource).Namespace(led.namespace).List(ctx, metav1.ListOptions{LabelSelector: led.labels, Limit: 1}); err != nil {
			return nil, failed(err, "list the EndpointSlices of %s", s)
		}
	}
	return previews, nil
}

func serviceAt(s manifest.Ref) source { return source{services(), s.Namespace, s.Name, ""} }

func endpointsOf(s manifest.Ref) source {
	return source{endpointSlices(), s.Namespace, "", discoveryv1.LabelServiceName + "=" + s.Name}
}

// misled tells which preview Service does not lead to the canary yet, or leads to more than canaries, "" where all of them do. What carries
// the requests, kube-proxy or another, follows the endpoints in its own time and tells nobody when it has.
func (w *watcher) misled(ref manifest.Ref, canary *unstructured.Unstructured) string {
	own, canaries := map[string]bool{}, map[string]bool{}
	for _, p := range w.podsOf(manifest.Ref{Kind: "Deployment", Namespace: ref.Namespace, Name: canary.GetName()}, canary) {
		own[p.Name] = true
	}
	for _, p := range w.list(source{pods(), ref.Namespace, "", ""}) {
		canaries[p.GetName()] = p.GetLabels()[trackLabel] == string(platform.Canary) // of others that the Service leads to, too
	}
	replicas, counted := replicasOf(canary)
	for _, s := range w.previews[ref] {
		service := w.object(serviceAt(s))
		if service == nil {
			continue
		}
		if track, _, _ := unstructured.NestedString(service.Object, "spec", "selector", trackLabel); track != string(platform.Canary) {
			continue // the canary is about to end, or somebody else decides where the Service leads
		}
		n := 0
		for _, e := range w.endpoints(s) {
			switch {
			case e.Conditions.Ready != nil && !*e.Conditions.Ready:
			case e.TargetRef == nil:
				return fmt.Sprintf("Service %s still leads to %s, which is no pod of %s", s.Name, strings.Join(e.Addresses, ", "), canary.GetName())
			case own[e.TargetRef.Name]:
				n++
			case !canaries[e.TargetRef.Name]:
				return fmt.Sprintf("Service %s still leads to pod %s, which is none of %s", s.Name, e.TargetRef.Name, canary.GetName())
			}
		}
		if n == 0 && (replicas > 0 || !counted) {
			return fmt.Sprintf("Service %s does not lead to %s yet", s.Name, canary.GetName())
		}
	}
	return ""
}

// endpoints returns where a Service leads, in all its slices.
func (w *watcher) endpoints(s manifest.Ref) []discoveryv1.Endpoint {
	var out []discoveryv1.Endpoint
	for _, u := range w.list(endpointsOf(s)) {
		slice := &discoveryv1.EndpointSlice{}
		if runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, slice) == nil {
			out = append(out, slice.Endpoints...)
		}
	}
	return out
}
