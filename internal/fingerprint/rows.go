package fingerprint

import (
	"bytes"
	"context"
	"slices"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-cd/sluice/internal/database"
)

// fetchBatch is how many keys are asked for at once.
const fetchBatch = 1000

// classifyRows is pass 3: the wanted rows of both sides are read, merged by key and told apart.
func (w *tableWork) classifyRows(ctx context.Context, want *wanted) error {
	sides, err := w.spills("rows", want.bytes, w.MemoryBytes)
	if err != nil {
		return err
	}
	defer closeSpills(sides)
	if want.filter != nil {
		w.r.Passes++
		w.meter.begin(w.t, w.r.Passes, Source, Target)
	}
	g, reading := errgroup.WithContext(ctx)
	for role := range sides {
		g.Go(func() error { return w.collect(reading, Role(role), want, sides[role]) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	p, err := w.newPairing(want)
	if err != nil {
		return err
	}
	defer p.close()
	live := newSettling(w, p)
	var groups int64
	var counts tally
	err = mergeSpills(ctx, sides, rowEntries, w.without, func(data [2][]byte, g *group) error {
		groups++
		counts.count(g, w.keyless())
		if live != nil {
			return live.add(ctx, data, g)
		}
		return w.emit(data, g, p)
	})
	if err == nil && live != nil {
		err = live.flush(ctx)
	}
	if err == nil {
		err = p.finish(ctx)
	}
	if err != nil {
		return err
	}
	w.rec.finish()
	if live == nil && w.without == whole && (groups != want.groups || want.counted && counts != want.counts) {
		return doubtf("%s: the scans found %d differing keys, reading their rows found %d: it was written although the views promised to hold still",
			w.t.Name, want.groups, groups)
	}
	if live != nil && w.r.Differences() == 0 {
		w.r.Verdict = Equal
		w.r.Columns = nil
		w.r.note("rows that differed at first were equal when they were read again")
	}
	return nil
}

// collect reads the wanted rows of one side.
func (w *tableWork) collect(ctx context.Context, role Role, want *wanted, to *spill) error {
	put := func(key, row Hash, r database.Row) error {
		return to.add(key, func(b []byte) []byte { return appendRow(b, key, row, r) })
	}
	if want.filter != nil {
		_, err := w.pass(role, w.r.Passes).run(ctx, func() rowFunc {
			return func(_ *hasher, key, row Hash, r database.Row) error {
				if !want.filter.has(key) {
					return nil
				}
				return put(key, row, r)
			}
		})
		if err != nil {
			return err
		}
	}
	keys := want.keys
	if want.filter != nil && len(keys) > 0 {
		// A key that the filter lets through although nobody asked for it must not be read twice.
		h := newHasher(w.t, w.Seed, w.without)
		keys = slices.DeleteFunc(slices.Clone(keys), func(k []byte) bool { return want.filter.has(h.keyHash(k)) })
	}
	return w.fetch(ctx, role, keys, put)
}

// fetch reads rows by key.
func (w *tableWork) fetch(ctx context.Context, role Role, keys [][]byte, put func(key, row Hash, r database.Row) error) error {
	h := newHasher(w.t, w.Seed, w.without)
	side := &w.t.sides[role]
	for batch := range slices.Chunk(keys, fetchBatch) {
		err := w.views[role].Fetch(ctx, side.relation, &side.projection, batch, func(r database.Row) error {
			key, row, seen, err := h.row(r)
			if err != nil {
				return err
			}
			return put(key, row, seen)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// emit records one group. Missing and extra rows wait for the pairing.
func (w *tableWork) emit(data [2][]byte, g *group, p *pairing) error {
	var rows [2][]database.Row
	for role := range rows {
		for _, e := range g.rest[role] {
			r, err := rowAt(data[role], e)
			if err != nil {
				return err
			}
			rows[role] = append(rows[role], r)
		}
	}
	pairs := 0
	if !w.keyless() {
		pairs = min(len(rows[Source]), len(rows[Target]))
	}
	for i := range pairs {
		if err := w.rec.changed(rows[Source][i], rows[Target][i]); err != nil {
			return err
		}
	}
	for role := range rows {
		rest := rows[role][pairs:]
		if len(rest) == 0 {
			continue
		}
		if err := w.oneSided(Role(role), rest, g, p); err != nil {
			return err
		}
	}
	return nil
}

// oneSided records rows of which the other side has none left.
func (w *tableWork) oneSided(role Role, rows []database.Row, g *group, p *pairing) error {
	class, copies := ClassMissing, g.copies
	switch {
	case g.copies[1-role] > 0:
		class = ClassDuplicate
	case role == Target:
		class = ClassExtra
	}
	if w.keyless() { // all rows of a group are one row, present so many times
		return w.rec.oneSided(class, role, rows[0], int64(len(rows)), copies)
	}
	if class != ClassDuplicate {
		copies = [2]int{}
	}
	for _, r := range rows {
		var err error
		if class != ClassDuplicate && p.sides[role] != nil {
			err = p.add(role, g.key, r)
		} else {
			err = w.rec.oneSided(class, role, r, 1, copies)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pairing looks for rows whose key changed: a missing and an extra row that are equal in all other columns. They lie in
// different partitions by key, so they are partitioned once more by the hash of the rest.
type pairing struct {
	w     *tableWork
	sides [2]*spill
	seed  uint64
	plain bool // there are no other columns: only keys that differ in spelling are paired
}

func (w *tableWork) newPairing(want *wanted) (*pairing, error) {
	p := &pairing{w: w, seed: w.Seed.derive(w.t.Name.String(), "rest"), plain: len(w.t.Columns) == len(w.t.Key) && !w.t.document()}
	if w.keyless() || !want.pairing {
		return p, nil
	}
	need := want.bytes
	if want.counted {
		rows := want.counts.missing + want.counts.extra
		need = want.bytes / max(1, want.counts.sum()+want.counts.changed) * rows
	}
	var err error
	p.sides, err = w.spills("pairs", need, w.MemoryBytes)
	return p, err
}

func (p *pairing) close() { closeSpills(p.sides) }

func (p *pairing) add(role Role, key Hash, r database.Row) error {
	rest, err := p.rest(r)
	if err != nil {
		return err
	}
	return p.sides[role].add(rest, func(b []byte) []byte { return appendRow(b, rest, key, r) })
}

// rest hashes what is not the key.
func (p *pairing) rest(r database.Row) (Hash, error) {
	var b []byte
	switch {
	case p.plain:
		b = foldKey(r.Key)
	case p.w.t.document():
		var err error
		if b, err = stripDocument(nil, r.Values[0], []string{"_id"}); err != nil {
			return Hash{}, err
		}
	default:
		for j, v := range r.Values {
			if !slices.Contains(p.w.t.Key, j) {
				b = database.AppendElement(b, v)
			}
		}
	}
	u := xxh3.Hash128Seed(b, p.seed)
	return Hash{u.Hi, u.Lo}, nil
}

// foldKey writes a key without what counts as spelling.
func foldKey(key []byte) []byte {
	values, ok := database.KeyValues(key)
	if !ok {
		return key
	}
	var out []byte
	for _, v := range values {
		if n, ok := database.Number(v); ok {
			v = []byte(n.RatString())
		} else if f, ok := database.FamilyOf(v); ok && (f == database.Text || f == database.Other) {
			v = []byte(fold(string(v[1:])))
		}
		out = database.AppendElement(out, v)
	}
	return out
}

// finish pairs what was added and records the rest as missing and extra.
func (p *pairing) finish(ctx context.Context) error {
	if p.sides[Source] == nil {
		return nil
	}
	// Entries of the two sides never cancel here: a key that both sides had would have been a changed row.
	return mergeSpills(ctx, p.sides, rowEntries, whole, func(data [2][]byte, g *group) error {
		var rows [2][]database.Row
		for role := range rows {
			for _, e := range g.rest[role] {
				r, err := rowAt(data[role], e)
				if err != nil {
					return err
				}
				rows[role] = append(rows[role], r)
			}
			slices.SortStableFunc(rows[role], func(a, b database.Row) int { return bytes.Compare(a.Key, b.Key) })
		}
		return p.pair(rows)
	})
}

// pair records one group of rows that are equal in all other columns: spellings of one key first, then in order of keys.
func (p *pairing) pair(rows [2][]database.Row) error {
	rec := p.w.rec
	source, target := rows[Source], rows[Target]
	var left []database.Row
	for _, s := range source {
		i := -1
		if len(target) <= 64 || p.plain {
			i = slices.IndexFunc(target, func(t database.Row) bool { return respelled(s.Key, t.Key) })
		}
		if i < 0 {
			left = append(left, s)
			continue
		}
		if err := rec.keyChanged(ClassKeyRespelled, s, target[i]); err != nil {
			return err
		}
		target = slices.Delete(target, i, i+1)
	}
	for len(left) > 0 && len(target) > 0 && !p.plain {
		if err := rec.keyChanged(ClassKeyChanged, left[0], target[0]); err != nil {
			return err
		}
		left, target = left[1:], target[1:]
	}
	for _, r := range left {
		if err := rec.oneSided(ClassMissing, Source, r, 1, [2]int{}); err != nil {
			return err
		}
	}
	for _, r := range target {
		if err := rec.oneSided(ClassExtra, Target, r, 1, [2]int{}); err != nil {
			return err
		}
	}
	return nil
}
