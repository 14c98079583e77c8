package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/postgres"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
	"github.com/sluice-cd/sluice/internal/server/wire"
)

// compareFlags are the flags of data verify and data diff.
type compareFlags struct {
	tables, exclude []string
	workers, cells  int
	maxRate         int
	memory          size
	spill           string
	differences     string
	cluster         bool
}

func (f *compareFlags) bind(c *cobra.Command) {
	c.Flags().StringSliceVar(&f.tables, "table", nil, "compare only these `tables`: orders, public.orders, with * and ?")
	c.Flags().StringSliceVar(&f.exclude, "exclude", nil, "leave these `tables` out")
	c.Flags().IntVar(&f.workers, "workers", min(4, runtime.NumCPU()), "scans of one side at a time")
	c.Flags().IntVar(&f.maxRate, "max-rate", 0, "read at most so many `rows` a second from each side")
	c.Flags().IntVar(&f.cells, "cells", fingerprint.DefaultCells, "cells of the table from which differing rows are read without another scan")
	c.Flags().Var(&f.memory, "memory", "memory for differing rows before they go to disk (default 64MiB)")
	c.Flags().StringVar(&f.spill, "spill-dir", "", "`folder` for differing rows that do not fit into memory (default $TMPDIR)")
	c.Flags().BoolVar(&f.cluster, "cluster", false, "compare all databases of the servers, with roles and settings, not the one that each URL names")
}

func (f *compareFlags) check() error {
	switch {
	case f.workers < 1:
		return &exit{exitUnable, errors.New("--workers is at least 1")}
	case f.maxRate < 0:
		return &exit{exitUnable, errors.New("--max-rate is a number of rows a second")}
	case f.cells < 1:
		return &exit{exitUnable, errors.New("--cells is at least 1")}
	}
	return nil
}

// compared is what a comparison gave, and between what.
type compared struct {
	sides  [2]connection
	report *fingerprint.Report
}

// side is one of the two databases, open.
type side struct {
	role    fingerprint.Role
	at      connection
	engine  database.Engine
	server  database.Server
	catalog database.Catalog
	view    database.View
}

func (s *side) close() error {
	var errs []error
	if s.view != nil {
		errs = append(errs, s.view.Close())
	}
	if s.server != nil {
		errs = append(errs, s.server.Close())
	}
	return errors.Join(errs...)
}

// compare compares two databases. Where it cannot be told the report says why, and so does the error.
func (a *app) compare(ctx context.Context, args []string, f compareFlags, to fingerprint.Options) (out compared, err error) {
	if err := f.check(); err != nil {
		return out, err
	}
	var sides [2]*side
	engines, err := f.engines()
	if err != nil {
		return out, err
	}
	for i, arg := range args {
		s := &side{role: fingerprint.Role(i)}
		if s.at, err = a.connection(arg); err != nil {
			return out, err
		}
		if s.engine, err = engineOf(engines, s.at); err != nil {
			return out, err
		}
		sides[i], out.sides[i] = s, s.at
	}
	if sides[0].at.engine != sides[1].at.engine {
		return out, &exit{exitUnable, fault.Newf(fault.Invalid, "a %s and a %s database cannot be compared", sides[0].at.engine, sides[1].at.engine)}
	}
	defer func() {
		err = errors.Join(err, sides[0].close(), sides[1].close())
	}()
	for _, s := range sides {
		if err := s.open(ctx, f); err != nil {
			return out, s.explain(ctx, err)
		}
	}
	plan, err := fingerprint.NewPlan(sides[0].catalog, sides[1].catalog, fingerprint.PlanOptions{Tables: f.tables, Exclude: f.exclude,
		Databases: renamed(sides[0].catalog, sides[1].catalog)})
	if err != nil {
		return out, err
	}
	progress := newScanProgress(a.errs)
	defer progress.end()
	to.Plan, to.Seed, to.Workers, to.Cells, to.MemoryBytes, to.SpillDir = plan, fingerprint.NewSeed(), f.workers, f.cells, int64(f.memory), f.spill
	to.Source, to.Target = fingerprint.Side{Server: sides[0].server, View: sides[0].view}, fingerprint.Side{Server: sides[1].server, View: sides[1].view}
	to.Progress = progress.show
	out.report, err = fingerprint.Compare(ctx, to)
	if err != nil {
		return out, sides[0].explain(ctx, err)
	}
	return out, nil
}

// engines are those that comparisons use: of a PostgreSQL server the database that the URL names, as psql understands it.
func (f *compareFlags) engines() (map[string]database.Engine, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	engines := wire.Engines([]string{self})
	if !f.cluster {
		engines["postgres"] = postgres.New(postgres.OneDatabase())
	}
	return engines, nil
}

