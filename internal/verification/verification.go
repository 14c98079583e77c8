// Package verification compares two databases that nobody writes to, and fingerprints one: with the engine's own checks and
// the declared invariants. A step does it from where Sluice runs, or has a Job do the same beside the data.
package verification

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
	"github.com/sluice-cd/sluice/internal/plan"
)

// workers is how many scans of one side run at a time.
const workers = 4

// Database is one of the databases, not opened yet.
type Database struct {
	Engine database.Engine
	URL    database.URL
	Where  string // for people: "database orders in namespace shop"
}

// Options are of the side that does the work, not of what is compared.
type Options struct {
	Spill    string // directory for what does not fit into memory
	Kept     string // file with the fingerprint of the old side, so that a later entry does not read it again; "" for none
	Rows     func(fingerprint.RowDifference) error
	Progress func(format string, args ...any)
	Share    int // which one, of a task that several pods share

	read *[2]atomic.Int64 // rows by the first scans, a side; nil where no other pod reads
}

// Answer is what a comparison found: rows and schema, and what the engine and the invariants say of the new side.
type Answer struct {
	Report   *fingerprint.Report `json:"report"`
	Findings []database.Finding  `json:"findings,omitempty"`
}

// Pair is two open servers and the plan of their comparison.
type Pair struct {
	servers  [2]database.Server
	catalogs [2]database.Catalog
	plan     *fingerprint.Plan
}

// Open opens both sides and plans their comparison.
func Open(ctx context.Context, sides [2]Database, contract []fingerprint.Exclusion) (*Pair, error) {
	x := &Pair{}
	for i, d := range sides {
		s, err := d.open(ctx)
		if err != nil {
			x.Close()
			return nil, err
		}
		x.servers[i] = s
		if x.catalogs[i], err = s.Catalog(ctx); err != nil {
			x.Close()
			return nil, fmt.Errorf("read the catalog of %s: %w", d.Where, err)
		}
	}
	var err error
	if x.plan, err = fingerprint.NewPlan(x.catalogs[0], x.catalogs[1], fingerprint.PlanOptions{Contract: contract}); err != nil {
		x.Close()
		return nil, err
	}
	return x, nil
}

func (d Database) open(ctx context.Context) (database.Server, error) {
	s, err := d.Engine.Open(ctx, d.URL)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Where, err)
	}
	return s, nil
}

// Close closes both sides.
func (x *Pair) Close() {
	for _, s := range x.servers {
		if s != nil {
			quietly(s)
		}
	}
}

// quietly closes what was read from. What was read is complete by then; a connection that does not end cleanly changes
// nothing about it.
func quietly(c io.Closer) { _ = c.Close() }

// Compare compares the rows and runs the checks.
func (x *Pair) Compare(ctx context.Context, seed fingerprint.Seed, checks []plan.Check, o Options) (Answer, error) {
	r, err := x.Rows(ctx, seed, o)
	if err != nil {
		return Answer{}, err
	}
	findings, err := x.check(ctx, checks, o)
	return Answer{Report: r, Findings: findings}, err
}

// Plan returns what is compared.
func (x *Pair) Plan() *fingerprint.Plan { return x.plan }

