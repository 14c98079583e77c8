package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// patience is how long a connection waits for a pod that is ready.
const patience = 30 * time.Second

// reused is how long a connection to a pod waits for the next request: shorter than servers usually do, so that it is not
// closed from there just when it is used again.
const reused = 4 * time.Second

// servicePort is one port of a Service. Ports below 1024 are mapped to ones that an ordinary user may listen on.
type servicePort struct {
	name   string
	port   int
	listen int
	target intstr.IntOrString
	http   bool
}

// called reports whether a port is meant by a name or a number; "" means any.
func (p servicePort) called(name string) bool {
	return name == "" || name == p.name || name == strconv.Itoa(p.port) || name == strconv.Itoa(p.listen)
}

func servicePorts(o manifest.Object) []servicePort {
	var s corev1.Service
	if o.Into(&s) != nil {
		return nil
	}
	var out []servicePort
	for _, p := range s.Spec.Ports {
		sp := servicePort{name: p.Name, port: int(p.Port), listen: int(p.Port), target: p.TargetPort}
		if sp.listen < 1024 {
			sp.listen += 8000
		}
		if sp.target.String() == "0" {
			sp.target = intstr.FromInt32(p.Port)
		}
		sp.http = strings.HasPrefix(p.Name, "http") || p.AppProtocol != nil && strings.HasPrefix(*p.AppProtocol, "http")
		out = append(out, sp)
	}
	return out
}

// service is a Service that listens.
type service struct {
	ref       manifest.Ref
	address   string
	counters  *counters
	log       *slog.Logger
	listeners map[int]net.Listener // by the port that is listened on

	mu      sync.Mutex
	ports   []servicePort
	change  *sync.Cond
	closed  bool
	gone    bool
	preview bool // only a new version beside the stable one is shown
	pods    []*pod
	weight  int // of the canary
	credit  int // of the smooth choice between the tracks
	next    map[platform.Track]int
	conns   map[net.Conn]bool
	web     map[net.Listener]*http.Server // carries what is HTTP on a listener
}

func newService(o manifest.Object, address string, c *counters, log *slog.Logger) (*service, error) {
	s := &service{ref: o.Ref(), address: address, counters: c, log: log, listeners: map[int]net.Listener{}, next: map[platform.Track]int{},
		conns: map[net.Conn]bool{}, web: map[net.Listener]*http.Server{}}
	s.change = sync.NewCond(&s.mu)
	return s, s.update(o)
}

func tcp(address string) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
}

// update makes the Service listen on the ports of an object. Where one is taken everything stays as it was; ports that
// stay keep their connections.
func (s *service) update(o manifest.Object) error {
	ports := servicePorts(o)
	added := map[int]net.Listener{}
	for _, p := range ports {
		if s.listeners[p.listen] != nil || added[p.listen] != nil {
			continue
		}
		at := net.JoinHostPort(s.address, strconv.Itoa(p.listen))
		l, err := tcp(at)
		if err != nil {
			for _, l := range added {
				_ = l.Close()
			}
			return fault.WithRemedy(fault.Newf(fault.Conflict, "%s: Service %s cannot listen on %s: %w", o.Origin, o.Ref(), at, err),
				"another program holds port %d there; end it or give the Service another port", p.listen)
		}
		added[p.listen] = l
		if p.listen != p.port {
			s.log.Info("a port below 1024 is mapped", "service", o.Ref().String(), "port", p.port, "address", at)
		}
	}
	s.mu.Lock()
	s.ports = ports
	s.mu.Unlock()
	for n, l := range s.listeners {
		if !slices.ContainsFunc(ports, func(p servicePort) bool { return p.listen == n }) {
			_ = l.Close()
			delete(s.listeners, n)
		}
	}
	for n, l := range added {
		s.listeners[n] = l
		go s.serve(l, n)
	}
	return nil
}

// first is the port that an exposed Service is exposed with.
func (s *service) first() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ports) == 0 {
		return 0
	}
	return s.ports[0].listen
}

// port returns what is listened for on a port now.
func (s *service) port(listen int) servicePort {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.ports {
		if p.listen == listen {
			return p
		}
	}
	return servicePort{}
}

func (s *service) stop() {
	for _, l := range s.listeners {
		_ = l.Close()
	}
	s.mu.Lock()
	s.gone = true
	web := slices.Collect(maps.Values(s.web))
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.change.Broadcast()
	for _, w := range web {
		_ = w.Close()
	}
}

// route says which pods a Service has, which share the canary gets, and whether connections are held.
func (s *service) route(pods []*pod, weight int, closed, preview bool) {
	s.mu.Lock()
	s.pods, s.weight, s.closed, s.preview = pods, weight, closed, preview
	s.mu.Unlock()
	s.change.Broadcast()
}

// serve carries what comes to a listener: request by request where it is HTTP, else connection by connection.
func (s *service) serve(l net.Listener, port int) {
	in := &handed{from: l, conns: make(chan net.Conn), closed: make(chan struct{})}
	srv := &http.Server{Handler: s.proxy(port), ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	s.mu.Lock()
	s.web[l] = srv
	s.mu.Unlock()
	go func() { _ = srv.Serve(in) }()
	defer func() {
		_ = srv.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.web, l)
	}()
	for {
		c, err := l.Accept()
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			// The node has no file descriptor left for an instant; giving up the listener would be for ever.
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err != nil {
			return
		}
		if p := s.port(port); !s.isHTTP(p) {
			go s.forward(c, p)
			continue
		}
		select {
		case in.conns <- c:
		case <-in.closed:
			_ = c.Close()
			return
		}
	}
}

