package kubernetes

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
)

// metadataOnly has the cluster leave out all of an object but its metadata.
const metadataOnly = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"

// askAgain is how long after an error, or in vain, the cluster is asked again.
const askAgain = time.Second

// CatchUp returns when this store knows at least what the cluster knew when it was called: the watches may lag behind what
// another process has written. Whoever carries deliveries on from there carries none on from a state that is over.
func (s *Store) CatchUp(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fault.Newf(fault.Transient, "%s are over", within))
	defer cancel()
	events := s.hub.Watch(ctx)
	again := time.NewTicker(askAgain)
	defer again.Stop()
	unknown, err := s.unknown(ctx)
	for err != nil {
		select {
		case <-again.C:
		case <-ctx.Done():
			return fault.Newf(fault.Transient, "the cluster does not tell which deliveries there are (%w): %w", context.Cause(ctx), err)
		}
		unknown, err = s.unknown(ctx)
	}
	for len(unknown) > 0 {
		select {
		case e := <-events:
			if o := unknown[e.ID]; o != nil && s.knows(o) {
				delete(unknown, e.ID)
			}
		case <-again.C:
			s.forgetDeleted(ctx, unknown)
		case <-ctx.Done():
			return fault.WithRemedy(fault.Newf(fault.Transient, "the cluster does not tell about %d deliveries that it has: %w", len(unknown), context.Cause(ctx)),
				"another process takes over, or this one when it is started again; a watch that stays behind is the API server's")
		}
	}
	// Actions were numbered here when others took them in, from states that are over.
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.order)
	return nil
}

// Refresh has this store know a delivery as the cluster knows it now.
func (s *Store) Refresh(ctx context.Context, id string) error {
	d, err := get[v1alpha1.Delivery](ctx, s.any, deliveries, id)
	if err == nil {
		s.mirror.wrote(d)
	}
	return err
}

// unknown asks the cluster itself, not its cache, for all deliveries, and returns by name those of which this store knows an
// older version, or nothing.
func (s *Store) unknown(ctx context.Context) (map[string]metav1.Object, error) {
	all, _, err := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		page := &metav1.PartialObjectMetadataList{}
		err := s.any.sluice.Get().NamespaceIfScoped(s.any.namespace, s.any.namespace != "").Resource(deliveries).SetHeader("Accept", metadataOnly).
			VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(page)
		return page, kubernetes.Fault(err, "list the %s of namespace %s", deliveries, s.any.namespace)
	}).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	out := map[string]metav1.Object{}
	err = meta.EachListItem(all, func(o runtime.Object) error {
		m, err := meta.Accessor(o)
		if err == nil && !s.knows(m) {
			out[m.GetName()] = m
		}
		return err
	})
	return out, err
}

// knows reports whether this store knows a delivery as it is, or a later version.
func (s *Store) knows(o metav1.Object) bool {
	d := s.mirror.delivery(s.c.namespace, o.GetName())
	return d != nil && !newer(o, d)
}

// forgetDeleted removes the deliveries that are not there any more: of those no watch tells.
func (s *Store) forgetDeleted(ctx context.Context, unknown map[string]metav1.Object) {
	for name := range unknown {
		if s.mirror.delivery(s.c.namespace, name) != nil {
			continue
		}
		if _, err := get[v1alpha1.Delivery](ctx, s.any, deliveries, name); fault.Is(err, fault.NotFound) {
			delete(unknown, name)
		}
	}
}
