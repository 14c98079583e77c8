// Package lease elects one of several processes by a Lease in a cluster, and keeps one that is no longer elected from acting.
package lease

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
)

// Config says which Lease it is, and who wants it.
type Config struct {
	Credentials     *rest.Config
	Namespace, Name string
	Identity        string        // of this process; no other has it
	Duration        time.Duration // how long a leader that is not heard of keeps its place
	Deadline        time.Duration // how long a leader acts that could not renew the Lease; shorter than Duration
	Retry           time.Duration // how often the Lease is renewed; shorter than Deadline
	Log             *slog.Logger
}

// Leader takes part in an election.
type Leader struct {
	c      Config
	client client
	until  atomic.Pointer[time.Time] // the instant until which this process may act
}

// ErrLost is the error of a leader that could not renew its Lease in time: it must do nothing more.
var ErrLost = errors.New("this process no longer leads")

// New makes a candidate.
func New(c Config) (*Leader, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if c.Retry <= 0 || c.Deadline <= c.Retry || c.Duration <= c.Deadline || c.Duration < time.Second {
		return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "a lease of %s, renewed within %s, tried every %s, cannot be kept", c.Duration, c.Deadline, c.Retry),
			"the lease must last longer than the renewal, the renewal longer than a try, and the lease at least a second")
	}
	cl, err := newClient(c.Credentials, c.Namespace)
	return &Leader{c: c, client: cl}, err
}

// Leads reports whether this process may act. It becomes false by the clock alone: a process that was stopped for longer
// than its lease finds that out before it does anything.
func (l *Leader) Leads() bool {
	until, now := l.until.Load(), time.Now()
	// Both clocks: the one that only goes forward stands still while a machine sleeps, the other one may be set back.
	return until != nil && now.Before(*until) && now.Round(0).Before(until.Round(0))
}

// Guard refuses every request while this process does not lead: of others than the cluster's, a GET may change something.
func (l *Leader) Guard(next http.RoundTripper) http.RoundTripper { return guard{l, next} }

type guard struct {
	l    *Leader
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (g guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if !g.l.Leads() {
		if r.Body != nil {
			_ = r.Body.Close() // a RoundTripper closes it, also where it sends nothing
		}
		return nil, fault.Newf(fault.Lost, "%s %s is not sent: %w", r.Method, r.URL.Path, ErrLost)
	}
	return g.next.RoundTrip(r)
}

// Conn refuses to write to a connection while this process does not lead. It is for a process that was stopped between the
// guard and the network: what it had in hand is not sent when it goes on.
func (l *Leader) Conn(c net.Conn) net.Conn { return barred{c, l} }

type barred struct {
	net.Conn
	l *Leader
}

// Write implements net.Conn.
func (b barred) Write(p []byte) (int, error) {
	if !b.l.Leads() {
		return 0, fault.Newf(fault.Lost, "nothing is sent to %s: %w", b.RemoteAddr(), ErrLost)
	}
	return b.Conn.Write(p)
}

// Run waits until this process leads and then calls lead, whose context ends with the leadership. It returns what lead
// returned, or ErrLost; and when ctx ends it gives the Lease back, so that another process need not wait.
func (l *Leader) Run(ctx context.Context, lead func(context.Context) error) error {
	held, err := l.acquire(ctx)
	if err != nil {
		return err
	}
	l.c.Log.Info("this process leads", "lease", l.c.Namespace+"/"+l.c.Name, "identity", l.c.Identity)
	within, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() { ended <- lead(within) }()
	again := time.NewTicker(l.c.Retry)
	defer again.Stop()
	for {
		select {
		case err := <-ended:
			cancel(nil)
			if l.Leads() {
				l.release(context.WithoutCancel(ctx), held)
			}
			return err
		case <-again.C:
		}
		next, err := l.renew(ctx, held)
		if err == nil {
			held = next
			continue
		}
		if l.Leads() && !lost(err) {
			l.c.Log.Warn("the Lease could not be renewed; it is tried again", "error", err)
			continue
		}
		l.until.Store(nil)
		cancel(ErrLost)
		l.c.Log.Error("this process no longer leads and ends", "error", err)
		// What it returns is that its context ended.
		select {
		case <-ended: //nolint:errcheck // see above
		case <-time.After(l.c.Deadline):
		}
		return fault.Newf(fault.Lost, "%w: %w", ErrLost, err)
	}
}

func lost(err error) bool { return apierrors.IsConflict(err) || fault.Is(err, fault.Lost) }

// acquire returns when this process holds the Lease. It is told of the holder's renewals by a watch.
func (l *Leader) acquire(ctx context.Context) (*coordinationv1.Lease, error) {
	seen := make(chan *coordinationv1.Lease, 1)
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	go l.client.follow(within, l.c.Name, func(x *coordinationv1.Lease) {
		select {
		case <-seen: // an older one that was not looked at yet
		default:
		}
		seen <- x
	})
	var known *coordinationv1.Lease
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case x := <-seen:
			// The holder's clock may differ from ours: what counts is how long ago we saw it renewed.
			if known != nil && x.ResourceVersion == known.ResourceVersion {
				continue
			}
			known = x
			wait := time.Duration(0)
			if h := x.Spec.HolderIdentity; h != nil && *h != "" && *h != l.c.Identity && x.Spec.LeaseDurationSeconds != nil {
				wait = time.Duration(*x.Spec.LeaseDurationSeconds) * time.Second
			}
			due.Reset(wait)
			continue
		case <-due.C:
		}
		held, err := l.grab(ctx, known)
		if err == nil {
			return held, nil
		}
		if apierrors.IsNotFound(err) {
			known = nil // somebody has deleted it
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
			l.c.Log.Warn("the Lease could not be taken; it is tried again", "error", err)
		}
		due.Reset(l.c.Retry)
	}
}

