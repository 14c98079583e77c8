package mongodb

import (
	"context"
	"errors"

	"github.com/sluice-cd/sluice/internal/database"
)

// levelRecoverable is package volume's word: the cut is atomic, and crash recovery restores every commit.
const levelRecoverable = "recoverable"

// unheld is the lease where volumes are cut in one instant and their files are not at hand: SQLite syncs its write-ahead log
// at every commit, so that such a cut, as a power failure would, loses none. Nobody is held.
func (e *Engine) unheld(ctx context.Context, u database.URL) (database.Lease, error) {
	if _, _, err := e.serves(ctx, u); err != nil {
		return nil, err
	}
	s, err := e.Open(ctx, u)
	if err != nil {
		return nil, err
	}
	census, err := s.Catalog(ctx)
	if err := errors.Join(err, s.Close()); err != nil {
		return nil, err
	}
	// Writers go on, and one may delete documents before the cut: their number then is not known.
	for i := range census.Relations {
		census.Relations[i].HighWater = 0
	}
	return unheldLease{census}, nil
}

// unheldLease implements database.Lease: there is nothing that could be lost, and nothing to release.
type unheldLease struct{ census database.Catalog }

// Census implements database.Lease.
func (l unheldLease) Census() database.Catalog { return l.census }

// Level implements database.Lease.
func (unheldLease) Level() string { return levelRecoverable }

// Lost implements database.Lease.
func (unheldLease) Lost() <-chan struct{} { return nil }

// Release implements database.Lease.
func (unheldLease) Release(context.Context) (database.Assembly, error) {
	return database.Assembly{Notes: []string{"no writer was held: the cut is atomic, and the write-ahead logs in it are replayed"}}, nil
}
