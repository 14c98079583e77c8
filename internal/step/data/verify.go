package data

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/verification"
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
	return st.compare(ctx, c, p, a, twins{old: from.Control.Namespace, new: m.Site.Namespace}, s, c.Key+"/compare")
}

// Undo has nothing to take back.
func (verifyData) Undo(context.Context, step.Call) (step.Outcome, error) {
	return step.Done(delivery.Pass, "it only reads"), nil
}

// twins are the namespaces in which the two sides of a comparison run.
type twins struct{ old, new string }

// quietly closes what was read from. What was read is complete by then; a connection that does not end cleanly changes
// nothing about it.
func quietly(c io.Closer) { _ = c.Close() }

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
// beside the delivery, never into its record. The key is the same for as long as the two sides are.
func (b base) compare(ctx context.Context, c step.Call, p place, a plan.DataArgs, t twins, s verifying, key string) (step.Outcome, error) {
	seed, err := fingerprint.ParseSeed(s.Seed)
	if err != nil {
		return step.Outcome{}, err
	}
	found, err := b.answer(ctx, c, p, a, t, seed, key)
	if err != nil {
		return step.Outcome{}, err
	}
	report, err := b.report(c, found.Report)
	if err != nil {
		return step.Outcome{}, err
	}
	out := judged(found.Report, found.Findings, report)
	out.Evidence = evidenceOf(found.Report, found.Findings, report)
	return out, nil
}

// answer compares two sides: from here, or by a Job beside them where there is much to read.
func (b base) answer(ctx context.Context, c step.Call, p place, a plan.DataArgs, t twins, seed fingerprint.Seed, key string) (verification.Answer, error) {
	x, err := b.pair(ctx, p, a, t)
	if err != nil {
		return verification.Answer{}, err
	}
	defer x.Close()
	job, ok, err := b.beside(p, a.Database, x.Much(), t.old, t.new)
	if err != nil {
		return verification.Answer{}, err
	}
	if !ok {
		o, err := b.scanning(c)
		if err != nil {
			return verification.Answer{}, err
		}
		return x.Compare(ctx, seed, a.Checks, o)
	}
	job.task.Seed, job.task.Contract, job.task.Checks = seed.String(), exclusions(a), a.Checks
	job, key = job.divide(x.Plan(), key, fingerprint.Source, fingerprint.Target)
	found, err := run[verification.Answer](ctx, job, c, key, verification.CompareCommand)
	if err != nil {
		return verification.Answer{}, err
	}
	return verification.Merge(x.Plan(), found)
}

// pair opens both sides, which nobody writes to, and plans their comparison.
func (b base) pair(ctx context.Context, p place, a plan.DataArgs, t twins) (*verification.Pair, error) {
	engine, err := b.ports.Engine(a.Database.Engine)
	if err != nil {
		return nil, err
	}
	var sides [2]verification.Database
	for i, namespace := range []string{t.old, t.new} {
		u, err := b.url(p, a.Database, namespace, true)
		if err != nil {
			return nil, err
		}
		sides[i] = verification.Database{Engine: engine, URL: u, Where: verification.Site{Name: a.Database.Name, Namespace: namespace}.Where()}
	}
	return verification.Open(ctx, sides, exclusions(a))
}

// scanning says how this process compares. The old side's fingerprint is kept, so that an entry after a crash does not read
// it again.
func (b base) scanning(c step.Call) (verification.Options, error) {
	kept, err := b.reportFile(c, "old.digest.json")
	return verification.Options{Spill: b.o.Spill, Kept: kept, Progress: c.Progress}, err
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
func (b base) digest(ctx context.Context, c step.Call, p place, db plan.Database, namespace string, seed fingerprint.Seed, key string) (*fingerprint.Digest, error) {
	s, err := b.open(ctx, p, db, namespace)
	if err != nil {
		return nil, err
	}
	defer quietly(s)
	catalog, err := s.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	whole, err := verification.Whole(catalog)
	if err != nil {
		return nil, err
	}
	job, ok, err := b.beside(p, db, verification.Much(catalog), namespace)
	if err != nil {
		return nil, err
	}
	if !ok {
		return verification.Fingerprint(ctx, s, whole, seed, verification.Options{Progress: c.Progress})
	}
	job.task.Seed = seed.String()
	job, key = job.divide(whole, key, fingerprint.Source)
	digests, err := run[*fingerprint.Digest](ctx, job, c, key, verification.FingerprintCommand)
	switch {
	case err != nil:
		return nil, err
	case len(digests) == 1:
		return digests[0], nil
	}
	return whole.MergeDigests(digests)
}

// writeWhole writes a file so that a crash leaves the old one, the new one, or none.
func writeWhole(file string, body []byte) error {
	part := file + ".part"
	if err := os.WriteFile(part, body, 0o600); err != nil {
		return fmt.Errorf("write a report: %w", err)
	}
	return os.Rename(part, file)
}
