// Package sqlite keeps deliveries in one SQLite file: the store of one machine.
package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"sync"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
	_ "modernc.org/sqlite" // the driver registers itself
)

// Store is a store.Store, Lister and Journaler in one file.
type Store struct {
	write *sql.DB
	read  *sql.DB
	hub   store.Hub
	mu    sync.Mutex
	specs map[string]delivery.Spec // of open deliveries: a spec never changes, may be large, and is asked for at each step
}

// migrations bring a file from the version of its index to the next one; they are never changed, only added to.
func migrations() []string {
	return []string{`
CREATE TABLE deliveries (
  id TEXT PRIMARY KEY, application TEXT NOT NULL, created INTEGER NOT NULL, state TEXT NOT NULL,
  done INTEGER NOT NULL, revision INTEGER NOT NULL, spec TEXT NOT NULL, status TEXT NOT NULL) STRICT;
CREATE INDEX deliveries_open ON deliveries (application) WHERE done = 0;
CREATE TABLE signals (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, delivery TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL,
  UNIQUE (delivery, key)) STRICT;
CREATE TABLE journal (
  delivery TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, hash TEXT NOT NULL,
  PRIMARY KEY (delivery, seq)) STRICT;
CREATE TRIGGER journal_kept BEFORE DELETE ON journal BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER journal_fixed BEFORE UPDATE ON journal BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
`}
}

// Open opens the file, which it creates and migrates as needed.
func Open(ctx context.Context, path string) (*Store, error) {
	q := url.Values{"_pragma": {"journal_mode(WAL)", "synchronous(FULL)", "busy_timeout(5000)"}}
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
	w, err := sql.Open("sqlite", dsn+"&_txlock=immediate")
	if err != nil {
		return nil, fmt.Errorf("open the store %s: %w", path, err)
	}
	w.SetMaxOpenConns(1)
	s := &Store{write: w, specs: map[string]delivery.Spec{}}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the store %s: %w", path, err), w.Close())
	}
	if s.read, err = sql.Open("sqlite", dsn+"&_pragma=query_only(1)"); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	s.read.SetMaxOpenConns(4)
	return s, nil
}

// Close closes the file.
func (s *Store) Close() error { return errors.Join(s.read.Close(), s.write.Close()) }

func (s *Store) migrate(ctx context.Context) error {
	var version int
	if err := s.write.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	all := migrations()
	if version > len(all) {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "the file has schema version %d and this program knows only %d",
			version, len(all)), "use the newer version of sluice that wrote it")
	}
	for i := version; i < len(all); i++ {
		err := s.tx(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, all[i]+fmt.Sprintf("PRAGMA user_version = %d;", i+1))
			return err
		})
		if err != nil {
			return fmt.Errorf("migrate to schema version %d: %w", i+1, err)
		}
	}
	return nil
}

func (s *Store) tx(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, spec delivery.Spec) (store.Revision, error) {
	var replaced string
	err := s.tx(ctx, func(tx *sql.Tx) error {
		st := delivery.Status{State: delivery.Pending}
		var known int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM deliveries WHERE id = ?", spec.ID).Scan(&known); err != nil {
			return err
		}
		if known > 0 {
			return fault.Newf(fault.Conflict, "delivery %s exists already", spec.ID)
		}
		var running string
		err := tx.QueryRowContext(ctx, "SELECT id FROM deliveries WHERE application = ? AND done = 0 AND state <> ?",
			spec.Application, delivery.Queued).Scan(&running)
		if err == nil && !spec.EnqueueOne {
			return &store.ErrRunning{ID: running, Application: spec.Application}
		}
		if err == nil {
			st = delivery.Status{State: delivery.Queued, Reason: "waits for delivery " + running}
			if replaced, err = replaceQueued(ctx, tx, spec); err != nil {
				return err
			}
		} else if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		body, err := json.Marshal(spec)
		if err != nil {
			return err
		}
		status, err := json.Marshal(st)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO deliveries VALUES (?,?,?,?,0,1,?,?)", spec.ID, spec.Application,
			spec.CreatedAt.UnixNano(), st.State, string(body), string(status)); err != nil {
			return err
		}
		sum := sha256.Sum256(body)
		data, err := json.Marshal(map[string]string{"spec": hex.EncodeToString(sum[:]), "by": spec.By})
		if err != nil {
			return err
		}
		return appendJournal(ctx, tx, spec.ID, []store.Record{{Kind: "created", At: spec.CreatedAt, Data: data}})
	})
	if err != nil {
		return 0, err
	}
	if replaced != "" {
		s.hub.Publish(replaced)
	}
	s.hub.Publish(spec.ID)
	return 1, nil
}

