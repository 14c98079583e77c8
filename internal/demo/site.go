package demo

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/local"
)

// site is where production and staging run.
type site interface {
	// open reaches it. Everything else is asked after that, but for close.
	open(ctx context.Context) error
	// platform is production's.
	platform() livePlatform
	// metrics has Prometheus run, and returns its URL.
	metrics(ctx context.Context, st *stage) (string, error)
	// address returns HOST:PORT at which this machine reaches a Service of production.
	address(ctx context.Context, service manifest.Ref) (string, error)
	// config is what sluice.yaml says of it.
	config() map[string]any
	words() words
	// close ends what runs there because of the demo.
	close(ctx context.Context) error
}

// livePlatform is a platform that tells what is there.
type livePlatform interface {
	platform.Platform
	platform.Getter
}

// words are what the files of the demo leave open about the site.
type words struct {
	describe            string // for people
	staging, production string // accounts
	requests            string // the counter of the shop's requests, with the labels service, namespace, replica_set, track, code
}

// machine is this machine: production is a tree of processes.
type machine struct {
	o          Options
	programs   programs
	node       *local.Platform
	prometheus *child
}

func (m *machine) nodeDir() string { return filepath.Join(m.o.Dir, "node") }

func (m *machine) open(ctx context.Context) (err error) {
	m.node, err = local.Connect(ctx, local.Config{Dir: m.nodeDir(), Account: "local", Images: m.images(),
		NodeCommand: slices.Concat(m.o.Self, []string{"local-node", "--dir", m.nodeDir()})})
	return err
}

func (m *machine) platform() livePlatform { return m.node }

// metrics asks the Services, which count for every track.
func (m *machine) metrics(ctx context.Context, _ *stage) (string, error) {
	counters, err := m.node.MetricsURL(ctx)
	if err != nil {
		return "", err
	}
	m.prometheus, err = begin(ctx, m.o.Dir, "prometheus", m.programs["prometheus"], "--listen", "127.0.0.1:0",
		"--data", filepath.Join(m.o.Dir, "prometheus"), "--interval", "500ms", "--scrape", "services="+counters)
	if err != nil {
		return "", err
	}
	address, err := m.prometheus.saying(ctx, "listening on ")
	return "http://" + address, err
}

func (m *machine) address(ctx context.Context, service manifest.Ref) (string, error) {
	url, err := m.node.Expose(ctx, "demo/"+service.Name, service, 24*time.Hour)
	return strings.TrimPrefix(url, "http://"), err
}

func (m *machine) config() map[string]any {
	return map[string]any{
		"accounts": map[string]any{"local": map[string]any{"kind": "local", "directory": m.nodeDir()}},
		"images":   m.images(),
	}
}

func (m *machine) words() words {
	return words{describe: "processes of this machine", staging: "local", production: "local", requests: "sluice_service_requests_total"}
}

func (m *machine) close(ctx context.Context) error {
	var err error
	if m.node != nil {
		if err = m.node.Shutdown(ctx); err != nil {
			err = fmt.Errorf("end the node: %w", err)
		}
	}
	if e := m.prometheus.stop(); err == nil {
		err = e
	}
	return err
}

// images maps the images to commands.
func (m *machine) images() map[string][]string {
	shop := m.programs["shop"]
	return map[string][]string{
		oldDatabase:    {m.programs["ferretdb-a"]},
		newDatabase:    {m.programs["ferretdb-b"]},
		shop1:          {shop, "web", "--release", "1"},
		shop2Faulty:    {shop, "web", "--release", "2-rc1", "--fail-percent", "40"},
		shop2:          {shop, "web", "--release", "2"},
		goodMigration:  {shop, "migrate"},
		badMigration:   {shop, "migrate", "--damage"},
		"shop-tests:1": {shop, "test"},
	}
}
