package fingerprint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// Side is one of the two databases. Without a View one is opened on Server, and closed at the end. A side with neither
// can be compared by an earlier digest only: what differs is then counted but not told apart.
type Side struct {
	Server database.Server
	View   database.View
}

// Options say what is compared and at what cost.
type Options struct {
	Source, Target Side
	Plan           *Plan
	Seed           Seed
	Workers        int   // scans of one side at a time; 1 where 0
	Cells          int   // of the invertible table; DefaultCells where 0
	MemoryBytes    int64 // for differing rows; DefaultMemory where 0
	SpillDir       string
	Passes         int // stop after 1 or 2 scans a side; 3 where 0
	SourceDigest   *Digest
	TargetDigest   *Digest
	Differences    io.Writer                 // gets every differing row as NDJSON, to read
	Rows           func(RowDifference) error // gets every differing row as it is, to replay
	Progress       func(Progress)            // is told every 250 ms and at the begin of each pass
	Settle         time.Duration             // between two readings of a key of a live view; 250 ms where 0
}

// comparison is one run of Compare.
type comparison struct {
	Options
	without Part
	views   [2]database.View
	opened  []database.View
	digests [2]*Digest
	meter   *meter
	report  *Report
	out     *json.Encoder
	spilled atomic.Int64
	dir     string
}

// Compare finds where two databases differ. The report is never nil; with an error its verdict is Unknown.
func Compare(ctx context.Context, o Options) (*Report, error) { return compare(ctx, o, whole) }

func compare(ctx context.Context, o Options, without Part) (*Report, error) {
	c := &comparison{Options: o, without: without, digests: [2]*Digest{o.SourceDigest, o.TargetDigest}, meter: newMeter(o.Progress)}
	c.defaults()
	c.report = &Report{Seed: o.Seed.Digest(), Plan: o.Plan.Digest(), Started: time.Now().UTC(), Tables: []TableReport{},
		Coverage: Coverage{Objects: o.Plan.Objects}, Schema: o.Plan.Findings, Expected: o.Plan.Expected, NotCompared: o.Plan.NotCompared,
		Source: SideReport{Info: o.Plan.infos[Source]}, Target: SideReport{Info: o.Plan.infos[Target]}}
	err := c.run(ctx)
	c.meter.stop()
	err = errors.Join(err, c.close())
	c.finish(err)
	return c.report, err
}

func (c *comparison) defaults() {
	c.Cells = cellsOr(c.Cells)
	if c.MemoryBytes <= 0 {
		c.MemoryBytes = DefaultMemory
	}
	if c.Passes <= 0 {
		c.Passes = 3
	}
	if c.Settle <= 0 {
		c.Settle = 250 * time.Millisecond
	}
	if c.SpillDir == "" {
		c.SpillDir = os.TempDir()
	}
	if c.Differences != nil {
		c.out = json.NewEncoder(c.Differences)
		c.out.SetEscapeHTML(false)
	}
}

func (c *comparison) run(ctx context.Context) error {
	for role, d := range c.digests {
		if d == nil {
			continue
		}
		if err := d.fits(c.Plan, c.Seed, Role(role), c.Cells); err != nil {
			return err
		}
	}
	if err := c.open(ctx); err != nil {
		return err
	}
	for i := range c.Plan.Tables {
		if err := c.table(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// open opens the views that were not given.
func (c *comparison) open(ctx context.Context) error {
	for role, side := range []Side{c.Source, c.Target} {
		c.views[role] = side.View
		if side.View == nil && side.Server != nil {
			v, err := side.Server.View(ctx)
			if err != nil {
				return fmt.Errorf("opening a view of the %s: %w", Role(role), err)
			}
			c.views[role] = v
			c.opened = append(c.opened, v)
		}
		if c.views[role] == nil && c.digests[role] == nil {
			return fault.Newf(fault.Invalid, "the %s has neither a server nor a fingerprint", Role(role))
		}
		s := c.side(Role(role))
		s.Live = c.views[role] != nil && c.views[role].Live()
		s.Reused = c.digests[role] != nil
	}
	return nil
}

func (c *comparison) side(r Role) *SideReport {
	if r == Source {
		return &c.report.Source
	}
	return &c.report.Target
}

func (c *comparison) live() bool { return c.report.Source.Live || c.report.Target.Live }

func (c *comparison) close() error {
	var errs []error
	for _, v := range c.opened {
		errs = append(errs, v.Close())
	}
	if c.dir != "" {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	return errors.Join(errs...)
}

// spillDir makes the folder for spilled rows when the first is needed.
func (c *comparison) spillDir() (string, error) {
	if c.dir != "" {
		return c.dir, nil
	}
	dir, err := os.MkdirTemp(c.SpillDir, "sluice-spill-")
	if err != nil {
		return "", spillFault(c.SpillDir, err)
	}
	c.dir = dir
	return dir, nil
}

// table compares one table. A doubt is written into the table's report, and the other tables are still compared.
func (c *comparison) table(ctx context.Context, i int) error {
	t := &c.Plan.Tables[i]
	c.report.Tables = append(c.report.Tables, TableReport{Name: t.Name, Verdict: Unknown, Key: t.keyNames()})
	r := &c.report.Tables[len(c.report.Tables)-1]
	w := &tableWork{comparison: c, t: t, index: i, r: r}
	err := w.run(ctx)
	if d, ok := errors.AsType[*doubt](err); ok {
		r.Verdict = Unknown
		r.Doubt = d.reason
		r.note(d.reason)
		return nil
	}
	if err != nil {
		r.note(err.Error())
	}
	return err
}

func (t *TableReport) note(text string) {
	if t.Note != "" {
		t.Note += "; "
	}
	t.Note += text
}

// first makes or unpacks the leaves of both sides, the scans in parallel.
func (w *tableWork) first(ctx context.Context) (out [2]*leaves, err error) {
	var sides []Role
	for role, d := range w.digests {
		if d == nil {
			sides = append(sides, Role(role))
		}
	}
	w.meter.begin(w.t, 1, sides...)
	g, ctx := errgroup.WithContext(ctx)
	for role := range out {
		g.Go(func() error {
			var err error
			if d := w.digests[role]; d != nil {
				out[role], err = d.Tables[w.index].unpack(w.t, w.Seed, w.Cells, w.without)
			} else {
				out[role], err = w.pass(Role(role), 1).digest(ctx, w.Cells)
			}
			return err
		})
	}
	return out, g.Wait()
}

func (w *tableWork) pass(role Role, number int) *pass {
	return &pass{view: w.views[role], table: w.t, role: role, seed: w.Seed, number: number, workers: w.Workers, meter: w.meter, without: w.without}
}

// finish writes the verdict, and what it cost.
func (c *comparison) finish(err error) {
	r := c.report
	for i := range r.Tables {
		r.Cost.Passes = max(r.Cost.Passes, r.Tables[i].Passes)
	}
	r.Cost.RowsScanned, r.Cost.SpillBytes = c.meter.total.Load(), c.spilled.Load()
	r.took(time.Since(r.Started))
	r.conclude(err)
}
