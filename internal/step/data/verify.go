package data

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/step"
)

// verifyData compares control with the mark: every row, the schema, the engine's own checks and the declared invariants.
type verifyData struct{ base }

// verifying is what the steps that compare keep. The seed is drawn once and kept before the first scan.
type verifying struct {
	Try  int    `json:"try"`
	Seed string `json:"seed"`
}

// begin counts the entry and makes sure that there is a seed, durably.
func (v verifying) begin(ctx context.Context, c step.Call) (verifying, error) {
	v.Try++
	if v.Seed == "" {
		v.Seed = fingerprint.NewSeed().String()
	}
	return v, c.Save(ctx, v)
}

// Plan says what is compared.
func (verifyData) Plan(n plan.Node) (plan.Description, error) {
	a, err := args[plan.DataArgs](n.Args)
	but := ""
	if a.Contract != nil {
		but = fmt.Sprintf(", except what contract %s expects to differ", a.Contract.Name)
	}
	return plan.Description{
		Does: fmt.Sprintf("compares every row of %s before and after the change%s, its schema, the engine's own checks and %d invariant(s)",
			a.Database.Name, but, len(a.Checks)),
		UndoneBy: "nothing: it only reads",
	}, err
}

// Run compares the twins.
func (st verifyData) Run(ctx context.Context, c step.Call) (step.Outcome, error) {
	a, err := args[plan.DataArgs](c.Args)
	if err != nil {
		return step.Outcome{}, err
	}
	from, err := saved[copied](c.Siblings(a.CopyPath))
	if err != nil {
		return step.Outcome{}, err
	}
	m, err := saved[marked](c.Siblings(a.MarkPath))
	if err != nil {
		return step.Outcome{}, err
	}
	if !m.Up {
		return step.Outcome{}, fault.Newf(fault.Lost, "step %s left no mark", a.MarkPath)
	}
	p, err := st.at(a.To.Account)
	if err != nil {
		return step.Outcome{}, err
	}
	s, err := saved[verifying](c.Saved)
	if err != nil {
		return step.Outcome{}, err
	}
	if s, err = s.begin(ctx, c); err != nil {
		return step.Outcome{}, err
	}
	return st.compare(ctx, c, p, a, twins{old: from.Control.Namespace, new: m.Site.Namespace}, s.Seed)
}

// Undo has nothing to take back.
func (verifyData) Undo(context.Context, step.Call) (step.Outcome, error) {
	return step.Done(delivery.Pass, "it only reads"), nil
}

// twins are the namespaces in which the two sides of a comparison run.
type twins struct{ old, new string }

// pair is two open servers and the plan of their comparison.
type pair struct {
	servers  [2]database.Server
	catalogs [2]database.Catalog
	plan     *fingerprint.Plan
}

func (x *pair) Close() {
	for _, s := range x.servers {
		if s != nil {
			quietly(s)
		}
	}
}

// quietly closes what was read from. What was read is complete by then; a connection that does not end cleanly changes
// nothing about it.
func quietly(c io.Closer) { _ = c.Close() }

// pair opens both sides, which nobody writes to, and plans their comparison.
func (b base) pair(ctx context.Context, p place, a plan.DataArgs, t twins) (*pair, error) {
	x := &pair{}
	for i, namespace := range []string{t.old, t.new} {
		s, err := b.open(ctx, p, a.Database, namespace)
		if err != nil {
			x.Close()
			return nil, err
		}
		x.servers[i] = s
		if x.catalogs[i], err = s.Catalog(ctx); err != nil {
			x.Close()
			return nil, fmt.Errorf("read the catalog of %s in %s: %w", a.Database.Name, namespace, err)
		}
	}
	var err error
	if x.plan, err = fingerprint.NewPlan(x.catalogs[0], x.catalogs[1], fingerprint.PlanOptions{Contract: exclusions(a)}); err != nil {
		x.Close()
		return nil, err
	}
	return x, nil
}

// exclusions reads the contract: relations and columns by their full names, anything with a blank as an object ("index
// orders_by_day").
func exclusions(a plan.DataArgs) []fingerprint.Exclusion {
	if a.Contract == nil {
		return nil
	}
	depth := 3 // database.schema.relation
	if a.Database.Engine == "mongodb" {
		depth = 2
	}
	var out []fingerprint.Exclusion
	for _, name := range a.Contract.Exclude {
		e := fingerprint.Exclusion{Reason: a.Contract.Name}
		switch parts := strings.Split(name, "."); {
		case strings.Contains(name, " "):
			e.Object = name
		case len(parts) > depth:
			e.Relation, e.Column = strings.Join(parts[:depth], "."), strings.Join(parts[depth:], ".")
		default:
			e.Relation = name
			// Its indexes and constraints come and go with it.
			out = append(out, fingerprint.Exclusion{Object: "* on " + name, Reason: a.Contract.Name})
		}
		out = append(out, e)
	}
	return out
}

