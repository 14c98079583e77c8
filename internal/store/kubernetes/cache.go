package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/fault"
)

// mirror follows deliveries and their actions by watches. It may lag behind the cluster, so it also holds what the store
// itself wrote last, until the watch has told it. What it returns is shared and never changed.
type mirror struct {
	deliveries cache.SharedIndexInformer
	actions    cache.SharedIndexInformer

	mu      sync.Mutex
	written map[string]*v1alpha1.Delivery       // by name
	made    map[string]*v1alpha1.DeliveryAction // by name
}

const byDelivery = "delivery"

// newMirror makes a mirror of a namespace, or with only of one delivery. changed is called with the name of each delivery
// that has changed, or has a new action.
func newMirror(c *client, only string, log *slog.Logger, changed func(id string)) (*mirror, error) {
	m := &mirror{written: map[string]*v1alpha1.Delivery{}, made: map[string]*v1alpha1.DeliveryAction{}}
	one, of := fields.Everything(), fields.Everything()
	if only != "" {
		one, of = fields.OneTermEqualSelector("metadata.name", only), fields.OneTermEqualSelector("spec.delivery", only)
	}
	m.deliveries = informer(c, deliveries, one, &v1alpha1.Delivery{}, cache.Indexers{})
	m.actions = informer(c, actions, of, &v1alpha1.DeliveryAction{}, cache.Indexers{byDelivery: func(v any) ([]string, error) {
		a, ok := v.(*v1alpha1.DeliveryAction)
		if !ok {
			return nil, fmt.Errorf("the cache of actions holds %T", v)
		}
		return []string{a.Spec.Delivery}, nil
	}})
	for _, i := range []cache.SharedIndexInformer{m.deliveries, m.actions} {
		if err := i.SetTransform(lean); err != nil {
			return nil, err
		}
		if err := i.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
			if ctx.Err() == nil {
				log.Warn("the cluster does not tell about deliveries; it is asked again", "error", err)
			}
		}); err != nil {
			return nil, err
		}
		told := func(v any) { m.told(v, changed) }
		if _, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: told, UpdateFunc: func(_, v any) { told(v) }, DeleteFunc: told}); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func informer(c *client, resource string, only fields.Selector, of runtime.Object, by cache.Indexers) cache.SharedIndexInformer {
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only.String()
			return c.of(resource).Get().NamespaceIfScoped(c.namespace, c.namespace != "").Resource(resource).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Get()
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector, o.Watch = only.String(), true
			return c.of(resource).Get().NamespaceIfScoped(c.namespace, c.namespace != "").Resource(resource).VersionedParams(&o, metav1.ParameterCodec).Watch(ctx)
		},
	}
	return cache.NewSharedIndexInformer(lw, of, 0, by)
}

// lean takes away what is large and of no use here.
func lean(v any) (any, error) {
	if o, ok := v.(metav1.Object); ok {
		o.SetManagedFields(nil)
	}
	return v, nil
}

// told forgets what was written here as soon as the watch has come as far.
func (m *mirror) told(v any, changed func(string)) {
	deleted := false
	if t, ok := v.(cache.DeletedFinalStateUnknown); ok {
		v, deleted = t.Obj, true
	}
	m.mu.Lock()
	var id string
	switch o := v.(type) {
	case *v1alpha1.Delivery:
		id = o.Name
		if w := m.written[id]; w != nil && (deleted || w.UID == o.UID && !newer(w, o)) {
			delete(m.written, id)
		}
	case *v1alpha1.DeliveryAction:
		id = o.Spec.Delivery
		delete(m.made, o.Name)
	}
	m.mu.Unlock()
	changed(id)
}

// newer reports whether a was written after b.
func newer(a, b metav1.Object) bool {
	n, err := resourceversion.CompareResourceVersion(a.GetResourceVersion(), b.GetResourceVersion())
	return err == nil && n > 0
}

// run follows until ctx ends; ready is closed when everything that there is has been told.
func (m *mirror) run(ctx context.Context) (ready func(context.Context) error, wait func()) {
	var wg sync.WaitGroup
	wg.Go(func() { m.deliveries.RunWithContext(ctx) })
	wg.Go(func() { m.actions.RunWithContext(ctx) })
	return func(ctx context.Context) error {
		if !cache.WaitForCacheSync(ctx.Done(), m.deliveries.HasSynced, m.actions.HasSynced) {
			return fault.Newf(fault.Transient, "the cluster does not tell about its deliveries: %w", ctx.Err())
		}
		return nil
	}, wg.Wait
}

// wrote remembers what the cluster answered a write with.
func (m *mirror) wrote(d *v1alpha1.Delivery) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok, _ := m.deliveries.GetStore().GetByKey(d.Namespace + "/" + d.Name); ok {
		if told, is := v.(*v1alpha1.Delivery); is && !newer(d, told) {
			return
		}
	}
	if w := m.written[d.Name]; w == nil || newer(d, w) {
		m.written[d.Name] = d
	}
}

func (m *mirror) acted(a *v1alpha1.DeliveryAction) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, told, _ := m.actions.GetStore().GetByKey(a.Namespace + "/" + a.Name); !told {
		m.made[a.Name] = a
	}
}

func (m *mirror) gone(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.written, id)
}

func (m *mirror) delivery(namespace, id string) *v1alpha1.Delivery {
	m.mu.Lock() // first: what was written is forgotten only when what is told is as new
	defer m.mu.Unlock()
	v, _, err := m.deliveries.GetStore().GetByKey(namespace + "/" + id)
	told, _ := v.(*v1alpha1.Delivery)
	if err != nil {
		told = nil
	}
	if w := m.written[id]; w != nil && (told == nil || newer(w, told)) {
		return w
	}
	return told
}

func (m *mirror) all() map[string]*v1alpha1.Delivery {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]*v1alpha1.Delivery{}
	for _, v := range m.deliveries.GetStore().List() {
		if d, ok := v.(*v1alpha1.Delivery); ok {
			out[d.Name] = d
		}
	}
	for n, w := range m.written {
		if told := out[n]; told == nil || newer(w, told) {
			out[n] = w
		}
	}
	return out
}

func (m *mirror) actionsOf(id string) []*v1alpha1.DeliveryAction {
	m.mu.Lock()
	defer m.mu.Unlock()
	told, err := m.actions.GetIndexer().ByIndex(byDelivery, id)
	if err != nil {
		return nil
	}
	var out []*v1alpha1.DeliveryAction
	seen := map[string]bool{}
	for _, v := range told {
		if a, ok := v.(*v1alpha1.DeliveryAction); ok {
			out = append(out, a)
			seen[a.Name] = true
		}
	}
	for _, a := range m.made {
		if a.Spec.Delivery == id && !seen[a.Name] {
			out = append(out, a)
		}
	}
	return out
}
