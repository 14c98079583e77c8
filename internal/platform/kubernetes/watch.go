package kubernetes

import (
	"context"
	"errors"
	"io"
	"reflect"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// Watch implements platform.Platform. Nothing is polled: the cluster tells every change. When the cluster no longer tells, the
// channel is closed before ctx ends.
func (p *Platform) Watch(ctx context.Context, refs []manifest.Ref) (<-chan platform.State, error) {
	return p.watch(ctx, refs, true)
}

// watch follows objects; with canaries, the state of a Deployment is also that of the canary beside it.
func (p *Platform) watch(ctx context.Context, refs []manifest.Ref, canaries bool) (<-chan platform.State, error) {
	ctx, end := context.WithCancel(ctx)
	w := &watcher{p: p, refs: refs, kinds: map[manifest.Ref]resource{}, canaries: canaries, previews: map[manifest.Ref][]manifest.Ref{},
		end: end, kick: make(chan struct{}, 1), stores: map[source]cache.Store{}, seen: map[string]evidence{}}
	for _, ref := range refs {
		if err := w.follow(ctx, ref); err != nil {
			end()
			return nil, err
		}
	}
	out := make(chan platform.State)
	go func() {
		defer close(out)
		defer w.wg.Wait()
		defer end()
		w.run(ctx, out)
	}()
	return out, nil
}

// await waits for a state of one object by itself, unless it fails before.
func (p *Platform) await(ctx context.Context, ref manifest.Ref, until func(platform.State) bool) error {
	return p.states(ctx, ref, func(s platform.State) (bool, error) {
		done := until(s)
		if !done && s.Failed {
			return false, fault.Newf(fault.Invalid, "%s failed: %s: %s", ref, s.Reason, s.Message)
		}
		return done, nil
	})
}

// states follows one object by itself until it is seen to be as it should be.
func (p *Platform) states(ctx context.Context, ref manifest.Ref, see func(platform.State) (done bool, err error)) error {
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	states, err := p.watch(within, []manifest.Ref{ref}, false)
	if err != nil {
		return err
	}
	for s := range states {
		if done, err := see(s); done || err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fault.Newf(fault.Transient, "the cluster no longer tells how %s is", ref)
}

// source is what one watch is about.
type source struct {
	schema.GroupVersionResource
	namespace, name, labels string
}

// watcher follows some objects, the pods of those that have some, and the preview Services of Deployments.
type watcher struct {
	p        *Platform
	refs     []manifest.Ref
	kinds    map[manifest.Ref]resource
	canaries bool
	previews map[manifest.Ref][]manifest.Ref // of Deployments
	end      context.CancelFunc
	kick     chan struct{}
	wg       sync.WaitGroup
	stores   map[source]cache.Store
	synced   []cache.InformerSynced
	seen     map[string]evidence
}

// follow starts the watches that a ref needs. Whoever may not read the object, or a cluster that is away, is an error and not a
// silence.
func (w *watcher) follow(ctx context.Context, ref manifest.Ref) error {
	r, err := w.p.find(ctx, ref)
	if err != nil {
		return err
	}
	live, err := w.p.at(r, ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return failed(err, "read %s", ref)
	}
	if err == nil && ref.Kind == "Deployment" && w.canaries {
		if err := w.followPreviews(ctx, ref, live); err != nil {
			return err
		}
	}
	w.kinds[ref] = r
	namespace := ref.Namespace
	if !r.namespaced {
		namespace = ""
	}
	w.watch(ctx, source{r.GroupVersionResource, namespace, ref.Name, ""})
	if templateOf(ref.Kind) == nil {
		return nil
	}
	w.watch(ctx, source{pods(), namespace, "", ""})
	if ref.Kind == "Deployment" {
		w.watch(ctx, source{replicaSets(), namespace, "", ""})
	}
	if ref.Kind == "Deployment" && w.canaries {
		w.watch(ctx, source{deployments(), namespace, "", canaryOf + "=" + labelValue(ref.Name)})
	}
	return nil
}

func (w *watcher) watch(ctx context.Context, s source) {
	if _, ok := w.stores[s]; ok {
		return
	}
	in := w.p.dynamic.Resource(s.GroupVersionResource).Namespace(s.namespace)
	narrow := func(o *metav1.ListOptions) {
		o.LabelSelector = s.labels
		if s.name != "" {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", s.name).String()
		}
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			narrow(&o)
			if o.ResourceVersion == "0" {
				o.ResourceVersion = "" // not from a cache that may not know yet what we have just written
			}
			return in.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			narrow(&o)
			events, err := in.Watch(ctx, o)
			if utilnet.IsConnectionRefused(err) {
				w.lost(s, err) // client-go would try again for as long as it takes, and tell its handler nothing
			}
			return events, err
		},
	}
	i := cache.NewSharedIndexInformer(lw, &unstructured.Unstructured{}, 0, cache.Indexers{})
	_ = i.SetTransform(func(v any) (any, error) {
		if o, ok := v.(*unstructured.Unstructured); ok {
			o.SetManagedFields(nil) // the larger part of most objects, and of no use here
		}
		return v, nil
	})
	_ = i.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		default:
			w.lost(s, err)
		}
	})
	_, _ = i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { w.wake() },
		UpdateFunc: func(_, _ any) { w.wake() },
		DeleteFunc: func(any) { w.wake() },
	})
	w.stores[s] = i.GetStore()
	w.synced = append(w.synced, i.HasSynced)
	w.wg.Go(func() { i.RunWithContext(ctx) })
}

// lost ends the watcher: the cluster is away.
func (w *watcher) lost(s source, err error) {
	w.p.log.Warn("the cluster no longer tells", "account", w.p.c.Account, "resource", s.Resource, "error", err)
	w.end()
}

func (w *watcher) wake() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// run sends every state that differs from the one before.
func (w *watcher) run(ctx context.Context, out chan<- platform.State) {
	if !cache.WaitForCacheSync(ctx.Done(), w.synced...) {
		return
	}
	sent := map[manifest.Ref]platform.State{}
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.kick:
		case <-again.C:
		}
		var soon time.Duration
		for _, ref := range w.refs {
			s, wait := w.present(ctx, ref)
			if wait > 0 && (soon == 0 || wait < soon) {
				soon = wait
			}
			if last, ok := sent[ref]; ok && reflect.DeepEqual(last, s) {
				continue
			}
			select {
			case out <- s:
				sent[ref] = s
			case <-ctx.Done():
				return
			}
		}
		if soon > 0 {
			again.Reset(soon)
		}
	}
}

// object returns what is known of one object, nil where there is none.
func (w *watcher) object(s source) *unstructured.Unstructured {
	for _, o := range w.list(s) {
		return o
	}
	return nil
}

func (w *watcher) list(s source) []*unstructured.Unstructured {
	store, ok := w.stores[s]
	if !ok {
		return nil
	}
	var out []*unstructured.Unstructured
	for _, v := range store.List() {
		if o, ok := v.(*unstructured.Unstructured); ok {
			out = append(out, o)
		}
	}
	return out
}
