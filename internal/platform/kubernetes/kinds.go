package kubernetes

import (
	"context"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// The resources that Sluice uses itself.

func secrets() schema.GroupVersionResource         { return builtin("", "v1", "secrets") }
func services() schema.GroupVersionResource        { return builtin("", "v1", "services") }
func namespaces() schema.GroupVersionResource      { return builtin("", "v1", "namespaces") }
func claims() schema.GroupVersionResource          { return builtin("", "v1", "persistentvolumeclaims") }
func pods() schema.GroupVersionResource            { return builtin("", "v1", "pods") }
func events() schema.GroupVersionResource          { return builtin("", "v1", "events") }
func deployments() schema.GroupVersionResource     { return builtin("apps", "v1", "deployments") }
func replicaSets() schema.GroupVersionResource     { return builtin("apps", "v1", "replicasets") }
func statefulSets() schema.GroupVersionResource    { return builtin("apps", "v1", "statefulsets") }
func serviceAccounts() schema.GroupVersionResource { return builtin("", "v1", "serviceaccounts") }
func jobs() schema.GroupVersionResource            { return builtin("batch", "v1", "jobs") }
func roles() schema.GroupVersionResource           { return builtin("rbac.authorization.k8s.io", "v1", "roles") }
func roleBindings() schema.GroupVersionResource {
	return builtin("rbac.authorization.k8s.io", "v1", "rolebindings")
}
func networkPolicies() schema.GroupVersionResource {
	return builtin("networking.k8s.io", "v1", "networkpolicies")
}
func endpointSlices() schema.GroupVersionResource {
	return builtin("discovery.k8s.io", "v1", "endpointslices")
}
func autoscalers() schema.GroupVersionResource {
	return builtin("autoscaling", "v2", "horizontalpodautoscalers")
}

func builtin(group, version, resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: resource}
}

// resource is a kind as the cluster serves it.
type resource struct {
	schema.GroupVersionResource
	kind       schema.GroupVersionKind
	namespaced bool
}

// kinds knows which kinds the cluster serves. It asks once, and again when a kind is not among those that it knows.
type kinds struct {
	disco discovery.DiscoveryInterface

	mu     sync.Mutex
	groups []*restmapper.APIGroupResources // nil: not asked yet
	mapper meta.RESTMapper
}

// forget has the kinds be asked for again: a definition was added.
func (k *kinds) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.groups = nil
}

// known returns what the cluster serves, and whether it was asked just now.
func (k *kinds) known() (groups []*restmapper.APIGroupResources, mapper meta.RESTMapper, asked bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.groups == nil {
		groups, err := restmapper.GetAPIGroupResources(k.disco)
		if err != nil {
			return nil, nil, true, failed(err, "ask the cluster for its kinds")
		}
		k.groups, k.mapper, asked = groups, restmapper.NewDiscoveryRESTMapper(groups), true
	}
	return k.groups, k.mapper, asked, nil
}

// of returns the resource of a group, version and kind. An unknown one is an error of kind NotFound.
func (k *kinds) of(gvk schema.GroupVersionKind) (resource, error) {
	for {
		_, mapper, asked, err := k.known()
		if err != nil {
			return resource{}, err
		}
		m, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err == nil {
			return resource{m.Resource, m.GroupVersionKind, m.Scope.Name() == meta.RESTScopeNameNamespace}, nil
		}
		if asked {
			return resource{}, fault.WithRemedy(fault.Newf(fault.NotFound, "the cluster has no kind %s of %s", gvk.Kind, gvk.GroupVersion()),
				"install its CustomResourceDefinition first, or put it among the manifests")
		}
		k.forget()
	}
}

// named returns the resource of a kind whose group is not told. Kubernetes' own kinds win over others of their name.
func (k *kinds) named(kind string) (resource, error) {
	all, err := k.all(kind)
	if err != nil {
		return resource{}, err
	}
	gvk, err := prefer(all)
	if err != nil {
		return resource{}, err
	}
	return k.of(gvk)
}

// all returns the kinds of a name, one of each group that has one, Kubernetes' own first.
func (k *kinds) all(kind string) ([]schema.GroupVersionKind, error) {
	for {
		groups, _, asked, err := k.known()
		if err != nil {
			return nil, err
		}
		var found []schema.GroupVersionKind
		for _, g := range groups {
			// A group may serve a kind in another version than the one that it prefers.
			for _, v := range slices.Concat([]metav1.GroupVersionForDiscovery{g.Group.PreferredVersion}, g.Group.Versions) {
				if slices.ContainsFunc(g.VersionedResources[v.Version], func(r metav1.APIResource) bool { return r.Kind == kind && !strings.Contains(r.Name, "/") }) {
					found = append(found, schema.GroupVersionKind{Group: g.Group.Name, Version: v.Version, Kind: kind})
					break
				}
			}
		}
		if len(found) > 0 {
			slices.SortStableFunc(found, func(a, b schema.GroupVersionKind) int { return distance(a.Group) - distance(b.Group) })
			return found, nil
		}
		if asked {
			return nil, fault.WithRemedy(fault.Newf(fault.NotFound, "the cluster has no kind %s", kind), "install its CustomResourceDefinition first")
		}
		k.forget()
	}
}

// distance tells how far a group is from Kubernetes' core: from its own ones, those that it hands on, and everybody else's.
func distance(group string) int {
	switch {
	case group == "":
		return 0
	case !strings.Contains(group, "."):
		return 1
	case strings.HasSuffix(group, ".k8s.io"):
		return 2
	}
	return 3
}

// prefer chooses between kinds of one name, the nearest of which is the first.
func prefer(found []schema.GroupVersionKind) (schema.GroupVersionKind, error) {
	if len(found) > 1 && distance(found[0].Group) == 3 {
		return found[0], fault.Newf(fault.Invalid, "the cluster has more than one kind %s: of %s and of %s", found[0].Kind, found[0].Group, found[1].Group)
	}
	return found[0], nil
}

// find returns the resource of the object that a ref names. Where more than one group has its kind, and none of them is of
// Kubernetes itself, it is the one that has the object.
func (p *Platform) find(ctx context.Context, ref manifest.Ref) (resource, error) {
	all, err := p.kinds.all(ref.Kind)
	if err != nil {
		return resource{}, err
	}
	if len(all) == 1 || distance(all[0].Group) < 2 {
		return p.kinds.of(all[0])
	}
	for _, gvk := range all {
		r, err := p.kinds.of(gvk)
		if err != nil {
			return r, err
		}
		_, err = p.at(r, ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err == nil {
			return r, nil
		}
		if !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
			return r, failed(err, "read %s", ref)
		}
	}
	return p.kinds.named(ref.Kind)
}

// at returns where an object of a resource is.
func (p *Platform) at(r resource, namespace string) dynamic.ResourceInterface {
	if !r.namespaced {
		return p.dynamic.Resource(r.GroupVersionResource)
	}
	return p.dynamic.Resource(r.GroupVersionResource).Namespace(namespace)
}

// where returns where objects of a ref's kind are.
func (p *Platform) where(ref manifest.Ref) (dynamic.ResourceInterface, error) {
	r, err := p.kinds.named(ref.Kind)
	if err != nil {
		return nil, err
	}
	return p.at(r, ref.Namespace), nil
}
