package fingerprint

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-cd/sluice/internal/database"
)

// readings is how often a differing key of a live view is read again.
const readings = 3

// settling reads the differing keys of live views again until two readings agree. Rows that are equal by then were only
// on their way; rows that never come to rest make the comparison impossible.
type settling struct {
	w     *tableWork
	p     *pairing
	batch []unsettled
}

// unsettled is a key and what the sides held under it when it was last read.
type unsettled struct {
	key   []byte
	hash  Hash
	state [2]Hash
}

func newSettling(w *tableWork, p *pairing) *settling {
	if !w.live() || w.keyless() {
		return nil
	}
	return &settling{w: w, p: p}
}

func (s *settling) add(ctx context.Context, data [2][]byte, g *group) error {
	u := unsettled{hash: g.key, state: g.state()}
	for role, rest := range g.rest {
		if len(rest) > 0 && u.key == nil {
			r, err := rowAt(data[role], rest[0])
			if err != nil {
				return err
			}
			u.key = slices.Clone(r.Key)
		}
	}
	s.batch = append(s.batch, u)
	if len(s.batch) < fetchBatch {
		return nil
	}
	return s.flush(ctx)
}

// state sums what a group has on each side beyond what is equal.
func (g *group) state() (out [2]Hash) {
	for role, rest := range g.rest {
		for _, e := range rest {
			out[role] = out[role].plus(e.row)
		}
	}
	return out
}

// flush brings the batch to rest and records it.
func (s *settling) flush(ctx context.Context) error {
	batch := s.batch
	s.batch = nil
	moving := ""
	for range readings {
		if len(batch) == 0 {
			return nil
		}
		if err := wait(ctx, s.w.Settle); err != nil {
			return err
		}
		var still []unsettled
		var err error
		if still, moving, err = s.again(ctx, batch); err != nil {
			return err
		}
		batch = still
	}
	if len(batch) == 0 {
		return nil
	}
	return doubtf("%s is being written: %d rows of %s changed each time they were read", moving, len(batch), s.w.t.Name)
}

// again reads a batch once more. It records what stood still and returns what moved, and on which side.
func (s *settling) again(ctx context.Context, batch []unsettled) (still []unsettled, moving string, err error) {
	w := s.w
	var unused atomic.Int64
	var sides [2]*spill
	keys := make([][]byte, len(batch))
	before := map[Hash]unsettled{}
	for i, u := range batch {
		keys[i] = u.key
		before[u.hash] = u
	}
	g, reading := errgroup.WithContext(ctx)
	for role := range sides {
		// One batch is small: it is never written to a file.
		sides[role] = newSpill("", "again", 1, 1<<40, &unused)
		g.Go(func() error {
			return w.fetch(reading, Role(role), keys, func(key, row Hash, r database.Row) error {
				return sides[role].add(key, func(b []byte) []byte { return appendRow(b, key, row, r) })
			})
		})
	}
	if err := g.Wait(); err != nil {
		return nil, "", err
	}
	moved := map[Role]bool{}
	err = mergeSpills(ctx, sides, rowEntries, w.without, func(data [2][]byte, g *group) error {
		u, now := before[g.key], g.state()
		if now == u.state {
			return w.emit(data, g, s.p)
		}
		for role := range now {
			if now[role] != u.state[role] {
				moved[Role(role)] = true
			}
		}
		u.state = now
		still = append(still, u)
		return nil
	})
	var names []string
	for _, role := range []Role{Source, Target} {
		if moved[role] {
			names = append(names, role.String())
		}
	}
	return still, strings.Join(names, " and "), err
}

// settleLeaves is the same for tables without a key, whose rows cannot be asked for: the whole table is digested again
// until it is equal, or twice the same.
func (w *tableWork) settleLeaves(ctx context.Context, both [2]*leaves) ([2]*leaves, []int, error) {
	for range readings {
		if err := wait(ctx, w.Settle); err != nil {
			return both, nil, err
		}
		next, err := w.first(ctx)
		if err != nil {
			return both, nil, err
		}
		same := len(differing(both[Source], next[Source])) == 0 && len(differing(both[Target], next[Target])) == 0
		both = next
		buckets := differing(next[Source], next[Target])
		w.r.SourceRows, w.r.TargetRows = both[Source].rows, both[Target].rows
		w.r.SourceRoot, w.r.TargetRoot = both[Source].root(), both[Target].root()
		if same || len(buckets) == 0 {
			return both, buckets, nil
		}
	}
	return both, nil, &doubt{fmt.Sprintf("source is being written: %s changed each time it was read, and it has no key by which single rows could be read again", w.t.Name)}
}

// wait lets writes that are on their way arrive.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
