package verification

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
)

func TestLittleDataIsReadFromHere(t *testing.T) {
	catalog := func(rows, bytes int64) database.Catalog {
		return database.Catalog{Relations: []database.Relation{{Rows: rows, Bytes: bytes}, {Rows: -1}}}
	}
	for name, c := range map[string]struct {
		catalogs []database.Catalog
		much     bool
	}{
		"nothing":                      {nil, false},
		"few rows":                     {[]database.Catalog{catalog(40_000, 1<<20), catalog(40_000, 1<<20)}, false},
		"many rows":                    {[]database.Catalog{catalog(50_000, 0), catalog(50_000, 0)}, true},
		"rows that nobody has counted": {[]database.Catalog{catalog(-1, 20<<20), catalog(-1, 20<<20)}, true},
	} {
		if got := Much(c.catalogs...); got != c.much {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestAConnectionThatNamesFilesIsUsedHere(t *testing.T) {
	for connection, portable := range map[string]bool{
		"postgres://u:p@pg:5432/shop?sslmode=require":                              true,
		"mongodb://u:p@mongo:27017/?authSource=admin":                              true,
		"postgres://u:p@pg/shop?sslmode=verify-full&sslrootcert=/etc/ssl/ours.pem": false,
		"mongodb://u:p@mongo/?tls=true&tlsCAFile=/etc/ssl/ours.pem":                false,
	} {
		if Portable(connection) != portable {
			t.Errorf("%s: %v", connection, !portable)
		}
	}
}

// TestASiteIsItsNamespacesService holds that one connection leads to another database in each namespace.
func TestASiteIsItsNamespacesService(t *testing.T) {
	task := Task{Sites: []Site{{Name: "orders", Namespace: "old", URL: "mongodb://mongo:27017/"}, {Name: "orders", Namespace: "new", URL: "mongodb://mongo:27017/"}}}
	var went []string
	for _, d := range task.Bound(nil, func(_ context.Context, namespace, service, port string) (net.Conn, error) {
		went = append(went, namespace+"/"+service+":"+port)
		return nil, errors.New("nobody")
	}) {
		_, _ = d.URL.Dial(t.Context(), "tcp", "mongo:27017")
		if !d.URL.Frozen {
			t.Error("nobody writes to a copy")
		}
	}
	if len(went) != 2 || went[0] != "old/mongo:27017" || went[1] != "new/mongo:27017" {
		t.Errorf("%q", went)
	}
}