// isHTTP reports whether a port speaks HTTP: it is called so, or its pods are probed by HTTP there.
func (s *service) isHTTP(p servicePort) bool {
	if p.http {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pd := range s.pods {
		for _, probe := range []*corev1.Probe{pd.container.ReadinessProbe, pd.container.LivenessProbe, pd.container.StartupProbe} {
			if probe != nil && probe.HTTPGet != nil && portOf(pd.container, probe.HTTPGet.Port) == portOf(pd.container, p.target) &&
				!strings.EqualFold(string(probe.HTTPGet.Scheme), "https") {
				return true
			}
		}
	}
	return false
}

// handed is a listener of connections that somebody else has accepted.
type handed struct {
	from   net.Listener
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Accept returns the next connection.
func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; the listener behind it is its owner's.
func (h *handed) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr is where the connections came to.
func (h *handed) Addr() net.Addr { return h.from.Addr() }

// where tells where the Service listens, and which of its ports had to be mapped.
func (s *service) where() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var at []string
	for _, p := range s.ports {
		text := net.JoinHostPort(s.address, strconv.Itoa(p.listen))
		if p.listen != p.port {
			text += fmt.Sprintf(" (its port %d)", p.port)
		}
		at = append(at, text)
	}
	return "at " + strings.Join(at, ", ")
}

var errNoPod = errors.New("no pod of the Service is ready")

// tried are pods that could not be reached, with which of their processes it was: the next one is worth another try.
type tried map[*pod]int

func (t tried) has(p *pod, run int) bool {
	n, ok := t[p]
	return ok && n == run
}

// choose waits until the Service is open and a pod is ready, and counts the caller in. The share of the canary is exact:
// credit is carried from one choice to the next.
func (s *service) choose(ctx context.Context, not tried) (*pod, error) {
	wake := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.change.Broadcast()
	}
	defer context.AfterFunc(ctx, wake)()
	give := time.AfterFunc(patience, wake)
	defer give.Stop()
	waited := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.closed {
			// A closed Service keeps its callers for as long as it is closed.
			waited = time.Now()
			give.Reset(patience)
		} else if p := s.pick(not); p != nil {
			return p, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		// A preview without a new version has nothing that could come; everybody else's pods are about to be ready.
		if s.gone || s.preview && len(s.pods) == 0 {
			return nil, errNoPod
		}
		if time.Since(waited) >= patience {
			return nil, errNoPod
		}
		s.change.Wait()
	}
}

func (s *service) pick(not tried) *pod {
	by, canary := map[platform.Track][]*pod{}, false
	for _, p := range s.pods {
		canary = canary || p.where() == platform.Canary
		if now := p.now(); now.ready && !not.has(p, now.runs) {
			by[p.where()] = append(by[p.where()], p)
		}
	}
	track := platform.Stable
	switch {
	case canary && s.weight >= 100:
		// Nothing goes back to the old version by itself, not even while the new one is not ready.
		track = platform.Canary
	case len(by[platform.Canary]) == 0 || s.weight == 0:
	case len(by[platform.Stable]) == 0:
		track = platform.Canary
	default:
		if s.credit += s.weight; s.credit >= 100 {
			s.credit -= 100
			track = platform.Canary
		}
	}
	for range by[track] {
		s.next[track]++
		if p := by[track][s.next[track]%len(by[track])]; p.take() {
			return p
		}
	}
	return nil
}

// chosen is where one request goes.
type chosen struct{ pod *pod }

type chosenKey struct{}

// proxy carries HTTP, request by request.
func (s *service) proxy(port int) http.Handler {
	rp := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.Out.Host = r.In.Host; r.SetXForwarded() },
		Transport:     &roundTripper{s: s, port: port, inner: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true, IdleConnTimeout: reused}},
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			http.Error(w, fmt.Sprintf("service %s: %v", s.ref, err), http.StatusBadGateway)
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		c := &chosen{}
		rec := &statusWriter{ResponseWriter: w, code: http.StatusOK}
		whole := false
		defer func() {
			// The proxy panics where an answer breaks off, to have the connection closed: that request has failed.
			if !whole {
				rec.code = http.StatusBadGateway
			}
			if c.pod != nil {
				c.pod.release()
			}
			s.counters.request(s.ref, c.pod, rec.code, time.Since(start))
		}()
		rp.ServeHTTP(rec, r.WithContext(context.WithValue(r.Context(), chosenKey{}, c)))
		whole = true
	})
}

type statusWriter struct {
	http.ResponseWriter
	code int
}

func (w *statusWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap lets the proxy flush.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// roundTripper sends a request to a pod, and to another one only where nothing was sent yet.
type roundTripper struct {
	s     *service
	port  int
	inner *http.Transport
}

func (t *roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	c := r.Context().Value(chosenKey{}).(*chosen)
	failed := tried{}
	if r.Body != nil {
		// A transport closes the body when it cannot connect, and the next pod still needs it.
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(r.Body)
	}
	for {
		p, err := t.s.choose(r.Context(), failed)
		if err != nil {
			return nil, err
		}
		c.pod = p
		run := p.now().runs
		r.URL = &url.URL{Scheme: "http", Host: net.JoinHostPort(p.address, strconv.Itoa(portOf(p.container, t.s.port(t.port).target))), Path: r.URL.Path,
			RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
		resp, err := t.inner.RoundTrip(r)
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
			p.release()
			c.pod, failed[p] = nil, run
			continue
		}
		return resp, err
	}
}
