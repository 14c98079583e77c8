package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/step"
)

// namespace is where production runs, on whatever site.
const namespace = "production"

// stage is what the play runs on: production on its site, and beside it those who watch it from outside.
type stage struct {
	o             Options
	programs      programs
	view          *view
	site          site
	server        *server.Client
	load          *child
	prometheusURL string
	shopURL       string
	database      string // URL
	read          int64  // of the file of requests: so far into it acts have been judged
}

func ref(kind, name string) manifest.Ref {
	return manifest.Ref{Kind: kind, Namespace: namespace, Name: name}
}

// start brings production up.
func (st *stage) start(ctx context.Context) error {
	v := st.view
	v.title("Production starts")
	if err := st.site.open(ctx); err != nil {
		return err
	}
	var err error
	if st.prometheusURL, err = st.site.metrics(ctx, st); err != nil {
		return err
	}
	if err := st.writeConfig(); err != nil {
		return err
	}
	for name, to := range map[string]string{"deploy.yaml": st.deployFile(), "integration-tests.yaml": filepath.Join(st.o.Dir, "jobs", "integration-tests.yaml")} {
		if err := st.write(name, to, release{}); err != nil {
			return err
		}
	}
	if err := st.startShop(ctx); err != nil {
		return err
	}
	self := slices.Concat(st.o.Self, []string{"server", "--data", st.dataDir(), "--config", st.configFile()})
	if st.server, err = server.EnsureRunning(ctx, st.dataDir(), self); err != nil {
		return err
	}
	v.fact("database", "MongoDB wire protocol, served by FerretDB 1.17: %s orders of 200 customers", grouped(st.o.Orders))
	v.fact("site", "%s", st.site.words().describe)
	v.fact("shop", "release 1, twice, at %s", st.shopURL)
	v.fact("customers", "about 40 orders a second; each one that the shop acknowledges goes, fsynced, into a ledger outside of the database")
	v.fact("metrics", "Prometheus, at %s", st.prometheusURL)
	v.fact("files", "%s", st.o.Dir)
	return nil
}

// startShop starts the database and the shop, fills it, and lets the customers in.
func (st *stage) startShop(ctx context.Context) error {
	objects, err := st.objects("database.yaml", "shop.yaml")
	if err != nil {
		return err
	}
	if err := st.run(ctx, "demo/production", objects, ref("StatefulSet", "mongo"), ref("Deployment", "web")); err != nil {
		return err
	}
	web, err := st.site.address(ctx, ref("Service", "web"))
	if err != nil {
		return err
	}
	mongo, err := st.site.address(ctx, ref("Service", "mongo"))
	if err != nil {
		return err
	}
	st.shopURL, st.database = "http://"+web, "mongodb://"+mongo+"/shop"
	if _, err := st.shop(ctx, "seed", "--database", st.database, "--ledger", st.ledgerFile(), "--orders", fmt.Sprint(st.o.Orders)); err != nil {
		return err
	}
	if st.load, err = begin(ctx, st.o.Dir, "load", st.programs["shop"], "load", "--url", st.shopURL, "--ledger", st.ledgerFile(), "--log", st.requestsFile()); err != nil {
		return err
	}
	_, err = st.load.saying(ctx, "load begins")
	return err
}

// run applies objects to production and waits for workloads of them.
func (st *stage) run(ctx context.Context, key string, objects []manifest.Object, workloads ...manifest.Ref) error {
	p := st.site.platform()
	if _, err := p.Apply(ctx, key, objects, platform.Options{Namespace: namespace}); err != nil {
		return err
	}
	return step.Await(ctx, p, endWithin, "ready", workloads, step.Ready)
}

// shop runs one of the shop's commands to its end and returns what it prints.
func (st *stage) shop(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, st.programs["shop"], args...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("shop %s: %w: %s", args[0], err, strings.TrimSpace(said.String()))
	}
	return out, nil
}

// checked is what the checker found: it reads production with the plain driver and holds it against the ledger.
type checked struct {
	Acknowledged int      `json:"acknowledged"`
	Stored       int      `json:"stored"`
	Missing      []string `json:"missing"`
	Differing    []string `json:"differing"`
}

func (c checked) lost() int { return len(c.Missing) + len(c.Differing) }

func (c checked) String() string {
	return fmt.Sprintf("%s orders and customers acknowledged; read with the plain driver, %d of them are missing and %d differ",
		grouped(c.Acknowledged), len(c.Missing), len(c.Differing))
}

func (st *stage) check(ctx context.Context) (checked, error) {
	var c checked
	out, err := st.shop(ctx, "check", "--url", st.database, "--ledger", st.ledgerFile())
	// The checker fails where it finds something; then it has said what.
	if e := json.Unmarshal(out, &c); e != nil {
		return c, errors.Join(err, e)
	}
	return c, nil
}

// running returns the images of production's workloads.
func (st *stage) running(ctx context.Context) (release, error) {
	var r release
	for kind, to := range map[manifest.Ref]*string{ref("StatefulSet", "mongo"): &r.database, ref("Deployment", "web"): &r.shop} {
		o, err := st.site.platform().Get(ctx, kind)
		if err != nil {
			return r, err
		}
		t, _, err := o.PodTemplate()
		if err != nil {
			return r, err
		}
		*to = t.Spec.Containers[0].Image
	}
	return r, nil
}

// stop ends everything that start began, those first who depend on the others.
func (st *stage) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endWithin)
	defer cancel()
	errs := []error{st.load.stop()}
	if st.server != nil {
		if _, err := st.server.Stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("end the server: %w", err))
		}
	}
	return errors.Join(append(errs, st.site.close(ctx))...)
}

// injected returns what the damaging migration does with the seed of the demo.
func (st *stage) injected(ctx context.Context) ([]damage, error) {
	out, err := st.shop(ctx, "damages", "--seed", fmt.Sprint(st.o.Seed), "--orders", fmt.Sprint(st.o.Orders))
	if err != nil {
		return nil, err
	}
	var all []damage
	return all, json.Unmarshal(out, &all)
}

// reportFile is where the server keeps the report of a step.
func (st *stage) reportFile(id, path string) string {
	return filepath.Join(st.dataDir(), "reports", id, strings.ReplaceAll(path, "/", ".")+".report.json")
}

// acknowledged counts the orders in the ledger between two instants.
func (st *stage) acknowledged(from, to time.Time) (int, error) {
	f, err := os.Open(st.ledgerFile())
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n := 0
	in := json.NewDecoder(f)
	for in.More() {
		var e struct {
			At    time.Time       `json:"at"`
			Order json.RawMessage `json:"order"`
		}
		if err := in.Decode(&e); err != nil {
			// The last line may be under way.
			return n, nil
		}
		if e.Order != nil && e.At.After(from) && e.At.Before(to) {
			n++
		}
	}
	return n, nil
}
