package cli

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

func TestConnection(t *testing.T) {
	for _, c := range []struct {
		arg, engine, shown string
		warns              bool
	}{
		{"postgres://alice@db.example.org/shop?sslmode=verify-full", "postgres", "postgres://alice@db.example.org/shop?sslmode=verify-full", false},
		{"postgresql://alice:hunter2@db/shop", "postgres", "postgresql://alice:***@db/shop", true},
		{"postgres://alice:hunter2@one:5432,two:5433/shop", "postgres", "postgres://alice:***@one:5432,two:5433/shop", true},
		{"postgres:///shop?host=/run/postgresql&password=hunter2&user=a", "postgres", "postgres:///shop?host=/run/postgresql&password=***&user=a", true},
		{"postgres://a@db/shop?sslkey=k&sslpassword=hunter2", "postgres", "postgres://a@db/shop?sslkey=k&sslpassword=***", true},
		{"postgres://alice:hunter/2@db/shop", "postgres", "postgres://alice:***@db/shop", true},
		{"postgres:///shop?service=main", "postgres", "postgres:///shop?service=main", false},
		{"mongodb://a:hunter2@m1:27017,m2:27017/shop?replicaSet=rs0", "mongodb", "mongodb://a:***@m1:27017,m2:27017/shop?replicaSet=rs0", true},
		{"mongodb+srv://a:hunter2@cluster.example.org", "mongodb", "mongodb+srv://a:***@cluster.example.org", true},
	} {
		var errs bytes.Buffer
		got, err := (&app{errs: &errs}).connection(c.arg)
		if err != nil || got.value != c.arg || got.engine != c.engine || got.shown != c.shown {
			t.Errorf("%s is %+v, %v", c.arg, got, err)
		}
		if warned := strings.HasPrefix(errs.String(), "warning: a password in an argument"); warned != c.warns {
			t.Errorf("%s: the warning is %q", c.arg, errs.String())
		}
	}
}

func TestDatabaseOfAConnection(t *testing.T) {
	for arg, want := range map[string]string{
		"mongodb://h/shop": "shop", "mongodb://u@h1:1,h2:2/shop%20two?authSource=admin": "shop two", "mongodb://h": "", "mongodb://h/": "",
		"mongodb://h/?replicaSet=a/b": "", "mongodb://h/admin": "", "postgres://h/shop": "",
	} {
		c, err := (&app{errs: &bytes.Buffer{}}).connection(arg)
		if err != nil || c.database() != want {
			t.Errorf("%s names %q, %v", arg, c.database(), err)
		}
	}
}

func TestNarrow(t *testing.T) {
	c := narrow(database.Catalog{
		Databases: []string{"other", "shop", "shop2"},
		Relations: []database.Relation{{Name: database.Name{Database: "shop", Relation: "orders"}}, {Name: database.Name{Database: "shop2", Relation: "orders"}}},
		Objects: []database.Object{{Kind: "index", Name: "by_day on shop.orders"}, {Kind: "index", Name: "by_day on shop2.orders"}, {Kind: "view", Name: "shop.recent"},
			{Kind: "view", Name: "shop2.recent"}, {Kind: "user", Name: "alice on shop"}},
		NotComparable: []database.Finding{{Object: "users"}, {Object: "view shop.v"}},
	}, "shop")
	if len(c.Databases) != 1 || len(c.Relations) != 1 || c.Relations[0].Name.Database != "shop" || len(c.Objects) != 2 || c.Objects[0].Name != "by_day on orders" || c.Objects[1].Name != "recent" ||
		len(c.NotComparable) != 1 || c.NotComparable[0].Object != "view shop.v" {
		t.Errorf("what is left is %+v", c)
	}
}

func TestConnectionRefused(t *testing.T) {
	t.Setenv("SLUICE_TEST_EMPTY", "")
	for arg, want := range map[string]string{
		"hunter2":               "a connection is not a URL",
		"sqlite://hunter2":      `scheme "sqlite" is of no engine that is known`,
		"env:SLUICE_TEST_EMPTY": "environment variable SLUICE_TEST_EMPTY is not set",
		"file:/no/such/file":    "read the connection: open /no/such/file",
	} {
		_, err := (&app{errs: &bytes.Buffer{}}).connection(arg)
		e, ok := errors.AsType[*exit](err)
		if !ok || e.code != exitUnable || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", arg, err)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]size{"1": 1, "64MiB": 64 << 20, "64mib": 64 << 20, "2 GiB": 2 << 30, "5KB": 5000, "7K": 7 << 10, "9B": 9} {
		var s size
		if err := s.Set(text); err != nil || s != want {
			t.Errorf("%s is %d, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "0", "1.5MiB", "1TiB", "9999999999GiB"} {
		var s size
		if err := s.Set(text); err == nil {
			t.Errorf("%q is the size %d", text, s)
		}
	}
}

func TestGrouped(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -999: "-999"} {
		if got := grouped(n); got != want {
			t.Errorf("%d is %s", n, got)
		}
	}
}

// rows is a view that sends so many rows and nothing else.
type rows struct {
	database.View
	n int
}

func (r rows) Scan(_ context.Context, _ database.Range, _ *database.Projection, each func(database.Row) error) (int64, error) {
	for range r.n {
		if err := each(database.Row{}); err != nil {
			return 0, err
		}
	}
	return int64(r.n), nil
}

// Both scans of a side share its pace, and a cancelled one does not wait.
func TestPace(t *testing.T) {
	v := paced{View: rows{n: 1000}, pace: newPace(10_000)}
	start := time.Now()
	done := make(chan error, 2)
	for range cap(done) {
		go func() {
			_, err := v.Scan(t.Context(), database.Range{}, nil, func(database.Row) error { return nil })
			done <- err
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	// 2,000 rows at 10,000 a second; the first step passes at once.
	if took := time.Since(start); took < 180*time.Millisecond {
		t.Errorf("it took %s", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	seen := 0
	_, err := paced{View: rows{n: 1000}, pace: newPace(1)}.Scan(ctx, database.Range{}, nil, func(database.Row) error {
		if seen++; seen == 150 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || seen != 199 {
		t.Errorf("cancelled after 150 rows it saw %d, %v", seen, err)
	}
}

func TestScanProgress(t *testing.T) {
	var b strings.Builder
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := &scanProgress{w: &b, now: func() time.Time { return now }, started: now, last: now}
	p := fingerprint.Progress{Relation: database.Name{Schema: "public", Relation: "orders"}, Pass: 1, Rows: 1500, Estimate: 3000, RowsPerSecond: 750, ETA: 2 * time.Second}
	s.show(p)
	if b.Len() > 0 {
		t.Errorf("a short comparison says %q", b.String())
	}
	now = now.Add(plainEvery)
	s.show(p)
	now = now.Add(plainEvery)
	p.SpillNeeded = 5 << 20
	s.show(p)
	now = now.Add(longSnapshot)
	s.show(p)
	want := `public.orders, pass 1: 1,500 rows of about 3,000, 750 rows/s, 2s to go
public.orders: many rows differ; up to 5.0 MiB go to the folder for spilled rows
public.orders, pass 1: 1,500 rows are read and compared
warning: the snapshot is 5m0s old and keeps a live server from cleaning up; --table and --workers make it shorter
public.orders, pass 1: 1,500 rows are read and compared
`
	if b.String() != want {
		t.Errorf("it says\n%s\nnot\n%s", b.String(), want)
	}
}
