package wire

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
	"github.com/sluice-cd/sluice/internal/platform/local"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/volume"
	"github.com/sluice-cd/sluice/internal/volume/csi"
	"github.com/sluice-cd/sluice/internal/volume/reflink"
	"github.com/sluice-cd/sluice/internal/volume/stream"
)

// connectWithin is how long an account may take until it can be used.
const connectWithin = time.Minute

// accounts reaches the configured accounts when they are first used, and keeps them.
type accounts struct {
	ctx context.Context // of the program: the ports that steps are given take none
	o   Options

	mu   sync.Mutex
	open map[string]*account
}

type account struct {
	mu       sync.Mutex
	by       *config.Config // the configuration that it was connected by
	as       config.Account // as that one has it
	files    []stamp        // of a cluster's credentials
	platform platform.Platform
	volumes  volume.Driver
	clients  csi.Clients // of a cluster; zero until they are needed
}

func newAccounts(ctx context.Context, o Options) *accounts {
	return &accounts{ctx: ctx, o: o, open: map[string]*account{}}
}

func (a *accounts) platform(name string) (platform.Platform, error) {
	k, err := a.connected(name)
	if err != nil {
		return nil, err
	}
	return k.platform, nil
}

func (a *accounts) volumes(name string) (volume.Driver, error) {
	k, err := a.connected(name)
	if err != nil {
		return nil, err
	}
	return k.volumes, nil
}

// clients returns the connections to the cluster of an account by which its volumes are copied and swapped.
func (a *accounts) clients(name string) (csi.Clients, error) {
	k, err := a.connected(name)
	if err != nil {
		return csi.Clients{}, err
	}
	p, ok := k.platform.(*kubernetes.Platform)
	if !ok {
		return csi.Clients{}, fault.WithRemedy(fault.Newf(fault.Invalid, "account %s is no cluster: the volumes of a cluster cannot be copied to it", name),
			"copy to a namespace of the cluster, or to a cluster that shares its storage")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.clients.Copy == nil {
		if k.clients.Copy, err = p.As(k.as.CopyAs); err != nil {
			return csi.Clients{}, err
		}
		if k.clients.Restore, err = p.As(k.as.RestoreAs); err != nil {
			return csi.Clients{}, err
		}
	}
	return k.clients, nil
}

// streamer returns the cluster of an account for what is streamed from or to it.
func (a *accounts) streamer(name string) (platform.Streamer, error) {
	p, err := a.platform(name)
	if err != nil {
		return nil, err
	}
	s, ok := p.(platform.Streamer)
	if !ok {
		return nil, fault.Newf(fault.Invalid, "account %s is no cluster: volumes are streamed between clusters only", name)
	}
	return s, nil
}

// apart is asked by the drivers of volumes.
func (a *accounts) apart(from, to string) string { return a.o.Config.Current().Apart(from, to) }

// connected returns an account, connected anew where the configuration has changed: its images may have; or a cluster's
// credentials: whoever renews them need not start this program anew.
func (a *accounts) connected(name string) (*account, error) {
	c := a.o.Config.Current()
	configured, err := c.Account(name)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	k, ok := a.open[name]
	if !ok {
		k = &account{}
		a.open[name] = k
	}
	a.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if configured.Kind == config.Kubernetes {
		return k, a.cluster(k, c, configured)
	}
	if k.by == c {
		return k, nil
	}
	return k, a.local(k, c, configured)
}

// cluster connects a cluster, anew only where the account itself has changed or its credentials have. While these cannot be
// read the last ones hold.
func (a *accounts) cluster(k *account, c *config.Config, configured config.Account) error {
	its := kubernetes.Config{Account: configured.Name, Kubeconfig: configured.Kubeconfig, Context: configured.Context,
		Adopt: configured.Adopt, Jobs: kubernetes.Jobs(configured.Jobs), Stream: configured.Stream, Expose: a.exposing(configured.Name), Log: a.o.Log}
	if its.Stream == config.LoadBalancer {
		its.Stream = kubernetes.LoadBalancer
	}
	var files []stamp
	for _, f := range kubernetes.Files(its) {
		files = append(files, stampOf(f))
	}
	same := k.platform != nil && (k.by == c || reflect.DeepEqual(k.as, configured))
	if !same || !slices.Equal(k.files, files) {
		if a.o.Guard != nil {
			its.Wrap, its.Conn = a.o.Guard.Wrap, a.o.Guard.Conn
		}
		p, err := kubernetes.Connect(its)
		switch {
		case err == nil:
			k.platform, k.volumes, k.files = p, csi.New(configured.Name, a.clients, stream.NewMover(a.streamer, a.apart), csi.Deadlines{}), files
			k.clients = csi.Clients{}
		case !same:
			return err
		default:
			a.o.Log.Error("the changed credentials of an account cannot be read; the ones before still hold", "account", configured.Name, "error", err)
		}
	}
	k.by, k.as = c, configured
	return nil
}

// exposing returns who makes the addresses of an account's Services, nil where nobody answers for them.
func (a *accounts) exposing(name string) func(manifest.Ref, time.Time) string {
	if a.o.Expose == nil {
		return nil
	}
	return func(service manifest.Ref, until time.Time) string {
		return a.o.Expose(server.Exposure{Account: name, Service: service, Until: until})
	}
}

// dial connects to the only port of a Service.
func (a *accounts) dial(ctx context.Context, name string, service manifest.Ref) (net.Conn, error) {
	p, err := a.platform(name)
	if err != nil {
		return nil, err
	}
	return p.Dial(ctx, service, "")
}

// local connects the node of a local account.
func (a *accounts) local(k *account, c *config.Config, configured config.Account) error {
	ctx, cancel := context.WithTimeout(a.ctx, connectWithin)
	defer cancel()
	dir := AccountDir(a.o.Dir, configured)
	p, err := local.Connect(ctx, local.Config{Dir: dir, Account: configured.Name, Images: c.Images,
		NodeCommand: slices.Concat(a.o.Self, []string{"local-node", "--dir", dir})})
	if err != nil {
		return fmt.Errorf("account %s: %w", configured.Name, err)
	}
	k.by, k.as, k.platform = c, configured, p
	if k.volumes == nil {
		k.volumes = reflink.New(p, configured.Name)
		go func() {
			// It ends with the program, or when somebody shuts the node down.
			_ = p.Keep(a.ctx)
		}()
	}
	return nil
}

// bringBack reaches the accounts that have been used before, so that what ran there runs again after the machine was
// restarted.
func (a *accounts) bringBack() {
	for name, c := range a.o.Config.Current().Accounts {
		if c.Kind != config.Local || !local.Used(AccountDir(a.o.Dir, c)) {
			continue
		}
		go func() {
			if _, err := a.connected(name); err != nil && a.ctx.Err() == nil {
				a.o.Log.Error("what ran in an account is not back", "account", name, "error", err)
			}
		}()
	}
}

// AccountDir is where a local account keeps its processes' files and its volumes.
func AccountDir(dataDir string, a config.Account) string {
	if a.Directory != "" {
		return a.Directory
	}
	return filepath.Join(dataDir, "accounts", strings.ReplaceAll(url.PathEscape(a.Name), ".", "%2E"))
}
