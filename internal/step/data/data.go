// Package data holds the steps that touch data: copying production into twins, verifying them, rehearsing the way back,
// and the upgrade of production behind a fence with its ways back.
//
// Copies that nobody else should see run in namespaces beside the target's: "<namespace>-control" and so on. Names stay
// what they are inside a namespace, so a workload that talks to "mongo" talks to the copy and cannot reach another one.
package data

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/template"
	"github.com/sluice-cd/sluice/internal/volume"
)

// Options say how the steps work.
type Options struct {
	Reports string // directory for reports and exports, which may hold rows; never part of a delivery's record
	Spill   string // directory for what does not fit into memory
}

// Steps returns the steps by kind.
func Steps(p step.Ports, o Options) map[string]step.Step {
	b := base{ports: p, o: o}
	return map[string]step.Step{
		plan.KindCopyData:       copyData{b},
		plan.KindApplyDatabase:  applyDatabase{b},
		plan.KindMarkData:       markData{b},
		plan.KindVerifyData:     verifyData{b},
		plan.KindRehearse:       rehearse{b},
		plan.KindCheckpointData: checkpointData{b},
		plan.KindFence:          fence{b},
		plan.KindUpgradeClone:   upgradeClone{b},
		plan.KindQuickVerify:    quickVerify{b},
		plan.KindSwap:           swap{b},
		plan.KindOpen:           open{b},
		plan.KindStartMembers:   startMembers{b},
		plan.KindRollMembers:    rollMembers{b},
	}
}

// base is what all of them use.
type base struct {
	ports step.Ports
	o     Options
}

// args reads the planned arguments of a step.
func args[T any](raw json.RawMessage) (T, error) {
	var a T
	if err := json.Unmarshal(raw, &a); err != nil {
		return a, fault.Newf(fault.Invalid, "the step's arguments cannot be read: %w", err)
	}
	return a, nil
}

// saved reads what the step, or a sibling, saved last; the zero value if it never did.
func saved[T any](raw json.RawMessage) (T, error) {
	var s T
	if len(raw) == 0 {
		return s, nil
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, fault.Newf(fault.Lost, "what the step kept cannot be read: %w", err)
	}
	return s, nil
}

// place is a platform with the driver of its volumes, for one account.
type place struct {
	platform.Platform
	volumes volume.Driver
	account string
}

func (b base) at(account string) (place, error) {
	pf, err := b.ports.Platform(account)
	if err != nil {
		return place{}, err
	}
	v, err := b.ports.Volumes(account)
	return place{Platform: pf, volumes: v, account: account}, err
}

// optional returns an optional ability of the platform, or says by name which one is missing.
func optional[T any](p place, what string) (T, error) {
	t, ok := p.Platform.(T)
	if !ok {
		return t, fault.Newf(fault.Invalid, "the platform of account %q cannot %s", p.account, what)
	}
	return t, nil
}

// connection returns the database's connection with its secrets filled in, and the Service that is its host.
func (b base) connection(db plan.Database) (value string, service string, err error) {
	var missing error
	value, unknown := template.Render(db.Connection, func(name string) (string, bool) {
		key, ok := strings.CutPrefix(name, "secrets.")
		if !ok {
			return "", false
		}
		s, err := b.ports.Secret(key)
		if err != nil {
			missing = err
			return "", false
		}
		return url.QueryEscape(s), true
	})
	if missing != nil {
		return "", "", fmt.Errorf("the connection of database %s: %w", db.Name, missing)
	}
	if len(unknown) > 0 {
		return "", "", fault.Newf(fault.Invalid, "the connection of database %s names %s, which is not known", db.Name, strings.Join(unknown, ", "))
	}
	u, err := url.Parse(value)
	if err != nil {
		// The parser's own message would repeat the value with the password in it.
		return "", "", fault.Newf(fault.Invalid, "the connection of database %s is not a URL", db.Name)
	}
	host := u.Hostname()
	if net.ParseIP(host) != nil || host == "localhost" || host == "" {
		return "", "", fault.WithRemedy(fault.Newf(fault.Invalid, "the connection of database %s goes to %q", db.Name, host),
			"name the Service of %s, so that a check of a twin cannot reach production", db.Workload)
	}
	name, _, _ := strings.Cut(host, ".")
	return value, name, nil
}

// url returns how to reach the database where a copy of it, or production itself, runs.
func (b base) url(p place, db plan.Database, namespace string, frozen bool) (database.URL, error) {
	u, service, err := b.service(db)
	if err != nil {
		return u, err
	}
	ref := manifest.Ref{Kind: "Service", Namespace: namespace, Name: service}
	u.Frozen = frozen
	u.Dial = only(service, func(ctx context.Context, port string) (net.Conn, error) {
		c, err := p.Dial(ctx, ref, port)
		if fault.Is(err, fault.NotFound) {
			err = fault.WithRemedy(err, "the connection of database %s must name a Service of %s and a port of it", db.Name, db.Workload)
		}
		return c, err
	})
	return u, nil
}

// service returns the database's URL, which does not say yet how it is dialled, and the Service that is its host.
func (b base) service(db plan.Database) (database.URL, string, error) {
	value, service, err := b.connection(db)
	return database.URL{Value: value}, service, err
}

// only dials a port of one Service, and refuses every other host.
func only(service string, dial func(ctx context.Context, port string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		if name, _, _ := strings.Cut(host, "."); name != service {
			return nil, fault.Newf(fault.Denied, "a connection to %s was refused: only Service %s is meant", address, service)
		}
		return dial(ctx, port)
	}
}

// permitted refuses what would fail half-way, or leave tables out, for want of a privilege, and names each.
func (b base) permitted(ctx context.Context, engine database.Engine, db plan.Database, u database.URL) error {
	f, ok := engine.(database.Preflighter)
	if !ok {
		return nil
	}
	found, err := f.Preflight(ctx, u)
	if err != nil {
		return fmt.Errorf("database %s: %w", db.Name, err)
	}
	var missing []string
	for _, m := range found {
		// A database that takes no connections is reported by the comparison; it is no privilege.
		if !strings.HasPrefix(m.Object, "database ") {
			missing = append(missing, m.Message)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fault.WithRemedy(fault.Newf(fault.Denied, "the user of the connection of database %s lacks privileges: %s", db.Name, strings.Join(missing, "; ")),
		"sluice data grants %s prints all that are needed", db.Engine)
}

// open connects to the database in a namespace, where nobody writes: a twin, or production behind the fence.
func (b base) open(ctx context.Context, p place, db plan.Database, namespace string) (database.Server, error) {
	engine, err := b.ports.Engine(db.Engine)
	if err != nil {
		return nil, err
	}
	u, err := b.url(p, db, namespace, true)
	if err != nil {
		return nil, err
	}
	s, err := engine.Open(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("database %s in namespace %s: %w", db.Name, namespace, err)
	}
	return s, nil
}

// reportFile returns where a report of this step is kept, and makes its directory.
func (b base) reportFile(c step.Call, name string) (string, error) {
	dir := filepath.Join(b.o.Reports, c.Delivery)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the directory for reports: %w", err)
	}
	return filepath.Join(dir, strings.NewReplacer("/", ".", " ", "-").Replace(c.Path)+"."+name), nil
}

// since is the time from start on, as people read it.
func since(start time.Time) time.Duration { return time.Since(start).Round(10 * time.Millisecond) }
