package kubernetes

import (
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
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
	for {
		groups, _, asked, err := k.known()
		if err != nil {
			return resource{}, err
		}
		var found []schema.GroupVersionKind
		for _, g := range groups {
			for _, r := range g.VersionedResources[g.Group.PreferredVersion.Version] {
				if r.Kind == kind && !strings.Contains(r.Name, "/") {
					found = append(found, schema.GroupVersionKind{Group: g.Group.Name, Version: g.Group.PreferredVersion.Version, Kind: kind})
				}
			}
		}
		if len(found) > 0 {
			gvk, err := prefer(found)
			if err != nil {
				return resource{}, err
			}
			return k.of(gvk)
		}
		if asked {
			return resource{}, fault.WithRemedy(fault.Newf(fault.NotFound, "the cluster has no kind %s", kind), "install its CustomResourceDefinition first")
		}
		k.forget()
	}
}

// prefer chooses between kinds of one name.
func prefer(found []schema.GroupVersionKind) (schema.GroupVersionKind, error) {
	own := func(group string) int {
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
	slices.SortStableFunc(found, func(a, b schema.GroupVersionKind) int { return own(a.Group) - own(b.Group) })
	if len(found) > 1 && own(found[0].Group) == 3 && found[0].Group != found[1].Group {
		return found[0], fault.Newf(fault.Invalid, "the cluster has more than one kind %s: of %s and of %s", found[0].Kind, found[0].Group, found[1].Group)
	}
	return found[0], nil
}

// at returns where an object of a resource is.
func (p *Platform) at(r resource, namespace string) dynamic.ResourceInterface {
	if !r.namespaced {
		return p.dynamic.Resource(r.GroupVersionResource)
	}
	return p.dynamic.Resource(r.GroupVersionResource).Namespace(namespace)
}

// where returns where the object that a ref names is.
func (p *Platform) where(ref manifest.Ref) (dynamic.ResourceInterface, error) {
	r, err := p.kinds.named(ref.Kind)
	if err != nil {
		return nil, err
	}
	return p.at(r, ref.Namespace), nil
}
