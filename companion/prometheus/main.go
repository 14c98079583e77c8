// Command prometheus is the embedded Prometheus: its storage, its scraper and PromQL as one small program, for machines
// that have none. It keeps what it scraped for the retention and answers queries on loopback.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	client "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/tsdb"
)

// options are the program's flags.
type options struct {
	listen, data        string
	scrapes             scrapes
	interval, retention time.Duration
	out                 io.Writer
}

// scrapes are what is scraped: job → URL.
type scrapes map[string]string

func (s scrapes) String() string { return fmt.Sprint(map[string]string(s)) }

// Set reads name=URL.
func (s scrapes) Set(v string) error {
	name, at, ok := strings.Cut(v, "=")
	if u, err := url.Parse(at); !ok || err != nil || u.Host == "" {
		return fmt.Errorf("%q is not name=URL", v)
	}
	s[name] = at
	return nil
}

func main() {
	o := options{scrapes: scrapes{}, out: os.Stdout}
	flag.StringVar(&o.listen, "listen", "127.0.0.1:9090", "address to answer on")
	flag.StringVar(&o.data, "data", "", "directory for the samples")
	flag.Var(o.scrapes, "scrape", "name=URL of what to scrape; may be repeated")
	flag.DurationVar(&o.interval, "interval", time.Second, "between two scrapes")
	flag.DurationVar(&o.retention, "retention", 2*time.Hour, "how long samples are kept")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, log *slog.Logger) (err error) {
	if o.data == "" {
		return errors.New("give the directory for the samples with --data")
	}
	to := tsdb.DefaultOptions()
	to.RetentionDuration = o.retention.Milliseconds()
	db, err := tsdb.Open(o.data, log, nil, to, nil)
	if err != nil {
		return fmt.Errorf("open the storage: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	sm, err := scraper(o, db, log)
	if err != nil {
		return err
	}
	sets := make(chan map[string][]*targetgroup.Group, 1)
	sets <- o.targets()
	failed := make(chan error, 2)
	go func() { failed <- sm.Run(sets) }()
	defer sm.Stop()
	engine := promql.NewEngine(promql.EngineOpts{Logger: log, MaxSamples: 5_000_000, Timeout: 30 * time.Second, LookbackDelta: time.Minute,
		EnableAtModifier: true, EnableNegativeOffset: true, Parser: parser.NewParser(parser.Options{})})
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	srv := &http.Server{Handler: (&api{engine: engine, db: db}).handler(), ReadHeaderTimeout: time.Minute}
	go func() { failed <- srv.Serve(l) }()
	fmt.Fprintln(o.out, "listening on", l.Addr())
	select {
	case <-ctx.Done():
		return srv.Close()
	case err := <-failed:
		return err
	}
}

func (o options) targets() map[string][]*targetgroup.Group {
	out := map[string][]*targetgroup.Group{}
	for name, at := range o.scrapes {
		u, _ := url.Parse(at)
		out[name] = []*targetgroup.Group{{Source: name, Targets: []model.LabelSet{{model.AddressLabel: model.LabelValue(u.Host)}}}}
	}
	return out
}

func scraper(o options, db *tsdb.DB, log *slog.Logger) (*scrape.Manager, error) {
	sm, err := scrape.NewManager(&scrape.Options{DiscoveryReloadInterval: model.Duration(100 * time.Millisecond)}, log, nil, db, nil, client.NewRegistry())
	if err != nil {
		return nil, fmt.Errorf("make the scraper: %w", err)
	}
	text := fmt.Sprintf("global: {scrape_interval: %s, scrape_timeout: %s}\nscrape_configs:\n", model.Duration(o.interval), model.Duration(o.interval))
	for name, at := range o.scrapes {
		u, _ := url.Parse(at)
		text += fmt.Sprintf("- {job_name: %q, metrics_path: %q, scheme: %q, static_configs: []}\n", name, u.Path, u.Scheme)
	}
	c, err := config.Load(text, log)
	if err != nil {
		return nil, fmt.Errorf("what is to be scraped: %w", err)
	}
	return sm, sm.ApplyConfig(c)
}
