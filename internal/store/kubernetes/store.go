package kubernetes

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
)

// Config says where deliveries are kept.
type Config struct {
	Credentials *rest.Config
	// Anybody are the credentials to read with, and to keep signals with, where the others are guarded: a process that may
	// not act takes in what others decide all the same. nil means Credentials.
	Anybody   *rest.Config
	Namespace string
	// Roles are the roles of whoever made an action: what the action itself says about them does not count. nil leaves them
	// as they are.
	Roles func(user string) []string
	Log   *slog.Logger
}

// Store keeps the deliveries of one namespace. It reads from watches alone, once it is open. Any number of stores may be
// open; a status is written by the one whose engine carries the delivery.
type Store struct {
	c      *client
	any    *client // for what is read, and kept, whoever leads
	o      Config
	mirror *mirror
	hub    store.Hub
	stop   context.CancelFunc
	wait   func()

	specs  specs // of deliveries that are not done
	events chan *corev1.Event

	mu    sync.Mutex
	order map[string]*order   // the numbers of actions that are not taken in
	loose map[string][]string // by delivery, Secrets that were written for a status that may not have been kept
}

// order numbers the actions of one delivery as they come. Numbers are of this store alone: the status keeps names.
type order struct {
	last int64
	seq  map[string]int64 // name → number
}

var (
	_ store.Store     = (*Store)(nil)
	_ store.Lister    = (*Store)(nil)
	_ store.Journaler = (*Store)(nil)
)

// Open follows the deliveries of a namespace and returns when all are known.
func Open(ctx context.Context, o Config) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	c, err := newClient(o.Credentials, o.Namespace)
	if err != nil {
		return nil, err
	}
	anybody := c
	if o.Anybody != nil {
		if anybody, err = newClient(o.Anybody, o.Namespace); err != nil {
			return nil, err
		}
	}
	// A watch that may not be made is an error now, and not a silence.
	_, err = list[v1alpha1.DeliveryList](ctx, anybody, deliveries, metav1.ListOptions{Limit: 1})
	if err == nil {
		_, err = list[v1alpha1.DeliveryActionList](ctx, anybody, actions, metav1.ListOptions{Limit: 1})
	}
	if fault.Is(err, fault.NotFound) {
		return nil, fault.WithRemedy(err, "install the definitions first: kubectl apply --server-side -f config/crd")
	}
	if err != nil {
		return nil, err
	}
	s := &Store{c: c, any: anybody, o: o, events: make(chan *corev1.Event, mostEvents), order: map[string]*order{}, loose: map[string][]string{}}
	if s.mirror, err = newMirror(anybody, "", o.Log, s.changed); err != nil {
		return nil, err
	}
	within, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	var wg sync.WaitGroup
	ready, wait := s.mirror.run(within)
	wg.Go(wait)
	wg.Go(func() { s.record(within) })
	s.wait = wg.Wait
	if err := ready(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends the watches.
func (s *Store) Close() {
	s.stop()
	s.wait()
}

func (s *Store) changed(id string) { s.hub.Publish(id) }

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, spec delivery.Spec) (store.Revision, error) {
	d, err := s.c.submit(ctx, spec)
	if err != nil {
		return 0, err
	}
	if d, err = s.admit(ctx, d, spec); err != nil {
		return 0, err
	}
	if d.Status.BlockedBy != "" && !spec.EnqueueOne {
		if err := s.c.remove(ctx, deliveries, d.Name, d.UID); err != nil {
			return 0, err
		}
		s.mirror.gone(d.Name)
		return 0, &store.ErrRunning{ID: d.Status.BlockedBy, Application: spec.Application}
	}
	return store.Revision(d.Status.Revision), nil
}

// present returns a delivery as it is known.
func (s *Store) present(id string) (*v1alpha1.Delivery, error) {
	d := s.mirror.delivery(s.c.namespace, id)
	if d == nil {
		return nil, fault.Newf(fault.NotFound, "there is no delivery %q", id)
	}
	return d, nil
}

// Load implements store.Store.
func (s *Store) Load(ctx context.Context, id string) (store.Delivery, error) {
	d, err := s.present(id)
	if err != nil {
		return store.Delivery{}, err
	}
	d, out, err := s.decode(ctx, d)
	if err != nil {
		return out, err
	}
	out.Signals = s.signals(d, out.Status)
	return out, nil
}

// decode reads a delivery without its signals, and returns the one that it has read.
func (s *Store) decode(ctx context.Context, known *v1alpha1.Delivery) (*v1alpha1.Delivery, store.Delivery, error) {
	d, st, err := s.any.current(ctx, known)
	out := store.Delivery{Status: st, Revision: store.Revision(d.Status.Revision)}
	if err != nil {
		return d, out, s.lost(ctx, d, stateLost, err)
	}
	if d != known {
		s.mirror.wrote(d)
	}
	spec, cached := s.specs.get(d.Name)
	if !cached {
		if spec, err = s.any.plan(ctx, d); err != nil {
			return d, out, s.lost(ctx, d, planLost, err)
		}
		if !d.Status.Done {
			s.specs.put(d.Name, spec)
		}
	}
	out.Spec = spec
	s.found(ctx, d, st)
	return d, out, nil
}

