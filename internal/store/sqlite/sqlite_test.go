package sqlite

import (
	"path/filepath"
	"testing"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
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
	for _, q := range []string{"DROP TRIGGER journal_fixed", `UPDATE journal SET body = '{"seq":1}'`} {
		if _, err := s.write.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Journal(t.Context(), "a"); !fault.Is(err, fault.Lost) {
		t.Errorf("a changed journal was not noticed: %v", err)
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
