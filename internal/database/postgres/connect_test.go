package postgres

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// TestParse reads connections in all the forms that psql takes.
func TestParse(t *testing.T) {
	dir := t.TempDir()
	pass, services := filepath.Join(dir, "pass"), filepath.Join(dir, "services")
	if err := os.WriteFile(pass, []byte("db.example:5433:shop:ann:from the file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(services, []byte("[live]\nhost=db.example\nport=5433\ndbname=shop\nuser=ann\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGPASSFILE", pass)
	t.Setenv("PGSERVICEFILE", services)
	tests := []struct{ value, host, database, user, password string }{
		{"postgres://ann:pw@db.example:5433/shop", "db.example:5433", "shop", "ann", "pw"},
		{"postgresql://ann@db.example:5433/shop?sslmode=disable", "db.example:5433", "shop", "ann", "from the file"},
		{"host=db.example port=5433 user=ann dbname=shop", "db.example:5433", "shop", "ann", "from the file"},
		{"service=live", "db.example:5433", "shop", "ann", "from the file"},
		{"postgres://ann:p%40ss@db.example:5433/", "db.example:5433", "ann", "ann", "p@ss"},
	}
	for _, test := range tests {
		got, err := parse(database.URL{Value: test.value}, "sluice")
		if err != nil {
			t.Errorf("%s: %v", test.value, err)
			continue
		}
		if got.address() != test.host || got.home() != test.database || got.config.User != test.user || got.config.Password != test.password {
			t.Errorf("%s: %s %s %s %s", test.value, got.address(), got.home(), got.config.User, got.config.Password)
		}
	}
	t.Setenv("PGSERVICE", "live")
	if got, err := parse(database.URL{Value: ""}, "sluice"); err != nil || got.home() != "shop" {
		t.Errorf("PGSERVICE: %v", err)
	}
	verify, err := parse(database.URL{Value: "postgres://ann@db.example/shop?sslmode=verify-full"}, "sluice")
	if err != nil || verify.config.TLSConfig == nil || verify.config.TLSConfig.ServerName != "db.example" || verify.config.TLSConfig.InsecureSkipVerify {
		t.Errorf("verify-full: %+v, %v", verify, err)
	}
}

// TestDial asks the given function for every connection, by the name in the URL.
func TestDial(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off")
	s := h.start(t, h.bin.new, []string{freshData(t, h.bin)}, nil)
	s.Fill(t, 100)
	asked := map[string]int{}
	u := database.URL{Value: "postgres://sluice@pg.shop:5432/shop?sslmode=disable",
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			asked[address]++
			var d net.Dialer
			return d.DialContext(ctx, "tcp", net.JoinHostPort(s.address, port))
		}}
	db, err := New().Open(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	v, err := db.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if len(asked) != 1 || asked["pg.shop:5432"] < 2 {
		t.Errorf("asked for %v", asked)
	}
	refused := errors.New("only the Service is meant")
	u.Dial = func(context.Context, string, string) (net.Conn, error) {
		return nil, fault.Newf(fault.Denied, "no: %w", refused)
	}
	if _, err := New().Open(t.Context(), u); !errors.Is(err, refused) {
		t.Errorf("the dialer's refusal comes back as %v", err)
	}
}

// TestCancel ends a query on the server when nobody waits for it any more.
func TestCancel(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off")
	s := h.start(t, h.bin.new, []string{freshData(t, h.bin)}, nil)
	opened, err := New().Open(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	db := opened.(*server)
	const running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := db.Query(ctx, "SELECT pg_sleep(60)")
		done <- err
	}()
	waitFor(t, "the query runs", func() bool { return s.ask(t, "postgres", running) == "1" })
	start := time.Now()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	waitFor(t, "the query is gone from the server", func() bool { return s.ask(t, "postgres", running) == "0" })
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestQuery runs invariants.
func TestQuery(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off")
	s := h.start(t, h.bin.new, []string{freshData(t, h.bin)}, nil)
	s.Fill(t, 100)
	opened, err := New().Open(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	db := opened.(database.Querier)
	for query, want := range map[string]string{"SELECT count(*) FROM orders": "100", "SELECT sum(total) FROM orders": "6312.50", "SELECT NULL": "NULL",
		"SELECT timestamptz '2025-01-01 00:00+01'": "2024-12-31 23:00:00+00"} {
		if got, err := db.Query(t.Context(), query); err != nil || got != want {
			t.Errorf("%s gives %q, %v", query, got, err)
		}
	}
	for _, query := range []string{"SELECT 1, 2", "SELECT id FROM orders", "SELECT id FROM orders WHERE false", "DELETE FROM orders",
		"COMMIT; DELETE FROM orders", "SELECT 1; SELECT 2", "SELECT nothing"} {
		if got, err := db.Query(t.Context(), query); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s gives %q, %v", query, got, err)
		}
	}
	if got, err := db.Query(t.Context(), "SELECT count(*) FROM orders"); err != nil || got != "100" {
		t.Errorf("after all that: %s, %v", got, err)
	}
}

// TestFaults gives what the server says a kind and a remedy.
func TestFaults(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off", "-c", "superuser_reserved_connections=0", "-c", "max_wal_senders=0")
	s := h.start(t, h.bin.new, []string{freshData(t, h.bin)}, []string{"-c", "max_connections=1"})
	u := database.URL{Value: s.url("postgres")}
	opened, err := New().Open(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if _, err := New().Open(t.Context(), u); !fault.Is(err, fault.Transient) || !strings.Contains(err.Error(), "max_connections") {
		t.Errorf("with all connections taken: %v", err)
	}
}

// TestReconnect goes on after the server has ended the idle sessions.
func TestReconnect(t *testing.T) {
	h := newHarness(t, "-c", "fsync=off")
	s := h.start(t, h.bin.new, []string{freshData(t, h.bin)}, nil)
	db, err := New().Open(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for range 2 {
		if _, err := db.Describe(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := s.ask(t, "postgres", "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = 'sluice'"); n == "0" {
			t.Fatal("there was no idle session")
		}
	}
}
