package plan

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// Platforms read from these annotations which Services reach only the version that has no traffic yet, and which version
// of a Deployment a pod belongs to. The second one is Armory's: real queries join on it.
const (
	trackAnnotation      = "sluice.dev/track"
	previewTrack         = "preview"
	replicaSetAnnotation = "deploy.armory.io/replica-set-name"
	replicaSetVariable   = "ARMORY_REPLICA_SET_NAME"
)

// traffic makes trafficManagement and the Services of blueGreen take effect in a target: it marks the preview Services
// among its objects, and keeps which Services the redirection is about. What cannot take effect is refused.
func (b *targetPlan) traffic(target *Target) error {
	how, meshes, err := b.management()
	if err != nil {
		return err
	}
	s, ok := b.strategy()
	deployments, _ := partition(b.objects, func(o manifest.Object) bool { return o.GetKind() == "Deployment" })
	switch {
	case ok && s.Canary != nil && len(deployments) > 0:
		b.meshes = meshes
	case len(meshes) > 0:
		target.Notes = append(target.Notes, "trafficManagement names a mesh for a canary, which this target does not have: it stays as it is")
	}
	if !ok || s.BlueGreen == nil || len(deployments) == 0 {
		for _, p := range how {
			target.Notes = append(target.Notes, "trafficManagement names "+p.names()+" for blueGreen, which this target does not use: it stays as it is")
		}
		return nil
	}
	for _, p := range services(how, *s.BlueGreen) {
		if p.ActiveService != "" && p.ActiveService == p.PreviewService {
			return fault.Newf(fault.Invalid, "Service %s is both activeService and previewService", p.ActiveService)
		}
		if p.ActiveService != "" {
			if _, err := b.service("activeService", p.ActiveService, deployments); err != nil {
				return err
			}
			b.active = append(b.active, p.ActiveService)
		}
		if p.PreviewService == "" {
			continue
		}
		i, err := b.service("previewService", p.PreviewService, deployments)
		if err != nil {
			return err
		}
		b.objects[i] = annotated(b.objects[i], trackAnnotation, previewTrack)
	}
	return nil
}

// management returns what trafficManagement has for the target: pairs of Services, and objects of meshes. A later entry
// replaces an earlier one of its kind.
func (b *targetPlan) management() ([]servicePair, []Mesh, error) {
	var pairs []servicePair
	var istio, smi []Mesh
	for _, t := range b.c.f.TrafficManagement {
		if len(t.Targets) > 0 && !slices.Contains(t.Targets, b.t.Name) {
			continue
		}
		if len(t.Kubernetes) > 0 {
			pairs = nil
		}
		for _, p := range t.Kubernetes {
			pairs = append(pairs, servicePair(p))
		}
		if len(t.Istio) > 0 {
			istio = nil
		}
		for _, i := range t.Istio {
			if i.DestinationRule == "" {
				return nil, nil, fault.WithRemedy(fault.Newf(fault.Invalid, "line %d: VirtualService %s has no destinationRule, whose subsets tell the two versions apart", t.Pos.Line, i.VirtualService),
					"write destinationRule: {name: …}, of the Service that the route leads to")
			}
			istio = append(istio, Mesh{VirtualService: i.VirtualService, Route: i.HTTPRouteName, DestinationRule: i.DestinationRule,
				ActiveSubset: cmp.Or(i.ActiveSubsetName, "active"), CanarySubset: cmp.Or(i.CanarySubsetName, "canary")})
		}
		if len(t.SMI) > 0 {
			smi = nil
		}
		for _, i := range t.SMI {
			smi = append(smi, Mesh{TrafficSplit: i.TrafficSplitName, RootService: i.RootServiceName, CanaryService: i.CanaryServiceName})
		}
	}
	return pairs, slices.Concat(istio, smi), nil
}

// servicePair is an active Service with its preview Service; one of them may be missing.
type servicePair deployfile.ServicePair

func (p servicePair) names() string {
	switch {
	case p.PreviewService == "":
		return "Service " + p.ActiveService
	case p.ActiveService == "":
		return "Service " + p.PreviewService
	}
	return "Services " + p.ActiveService + " and " + p.PreviewService
}

// services joins the pairs of trafficManagement with what the strategy itself names, which is the old place for them.
func services(pairs []servicePair, s deployfile.BlueGreen) []servicePair {
	old := servicePair{ActiveService: s.ActiveService, PreviewService: s.PreviewService}
	if old == (servicePair{}) {
		return pairs
	}
	for i, p := range pairs {
		if old.ActiveService == p.ActiveService || old.ActiveService == "" && old.PreviewService == p.PreviewService {
			if p.PreviewService == "" {
				pairs[i].PreviewService = old.PreviewService
			}
			if pairs[i].PreviewService == old.PreviewService || old.PreviewService == "" {
				return pairs
			}
		}
	}
	return append(pairs, old)
}

// service finds a Service that blueGreen names among the manifests. It must reach what is deployed.
func (b *targetPlan) service(role, name string, deployments []manifest.Object) (int, error) {
	i := slices.IndexFunc(b.objects, func(o manifest.Object) bool { return o.GetKind() == "Service" && o.GetName() == name })
	if i < 0 {
		return 0, fault.WithRemedy(fault.Newf(fault.NotFound, "%s of blueGreen is Service %s, which is not among the target's manifests", role, name),
			"add it to them; where it exists already, applying it again changes nothing")
	}
	for _, d := range deployments {
		template, _, err := d.PodTemplate()
		if err != nil {
			return 0, err
		}
		if b.objects[i].Selects(template.Labels) {
			return i, nil
		}
	}
	return 0, fault.WithRemedy(fault.Newf(fault.Invalid, "%s: %s of blueGreen is Service %s, which selects no pod of the target's Deployments",
		b.objects[i].Origin, role, name), "make its selector match the labels of a pod template")
}

// annotated returns a copy of an object with one more annotation.
func annotated(o manifest.Object, key, value string) manifest.Object {
	o = manifest.Object{Unstructured: *o.DeepCopy(), Origin: o.Origin}
	a := o.GetAnnotations()
	if a == nil {
		a = map[string]string{}
	}
	a[key] = value
	o.SetAnnotations(a)
	return o
}

// versioned returns a copy of a Deployment whose pods know the name of their version: each Deployment has its own, even
// where several move together.
func versioned(o manifest.Object, revision string) manifest.Object {
	o = manifest.Object{Unstructured: *o.DeepCopy(), Origin: o.Origin}
	// What a manifest has there of another type is refused by whoever runs it, with a better message.
	_ = unstructured.SetNestedField(o.Object, revision, "spec", "template", "metadata", "annotations", replicaSetAnnotation)
	containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
	for _, c := range containers {
		container, ok := c.(map[string]any)
		if !ok {
			continue
		}
		env, _, _ := unstructured.NestedSlice(container, "env")
		env = slices.DeleteFunc(env, func(v any) bool {
			e, _ := v.(map[string]any)
			return e["name"] == replicaSetVariable
		})
		container["env"] = append(env, map[string]any{"name": replicaSetVariable, "value": revision})
	}
	if len(containers) > 0 {
		_ = unstructured.SetNestedSlice(o.Object, containers, "spec", "template", "spec", "containers")
	}
	return o
}
