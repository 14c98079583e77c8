package csi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/kube"
)

// kind is a kind of object that copies are made of.
type kind struct {
	schema.GroupVersionResource
	kind string
}

func snapshotKind(resource, name string) kind {
	return kind{schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: resource}, name}
}

func coreKind(resource, name string) kind {
	return kind{schema.GroupVersionResource{Version: "v1", Resource: resource}, name}
}

func claims() kind          { return coreKind("persistentvolumeclaims", "PersistentVolumeClaim") }
func volumes() kind         { return coreKind("persistentvolumes", "PersistentVolume") }
func pods() kind            { return coreKind("pods", "Pod") }
func namespaces() kind      { return coreKind("namespaces", "Namespace") }
func events() kind          { return coreKind("events", "Event") }
func snapshots() kind       { return snapshotKind("volumesnapshots", "VolumeSnapshot") }
func contents() kind        { return snapshotKind("volumesnapshotcontents", "VolumeSnapshotContent") }
func snapshotClasses() kind { return snapshotKind("volumesnapshotclasses", "VolumeSnapshotClass") }
func storageClasses() kind {
	return kind{schema.GroupVersionResource{Group: "storage.k8s.io", Version: "v1", Resource: "storageclasses"}, "StorageClass"}
}

// object is an object of a cluster, with access to its fields.
type object struct{ *unstructured.Unstructured }

// text returns a field that is a string, "" where there is none.
func (o object) text(path ...string) string {
	s, _, _ := unstructured.NestedString(o.Object, path...)
	return s
}

func (o object) String() string {
	if o.GetNamespace() == "" {
		return o.GetKind() + " " + o.GetName()
	}
	return fmt.Sprintf("%s %s of namespace %s", o.GetKind(), o.GetName(), o.GetNamespace())
}

// into reads the object as one of its type.
func into[T any](o object) (T, error) {
	var t T
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &t); err != nil {
		return t, fault.Newf(fault.Invalid, "%s cannot be read: %w", o, err)
	}
	return t, nil
}

// cluster is the cluster of an account.
type cluster struct {
	account string
	client  dynamic.Interface
	restore dynamic.Interface
}

// restorer is the cluster for whoever may take production's volume out of service and bring another one in.
func (c cluster) restorer() cluster { return cluster{c.account, c.restore, c.restore} }

func (c cluster) in(k kind, namespace string) dynamic.ResourceInterface {
	if namespace == "" {
		return c.client.Resource(k.GroupVersionResource)
	}
	return c.client.Resource(k.GroupVersionResource).Namespace(namespace)
}

// get reads an object. One that is not there is an error of kind NotFound.
func (c cluster) get(ctx context.Context, k kind, namespace, name string) (object, error) {
	o, err := c.in(k, namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		where := ""
		if namespace != "" {
			where = " of namespace " + namespace
		}
		return object{}, c.explained(kube.Fault(err, "read %s %s%s in account %s", k.kind, name, where, c.account), err, k)
	}
	return object{o}, nil
}

// explained says of kinds that a cluster does not serve what is missing.
func (c cluster) explained(failed, err error, k kind) error {
	var s apierrors.APIStatus
	if apierrors.IsNotFound(err) && k.Group == snapshots().Group && errors.As(err, &s) && (s.Status().Details == nil || s.Status().Details.Name == "") {
		return fault.WithRemedy(failed, "the cluster of account %s has no volume snapshots: install the snapshot controller and its definitions", c.account)
	}
	return failed
}

// list returns the objects of a kind, of all namespaces with none.
func (c cluster) list(ctx context.Context, k kind, namespace, labels string) ([]object, error) {
	l, err := c.in(k, namespace).List(ctx, metav1.ListOptions{LabelSelector: labels})
	if err != nil {
		return nil, c.explained(kube.Fault(err, "list the %ss of account %s", k.kind, c.account), err, k)
	}
	var out []object
	for i := range l.Items {
		out = append(out, object{&l.Items[i]})
	}
	return out, nil
}

// create makes an object, or returns the one of its name that is there.
func (c cluster) create(ctx context.Context, k kind, o map[string]any) (made object, err error) {
	u := &unstructured.Unstructured{Object: o}
	u.SetAPIVersion(k.GroupVersion().String())
	u.SetKind(k.kind)
	live, err := c.in(k, u.GetNamespace()).Create(ctx, u, metav1.CreateOptions{FieldManager: kube.Manager})
	if apierrors.IsAlreadyExists(err) {
		return c.get(ctx, k, u.GetNamespace(), u.GetName())
	}
	if err != nil {
		return object{}, c.explained(kube.Fault(err, "make %s in account %s", object{u}, c.account), err, k)
	}
	return object{live}, nil
}

// patch changes fields of exactly the object that was read.
func (c cluster) patch(ctx context.Context, k kind, o object, fields map[string]any) (object, error) {
	meta, ok := fields["metadata"].(map[string]any)
	if !ok {
		meta = map[string]any{}
		fields["metadata"] = meta
	}
	meta["uid"], meta["resourceVersion"] = string(o.GetUID()), o.GetResourceVersion()
	body, err := json.Marshal(fields)
	if err != nil {
		return object{}, err
	}
	live, err := c.in(k, o.GetNamespace()).Patch(ctx, o.GetName(), types.MergePatchType, body, metav1.PatchOptions{FieldManager: kube.Manager})
	if err != nil {
		return object{}, kube.Fault(err, "change %s of account %s", o, c.account)
	}
	return object{live}, nil
}