// compare compares two sides and turns what it finds into the outcome of a step. The rows that differ go into a report
// beside the delivery, never into its record.
func (b base) compare(ctx context.Context, c step.Call, p place, a plan.DataArgs, t twins, seedText string) (step.Outcome, error) {
	seed, err := fingerprint.ParseSeed(seedText)
	if err != nil {
		return step.Outcome{}, err
	}
	x, err := b.pair(ctx, p, a, t)
	if err != nil {
		return step.Outcome{}, err
	}
	defer x.Close()
	r, err := b.rows(ctx, c, x, seed, nil)
	if err != nil {
		return step.Outcome{}, err
	}
	findings, err := b.checks(ctx, c, x, a.Checks)
	if err != nil {
		return step.Outcome{}, err
	}
	report, err := b.report(c, r)
	if err != nil {
		return step.Outcome{}, err
	}
	out := judged(r, findings, report)
	out.Evidence = evidenceOf(r, findings, report)
	return out, nil
}

// rows compares the rows. Both sides are fingerprinted first, at the same time; the old side's fingerprint is kept, so
// that an entry after a crash does not read it again.
func (b base) rows(ctx context.Context, c step.Call, x *pair, seed fingerprint.Seed, each func(fingerprint.RowDifference) error) (*fingerprint.Report, error) {
	kept, err := b.reportFile(c, "old.digest.json")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.o.Spill, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory for what does not fit into memory: %w", err)
	}
	var digests [2]*fingerprint.Digest
	var views [2]database.View
	for i, s := range x.servers {
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
				if digests[i] = keptDigest(kept, x.plan, seed); digests[i] != nil {
					return nil
				}
			}
			var err error
			digests[i], err = fingerprint.Scan(within, views[i], x.plan, fingerprint.ScanOptions{Role: role, Seed: seed, Workers: workers, Progress: b.progress(c, role.String())})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := keepDigest(kept, digests[fingerprint.Source]); err != nil {
		return nil, err
	}
	return fingerprint.Compare(ctx, fingerprint.Options{Source: fingerprint.Side{Server: x.servers[0], View: views[0]},
		Target: fingerprint.Side{Server: x.servers[1], View: views[1]}, Plan: x.plan, Seed: seed, Workers: workers, SpillDir: b.o.Spill,
		SourceDigest: digests[0], TargetDigest: digests[1], Rows: each, Progress: b.progress(c, "both")})
}

// workers is how many scans of one side run at a time.
const workers = 4

