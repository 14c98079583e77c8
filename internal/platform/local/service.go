package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// patience is how long a connection waits for a pod that is ready.
const patience = 30 * time.Second

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
	ports     []servicePort
	counters  *counters
	log       *slog.Logger
	listeners []net.Listener

	mu     sync.Mutex
	change *sync.Cond
	closed bool
	pods   []*pod
	weight int // of the canary
	credit int // of the smooth choice between the tracks
	next   map[platform.Track]int
	conns  map[net.Conn]bool
}

func newService(o manifest.Object, address string, c *counters, log *slog.Logger) (*service, error) {
	s := &service{ref: o.Ref(), address: address, ports: servicePorts(o), counters: c, log: log, next: map[platform.Track]int{}, conns: map[net.Conn]bool{}}
	s.change = sync.NewCond(&s.mu)
	for _, p := range s.ports {
		at := net.JoinHostPort(address, strconv.Itoa(p.listen))
		l, err := net.Listen("tcp", at)
		if err != nil {
			s.stop()
			return nil, fault.WithRemedy(fault.Newf(fault.Conflict, "%s: Service %s cannot listen on %s: %w", o.Origin, o.Ref(), at, err),
				"another program holds port %d there; end it or give the Service another port", p.listen)
		}
		s.listeners = append(s.listeners, l)
		if p.listen != p.port {
			log.Info("a port below 1024 is mapped", "service", o.Ref().String(), "port", p.port, "address", at)
		}
		go s.serve(l, p)
	}
	return s, nil
}

func (s *service) stop() {
	for _, l := range s.listeners {
		_ = l.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
}

// route says which pods a Service has, which share the canary gets, and whether connections are held.
func (s *service) route(pods []*pod, weight int, closed bool) {
	s.mu.Lock()
	s.pods, s.weight, s.closed = pods, weight, closed
	s.mu.Unlock()
	s.change.Broadcast()
}

func (s *service) serve(l net.Listener, p servicePort) {
	if p.http {
		srv := &http.Server{Handler: s.proxy(p), ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
		_ = srv.Serve(l)
		return
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go s.forward(c, p)
	}
}

var errNoPod = errors.New("no pod of the Service is ready")

// choose waits until the Service is open and a pod is ready, and counts the caller in. The share of the canary is exact:
// credit is carried from one choice to the next.
func (s *service) choose(ctx context.Context, not map[*pod]bool) (*pod, error) {
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
		if time.Since(waited) >= patience {
			return nil, errNoPod
		}
		s.change.Wait()
	}
}

func (s *service) pick(not map[*pod]bool) *pod {
	by := map[platform.Track][]*pod{}
	for _, p := range s.pods {
		if !not[p] && p.now().ready {
			by[p.track] = append(by[p.track], p)
		}
	}
	track := platform.Stable
	switch {
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

// forward carries one connection of a protocol that is not HTTP.
func (s *service) forward(c net.Conn, p servicePort) {
	defer c.Close()
	s.track(c, true)
	defer s.track(c, false)
	tried := map[*pod]bool{}
	for {
		pd, err := s.choose(context.Background(), tried)
		if err != nil {
			return
		}
		to, err := net.DialTimeout("tcp", net.JoinHostPort(pd.address, strconv.Itoa(portOf(pd.container, p.target))), 5*time.Second)
		if err != nil {
			pd.release()
			tried[pd] = true
			continue
		}
		s.counters.connection(s.ref, pd)
		splice(c, to)
		pd.release()
		return
	}
}

func (s *service) track(c net.Conn, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if open {
		s.conns[c] = true
	} else {
		delete(s.conns, c)
	}
}

func splice(a, b net.Conn) {
	var wg sync.WaitGroup
	one := func(to, from net.Conn) {
		_, _ = (to.(*net.TCPConn)).ReadFrom(from)
		_ = to.(*net.TCPConn).CloseWrite()
		_ = from.(*net.TCPConn).CloseRead()
	}
	wg.Go(func() { one(a, b) })
	wg.Go(func() { one(b, a) })
	wg.Wait()
	_ = b.Close()
}

// chosen is where one request goes.
type chosen struct{ pod *pod }

type chosenKey struct{}

// proxy carries HTTP, request by request.
func (s *service) proxy(p servicePort) http.Handler {
	rp := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.Out.Host = r.In.Host; r.SetXForwarded() },
		Transport:     &roundTripper{s: s, port: p, inner: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}},
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			http.Error(w, fmt.Sprintf("service %s: %v", s.ref, err), http.StatusBadGateway)
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		c := &chosen{}
		rec := &statusWriter{ResponseWriter: w, code: http.StatusOK}
		rp.ServeHTTP(rec, r.WithContext(context.WithValue(r.Context(), chosenKey{}, c)))
		if c.pod != nil {
			c.pod.release()
		}
		s.counters.request(s.ref, c.pod, rec.code, time.Since(start))
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
	port  servicePort
	inner *http.Transport
}

func (t *roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	c := r.Context().Value(chosenKey{}).(*chosen)
	tried := map[*pod]bool{}
	if r.Body != nil {
		// A transport closes the body when it cannot connect, and the next pod still needs it.
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(r.Body)
	}
	for {
		p, err := t.s.choose(r.Context(), tried)
		if err != nil {
			return nil, err
		}
		c.pod = p
		r.URL = &url.URL{Scheme: "http", Host: net.JoinHostPort(p.address, strconv.Itoa(portOf(p.container, t.port.target))), Path: r.URL.Path,
			RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
		resp, err := t.inner.RoundTrip(r)
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
			p.release()
			c.pod, tried[p] = nil, true
			continue
		}
		return resp, err
	}
}
