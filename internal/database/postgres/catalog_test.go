package postgres

import (
	"context"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
)

// TestQueries runs every query over the catalogs by itself, so that one that a version does not understand is named.
func TestQueries(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off")
	for name, bin := range map[string]string{"old": h.bin.old, "new": h.bin.new} {
		t.Run(name, func(t *testing.T) {
			s := h.start(t, bin, []string{freshData(t, h.bin)}, nil)
			opened, err := New().Open(t.Context(), s.URL())
			if err != nil {
				t.Fatal(err)
			}
			defer opened.Close()
			db := opened.(*server)
			for _, q := range append(clusterQueries(db.version), databaseQueries(db.version)...) {
				c, err := db.acquire(context.Background(), "postgres")
				if err != nil {
					t.Fatal(err)
				}
				var into database.Catalog
				if err := objects(t.Context(), c, []objectQuery{q}, "", &into); err != nil {
					t.Errorf("%v\n%s", err, q.sql)
				}
				db.release("postgres", c)
			}
		})
	}
}