// change reads an object and changes it, anew where somebody else was faster.
func (c cluster) change(ctx context.Context, k kind, namespace, name string, fields func(object) (map[string]any, error)) (object, error) {
	for {
		o, err := c.get(ctx, k, namespace, name)
		if err != nil {
			return o, err
		}
		f, err := fields(o)
		if err != nil || f == nil {
			return o, err
		}
		changed, err := c.patch(ctx, k, o, f)
		if !fault.Is(err, fault.Conflict) || ctx.Err() != nil {
			return changed, err
		}
	}
}

// delete removes exactly the object that was read, and waits until it is gone.
func (c cluster) delete(ctx context.Context, k kind, o object) error {
	uid := o.GetUID()
	err := c.in(k, o.GetNamespace()).Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, or another one of its name by now
	}
	if err != nil {
		return kube.Fault(err, "delete %s of account %s", o, c.account)
	}
	return c.gone(ctx, k, o)
}

// gone waits until exactly this object is no more.
func (c cluster) gone(ctx context.Context, k kind, o object) error {
	within, cancel := context.WithTimeout(ctx, goneWithin)
	defer cancel()
	last, err := c.await(within, k, o.GetNamespace(), o.GetName(), func(now *object) (bool, error) {
		return now == nil || now.GetUID() != o.GetUID(), nil
	})
	if err == nil || ctx.Err() != nil || within.Err() == nil {
		return err
	}
	why := ""
	if last != nil {
		why = fmt.Sprintf("; it is held by %s%s", strings.Join(last.GetFinalizers(), ", "), c.reasons(ctx, *last))
	}
	return fault.WithRemedy(fault.Newf(fault.Transient, "%s of account %s is deleted and not gone after %s%s", o, c.account, goneWithin, why),
		"find out who holds it; asked again, the deletion goes on")
}

// goneWithin is how long a cluster may take to remove an object, with what is behind it in the storage.
const goneWithin = 2 * time.Minute

// await follows an object until it is as asked, and returns it as it was last; nil where it does not exist.
func (c cluster) await(ctx context.Context, k kind, namespace, name string, until func(*object) (bool, error)) (*object, error) {
	in := c.in(k, namespace)
	// Who may not read it, or a cluster that is away, is an error and not a silence.
	if _, err := c.get(ctx, k, namespace, name); err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	only := fields.OneTermEqualSelector("metadata.name", name).String()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only
			if o.ResourceVersion == "0" {
				o.ResourceVersion = "" // not from a cache that may not know yet what we have just written
			}
			return in.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = only
			return in.Watch(ctx, o)
		},
	}
	var last *object
	look := func(v any, there bool) (bool, error) {
		last = nil
		if o, ok := v.(*unstructured.Unstructured); ok && there {
			last = &object{o}
		}
		return until(last)
	}
	_, err := watchtools.UntilWithSync(ctx, lw, &unstructured.Unstructured{}, func(s cache.Store) (bool, error) {
		for _, v := range s.List() {
			return look(v, true)
		}
		return look(nil, false)
	}, func(e watch.Event) (bool, error) { return look(e.Object, e.Type != watch.Deleted) })
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return last, err
}

// reasons tells what a cluster has written down about an object that does not become what it should, "" for nothing.
func (c cluster) reasons(ctx context.Context, o object) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	var said []string
	if m := o.text("status", "error", "message"); m != "" {
		said = append(said, m)
	}
	l, err := c.in(events(), eventNamespace(o)).List(ctx, metav1.ListOptions{FieldSelector: fields.Set{"involvedObject.uid": string(o.GetUID())}.String()})
	if err == nil { // an explanation that cannot be had does not hide the failure
		for i := range l.Items {
			e := object{&l.Items[i]}
			if line := e.text("reason") + ": " + e.text("message"); e.text("type") == corev1.EventTypeWarning && !slices.Contains(said, line) {
				said = append(said, line)
			}
		}
	}
	if len(said) == 0 {
		return ""
	}
	return ": " + strings.Join(said[max(0, len(said)-3):], "; ")
}

func eventNamespace(o object) string {
	if o.GetNamespace() == "" {
		return metav1.NamespaceDefault
	}
	return o.GetNamespace()
}

// unused refuses where a pod mounts the claim: its volume must not be taken from under it. A pod that has ended mounts nothing any
// more, and one that is ending is waited for.
func (c cluster) unused(ctx context.Context, namespace, claim string) error {
	all, err := c.list(ctx, pods(), namespace, "")
	if err != nil {
		return err
	}
	for _, o := range all {
		p, err := into[corev1.Pod](o)
		if err != nil {
			return err
		}
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		switch {
		case ended || !slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
			return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim
		}):
		case p.DeletionTimestamp == nil:
			return fault.WithRemedy(fault.Newf(fault.Conflict, "pod %s of namespace %s mounts claim %s", p.Name, namespace, claim), "stop it first")
		default:
			if err := c.gone(ctx, pods(), o); err != nil {
				return err
			}
		}
	}
	return nil
}