// Rows compares the rows. Both sides are fingerprinted first, at the same time.
func (x *Pair) Rows(ctx context.Context, seed fingerprint.Seed, o Options) (*fingerprint.Report, error) {
	if err := os.MkdirAll(o.Spill, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory for what does not fit into memory: %w", err)
	}
	var digests [2]*fingerprint.Digest
	var views [2]database.View
	for i, s := range x.servers {
		var err error
		if views[i], err = s.View(ctx); err != nil {
			return nil, fmt.Errorf("open a view: %w", err)
		}
		defer quietly(views[i])
	}
	g, within := errgroup.WithContext(ctx)
	for i := range digests {
		g.Go(func() error {
			role := fingerprint.Role(i)
			if role == fingerprint.Source {
				if digests[i] = keptDigest(o.Kept, x.plan, seed); digests[i] != nil {
					return nil
				}
			}
			var err error
			digests[i], err = fingerprint.Scan(within, views[i], x.plan, fingerprint.ScanOptions{Role: role, Seed: seed, Workers: workers, Progress: o.progress(role.String()+" side", o.counts(role))})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if o.Kept != "" {
		if err := keep(o.Kept, digests[fingerprint.Source]); err != nil {
			return nil, err
		}
	}
	return fingerprint.Compare(ctx, fingerprint.Options{Source: fingerprint.Side{Server: x.servers[0], View: views[0]},
		Target: fingerprint.Side{Server: x.servers[1], View: views[1]}, Plan: x.plan, Seed: seed, Workers: workers, SpillDir: o.Spill,
		SourceDigest: digests[0], TargetDigest: digests[1], Rows: o.Rows, Progress: o.progress("both sides", nil)})
}

// counts is where the rows of a side are counted, nil where nobody asks.
func (o Options) counts(side fingerprint.Role) *atomic.Int64 {
	if o.read == nil {
		return nil
	}
	return &o.read[side]
}

func (o Options) progress(side string, counts *atomic.Int64) func(fingerprint.Progress) {
	return func(p fingerprint.Progress) {
		if counts != nil {
			counts.Store(p.Total)
		}
		if p.Rows == 0 {
			return
		}
		eta := ""
		if p.ETA > 0 {
			eta = ", " + p.ETA.String() + " left"
		}
		o.Progress("%s, %s, pass %d: %d%s rows, %.0f rows/s%s", p.Relation, side, p.Pass, p.Rows, about(p.Estimate), p.RowsPerSecond, eta)
	}
}

// about is of how many rows, where somebody knows.
func about(estimate int64) string {
	if estimate <= 0 {
		return ""
	}
	return fmt.Sprintf(" of about %d", estimate)
}

// Whole plans the fingerprint of one database: compared with itself a catalog has no differences, so that every relation is in
// the plan.
func Whole(catalog database.Catalog) (*fingerprint.Plan, error) {
	return fingerprint.NewPlan(catalog, catalog, fingerprint.PlanOptions{})
}

// Fingerprint fingerprints one database. Two fingerprints can be held against each other when they were made with one seed.
func Fingerprint(ctx context.Context, s database.Server, p *fingerprint.Plan, seed fingerprint.Seed, o Options) (*fingerprint.Digest, error) {
	v, err := s.View(ctx)
	if err != nil {
		return nil, err
	}
	defer quietly(v)
	return fingerprint.Scan(ctx, v, p, fingerprint.ScanOptions{Role: fingerprint.Source, Seed: seed, Workers: workers, Progress: o.progress("one side", o.counts(fingerprint.Source))})
}

// keptDigest returns the fingerprint of an earlier entry where it still fits, nil otherwise: then it is made again.
func keptDigest(file string, plan *fingerprint.Plan, seed fingerprint.Seed) *fingerprint.Digest {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	d, err := fingerprint.ReadDigest(f)
	if err != nil || d.Plan != plan.Digest() || d.Seed != seed.Digest() {
		return nil
	}
	return d
}

// keep writes a fingerprint so that a crash leaves the old file, the new one, or none.
func keep(file string, d *fingerprint.Digest) error {
	body, err := json.Marshal(d)
	if err != nil {
		return err
	}
	part := file + ".part"
	if err := os.WriteFile(part, body, 0o600); err != nil {
		return fmt.Errorf("keep a fingerprint: %w", err)
	}
	return os.Rename(part, file)
}

// check runs the engine's own checks on both sides, and every invariant. What the old side has already is not the change's
// doing.
func (x *Pair) check(ctx context.Context, invariants []plan.Check, o Options) ([]database.Finding, error) {
	var sides [2][]database.Finding
	for i, s := range x.servers {
		o.Progress("the engine checks itself, %s side", fingerprint.Role(i))
		if err := s.Check(ctx, database.Full, func(f database.Finding) { sides[i] = append(sides[i], f) }); err != nil {
			return nil, fmt.Errorf("the engine's own checks: %w", err)
		}
	}
	before := map[database.Finding]bool{}
	for _, f := range sides[0] {
		before[f] = true
	}
	var out []database.Finding
	for _, f := range sides[1] {
		if !before[f] {
			out = append(out, f)
		}
	}
	for _, k := range invariants {
		f, err := x.invariant(ctx, k)
		if err != nil {
			return nil, fmt.Errorf("invariant %s: %w", k.Name, err)
		}
		if f != nil {
			out = append(out, *f)
		}
	}
	return out, nil
}

func (x *Pair) invariant(ctx context.Context, k plan.Check) (*database.Finding, error) {
	var got [2]string
	for i, s := range x.servers {
		q, ok := s.(database.Querier)
		if !ok {
			return nil, fault.Newf(fault.Invalid, "engine %s cannot run queries for invariants", x.catalogs[i].Info.Engine)
		}
		var err error
		if got[i], err = q.Query(ctx, k.Query); err != nil {
			return nil, err
		}
	}
	f := &database.Finding{Object: "invariant " + k.Name, Class: "invariant"}
	switch {
	case k.Equals != nil && got[1] != *k.Equals:
		f.Message = fmt.Sprintf("is %q, must be %q", got[1], *k.Equals)
	case k.Equals == nil && got[0] != got[1]:
		f.Message = fmt.Sprintf("is %q, was %q", got[1], got[0])
	default:
		return nil, nil
	}
	return f, nil
}
