package sqlite

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
	"github.com/sluice-cd/sluice/internal/store/storetest"
)

func open(t *testing.T) *Store {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "a store.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Full { return open(t) })
}

func run(t *testing.T, s *Store, queries ...string) {
	t.Helper()
	for _, q := range queries {
		if _, err := s.write.ExecContext(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}

func TestJournalCannotBeChanged(t *testing.T) {
	s := open(t)
	if _, err := s.Create(t.Context(), delivery.Spec{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{"DELETE FROM journal", "UPDATE journal SET body = '{}'"} {
		if _, err := s.write.ExecContext(t.Context(), q); err == nil {
			t.Errorf("%s was allowed", q)
		}
	}
}

// TestChangedJournal changes a journal by somebody who may do anything to the file but cannot make hashes fit.
func TestChangedJournal(t *testing.T) {
	for name, q := range map[string]string{
		"a record was changed":        `UPDATE journal SET body = replace(body, 'p3', 'p4') WHERE seq = 4`,
		"the first record is missing": `DELETE FROM journal WHERE seq = 1`,
		"one between is missing":      `DELETE FROM journal WHERE seq = 3`,
		"two have changed places":     `UPDATE journal SET seq = CASE seq WHEN 2 THEN 13 WHEN 3 THEN 12 ELSE seq END; UPDATE journal SET seq = seq - 10 WHERE seq > 10`,
		"a hash was changed":          `UPDATE journal SET hash = 'x' WHERE seq = 2`,
		"one was put in again":        `UPDATE journal SET seq = seq + 10 WHERE seq > 3; INSERT INTO journal SELECT delivery, 4, kind, body, hash FROM journal WHERE seq = 3`,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			if _, err := s.Create(t.Context(), delivery.Spec{ID: "a"}); err != nil {
				t.Fatal(err)
			}
			var records []store.Record
			for i := range 5 {
				records = append(records, store.Record{Kind: "intent", Path: fmt.Sprint("p", i+1)})
			}
			if _, err := s.Swap(t.Context(), "a", 1, delivery.Status{}, records); err != nil {
				t.Fatal(err)
			}
			if j, err := s.Journal(t.Context(), "a"); err != nil || len(j) != 6 {
				t.Fatalf("%d records, %v", len(j), err)
			}
			run(t, s, "DROP TRIGGER journal_fixed", "DROP TRIGGER journal_kept", q)
			if _, err := s.Journal(t.Context(), "a"); !fault.Is(err, fault.Lost) {
				t.Errorf("nobody noticed: %v", err)
			}
		})
	}
}

// TestNewerFile holds that a file of a newer program is refused and left as it is.
func TestNewerFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	run(t, s, fmt.Sprintf("PRAGMA user_version = %d", len(migrations())+1))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), path)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "use the newer version") {
		t.Errorf("%v", err)
	}
}

// TestOpenKeeps holds that a file which is opened again still has everything.
func TestOpenKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	for i := range 3 {
		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprint("d", i)
		if _, err := s.Create(t.Context(), delivery.Spec{ID: id, Application: id}); err != nil {
			t.Fatal(err)
		}
		if all, err := s.List(t.Context(), true); err != nil || len(all) != i+1 {
			t.Errorf("%d deliveries after opening it %d times (%v)", len(all), i+1, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDurability(t *testing.T) {
	s := open(t)
	for _, db := range []struct {
		q    string
		want string
	}{{"PRAGMA journal_mode", "wal"}, {"PRAGMA synchronous", "2"}, {"PRAGMA busy_timeout", "5000"}} {
		var got string
		if err := s.write.QueryRowContext(t.Context(), db.q).Scan(&got); err != nil || got != db.want {
			t.Errorf("%s is %q, want %q (%v)", db.q, got, db.want, err)
		}
	}
}
