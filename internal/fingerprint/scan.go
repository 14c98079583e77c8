package fingerprint

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-cd/sluice/internal/database"
)

// A table is scanned by more than one worker where the estimates say that it is worth it. Both are asked, because an
// engine that never analysed a table does not know its rows.
const (
	parallelRows  = 50_000
	parallelBytes = 16 << 20
)

// pass is one scan of one side of a table.
type pass struct {
	view    database.View
	table   *Table
	role    Role
	seed    Seed
	number  int
	workers int
	meter   *meter
	without Part
}

// rowFunc takes a row with the hashes of its key and itself; all of them live until it returns.
type rowFunc func(h *hasher, key, row Hash, r database.Row) error

// run scans the relation by its ranges. begin is called once per range, so that every range collects for itself; what it
// returns is called by one goroutine at a time. A scan that gave another number of rows than the server counted is no
// scan at all.
func (p *pass) run(ctx context.Context, begin func() rowFunc) (rows int64, err error) {
	side := &p.table.sides[p.role]
	workers := max(1, p.workers)
	if side.relation.Rows < parallelRows && side.relation.Bytes < parallelBytes {
		workers = 1
	}
	ranges, err := p.view.Ranges(ctx, side.relation, workers)
	if err != nil {
		return 0, fmt.Errorf("cutting %s of the %s into ranges: %w", p.table.Name, p.role, err)
	}
	var mu sync.Mutex
	var server int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for _, r := range ranges {
		g.Go(func() error {
			n, s, err := p.scanRange(ctx, r, begin())
			mu.Lock()
			rows, server = rows+n, server+s
			mu.Unlock()
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return rows, fmt.Errorf("scanning %s of the %s: %w", p.table.Name, p.role, err)
	}
	if rows != server && p.without != PartCount {
		return rows, doubtf("scanning %s of the %s gave %d rows, the server counted %d", p.table.Name, p.role, rows, server)
	}
	return rows, nil
}

func (p *pass) scanRange(ctx context.Context, r database.Range, take rowFunc) (rows, server int64, err error) {
	h := newHasher(p.table, p.seed, p.without)
	server, err = p.view.Scan(ctx, r, &p.table.sides[p.role].projection, func(row database.Row) error {
		key, hash, seen, err := h.row(row)
		if err != nil {
			return err
		}
		if rows++; rows%meterStep == 0 {
			p.meter.add(meterStep)
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		return take(h, key, hash, seen)
	})
	p.meter.add(rows % meterStep)
	return rows, server, err
}

// digest is pass 1: the leaves of one side of a table.
func (p *pass) digest(ctx context.Context, cells int) (*leaves, error) {
	var mu sync.Mutex
	var all []*leaves
	rows, err := p.run(ctx, func() rowFunc {
		l := newLeaves(p.table, p.seed, cells, p.without)
		mu.Lock()
		all = append(all, l)
		mu.Unlock()
		return func(h *hasher, key, row Hash, r database.Row) error {
			l.add(h, key, row, r)
			return nil
		}
	})
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		all = append(all, newLeaves(p.table, p.seed, cells, p.without))
	}
	total := all[0]
	for _, l := range all[1:] {
		total.merge(l)
	}
	if total.rows != rows {
		return nil, doubtf("%s of the %s: %d rows were digested of %d scanned", p.table.Name, p.role, total.rows, rows)
	}
	return total, nil
}

// ScanOptions say how one side is fingerprinted.
type ScanOptions struct {
	Role     Role // which side of the plan the view is
	Seed     Seed
	Workers  int
	Cells    int // DefaultCells where 0
	Progress func(Progress)
}

// Scan fingerprints one side. A digest made once may be compared many times, as long as plan and seed stay the same: a
// retry reuses control's.
func Scan(ctx context.Context, view database.View, plan *Plan, o ScanOptions) (*Digest, error) {
	return scan(ctx, view, plan, o, whole)
}

func scan(ctx context.Context, view database.View, plan *Plan, o ScanOptions, without Part) (*Digest, error) {
	started := time.Now()
	m := newMeter(o.Progress)
	defer m.stop()
	d := &Digest{Plan: plan.Digest(), Seed: o.Seed.Digest(), Role: o.Role, Info: plan.infos[o.Role], Cells: cellsOr(o.Cells), Tables: []TableDigest{}}
	for i := range plan.Tables {
		t := &plan.Tables[i]
		m.begin(t, 1, o.Role)
		p := &pass{view: view, table: t, role: o.Role, seed: o.Seed, number: 1, workers: o.Workers, meter: m, without: without}
		l, err := p.digest(ctx, d.Cells)
		if err != nil {
			return nil, err
		}
		packed, err := pack(t, l)
		if err != nil {
			return nil, err
		}
		d.Tables = append(d.Tables, packed)
	}
	d.Seconds = time.Since(started).Seconds()
	return d, nil
}

func cellsOr(n int) int {
	if n <= 0 {
		return DefaultCells
	}
	return n
}