// Swap implements store.Store. The status is the commit: what it refers to is written before.
func (s *Store) Swap(ctx context.Context, id string, at store.Revision, st delivery.Status, records []store.Record) (store.Revision, error) {
	old, err := s.present(id)
	if err != nil {
		return 0, err
	}
	for {
		if store.Revision(old.Status.Revision) != at {
			return 0, fault.Newf(fault.Conflict, "delivery %s is no longer at revision %d", id, at)
		}
		d, all, err := s.swap(ctx, old, st, records)
		if err == nil {
			s.swapped(ctx, old, d, st)
			s.tellRefused(d, all)
			return store.Revision(d.Status.Revision), nil
		}
		if apierrors.IsNotFound(err) {
			s.mirror.gone(id) // where a watch has told so before it was written down here
		}
		if !apierrors.IsConflict(err) {
			return 0, err
		}
		// Somebody has changed it, or nothing but its metadata, or a write whose answer was lost was ours.
		if old, err = get[v1alpha1.Delivery](ctx, s.c, deliveries, id); err != nil {
			return 0, err
		}
		s.mirror.wrote(old)
	}
}

// swap writes the status that follows on the one of old, and returns all records that it has kept with it.
func (s *Store) swap(ctx context.Context, old *v1alpha1.Delivery, st delivery.Status, records []store.Record) (*v1alpha1.Delivery, []store.Record, error) {
	if old.Status.Phase == string(delivery.Queued) && st.State != delivery.Queued && !st.State.Final() {
		if holder, err := s.c.take(ctx, old); err != nil {
			return nil, nil, err
		} else if holder != "" {
			return nil, nil, fault.Newf(fault.Conflict, "delivery %s of application %q is still running", holder, old.Spec.Application)
		}
	}
	d := old.DeepCopy()
	d.Status.Revision++
	records = s.takeIn(d, st, records)
	if err := s.c.journal(ctx, d, records); err != nil {
		return nil, nil, err
	}
	if err := s.c.write(ctx, d, st); err != nil {
		return nil, nil, err
	}
	made, err := update(ctx, s.c, deliveries, d.Name, "status", d)
	if err != nil {
		s.mu.Lock()
		s.loose[d.Name] = append(s.loose[d.Name], partsOf(d)...)
		s.mu.Unlock()
	}
	return made, records, err
}

// partsOf are the Secrets that a status goes by.
func partsOf(d *v1alpha1.Delivery) []string {
	return slices.Concat(d.Status.StateSecrets, d.Status.Journal.Secrets)
}

// leftovers are the Secrets that a commit has left behind: those of the state before, and those of tries before it. No other
// status can come to go by them, since each is written in place of the one that was read.
func (s *Store) leftovers(old, d *v1alpha1.Delivery) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Concat(old.Status.StateSecrets, s.loose[d.Name])
	delete(s.loose, d.Name)
	now := partsOf(d)
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(n string) bool { return slices.Contains(now, n) })
}

// swapped does what follows on a commit.
func (s *Store) swapped(ctx context.Context, old, d *v1alpha1.Delivery, st delivery.Status) {
	s.mirror.wrote(d)
	s.mu.Lock()
	if o := s.order[d.Name]; o != nil {
		for _, n := range d.Status.Taken {
			delete(o.seq, n)
		}
	}
	if st.Done {
		s.specs.remove(d.Name)
		delete(s.order, d.Name)
	}
	s.mu.Unlock()
	s.tell(old, d)
	for _, n := range s.leftovers(old, d) {
		if err := s.c.remove(ctx, secrets, n, ""); err != nil {
			s.o.Log.Warn("an old state is left behind; it goes with its delivery", "delivery", d.Name, "error", err)
		}
	}
	if st.Done {
		if err := s.release(ctx, d); err != nil {
			s.o.Log.Warn("a delivery that has ended keeps its finalizer until the next start", "delivery", d.Name, "error", err)
		}
	}
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context) (<-chan store.Event, error) { return s.hub.Watch(ctx), nil }

// List implements store.Lister. Deliveries that nobody has admitted yet are none.
func (s *Store) List(ctx context.Context, open bool) ([]store.Delivery, error) {
	var out []store.Delivery
	for _, d := range s.mirror.all() {
		if d.Status.Revision == 0 || open && d.Status.Done {
			continue
		}
		_, one, err := s.decode(ctx, d)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b store.Delivery) int {
		return cmp.Or(b.Spec.CreatedAt.Compare(a.Spec.CreatedAt), strings.Compare(a.Spec.ID, b.Spec.ID))
	})
	return out, nil
}

// Head implements store.Lister. A delivery that nobody has admitted yet is none.
func (s *Store) Head(_ context.Context, id string) (store.Head, error) {
	d, err := s.present(id)
	if err == nil && d.Status.Revision == 0 {
		err = fault.Newf(fault.NotFound, "delivery %q is not admitted yet", id)
	}
	if err != nil {
		return store.Head{}, err
	}
	return headOf(d), nil
}

func headOf(d *v1alpha1.Delivery) store.Head {
	return store.Head{ID: d.Name, Application: d.Spec.Application, State: delivery.State(d.Status.Phase), Done: d.Status.Done}
}

// Heads implements store.Lister.
func (s *Store) Heads(_ context.Context, open bool) ([]store.Head, error) {
	var all []*v1alpha1.Delivery
	for _, d := range s.mirror.all() {
		if d.Status.Revision > 0 && !(open && d.Status.Done) {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b *v1alpha1.Delivery) int {
		return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	out := make([]store.Head, 0, len(all))
	for _, d := range all {
		out = append(out, headOf(d))
	}
	return out, nil
}

// Journal implements store.Journaler.
func (s *Store) Journal(ctx context.Context, id string) ([]store.Record, error) {
	d, err := s.present(id)
	if err != nil {
		return nil, err
	}
	return s.any.records(ctx, d)
}