// replaceQueued cancels the delivery of the application that waits in the queue.
func replaceQueued(ctx context.Context, tx *sql.Tx, spec delivery.Spec) (string, error) {
	var id string
	err := tx.QueryRowContext(ctx, "SELECT id FROM deliveries WHERE application = ? AND done = 0 AND state = ?",
		spec.Application, delivery.Queued).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	st, err := json.Marshal(delivery.Status{State: delivery.Cancelled, Done: true, Ended: spec.CreatedAt,
		Reason: "replaced in the queue by delivery " + spec.ID})
	if err != nil {
		return "", err
	}
	_, err = tx.ExecContext(ctx, "UPDATE deliveries SET state = ?, done = 1, revision = revision + 1, status = ? WHERE id = ?",
		delivery.Cancelled, string(st), id)
	return id, err
}

const columns = "SELECT id, spec, status, revision FROM deliveries "

// scan reads one delivery.
func (s *Store) scan(r row) (store.Delivery, error) {
	var d store.Delivery
	var id, spec, status string
	if err := r.Scan(&id, &spec, &status, &d.Revision); err != nil {
		return d, err
	}
	if err := json.Unmarshal([]byte(status), &d.Status); err != nil {
		return d, fmt.Errorf("read the status of delivery %s: %w", id, err)
	}
	var known bool
	if d.Spec, known = s.known(id); known {
		return d, nil
	}
	if err := json.Unmarshal([]byte(spec), &d.Spec); err != nil {
		return d, fmt.Errorf("read the spec of delivery %s: %w", id, err)
	}
	if !d.Status.Done {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.specs[id] = d.Spec
	}
	return d, nil
}

// one reads one delivery, without its spec where that is known.
func (s *Store) one(ctx context.Context, id string) (store.Delivery, error) {
	spec, known := s.known(id)
	if !known {
		return s.scan(s.read.QueryRowContext(ctx, columns+"WHERE id = ?", id))
	}
	d := store.Delivery{Spec: spec}
	var status string
	row := s.read.QueryRowContext(ctx, "SELECT status, revision FROM deliveries WHERE id = ?", id)
	if err := row.Scan(&status, &d.Revision); err != nil {
		return d, err
	}
	return d, json.Unmarshal([]byte(status), &d.Status)
}

func (s *Store) known(id string) (delivery.Spec, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	spec, ok := s.specs[id]
	return spec, ok
}

// forget forgets the spec of a delivery that is done.
func (s *Store) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.specs, id)
}

// Load implements store.Store.
func (s *Store) Load(ctx context.Context, id string) (store.Delivery, error) {
	d, err := s.one(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return d, fault.Newf(fault.NotFound, "there is no delivery %q", id)
	}
	if err != nil {
		return d, err
	}
	rows, err := s.read.QueryContext(ctx, "SELECT seq, body FROM signals WHERE delivery = ? AND seq > ? ORDER BY seq",
		id, d.Status.Seen)
	if err != nil {
		return d, err
	}
	defer func() { _ = rows.Close() }() // what it could say, rows.Err says
	for rows.Next() {
		var sig store.Signal
		var body string
		if err := rows.Scan(&sig.Seq, &body); err != nil {
			return d, err
		}
		if err := json.Unmarshal([]byte(body), &sig.Signal); err != nil {
			return d, err
		}
		d.Signals = append(d.Signals, sig)
	}
	return d, rows.Err()
}