// open connects, reads the catalog and opens the view that is compared.
func (s *side) open(ctx context.Context, f compareFlags) error {
	var err error
	if s.server, err = s.engine.Open(ctx, database.URL{Value: s.at.value}); err != nil {
		return err
	}
	if s.catalog, err = s.server.Catalog(ctx); err != nil {
		return err
	}
	if name := s.at.database(); name != "" && !f.cluster {
		s.catalog = narrow(s.catalog, name)
	}
	if s.view, err = s.server.View(ctx); err != nil {
		return err
	}
	if f.maxRate > 0 {
		s.view = paced{View: s.view, pace: newPace(f.maxRate)}
	}
	return nil
}

// explain says on which side it was, and which privilege is missing where that is why.
func (s *side) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	wrapped := fmt.Errorf("%s: %w", s.role, err)
	p, ok := s.engine.(database.Preflighter)
	if !fault.Is(err, fault.Denied) || !ok {
		return wrapped
	}
	lacks, perr := p.Preflight(ctx, database.URL{Value: s.at.value})
	if perr != nil || len(lacks) == 0 {
		return wrapped
	}
	var text []string
	for _, l := range lacks {
		text = append(text, l.Object+": "+l.Message)
	}
	return fault.WithRemedy(fmt.Errorf("%w; missing are %s", wrapped, strings.Join(text, "; ")), "sluice data grants %s prints what to run", s.at.engine)
}

// database returns the database that a MongoDB URL names, "" where it means the whole server. The engine of PostgreSQL
// narrows itself.
func (c connection) database() string {
	if c.engine != "mongodb" {
		return ""
	}
	_, rest, _ := strings.Cut(c.shown, "://")
	_, path, _ := strings.Cut(before(rest, "?"), "/")
	name, err := url.PathUnescape(path)
	if err != nil || name == "admin" {
		return ""
	}
	return name
}

// narrow leaves one database of a catalog. Names of its objects lose the database, so that two of different names can be
// compared; what belongs to the whole server is left out.
func narrow(c database.Catalog, name string) database.Catalog {
	c.Databases = slices.DeleteFunc(slices.Clone(c.Databases), func(d string) bool { return d != name })
	c.Relations = slices.DeleteFunc(slices.Clone(c.Relations), func(r database.Relation) bool { return r.Name.Database != name })
	var objects []database.Object
	for _, o := range c.Objects {
		// A view is named shop.recent, an index by_day on shop.orders.
		on, of, ok := strings.Cut(o.Name, " on "+name+".")
		if ok {
			o.Name = on + " on " + of
		} else if o.Name, ok = strings.CutPrefix(o.Name, name+"."); !ok {
			continue
		}
		objects = append(objects, o)
	}
	c.Objects = objects
	c.NotComparable = slices.DeleteFunc(slices.Clone(c.NotComparable), func(f database.Finding) bool { return !strings.Contains(f.Object, name+".") })
	return c
}

// renamed pairs two databases of different names where each side has one.
func renamed(a, b database.Catalog) map[string]string {
	if len(a.Databases) == 1 && len(b.Databases) == 1 && a.Databases[0] != b.Databases[0] {
		return map[string]string{a.Databases[0]: b.Databases[0]}
	}
	return nil
}

// verdictCode is the exit code of a verdict.
func verdictCode(v fingerprint.Verdict) error {
	switch v {
	case fingerprint.Equal:
		return nil
	case fingerprint.Different:
		return &exit{code: exitFailure}
	default:
		return &exit{code: exitUnable}
	}
}

// undecided gives an error of a comparison its exit code. One that came from the user's Ctrl-C stays as it is.
func undecided(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, ok := errors.AsType[*exit](err); ok {
		return err
	}
	return &exit{exitUnable, err}
}

// writeSides says what was compared, for the end of a report.
func (c compared) writeSides(w io.Writer) error {
	for role, s := range []fingerprint.SideReport{c.report.Source, c.report.Target} {
		text := fmt.Sprintf("%s is %s", fingerprint.Role(role), c.sides[role].shown)
		if s.Info.Role != "" {
			text += ", " + s.Info.Role
		}
		if s.Info.Position != "" {
			text += " at " + s.Info.Position
		}
		if s.Live {
			text += "; read live: what differed was read again"
		} else {
			text += "; read in one snapshot"
		}
		if !s.Info.Durable {
			text += "; the server may lose acknowledged writes in a crash"
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return err
		}
	}
	return nil
}
