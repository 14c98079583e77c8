// Package kubernetes keeps deliveries in a cluster: each is a resource Delivery, whose status is the truth; each signal is a
// resource DeliveryAction; what is large or may hold secrets is in Secrets that the Delivery owns.
package kubernetes

import (
	"context"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
)

// Names of what the store keeps beside deliveries.
const (
	manager       = "sluice"
	deliveryLabel = "sluice.dev/delivery"
	uploadLabel   = "sluice.dev/upload" // on a part of a plan that no Delivery owns yet
	finalizer     = "sluice.dev/delivery"
	secretType    = "sluice.dev/delivery"
	partKey       = "part"
)

// client makes requests about the objects of one namespace.
type client struct {
	namespace string
	sluice    rest.Interface // sluice.dev/v1alpha1
	core      rest.Interface
	leases    rest.Interface
}

// newClient makes a client of credentials.
func newClient(config *rest.Config, namespace string) (*client, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, coordinationv1.AddToScheme, v1alpha1.AddToScheme, metav1.AddMetaToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	web, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "the credentials cannot be used: %w", err)
	}
	c := &client{namespace: namespace}
	for to, version := range map[*rest.Interface]schema.GroupVersion{&c.sluice: v1alpha1.GroupVersion(), &c.core: corev1.SchemeGroupVersion,
		&c.leases: coordinationv1.SchemeGroupVersion} {
		if *to, err = kubernetes.Client(config, web, version, scheme); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// The resources.
const (
	deliveries = "deliveries"
	actions    = "deliveryactions"
	secrets    = "secrets"
	leases     = "leases"
	events     = "events"
)

func (c *client) of(resource string) rest.Interface {
	switch resource {
	case deliveries, actions:
		return c.sluice
	case leases:
		return c.leases
	}
	return c.core
}

func get[T any, P interface {
	*T
	runtime.Object
}](ctx context.Context, c *client, resource, name string) (*T, error) {
	out := new(T)
	err := c.of(resource).Get().NamespaceIfScoped(c.namespace, c.namespace != "").Resource(resource).Name(name).Do(ctx).Into(P(out))
	if err != nil {
		return nil, kubernetes.Fault(err, "read %s %s/%s", resource, c.namespace, name)
	}
	return out, nil
}

func create[T any, P interface {
	*T
	runtime.Object
}](ctx context.Context, c *client, resource string, o *T) (*T, error) {
	out := new(T)
	err := c.of(resource).Post().NamespaceIfScoped(c.namespace, c.namespace != "").Resource(resource).VersionedParams(&metav1.CreateOptions{FieldManager: manager}, metav1.ParameterCodec).
		Body(P(o)).Do(ctx).Into(P(out))
	if err != nil {
		return nil, kubernetes.Fault(err, "create one of %s in namespace %s", resource, c.namespace)
	}
	return out, nil
}

// update replaces an object, or its subresource, if it is still the one that was read.
func update[T any, P interface {
	*T
	runtime.Object
}](ctx context.Context, c *client, resource, name, sub string, o *T) (*T, error) {
	out := new(T)
	r := c.of(resource).Put().NamespaceIfScoped(c.namespace, c.namespace != "").Resource(resource).Name(name)
	if sub != "" {
		r = r.SubResource(sub)
	}
	err := r.VersionedParams(&metav1.UpdateOptions{FieldManager: manager}, metav1.ParameterCodec).Body(P(o)).Do(ctx).Into(P(out))
	if err != nil {
		return nil, kubernetes.Fault(err, "write %s %s/%s", resource, c.namespace, name)
	}
	return out, nil
}

func list[T any, P interface {
	*T
	runtime.Object
}](ctx context.Context, c *client, resource string, o metav1.ListOptions) (*T, error) {
	out := new(T)
	err := c.of(resource).Get().NamespaceIfScoped(c.namespace, c.namespace != "").Resource(resource).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(P(out))
	if err != nil {
		return nil, kubernetes.Fault(err, "list the %s of namespace %s", resource, c.namespace)
	}
	return out, nil
}

// merge changes an object's metadata.
func merge[T any, P interface {
	*T
	runtime.Object
}](ctx context.Context, c *client, resource, name string, patch []byte) (*T, error) {
	out := new(T)
	err := c.of(resource).Patch(types.MergePatchType).NamespaceIfScoped(c.namespace, c.namespace != "").Resource(resource).Name(name).
		VersionedParams(&metav1.PatchOptions{FieldManager: manager}, metav1.ParameterCodec).Body(patch).Do(ctx).Into(P(out))
	if err != nil {
		return nil, kubernetes.Fault(err, "change %s %s/%s", resource, c.namespace, name)
	}
	return out, nil
}

// remove deletes an object; one that is gone is fine. With a uid only that very object is deleted.
func (c *client) remove(ctx context.Context, resource, name string, uid types.UID) error {
	o := metav1.DeleteOptions{}
	if uid != "" {
		o.Preconditions = &metav1.Preconditions{UID: &uid}
	}
	err := c.of(resource).Delete().NamespaceIfScoped(c.namespace, c.namespace != "").Resource(resource).Name(name).Body(&o).Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return nil
	}
	return kubernetes.Fault(err, "delete %s %s/%s", resource, c.namespace, name)
}

// ownedBy says that an object goes when a delivery does.
func ownedBy(d *v1alpha1.Delivery) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: v1alpha1.GroupVersion().String(), Kind: "Delivery", Name: d.Name, UID: d.UID}
}