// grab takes the Lease as it was last seen, or makes it.
func (l *Leader) grab(ctx context.Context, known *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	begun := time.Now()
	x := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: l.c.Name, Namespace: l.c.Namespace}}
	if known != nil {
		x = known.DeepCopy()
	}
	at, seconds, transitions := metav1.NewMicroTime(begun), int32((l.c.Duration+time.Second-1)/time.Second), int32(0)
	if x.Spec.LeaseTransitions != nil {
		transitions = *x.Spec.LeaseTransitions + 1
	}
	x.Spec = coordinationv1.LeaseSpec{HolderIdentity: &l.c.Identity, LeaseDurationSeconds: &seconds, AcquireTime: &at, RenewTime: &at, LeaseTransitions: &transitions}
	out, err := l.client.write(ctx, x)
	if err == nil {
		l.extend(begun)
	}
	return out, err
}

// extend lets this process act for as long after the beginning of the request as nobody else can have taken its place.
func (l *Leader) extend(begun time.Time) {
	until := begun.Add(l.c.Deadline)
	l.until.Store(&until)
}

func (l *Leader) renew(ctx context.Context, held *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	if !l.Leads() {
		return nil, fault.Newf(fault.Lost, "the Lease was not renewed within %s", l.c.Deadline)
	}
	// It is renewed also while this process ends, until its work has.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Until(*l.until.Load()))
	defer cancel()
	begun := time.Now()
	x := held.DeepCopy()
	at := metav1.NewMicroTime(begun)
	x.Spec.RenewTime = &at
	out, err := l.client.write(ctx, x)
	if err == nil {
		l.extend(begun)
	}
	return out, err
}

func (l *Leader) release(ctx context.Context, held *coordinationv1.Lease) {
	ctx, cancel := context.WithTimeout(ctx, l.c.Deadline)
	defer cancel()
	l.until.Store(nil)
	x := held.DeepCopy()
	nobody, second, now := "", int32(1), metav1.NewMicroTime(time.Now())
	x.Spec.HolderIdentity, x.Spec.LeaseDurationSeconds, x.Spec.RenewTime = &nobody, &second, &now
	if _, err := l.client.write(ctx, x); err != nil {
		l.c.Log.Warn("the Lease could not be given back; another process waits until it has run out", "error", err)
	}
}

// Fresh reports whether somebody holds a Lease and has renewed it in time.
func Fresh(ctx context.Context, credentials *rest.Config, namespace, name string) (bool, error) {
	c, err := newClient(credentials, namespace)
	if err != nil {
		return false, err
	}
	x := &coordinationv1.Lease{}
	err = c.rest.Get().Namespace(namespace).Resource("leases").Name(name).Do(ctx).Into(x)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, kubernetes.Fault(err, "read Lease %s/%s", namespace, name)
	}
	s := x.Spec
	if s.HolderIdentity == nil || *s.HolderIdentity == "" || s.RenewTime == nil || s.LeaseDurationSeconds == nil {
		return false, nil
	}
	return time.Since(s.RenewTime.Time) < time.Duration(*s.LeaseDurationSeconds)*time.Second, nil
}

// client makes requests about Leases.
type client struct {
	namespace string
	rest      rest.Interface
}

func newClient(config *rest.Config, namespace string) (client, error) {
	web, err := rest.HTTPClientFor(config)
	if err != nil {
		return client{}, fault.Newf(fault.Invalid, "the credentials cannot be used: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := coordinationv1.AddToScheme(scheme); err != nil {
		return client{}, err
	}
	r, err := kubernetes.Client(config, web, coordinationv1.SchemeGroupVersion, scheme)
	return client{namespace, r}, err
}

// write makes a Lease, or replaces the one that was read.
func (c client) write(ctx context.Context, x *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	r := c.rest.Post()
	if x.ResourceVersion != "" {
		r = c.rest.Put().Name(x.Name)
	}
	out := &coordinationv1.Lease{}
	err := r.Namespace(c.namespace).Resource("leases").Body(x).Do(ctx).Into(out)
	return out, kubernetes.Fault(err, "write Lease %s/%s", c.namespace, x.Name)
}

// follow tells of a Lease and its changes until ctx ends.
func (c client) follow(ctx context.Context, name string, f func(*coordinationv1.Lease)) {
	only := fields.OneTermEqualSelector("metadata.name", name).String()
	request := func(o metav1.ListOptions) *rest.Request {
		o.FieldSelector = only
		return c.rest.Get().Namespace(c.namespace).Resource("leases").VersionedParams(&o, metav1.ParameterCodec)
	}
	i := cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return request(o).Do(ctx).Get()
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			return request(o).Watch(ctx)
		},
	}, &coordinationv1.Lease{}, 0, cache.Indexers{})
	told := func(v any) {
		if x, ok := v.(*coordinationv1.Lease); ok {
			f(x)
		}
	}
	_, _ = i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: told, UpdateFunc: func(_, v any) { told(v) }})
	i.RunWithContext(ctx)
}
