package fingerprint

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// tableWork is the comparison of one table.
type tableWork struct {
	*comparison
	t     *Table
	index int
	r     *TableReport
	rec   *recorder
}

func (w *tableWork) keyless() bool { return len(w.t.Key) == 0 }

// run goes through the passes.
func (w *tableWork) run(ctx context.Context) error {
	both, err := w.first(ctx)
	if err != nil {
		return err
	}
	w.totals(both)
	buckets := differing(both[Source], both[Target])
	if w.keyless() && w.live() && len(buckets) > 0 {
		if both, buckets, err = w.settleLeaves(ctx, both); err != nil {
			return err
		}
	}
	if len(buckets) == 0 {
		w.r.Verdict = Equal
		return nil
	}
	w.r.Verdict = Different
	if w.keyless() {
		w.r.note("rows have no key, because " + w.t.Keyless + ": a changed row appears as a missing and an extra one")
	}
	for j, c := range w.t.Columns {
		if both[Source].columns[j] != both[Target].columns[j] && !w.t.document() {
			w.r.Columns = append(w.r.Columns, c.Name)
		}
	}
	return w.tellApart(ctx, w.decode(both, buckets))
}

func (w *tableWork) totals(both [2]*leaves) {
	w.r.Passes = 1
	w.r.SourceRows, w.r.TargetRows = both[Source].rows, both[Target].rows
	w.r.SourceRoot, w.r.TargetRoot = both[Source].root(), both[Target].root()
	for role, l := range both {
		s := w.side(Role(role))
		s.Rows += l.rows
		s.Bytes += l.bytes
	}
}

// decoded is what pass 1 knows of the differing rows.
type decoded struct {
	buckets  *[Buckets / 64]uint64 // which differ
	rows     [2]int64              // in differing buckets
	average  int64                 // bytes of a row
	complete bool                  // the invertible table told every differing key
	keys     [][]byte              // the short ones
	hashes   []Hash                // of the keys that did not fit
	distinct int64
	elements int64
}

// decode reads the differing keys out of the invertible tables.
func (w *tableWork) decode(both [2]*leaves, buckets []int) *decoded {
	d := &decoded{buckets: new([Buckets / 64]uint64)}
	for _, b := range buckets {
		d.buckets[b/64] |= 1 << (b % 64)
		for role, l := range both {
			d.rows[role] += int64(l.buckets[b].count)
		}
	}
	if rows := both[Source].rows + both[Target].rows; rows > 0 {
		d.average = (both[Source].bytes + both[Target].bytes) / rows
	}
	d.distinct = int64(len(buckets))
	list, ok := subtract(both[Target].cells, both[Source].cells).peel()
	if !ok {
		return d
	}
	d.complete, d.elements = true, int64(len(list))
	seen := map[[2]element]bool{}
	for _, p := range list {
		if seen[p.key] {
			continue
		}
		seen[p.key] = true
		key, hash, short := fromLimbs(p.key)
		if short {
			d.keys = append(d.keys, key)
		} else {
			d.hashes = append(d.hashes, hash)
		}
	}
	d.distinct = int64(len(seen))
	return d
}

// tellApart classifies the differing rows as far as the options and the views allow.
func (w *tableWork) tellApart(ctx context.Context, d *decoded) error {
	stop := func(n int64, atLeast bool, why string) error {
		w.r.NotClassified, w.r.AtLeast = n, atLeast
		w.r.note(fmt.Sprintf("not classified: %d (%s)", n, why))
		return nil
	}
	switch {
	case w.views[Source] == nil || w.views[Target] == nil:
		return stop(d.distinct, !d.complete, "one side is known by its fingerprint only")
	case w.Passes < 2:
		return stop(d.distinct, !d.complete, "stopped after pass 1")
	}
	w.rec = newRecorder(w.t, w.views, w.r, w.out, w.Rows)
	want := &wanted{pairing: true}
	var err error
	if d.complete {
		w.wantDecoded(d, want)
	} else {
		err = w.wantSpilled(ctx, d, want)
	}
	if err == nil && !d.complete && w.Passes < 3 {
		w.r.Missing, w.r.Extra, w.r.Changed, w.r.Duplicate = want.counts.missing, want.counts.extra, want.counts.changed, want.counts.duplicate
		return stop(want.counts.sum(), false, "stopped after pass 2")
	}
	if err == nil {
		err = w.classifyRows(ctx, want)
	}
	if fault.Is(err, fault.Transient) && errors.Is(err, errNoSpace) {
		n := d.distinct
		if want.counts.sum() > 0 {
			n = want.counts.sum()
		}
		return stop(n, want.counts.sum() == 0 && !d.complete, err.Error())
	}
	return err
}

