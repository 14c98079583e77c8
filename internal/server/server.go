// Package server is the thin server of one data directory: the engine, the listener for callbacks, and the API of the
// command line on a unix socket. It decides nothing; what a delivery does next is package delivery's.
package server

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/store"
	"github.com/sluice-cd/sluice/internal/unixsocket"
)

// DefaultListen is where a server listens that is told nothing: on a port of its own, kept over restarts.
const DefaultListen = "127.0.0.1:0"

// Options say which server is made.
type Options struct {
	Dir         string // data directory
	Listen      string // host:port; "" is DefaultListen
	ExternalURL string // what callback URLs begin with; "" is the address that is listened on
	SocketGroup string // whose members may connect to the socket; "" is nobody but the owner
	Roles       func(user string) []string
	Log         *slog.Logger
}

// Work is what a server carries out.
type Work struct {
	Store interface {
		engine.Store
		store.Journaler
	}
	Steps map[string]step.Step
	Locks engine.Locks // nil: nobody else delivers to the same places
	Dial  Dial         // nil: no Service is exposed by the server
}

// Server owns a data directory from Open to Close.
type Server struct {
	o       Options
	url     string
	token   string // opens the API on TCP
	lock    *os.File
	tcp     net.Listener
	unix    net.Listener
	front   *Front
	lines   progress
	started time.Time

	work     Work
	engine   *engine.Engine
	carrying atomic.Bool
	stop     context.CancelFunc
	leaving  chan struct{} // closed when the server is about to end
	close    func() error
}

// Open takes possession of a data directory and listens. Nothing is answered before Run.
func Open(o Options) (*Server, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	o.Dir, o.Listen = dir, cmp.Or(o.Listen, DefaultListen)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Roles == nil {
		o.Roles = func(string) []string { return nil }
	}
	s := &Server{o: o, started: time.Now().UTC(), leaving: make(chan struct{})}
	s.close = sync.OnceValue(s.release)
	if s.lock, err = lock(dir); err != nil {
		return nil, err
	}
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) open() error {
	key, err := secret(s.o.Dir, keyFile)
	if err != nil {
		return err
	}
	token, err := secret(s.o.Dir, tokenFile)
	if err != nil {
		return err
	}
	s.token = base64.RawURLEncoding.EncodeToString(token)
	if s.tcp, err = listen(s.o.Dir, s.o.Listen); err != nil {
		return err
	}
	if s.unix, err = unixsocket.Listen(filepath.Join(s.o.Dir, socketFile)); err != nil {
		return err
	}
	if err := share(s.o.Dir, s.o.SocketGroup); err != nil {
		return err
	}
	s.url = strings.TrimRight(s.o.ExternalURL, "/")
	if s.url == "" {
		s.url = "http://" + s.reachable()
	}
	s.front = NewFront(key, s.url)
	return nil
}

// reachable is the address as others name it: one that stands for every address of this machine names none.
func (s *Server) reachable() string {
	host, port, _ := net.SplitHostPort(s.tcp.Addr().String())
	if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
		return s.tcp.Addr().String()
	}
	name, err := os.Hostname()
	if err != nil {
		name = "localhost"
	}
	s.o.Log.Warn("callback URLs name this machine by its host name; set server.externalURL if it is reached by another", "host", name)
	return net.JoinHostPort(name, port)
}

// URL is where the server is reached.
func (s *Server) URL() string { return s.url }

// Callback returns the capability URL of one invocation. The same key gives the same URL for the life of the data
// directory.
func (s *Server) Callback(key string) string { return s.front.Callback(key) }

// Expose returns the address of a Service, see Front.Expose.
func (s *Server) Expose(e Exposure) string { return s.front.Expose(e) }

// Close gives the data directory up.
func (s *Server) Close() error { return s.close() }

func (s *Server) release() error {
	var errs []error
	if s.tcp != nil {
		errs = append(errs, ignoreClosed(s.tcp.Close()))
	}
	if s.unix != nil {
		errs = append(errs, ignoreClosed(s.unix.Close()), os.Remove(filepath.Join(s.o.Dir, socketFile)))
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// patience is how long steps may take to end when the server does. What they leave open is entered again at the next
// start, as after a crash.
const patience = 30 * time.Second

// Run carries the deliveries out, from where they are, until ctx ends or a client asks for it. It gives the data directory
// up when it returns.
func (s *Server) Run(ctx context.Context, w Work) error {
	ctx, s.stop = context.WithCancel(ctx)
	defer s.stop()
	defer func() {
		if err := s.Close(); err != nil {
			s.o.Log.Error("the data directory is not left in order", "error", err)
		}
	}()
	w.Store = s.front.metrics.counted(w.Store)
	s.work = w
	if w.Dial != nil {
		s.front.Reach(w.Dial)
	}
	s.engine = engine.New(engine.Options{Store: w.Store, Steps: w.Steps, Locks: w.Locks, Log: s.o.Log, Progress: s.lines.publish})
	failed := make(chan error, 3)
	servers := s.serve(failed)
	s.o.Log.Info("the server carries deliveries", "pid", os.Getpid(), "url", s.url, "data", s.o.Dir)
	ended := make(chan error, 1)
	go func() { ended <- s.engine.Run(ctx) }()
	s.carrying.Store(true)
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		s.stop()
	case err = <-ended:
		ended <- nil
		if ctx.Err() == nil {
			err = fmt.Errorf("the engine ended: %w", err)
		}
	}
	s.carrying.Store(false)
	close(s.leaving)
	s.o.Log.Info("the server ends; open deliveries go on at the next start")
	select {
	case e := <-ended:
		if e != nil && !errors.Is(e, context.Canceled) {
			s.o.Log.Error("the engine ended with an error", "error", e)
		}
	case <-time.After(patience):
		s.o.Log.Warn("a step does not end; it is entered again at the next start, as after a crash", "waited", patience)
	}
	// Callbacks are still taken in until here: they only need the store.
	down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	for _, srv := range servers {
		if e := srv.Shutdown(down); e != nil {
			_ = srv.Close()
		}
	}
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

// serve answers on both listeners.
func (s *Server) serve(failed chan<- error) []*http.Server {
	routes := s.routes()
	errs := slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug)
	tcp := &http.Server{Handler: s.bearer(routes), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, ErrorLog: errs}
	local := &http.Server{Handler: routes, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, ErrorLog: errs, ConnContext: s.peer}
	for srv, l := range map[*http.Server]net.Listener{tcp: s.tcp, local: s.unix} {
		go func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("answer on %s: %w", l.Addr(), err)
			}
		}()
	}
	return []*http.Server{tcp, local}
}