// Swap implements store.Store.
func (s *Store) Swap(ctx context.Context, id string, at store.Revision, st delivery.Status, records []store.Record) (store.Revision, error) {
	body, err := json.Marshal(st)
	if err != nil {
		return 0, err
	}
	err = s.tx(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE deliveries SET status = ?, state = ?, done = ?, revision = revision + 1
			WHERE id = ? AND revision = ?`, string(body), st.State, st.Done, id, at)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil {
			return err
		} else if n == 0 {
			return fault.Newf(fault.Conflict, "delivery %s is no longer at revision %d", id, at)
		}
		return appendJournal(ctx, tx, id, records)
	})
	if err != nil {
		return 0, err
	}
	if st.Done {
		s.forget(id)
	}
	s.hub.Publish(id)
	return at + 1, nil
}

// Signal implements store.Store.
func (s *Store) Signal(ctx context.Context, id string, sig delivery.Signal) (bool, error) {
	body, err := json.Marshal(sig)
	if err != nil {
		return false, err
	}
	first := false
	err = s.tx(ctx, func(tx *sql.Tx) error {
		var one int
		if err := tx.QueryRowContext(ctx, "SELECT 1 FROM deliveries WHERE id = ?", id).Scan(&one); err != nil {
			if errors.Is(err, sql.ErrNoRows) {
				return fault.Newf(fault.NotFound, "there is no delivery %q", id)
			}
			return err
		}
		res, err := tx.ExecContext(ctx, "INSERT INTO signals (delivery, key, body) VALUES (?,?,?) ON CONFLICT DO NOTHING",
			id, sig.Key, string(body))
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if first = n == 1; err != nil || !first {
			return err
		}
		return appendJournal(ctx, tx, id, []store.Record{{Kind: "signal", Path: sig.Path, At: sig.At, Data: body}})
	})
	if err == nil && first {
		s.hub.Publish(id)
	}
	return first, err
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context) (<-chan store.Event, error) { return s.hub.Watch(ctx), nil }

// List implements store.Lister.
func (s *Store) List(ctx context.Context, open bool) ([]store.Delivery, error) {
	return listed(ctx, s, columns, open, s.scan)
}

// row is one row of an answer, or the only one.
type row interface{ Scan(into ...any) error }

// listed reads the deliveries, the newest first, or only those that have not ended.
func listed[T any](ctx context.Context, s *Store, q string, open bool, scan func(row) (T, error)) ([]T, error) {
	if open {
		q += "WHERE done = 0 "
	}
	rows, err := s.read.QueryContext(ctx, q+"ORDER BY created DESC, id")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // what it could say, rows.Err says
	var all []T
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

const heads = "SELECT id, application, state, done FROM deliveries "

func scanHead(r row) (store.Head, error) {
	var h store.Head
	err := r.Scan(&h.ID, &h.Application, &h.State, &h.Done)
	return h, err
}

// Head implements store.Lister.
func (s *Store) Head(ctx context.Context, id string) (store.Head, error) {
	h, err := scanHead(s.read.QueryRowContext(ctx, heads+"WHERE id = ?", id))
	if errors.Is(err, sql.ErrNoRows) {
		return h, fault.Newf(fault.NotFound, "there is no delivery %q", id)
	}
	return h, err
}

// Heads implements store.Lister.
func (s *Store) Heads(ctx context.Context, open bool) ([]store.Head, error) {
	return listed(ctx, s, heads, open, scanHead)
}

func appendJournal(ctx context.Context, tx *sql.Tx, id string, records []store.Record) error {
	var seq int64
	var prev string
	err := tx.QueryRowContext(ctx, "SELECT seq, hash FROM journal WHERE delivery = ? ORDER BY seq DESC LIMIT 1", id).
		Scan(&seq, &prev)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	for _, r := range records {
		seq++
		r.Seq, r.Prev = seq, prev
		body, hash, err := store.Seal(r)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO journal VALUES (?,?,?,?,?)", id, seq, r.Kind, body, hash); err != nil {
			return err
		}
		prev = hash
	}
	return nil
}

// Journal implements store.Journaler.
func (s *Store) Journal(ctx context.Context, id string) ([]store.Record, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT body, hash FROM journal WHERE delivery = ? ORDER BY seq", id)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // what it could say, rows.Err says
	var all []store.Record
	prev := ""
	for rows.Next() {
		var body, hash string
		if err := rows.Scan(&body, &hash); err != nil {
			return nil, err
		}
		var r store.Record
		if err := json.Unmarshal([]byte(body), &r); err != nil {
			return nil, err
		}
		sum := sha256.Sum256([]byte(body))
		if r.Prev != prev || hex.EncodeToString(sum[:]) != hash {
			return nil, fault.Newf(fault.Lost, "the journal of delivery %s was changed at or before record %d", id, r.Seq)
		}
		r.Hash, prev = hash, hash
		all = append(all, r)
	}
	return all, rows.Err()
}
