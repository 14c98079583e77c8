// Package wire puts Sluice together: it makes the platforms, volumes, engines and metric providers that a configuration
// names, the steps that work with them, and the server that carries deliveries out.
package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/controller"
	"github.com/sluice-cd/sluice/internal/metrics"
	"github.com/sluice-cd/sluice/internal/metrics/prometheus"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/step/data"
	"github.com/sluice-cd/sluice/internal/store/sqlite"
)

// Options say what is put together.
type Options struct {
	Dir    string   // data directory, absolute
	Listen string   // stronger than the configuration's, "" leaves it to that
	Config *Live    // what is configured, as it changes
	Self   []string // the command of this program, whose hidden commands are run: local-node, quiesce-helper
	Log    *slog.Logger

	// Guard, where it is set, stands before every request to a cluster and every webhook: it refuses those of a program that
	// may no longer act.
	Guard *controller.Guard

	// Expose makes the addresses of Services of clusters, nil where no server answers for them.
	Expose func(server.Exposure) string
}

// Serve runs the server of a data directory until ctx ends or a client ends it.
func Serve(ctx context.Context, o Options) (err error) {
	c := o.Config.Current()
	listen := o.Listen
	if listen == "" {
		listen = c.Server.Listen
	}
	srv, err := server.Open(server.Options{Dir: o.Dir, Listen: listen, ExternalURL: c.Server.ExternalURL, SocketGroup: c.Server.SocketGroup, Log: o.Log,
		Roles: func(user string) []string { return o.Config.Current().RolesOf(user) }})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.Close()) }()
	path := filepath.Join(o.Dir, "sluice.db")
	if err := private(o.Dir, path); err != nil {
		return err
	}
	st, err := sqlite.Open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	o.Expose = srv.Expose
	a := newAccounts(ctx, o)
	a.bringBack()
	ports := a.ports(srv.Callback)
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { expire(ctx, st, ports, o.Log) })
	return srv.Run(ctx, server.Work{Store: st, Steps: Steps(ports, o.Dir), Locks: locks{a, o.Log}, Dial: a.dial})
}

// private makes what holds deliveries and rows of data be readable by its owner only, whatever the umask is. SQLite gives
// the files beside a database the mode that the database has.
func private(dir, database string) error {
	if err := folders(dir); err != nil {
		return err
	}
	f, err := os.OpenFile(database, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	return f.Close()
}

// folders makes the folders for reports and for what does not fit into memory.
func folders(dir string) error {
	for _, d := range []string{"reports", "spill"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return fmt.Errorf("make a folder of the data directory: %w", err)
		}
	}
	return nil
}

// Ports returns what steps work with. ctx ends when the program does; callback makes the URLs that webhooks are given.
func Ports(ctx context.Context, o Options, callback func(key string) string) step.Ports {
	return newAccounts(ctx, o).ports(callback)
}

func (a *accounts) ports(callback func(key string) string) step.Ports {
	return step.Ports{
		Platform: a.platform,
		Volumes:  a.volumes,
		Engine:   engineOf(Engines(a.o.Self)),
		Metrics:  func(name string) (metrics.Provider, error) { return provider(a.o.Config.Current(), name) },
		Secret:   func(name string) (string, error) { return a.o.Config.Current().Secret(name) },
		Callback: callback,
		HTTP:     client(a.o.Guard),
	}
}

// Steps returns every step that is built, by kind. Their reports and what does not fit into memory go below dir.
func Steps(p step.Ports, dir string) map[string]step.Step {
	all := step.Simple(p)
	maps.Copy(all, data.Steps(p, data.Options{Reports: filepath.Join(dir, "reports"), Spill: filepath.Join(dir, "spill")}))
	return all
}

// client sends webhooks. Each part of a request has its time, so that a receiver that hangs is an error and not a silence.
func client(guard *controller.Guard) *http.Client {
	dial := (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	if guard != nil {
		plain := dial
		dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := plain(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return guard.Conn(c), nil
		}
	}
	var t http.RoundTripper = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dial,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConns:          100,
		ForceAttemptHTTP2:     true,
	}
	if guard != nil {
		t = guard.Wrap(t)
	}
	return &http.Client{Timeout: time.Minute, Transport: t}
}

// provider makes a configured metric provider. Its secrets are read at each request and kept nowhere.
func provider(c *config.Config, name string) (metrics.Provider, error) {
	p, err := c.MetricProvider(name)
	if err != nil {
		return nil, err
	}
	pc := prometheus.Config{URL: p.URL, User: p.User}
	if p.Password != nil {
		pc.Password = p.Password.Value
	}
	if p.Bearer != nil {
		pc.Bearer = p.Bearer.Value
	}
	made, err := prometheus.New(pc)
	if err != nil {
		return nil, fmt.Errorf("metric provider %s: %w", p.Name, err)
	}
	return made, nil
}
