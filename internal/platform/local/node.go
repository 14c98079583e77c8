// Package local runs Kubernetes manifests as processes on this machine: the embedded default.
//
// A long-lived node, a process of its own, owns the pods' processes, the listeners of the Services, their counters and the
// log files. Sluice's engine only tells it the desired state, over a unix socket, so that an engine that is killed costs
// no request. Where the node itself dies its successor adopts the processes by the marks in their environment; what a
// process that ended meanwhile returned is recorded as unknown.
package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/unixsocket"
)

// node is the process that owns everything that runs.
type node struct {
	dir      string
	log      *slog.Logger
	counters *counters
	ctx      context.Context // the pods' and listeners'
	stop     context.CancelFunc
	dirty    chan struct{}
	metrics  string // URL
	boot     string // of the machine

	wg       sync.WaitGroup
	mu       sync.Mutex
	changed  *sync.Cond
	version  int
	state    *state
	pods     map[string]*pod
	services map[string]*service
	attempts map[string]int
	exposed  map[string]net.Listener
	deaf     map[string]string // Services that cannot listen, and why
}

func socket(dir string) string { return filepath.Join(dir, "node.sock") }

// RunNode is the node. It returns when Shutdown has ended every process, or when ctx ends or the node is terminated: then
// the pods go on, for a successor to adopt.
func RunNode(ctx context.Context, dir string, log *slog.Logger) error {
	ctx, cancel := untilTold(ctx)
	defer cancel()
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	n := &node{dir: dir, log: log, counters: newCounters(), dirty: make(chan struct{}, 1), pods: map[string]*pod{}, services: map[string]*service{},
		attempts: map[string]int{}, exposed: map[string]net.Listener{}, deaf: map[string]string{}}
	n.changed = sync.NewCond(&n.mu)
	n.ctx, n.stop = context.WithCancel(context.WithoutCancel(ctx))
	if n.boot, err = bootID(); err != nil {
		return err
	}
	if n.state, err = loadState(dir); err != nil {
		return err
	}
	if err := n.serveMetrics(ctx); err != nil {
		return err
	}
	if err := n.adopt(); err != nil {
		return err
	}
	return n.serve(ctx)
}

// dying is how long the node before has to be gone: one that was killed keeps its lock until the kernel has taken it apart.
const dying = 2 * time.Second

// lock makes sure that one node owns a directory. The lock ends with the process.
func lock(dir string) (func(), error) {
	if err := enter(dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "node.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for over := time.Now().Add(dying); ; time.Sleep(5 * time.Millisecond) {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return func() { _ = f.Close() }, nil
		}
		c, e := unixsocket.Dial(context.Background(), socket(dir))
		if e == nil {
			_ = c.Close()
		}
		if e == nil || !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(over) {
			_ = f.Close()
			return nil, fault.Newf(fault.Conflict, "another node owns %s: %w", dir, err)
		}
	}
}

// enter makes the node's directory. Where pods run as other users they must be able to pass through it, not to look
// around in it; what they may not read is closed to them by itself.
func enter(dir string) error {
	mode := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("make the node's directory: %w", err)
	}
	return nil
}

func (n *node) serveMetrics(ctx context.Context) error {
	l, err := tcp("127.0.0.1:" + n.keptPort())
	if err != nil {
		if l, err = tcp("127.0.0.1:0"); err != nil {
			return fmt.Errorf("listen for metrics: %w", err)
		}
	}
	n.metrics = "http://" + l.Addr().String() + "/metrics"
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if err := os.WriteFile(filepath.Join(n.dir, "metrics.port"), []byte(port), 0o600); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", n.counters.handler())
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	go func() { _ = srv.Serve(l) }()
	return nil
}

// keptPort is the port of the node before, so that whoever scrapes it need not be told anew.
func (n *node) keptPort() string {
	b, err := os.ReadFile(filepath.Join(n.dir, "metrics.port"))
	if err != nil {
		return "0"
	}
	return strings.TrimSpace(string(b))
}

// listenAll makes every Service listen. One that cannot is tried again by every reconciliation.
func (n *node) listenAll() {
	for k, r := range n.state.Objects {
		if r.Object.GetKind() != "Service" {
			continue
		}
		if err := n.listen(k, r.Object); err != nil && n.deaf[k] != err.Error() {
			n.deaf[k] = err.Error()
			n.log.Error("a Service does not listen", "error", err)
		} else if err == nil {
			delete(n.deaf, k)
		}
	}
}

// kick asks for a reconciliation. It never blocks.
func (n *node) kick() {
	select {
	case n.dirty <- struct{}{}:
	default:
	}
}

// serve answers on the socket and reconciles until told to stop.
func (n *node) serve(ctx context.Context) error {
	l, err := unixsocket.Listen(socket(n.dir)) // the lock is ours, so whoever made the one that is there is gone
	if err != nil {
		return err
	}
	ctx, done := context.WithCancel(ctx)
	defer done()
	srv := &http.Server{Handler: n.api(done), ReadHeaderTimeout: time.Minute}
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("the node no longer answers", "error", err)
			done()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return srv.Close()
		case <-n.dirty:
			n.mu.Lock()
			n.reconcile()
			n.mu.Unlock()
		}
	}
}

// shutdown ends every process.
func (n *node) shutdown() {
	n.mu.Lock()
	n.stop() // with the lock held: whatever is started has been counted, or is not started any more
	n.mu.Unlock()
	n.wg.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.changed.Broadcast()
	for _, s := range n.services {
		s.stop()
	}
	for _, l := range n.exposed {
		l.Close()
	}
}

// listen makes a Service listen.
func (n *node) listen(k string, o manifest.Object) error {
	if s, ok := n.services[k]; ok {
		return s.update(o)
	}
	s, err := newService(o, n.state.address(n.dir, k), n.counters, n.log)
	if err == nil {
		n.services[k] = s
	}
	return err
}

// expose gives a Service an address until its time is over. l listens there already, or is nil.
func (n *node) expose(k string, e exposed, l net.Listener) {
	left := time.Until(e.Until)
	s, ok := n.services[key(e.Service)]
	if left <= 0 || !ok {
		delete(n.state.Exposed, k)
		return
	}
	if l == nil {
		var err error
		if l, err = tcp(e.Address); err != nil {
			n.log.Error("an exposed Service is not back", "service", e.Service.String(), "error", err)
			return
		}
	}
	n.exposed[k] = l
	go s.serve(l, s.first())
	time.AfterFunc(left, func() {
		_ = l.Close()
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.state.Exposed, k)
		delete(n.exposed, k)
	})
}
