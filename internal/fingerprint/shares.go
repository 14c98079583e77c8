package fingerprint

import (
	"cmp"
	"reflect"
	"slices"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// RowWeight is what a row costs beside its own bytes, as so many of them. It is judgement.
const RowWeight = 320

// weight is about what it costs to read a table on both sides.
func (t *Table) weight() (n int64) {
	for _, s := range t.sides {
		n += max(0, s.relation.Bytes) + RowWeight*max(0, s.relation.Rows)
	}
	return n
}

// Weight is about what it costs to read the tables of the plan on both sides, in bytes.
func (p *Plan) Weight() (n int64) {
	for i := range p.Tables {
		n += p.Tables[i].weight()
	}
	return n
}

// Estimate is how many rows the catalogs expect on these sides.
func (p *Plan) Estimate(sides ...Role) (n int64) {
	for i := range p.Tables {
		n += p.Tables[i].estimate(sides...)
	}
	return n
}

func (t *Table) estimate(sides ...Role) (n int64) {
	for _, r := range sides {
		n += max(0, t.sides[r].relation.Rows)
	}
	return n
}

// Divide gives each table to one of at most n shares, the heaviest first, each to the share that has least so far. It returns
// how many shares there are, and which one each table is of. Every share has a table, and there are no more shares than are
// done while the heaviest table is read.
func (p *Plan) Divide(n int) (shares int, of []int) {
	of, order := make([]int, len(p.Tables)), make([]int, len(p.Tables))
	var heaviest int64
	for i := range p.Tables {
		order[i], heaviest = i, max(heaviest, p.Tables[i].weight())
	}
	if heaviest == 0 {
		return 1, of
	}
	shares = max(1, int(min(int64(n), (p.Weight()+heaviest-1)/heaviest)))
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(p.Tables[b].weight(), p.Tables[a].weight()) })
	load := make([]int64, shares)
	for _, i := range order {
		of[i] = slices.Index(load, slices.Min(load))
		load[of[i]] += p.Tables[i].weight()
	}
	return shares, of
}

// Share returns the plan of one share of what Divide returned. Its digest is that of the whole, which is what fingerprints are held
// against each other by.
func (p *Plan) Share(of []int, share int) (*Plan, error) {
	if len(of) != len(p.Tables) {
		return nil, fault.Newf(fault.Conflict, "%d tables were shared out, and there are %d", len(of), len(p.Tables))
	}
	part := *p
	part.whole, part.Tables = p.Digest(), nil
	for i, s := range of {
		if s == share {
			part.Tables = append(part.Tables, p.Tables[i])
		}
	}
	return &part, nil
}

// Merge makes one report of those of the shares: what one comparison of the whole would have told.
func (p *Plan) Merge(reports []*Report) (*Report, error) {
	if len(reports) == 0 {
		return nil, fault.Newf(fault.Lost, "no share of the comparison gave a report")
	}
	out := *reports[0]
	out.Source.Rows, out.Source.Bytes, out.Target.Rows, out.Target.Bytes, out.Cost = 0, 0, 0, 0, Cost{}
	var tables [][]TableReport
	var end time.Time
	for _, r := range reports {
		if err := p.ofOne(r.Plan, r.Seed, out.Seed); err != nil {
			return nil, err
		}
		if !reflect.DeepEqual([]any{r.Schema, r.Expected, r.NotCompared}, []any{out.Schema, out.Expected, out.NotCompared}) {
			return nil, fault.Newf(fault.Conflict, "the shares of a comparison found different schemas: a side was changed while it was read")
		}
		tables = append(tables, r.Tables)
		for _, s := range [][2]*SideReport{{&out.Source, &r.Source}, {&out.Target, &r.Target}} {
			s[0].Rows, s[0].Bytes = s[0].Rows+s[1].Rows, s[0].Bytes+s[1].Bytes
		}
		if r.Started.Before(out.Started) {
			out.Started = r.Started
		}
		if t := r.Started.Add(time.Duration(r.Cost.Seconds * float64(time.Second))); t.After(end) {
			end = t
		}
		out.Cost.RowsScanned, out.Cost.SpillBytes = out.Cost.RowsScanned+r.Cost.RowsScanned, out.Cost.SpillBytes+r.Cost.SpillBytes
		out.Cost.Passes = max(out.Cost.Passes, r.Cost.Passes)
	}
	var err error
	if out.Tables, err = byPlan(p, tables, func(t TableReport) database.Name { return t.Name }); err != nil {
		return nil, err
	}
	out.took(end.Sub(out.Started))
	out.conclude(nil)
	return &out, nil
}

// MergeDigests makes one fingerprint of those of the shares.
func (p *Plan) MergeDigests(digests []*Digest) (*Digest, error) {
	if len(digests) == 0 {
		return nil, fault.Newf(fault.Lost, "no share gave a fingerprint")
	}
	out := *digests[0]
	var tables [][]TableDigest
	for _, d := range digests {
		if err := p.ofOne(d.Plan, d.Seed, out.Seed); err != nil {
			return nil, err
		}
		if d.Role != out.Role || d.Cells != out.Cells {
			return nil, fault.Newf(fault.Conflict, "the shares of a fingerprint are of different sides or sizes; scan it again")
		}
		tables = append(tables, d.Tables)
		out.Seconds = max(out.Seconds, d.Seconds)
	}
	var err error
	out.Tables, err = byPlan(p, tables, func(t TableDigest) database.Name { return t.Name })
	return &out, err
}

// ofOne refuses a share of another plan, or one that was made with another seed than the first.
func (p *Plan) ofOne(plan, seed, first string) error {
	if plan == p.Digest() && seed == first {
		return nil
	}
	return fault.Newf(fault.Conflict, "a share was read under another plan or with another seed than the rest (plan %s, the whole's %s)", plan, p.Digest())
}

// byPlan puts what the shares have of each table into the order of the plan. Each table must be there once.
func byPlan[T any](p *Plan, shares [][]T, name func(T) database.Name) ([]T, error) {
	have := map[database.Name]T{}
	n := 0
	for _, s := range shares {
		for _, t := range s {
			have[name(t)] = t
			n++
		}
	}
	out := make([]T, 0, len(p.Tables))
	for i := range p.Tables {
		t, ok := have[p.Tables[i].Name]
		if !ok {
			return nil, fault.Newf(fault.Lost, "table %s is in no share", p.Tables[i].Name)
		}
		out = append(out, t)
	}
	if n != len(out) {
		return nil, fault.Newf(fault.Conflict, "the shares have %d tables, the plan %d: one is in two shares, or in none of the plan", n, len(out))
	}
	return out, nil
}