func (b base) progress(c step.Call, side string) func(fingerprint.Progress) {
	return func(p fingerprint.Progress) {
		if p.Rows == 0 {
			return
		}
		eta := ""
		if p.ETA > 0 {
			eta = ", " + p.ETA.String() + " left"
		}
		c.Progress("%s, %s side, pass %d: %d of about %d rows, %.0f rows/s%s", p.Relation, side, p.Pass, p.Rows, p.Estimate, p.RowsPerSecond, eta)
	}
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

func keepDigest(file string, d *fingerprint.Digest) error {
	body, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return writeWhole(file, body)
}

// writeWhole writes a file so that a crash leaves the old one, the new one, or none.
func writeWhole(file string, body []byte) error {
	part := file + ".part"
	if err := os.WriteFile(part, body, 0o600); err != nil {
		return fmt.Errorf("write a report: %w", err)
	}
	return os.Rename(part, file)
}

// checks runs the engine's own checks on the new side, and every invariant on both. What the old side has already is not
// the change's doing.
func (b base) checks(ctx context.Context, c step.Call, x *pair, invariants []plan.Check) ([]database.Finding, error) {
	var sides [2][]database.Finding
	for i, s := range x.servers {
		c.Progress("the engine checks itself, %s side", fingerprint.Role(i))
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
		f, err := invariant(ctx, x, k)
		if err != nil {
			return nil, fmt.Errorf("invariant %s: %w", k.Name, err)
		}
		if f != nil {
			out = append(out, *f)
		}
	}
	return out, nil
}

func invariant(ctx context.Context, x *pair, k plan.Check) (*database.Finding, error) {
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

// report writes what people and programs read, with rows in it, and returns the path of the text.
func (b base) report(c step.Call, r *fingerprint.Report) (string, error) {
	asJSON, err := b.reportFile(c, "report.json")
	if err != nil {
		return "", err
	}
	body, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return "", err
	}
	if err := writeWhole(asJSON, body); err != nil {
		return "", err
	}
	var text strings.Builder
	if err := r.WriteText(&text); err != nil {
		return "", err
	}
	asText := strings.TrimSuffix(asJSON, ".json") + ".txt"
	return asText, writeWhole(asText, []byte(text.String()))
}

// judged is the verdict of a comparison: a difference fails, and what could not be compared is no pass.
func judged(r *fingerprint.Report, findings []database.Finding, report string) step.Outcome {
	var bad []string
	if r.Verdict == fingerprint.Different {
		bad = append(bad, brief(r))
	}
	for _, f := range findings {
		bad = append(bad, fmt.Sprintf("%s: %s", f.Object, f.Message))
	}
	switch {
	case len(bad) > 0:
		return step.Done(delivery.Fail, strings.Join(bad, "; ")+"; report: "+report)
	case r.Verdict == fingerprint.Equal:
		return step.Done(delivery.Pass, fmt.Sprintf("%d rows of %d relations and %d objects are equal", r.Source.Rows, len(r.Tables), r.Coverage.Objects))
	}
	return step.Done(delivery.Inconclusive, r.Reason+"; report: "+report)
}

// brief says in one line what differs, without any row.
func brief(r *fingerprint.Report) string {
	var parts []string
	for i := range r.Tables {
		t := &r.Tables[i]
		if t.Verdict != fingerprint.Different {
			continue
		}
		var kinds []string
		for _, k := range t.Classes {
			name := k.Class
			if k.Column != "" {
				name += " in " + k.Column
			}
			kinds = append(kinds, fmt.Sprintf("%d %s", k.Count, name))
		}
		parts = append(parts, fmt.Sprintf("%d rows of %s differ (%s)", t.Differences(), t.Name, strings.Join(kinds, ", ")))
	}
	if n := len(r.Schema); n > 0 {
		parts = append(parts, fmt.Sprintf("%d differences of the schema, first %s: %s", n, r.Schema[0].Object, r.Schema[0].Message))
	}
	return strings.Join(parts, "; ")
}

// evidence is what a comparison leaves in the delivery's record: digests and counts, never rows.
type evidence struct {
	Verdict     fingerprint.Verdict  `json:"verdict"`
	Reason      string               `json:"reason,omitempty"`
	Source      database.Info        `json:"source"`
	Target      database.Info        `json:"target"`
	Seed        string               `json:"seed"`
	Plan        string               `json:"plan"`
	Rows        int64                `json:"rows"`
	Tables      []tableEvidence      `json:"tables"`
	Coverage    fingerprint.Coverage `json:"coverage"`
	Schema      []database.Finding   `json:"schema,omitempty"`
	Findings    []database.Finding   `json:"findings,omitempty"`
	Seconds     float64              `json:"seconds"`
	RowsPerSec  float64              `json:"rowsPerSecond"`
	Report      string               `json:"report"`
	Differences int64                `json:"differences"`
}

type tableEvidence struct {
	Name        string `json:"name"`
	Rows        int64  `json:"rows"`
	SourceRoot  string `json:"sourceRoot"`
	TargetRoot  string `json:"targetRoot"`
	Differences int64  `json:"differences,omitempty"`
}

func evidenceOf(r *fingerprint.Report, findings []database.Finding, report string) evidence {
	e := evidence{Verdict: r.Verdict, Reason: r.Reason, Source: r.Source.Info, Target: r.Target.Info, Seed: r.Seed, Plan: r.Plan, Rows: r.Source.Rows,
		Coverage: r.Coverage, Schema: r.Schema, Findings: findings, Seconds: r.Cost.Seconds, RowsPerSec: r.Cost.RowsPerSecond, Report: report}
	for i := range r.Tables {
		t := &r.Tables[i]
		e.Differences += t.Differences()
		e.Tables = append(e.Tables, tableEvidence{Name: t.Name.String(), Rows: t.TargetRows, SourceRoot: t.SourceRoot, TargetRoot: t.TargetRoot, Differences: t.Differences()})
	}
	return e
}

// digest fingerprints one database that nobody writes to. Two digests can be compared when they were made with one seed.
func (b base) digest(ctx context.Context, c step.Call, p place, db plan.Database, namespace string, seed fingerprint.Seed) (*fingerprint.Digest, error) {
	s, err := b.open(ctx, p, db, namespace)
	if err != nil {
		return nil, err
	}
	defer quietly(s)
	catalog, err := s.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	// Compared with itself a catalog has no differences, so that every relation is in the plan.
	plan, err := fingerprint.NewPlan(catalog, catalog, fingerprint.PlanOptions{})
	if err != nil {
		return nil, err
	}
	v, err := s.View(ctx)
	if err != nil {
		return nil, err
	}
	defer quietly(v)
	return fingerprint.Scan(ctx, v, plan, fingerprint.ScanOptions{Role: fingerprint.Source, Seed: seed, Workers: workers, Progress: b.progress(c, namespace)})
}
