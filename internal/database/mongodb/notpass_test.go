package mongodb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/databasetest"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// Damage class 40: what must never be called equal, although no row is known that differs.

// unequal compares two servers whose content is the same and wants no verdict of equal, and a reason.
func unequal(t *testing.T, a, b database.Server, plan *fingerprint.Plan, reason string) {
	t.Helper()
	r, err := fingerprint.Compare(t.Context(), fingerprint.Options{Source: fingerprint.Side{Server: a}, Target: fingerprint.Side{Server: b},
		Plan: plan, Seed: fingerprint.NewSeed(), SpillDir: t.TempDir()})
	if r.Verdict != fingerprint.Unknown {
		t.Errorf("the verdict is %s (%v)", r.Verdict, err)
	}
	if text := fmt.Sprint(r.Reason, err); !strings.Contains(text, reason) {
		t.Errorf("the reason is %q, %v, and not %q", r.Reason, err, reason)
	}
}

func planOf(t *testing.T, a, b database.Catalog) *fingerprint.Plan {
	t.Helper()
	plan, err := fingerprint.NewPlan(a, b, fingerprint.PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// TestConnectionLost cuts the connection in the middle of a scan.
func TestConnectionLost(t *testing.T) {
	t.Parallel()
	f := started(t, newer, 2000)
	whole, catalog := opened(t, f.URL())
	var cut atomic.Bool
	u := f.URL()
	u.Frozen = true
	u.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, address)
		return &shortConn{Conn: c, cut: &cut}, err
	}
	s, err := newEngine().Open(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	plan := planOf(t, catalog, catalog)
	cut.Store(true)
	unequal(t, whole, s, plan, "does not answer")
}

// shortConn ends after 100 kB, once it is told to.
type shortConn struct {
	net.Conn
	cut  *atomic.Bool
	read int
}

func (c *shortConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.read += n; c.cut.Load() && c.read > 100_000 {
		return 0, errors.Join(errors.New("connection reset"), c.Conn.Close())
	}
	return n, err
}

// TestCursorKilled ends the server's cursors in the middle of a scan.
func TestCursorKilled(t *testing.T) {
	t.Parallel()
	kill, server, catalog := serveStandin(t, standinContent())
	v, err := server.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	r := catalog.Relations[len(catalog.Relations)-1]
	_, err = v.Scan(t.Context(), database.Range{Relation: r}, &database.Projection{Columns: r.Columns, Key: []int{0}}, func(database.Row) error {
		if n++; n == 300 {
			kill.KillCursors()
		}
		return nil
	})
	if !fault.Is(err, fault.Lost) || n >= documentsEach {
		t.Errorf("a killed cursor after %d documents: %v", n, err)
	}
}

// TestCursorKilledOnFerretDB does the same by the command of another client.
func TestCursorKilledOnFerretDB(t *testing.T) {
	t.Parallel()
	for _, version := range []string{older, newer} {
		f := started(t, version, 2000)
		s, catalog := opened(t, f.URL())
		v, err := s.View(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r, n := catalog.Relations[0], 0
		_, err = v.Scan(t.Context(), database.Range{Relation: r}, &database.Projection{Columns: r.Columns, Key: []int{0}}, func(database.Row) error {
			if n++; n != 300 {
				return nil
			}
			// FerretDB numbers its cursors one after another, so the scan's is just before the next one.
			db := f.client.Database(databasetest.Shop)
			next, err := db.RunCommand(context.Background(), bson.D{{Key: "find", Value: r.Name.Relation}, {Key: "batchSize", Value: 1}}).Raw()
			if err != nil {
				return err
			}
			id, _ := next.Lookup("cursor", "id").AsInt64OK()
			return db.RunCommand(context.Background(), bson.D{{Key: "killCursors", Value: r.Name.Relation}, {Key: "cursors", Value: bson.A{id - 1}}}).Err()
		})
		if !fault.Is(err, fault.Lost) || n >= 2000 {
			t.Errorf("%s: a killed cursor after %d documents: %v", version, n, err)
		}
	}
}

// TestMistyped is a database that is not there: FerretDB, like mongod, would show it as empty.
func TestMistyped(t *testing.T) {
	t.Parallel()
	f := started(t, older, 10)
	for name, kind := range map[string]fault.Kind{"shop": "", "Shop": fault.NotFound, "shpo": fault.NotFound} {
		u := f.URL()
		u.Value += name
		s, err := newEngine().Open(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.Catalog(t.Context())
		if fault.KindOf(err) != kind || err == nil && (len(c.Relations) != 1 || c.Databases[0] != name) {
			t.Errorf("database %q: %v, %v", name, c.Relations, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestWrittenMeanwhile compares a server with itself while somebody writes to it all the time.
func TestWrittenMeanwhile(t *testing.T) {
	t.Parallel()
	f := started(t, newer, 500)
	u := f.URL() // nobody says that it is frozen
	live, err := newEngine().Open(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	_, catalog := opened(t, u)
	frozen := harness{newer}.New(t).(*ferret)
	frozen.Fill(t, 500)
	other, _ := opened(t, frozen.URL())
	ctx, cancel := context.WithCancel(t.Context())
	done, writing := make(chan error, 1), make(chan struct{})
	go func() {
		var err error
		for i := 0; ctx.Err() == nil && err == nil; i++ {
			if i == 10 {
				close(writing)
			}
			note := bson.D{{Key: "$set", Value: bson.D{{Key: "note", Value: i}}}}
			_, err = f.collection(databasetest.Orders).UpdateOne(context.Background(), bson.D{{Key: "_id", Value: int64(1 + i%3)}}, note)
		}
		done <- err
	}()
	select {
	case <-writing:
	case err := <-done:
		t.Fatal(err)
	}
	unequal(t, live, other, planOf(t, catalog, catalog), "being written")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestInvariant is class 35: a reference that leads nowhere is found by a check that the deploy file declares.
func TestInvariant(t *testing.T) {
	t.Parallel()
	f := started(t, older, 100)
	s, _ := opened(t, f.URL())
	q := s.(database.Querier)
	orphans := `{"count": "orders", "query": {"email": "nobody@example.com"}, "$db": "shop"}`
	for _, want := range []string{"0", "1"} {
		if got, err := q.Query(t.Context(), orphans); err != nil || got != want {
			t.Errorf("the invariant is %q, %v, want %s", got, err, want)
		}
		f.set(t, databasetest.Orders, int64(5), bson.D{{Key: "email", Value: "nobody@example.com"}})
	}
	for query, want := range map[string]string{
		`{"aggregate": "orders", "pipeline": [{"$group": {"_id": null, "n": {"$sum": "$cents"}}}], "cursor": {}, "$db": "shop"}`: fmt.Sprint(101 * 5050),
		`{"find": "orders", "filter": {"_id": 7}, "projection": {"email": 1}, "$db": "shop"}`:                                    "customer7@example.com",
		`{"distinct": "orders", "key": "address.city", "$db": "shop"}`:                                                           "Utrecht",
	} {
		if got, err := q.Query(t.Context(), query); err != nil || got != want {
			t.Errorf("%s is %q, %v, want %q", query, got, err, want)
		}
	}
	for _, bad := range []string{"", "select 1", `{"count": "orders"}`, `{"drop": "orders", "$db": "shop"}`, `{"find": "orders", "$db": "shop"}`,
		`{"aggregate": "orders", "pipeline": [{"$out": "x"}], "cursor": {}, "$db": "shop"}`, `{"distinct": "orders", "key": "_id", "$db": "shop"}`} {
		if _, err := q.Query(t.Context(), bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s gives %v", bad, err)
		}
	}
}