// wanted says which rows pass 3 reads.
type wanted struct {
	keys    [][]byte   // by Fetch
	filter  *keyFilter // by a scan, where there is one
	groups  int64      // how many keys must turn out to differ, in a view that holds still
	bytes   int64      // how much the rows are expected to take
	counts  tally      // where pass 2 counted
	counted bool
	pairing bool // look for changed keys among missing and extra rows
}

func (w *tableWork) wantDecoded(d *decoded, want *wanted) {
	want.keys, want.groups = d.keys, d.distinct
	want.bytes = d.elements * (d.average + 64)
	if len(d.hashes) > 0 {
		want.filter = newKeyFilter(int64(len(d.hashes)), w.MemoryBytes)
		for _, h := range d.hashes {
			want.filter.add(h)
		}
	}
}

// wantSpilled is pass 2: the hashes of the rows in differing buckets go to partitions, which are merged one by one.
func (w *tableWork) wantSpilled(ctx context.Context, d *decoded, want *wanted) error {
	w.meter.begin(w.t, 2, Source, Target)
	need := hashRecord * (d.rows[Source] + d.rows[Target])
	sides, err := w.spills("hashes", need, w.MemoryBytes)
	if err != nil {
		return err
	}
	defer closeSpills(sides)
	g, scanning := errgroup.WithContext(ctx)
	for role := range sides {
		g.Go(func() error {
			_, err := w.pass(Role(role), 2).run(scanning, func() rowFunc {
				return func(_ *hasher, key, row Hash, _ database.Row) error {
					if b := leafOf(key, row, w.without); d.buckets[b/64]&(1<<(b%64)) == 0 {
						return nil
					}
					return sides[role].add(key, func(b []byte) []byte { return row.appendTo(key.appendTo(b)) })
				}
			})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	w.r.Passes = 2
	want.filter = newKeyFilter((d.rows[Source]+d.rows[Target])/2, w.MemoryBytes)
	var records int64
	err = mergeSpills(ctx, sides, hashEntries, w.without, func(_ [2][]byte, g *group) error {
		want.counts.count(g, w.keyless())
		want.groups++
		records += int64(g.copies[Source] + g.copies[Target])
		want.filter.add(g.key)
		return nil
	})
	want.counted = true
	want.pairing = want.counts.missing > 0 && want.counts.extra > 0
	want.bytes = records * (d.average + 64)
	return err
}

// errNoSpace marks the refusal to begin a pass that the disk cannot hold.
var errNoSpace = errors.New("not enough space")

// spills makes the partitions of both sides after checking that the disk holds them.
func (w *tableWork) spills(name string, need, memory int64) ([2]*spill, error) {
	var out [2]*spill
	dir, err := w.spillDir()
	if err != nil {
		return out, err
	}
	if need > memory/4 {
		w.meter.spill(need)
		if err := spaceFor(dir, need); err != nil {
			return out, fault.WithRemedy(fault.Newf(fault.Transient, "%w: %w", errNoSpace, err), "name a larger spill folder")
		}
	}
	parts := partitionsFor(need, memory)
	for role := range out {
		out[role] = newSpill(dir, fmt.Sprintf("%s-%s", name, Role(role)), parts, memory, &w.spilled)
	}
	return out, nil
}

func closeSpills(s [2]*spill) {
	s[Source].close()
	s[Target].close()
}

// mergeSpills loads both sides partition by partition and calls each with the groups that differ; data is what the
// entries point into.
func mergeSpills(ctx context.Context, sides [2]*spill, read func([]byte, []entry) []entry, without Part, each func([2][]byte, *group) error) error {
	var data [2][]byte
	var entries [2][]entry
	for i := range sides[Source].parts {
		if err := ctx.Err(); err != nil {
			return err
		}
		for role, s := range sides {
			var err error
			if data[role], err = s.load(i, data[role]); err != nil {
				return err
			}
			entries[role] = read(data[role], entries[role][:0])
			sortEntries(entries[role])
		}
		if err := walk(entries[Source], entries[Target], without, func(g *group) error { return each(data, g) }); err != nil {
			return err
		}
	}
	return nil
}
