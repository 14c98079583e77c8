package databasetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// rows is how many orders most tests work on.
const rows = 5000

// Run runs the suite. h is called in the test's own process and in children of it, so it must not start anything itself.
func Run(t *testing.T, h Harness) {
	if holdUntilKilled(t, h) {
		return
	}
	t.Run("reading", func(t *testing.T) {
		s := h.New(t)
		s.Fill(t, rows)
		for _, c := range []struct {
			name string
			test func(*testing.T, Harness, Server)
		}{
			{"describes itself", describes}, {"a catalog is in normal form", catalog}, {"ranges cover a relation once", ranges},
			{"rows are fetched by key", fetches}, {"fields have names", fields}, {"a view stands still or says live", stands},
			{"a scan ends when nobody waits for it", ends}, {"a healthy server has no findings", healthy},
			{"nothing is written", readOnly}, {"errors say what to do and no password", refuses}, {"a missing privilege is named", preflight},
		} {
			t.Run(c.name, func(t *testing.T) { c.test(t, h, s) })
		}
	})
	t.Run("twins", func(t *testing.T) { twins(t, h) })
	t.Run("quiesce", func(t *testing.T) { quiesce(t, h) })
}

// open connects to a server for the length of the test.
func open(t testing.TB, h Harness, s Server) database.Server {
	t.Helper()
	db, err := h.Engine().Open(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// orders returns the relation, from a catalog read now.
func orders(t testing.TB, db database.Server) (database.Relation, database.Catalog) {
	t.Helper()
	c, err := db.Catalog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(c.Relations, func(r database.Relation) bool { return r.Name.Database == Shop && r.Name.Relation == Orders })
	if i < 0 {
		t.Fatalf("the catalog has no relation %s.%s: %v", Shop, Orders, c.Relations)
	}
	return c.Relations[i], c
}

// projection asks for all columns.
func projection(r database.Relation) *database.Projection {
	p := &database.Projection{Columns: r.Columns}
	for _, k := range r.Key {
		i := slices.IndexFunc(r.Columns, func(c database.Column) bool { return c.Name == k })
		p.Key = append(p.Key, max(i, 0)) // the key of a document is inside it
	}
	return p
}

func view(t testing.TB, db database.Server) database.View {
	t.Helper()
	v, err := db.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

// id is the integer that is an order's key.
func id(t testing.TB, key []byte) int64 {
	t.Helper()
	values, ok := database.KeyValues(key)
	if !ok || len(values) != 1 {
		t.Fatalf("key %x has %d values", key, len(values))
	}
	n, ok := database.Number(values[0])
	if !ok || !n.IsInt() {
		t.Fatalf("key %x is no integer", key)
	}
	return n.Num().Int64()
}

// read scans a range and returns its rows by id.
func read(t testing.TB, v database.View, r database.Range, p *database.Projection) map[int64]database.Row {
	t.Helper()
	out := map[int64]database.Row{}
	var n int64
	server, err := v.Scan(t.Context(), r, p, func(row database.Row) error {
		n++
		out[id(t, row.Key)] = keep(row)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n != server {
		t.Fatalf("%d rows were given, the server counted %d", n, server)
	}
	if int64(len(out)) != n {
		t.Fatalf("%d rows have %d keys", n, len(out))
	}
	return out
}

// keep copies a row, which is valid in the callback only.
func keep(r database.Row) database.Row {
	out := database.Row{Key: slices.Clone(r.Key)}
	for _, v := range r.Values {
		out.Values = append(out.Values, slices.Clone(v))
	}
	return out
}

func same(a, b database.Row) bool {
	return slices.Equal(a.Key, b.Key) && slices.EqualFunc(a.Values, b.Values, func(x, y []byte) bool { return slices.Equal(x, y) })
}

// ids returns the keys of all orders.
func ids(t testing.TB, h Harness, s Server) map[int64]database.Row {
	t.Helper()
	db := open(t, h, s)
	r, _ := orders(t, db)
	return read(t, view(t, db), database.Range{Relation: r}, projection(r))
}

func describes(t *testing.T, h Harness, s Server) {
	i, err := open(t, h, s).Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i.Engine != h.Engine().Name() || i.Version == "" || i.Role == "" {
		t.Errorf("engine, version or role is missing: %+v", i)
	}
	_, quiescer := h.Engine().(database.Quiescer)
	if quiescer != slices.Contains(i.Abilities, "quiesce") {
		t.Errorf("abilities %v do not match what the engine can do", i.Abilities)
	}
}

func catalog(t *testing.T, h Harness, s Server) {
	db := open(t, h, s)
	r, a := orders(t, db)
	if len(r.Columns) == 0 || len(r.Key) == 0 || !r.KeyUnique || r.Skip != "" || r.Bytes == 0 {
		t.Errorf("relation %+v", r)
	}
	if !slices.Contains(a.Databases, Shop) {
		t.Errorf("databases %v", a.Databases)
	}
	if !slices.IsSorted(a.Databases) ||
		!slices.IsSortedFunc(a.Relations, func(x, y database.Relation) int { return strings.Compare(x.Name.String(), y.Name.String()) }) ||
		!slices.IsSortedFunc(a.Objects, func(x, y database.Object) int { return strings.Compare(x.Kind+" "+x.Name, y.Kind+" "+y.Name) }) {
		t.Error("the catalog is not sorted")
	}
	for i := 1; i < len(a.Objects); i++ {
		if a.Objects[i].Kind == a.Objects[i-1].Kind && a.Objects[i].Name == a.Objects[i-1].Name {
			t.Errorf("%s %s stands in the catalog twice", a.Objects[i].Kind, a.Objects[i].Name)
		}
	}
	_, b := orders(t, db)
	plan, err := fingerprint.NewPlan(a, b, fingerprint.PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Findings) > 0 || len(plan.NotCompared) > 0 {
		t.Errorf("a catalog read twice differs: %v, not compared: %v", plan.Findings, plan.NotCompared)
	}
	if lacks := database.Covers(a, b); len(lacks) > 0 {
		t.Errorf("a server does not cover itself: %v", lacks)
	}
}

func ranges(t *testing.T, h Harness, s Server) {
	db := open(t, h, s)
	r, _ := orders(t, db)
	v, p := view(t, db), projection(r)
	whole := read(t, v, database.Range{Relation: r}, p)
	if len(whole) != rows {
		t.Fatalf("%d rows, want %d", len(whole), rows)
	}
	for _, n := range []int{1, 2, 7} {
		parts, err := v.Ranges(t.Context(), r, n)
		if err != nil {
			t.Fatal(err)
		}
		if len(parts) == 0 || len(parts) > n {
			t.Fatalf("%d ranges, asked for %d", len(parts), n)
		}
		seen := map[int64]database.Row{}
		for _, part := range parts {
			for k, row := range read(t, v, part, p) {
				if _, ok := seen[k]; ok {
					t.Fatalf("row %d is in two of %d ranges", k, n)
				}
				seen[k] = row
				if !same(row, whole[k]) {
					t.Fatalf("row %d differs between scans", k)
				}
			}
		}
		if len(seen) != rows {
			t.Errorf("%d ranges hold %d rows", n, len(seen))
		}
	}
}

func fetches(t *testing.T, h Harness, s Server) {
	db := open(t, h, s)
	r, _ := orders(t, db)
	v, p := view(t, db), projection(r)
	whole := read(t, v, database.Range{Relation: r}, p)
	var keys [][]byte
	want := map[int64]bool{}
	for _, k := range rand.Perm(rows)[:1000] {
		keys = append(keys, whole[int64(k+1)].Key)
		want[int64(k+1)] = true
	}
	keys = append(keys, database.AppendKey(nil, database.AppendInteger(nil, 1<<40))) // nobody's
	got := map[int64]bool{}
	err := v.Fetch(t.Context(), r, p, keys, func(row database.Row) error {
		k := id(t, row.Key)
		if !want[k] || got[k] || !same(row, whole[k]) {
			return fmt.Errorf("row %d was not asked for, came twice or differs", k)
		}
		got[k] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Errorf("%d of %d rows were fetched", len(got), len(want))
	}
	if err := v.Fetch(t.Context(), r, p, nil, func(database.Row) error { return errors.New("nothing was asked for") }); err != nil {
		t.Error(err)
	}
}

func fields(t *testing.T, h Harness, s Server) {
	db := open(t, h, s)
	r, _ := orders(t, db)
	v, p := view(t, db), projection(r)
	row := read(t, v, database.Range{Relation: r}, p)[1]
	f, err := v.Fields(r, p, row)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(f, func(f database.Field) bool { return f.Path == Placed })
	if i < 0 || f[i].Text == "" || f[i].Type == "" {
		t.Fatalf("fields %+v", f)
	}
	if len(f) < 3 {
		t.Errorf("an order has more than %d fields", len(f))
	}
}

// stands writes while a view is open.
func stands(t *testing.T, h Harness, s Server) {
	db := open(t, h, s)
	r, _ := orders(t, db)
	v, p := view(t, db), projection(r)
	const late = 900_001
	if err := s.Insert(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Remove(t, late) })
	n := len(read(t, v, database.Range{Relation: r}, p))
	if !v.Live() && n != rows {
		t.Errorf("the view says that it stands still and shows %d rows, want %d", n, rows)
	}
	if n := len(ids(t, h, s)); n != rows+1 {
		t.Errorf("a later view shows %d rows, want %d", n, rows+1)
	}
}

// ends gives up in the middle of a scan; the view must be closable at once, and usable before that.
func ends(t *testing.T, h Harness, s Server) {
	db := open(t, h, s)
	r, _ := orders(t, db)
	v, p := view(t, db), projection(r)
	enough := errors.New("enough")
	if _, err := v.Scan(t.Context(), database.Range{Relation: r}, p, func(database.Row) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("the scan returned %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	start := time.Now()
	_, err := v.Scan(ctx, database.Range{Relation: r}, p, func(database.Row) error {
		if n++; n == 10 {
			cancel()
		}
		return ctx.Err()
	})
	cancel()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled scan returned %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %s to end", took)
	}
	if n := len(read(t, v, database.Range{Relation: r}, p)); n != rows {
		t.Errorf("the next scan of the view gave %d rows", n)
	}
}

func healthy(t *testing.T, h Harness, s Server) {
	db := open(t, h, s)
	for _, depth := range []database.Depth{database.Quick, database.Full} {
		err := db.Check(t.Context(), depth, func(f database.Finding) { t.Errorf("%s: %+v", depth, f) })
		if err != nil {
			t.Errorf("%s: %v", depth, err)
		}
	}
}

// readOnly reads everything there is and looks whether that left a trace in the content.
func readOnly(t *testing.T, h Harness, s Server) {
	before := ids(t, h, s)
	healthy(t, h, s)
	after := ids(t, h, s)
	if len(before) != len(after) {
		t.Errorf("%d rows became %d", len(before), len(after))
	}
}

func refuses(t *testing.T, h Harness, s Server) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody listens there now
	u := s.URL()
	u.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := reach(ctx, h, u); err == nil || fault.KindOf(err) == "" {
		t.Errorf("an unreachable server gives %v", err)
	}
	if d, ok := s.(Denier); ok {
		u, password := d.WrongPassword(t)
		err := reach(ctx, h, u)
		if !fault.Is(err, fault.Denied) {
			t.Errorf("a wrong password gives %v", err)
		}
		if err != nil && strings.Contains(err.Error(), password) {
			t.Errorf("the error tells the password: %v", err)
		}
	}
	const secret = "s3cr3t-that-nobody-may-see"
	for _, bad := range []string{h.Engine().Name() + "://u:" + secret + "@[::1/x", "://" + secret, h.Engine().Name() + "://u:" + secret + "@h:port/"} {
		_, err := h.Engine().Open(ctx, database.URL{Value: bad})
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("a malformed URL gives %v", err)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

// reach opens a server and asks it something, for engines that connect lazily.
func reach(ctx context.Context, h Harness, u database.URL) error {
	db, err := h.Engine().Open(ctx, u)
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.Describe(ctx)
	return err
}

func preflight(t *testing.T, h Harness, s Server) {
	p, ok := h.Engine().(database.Preflighter)
	if !ok {
		t.Fatal("the engine has no preflight")
	}
	found, err := p.Preflight(t.Context(), s.URL())
	if err != nil || len(found) > 0 {
		t.Errorf("a user that may do everything lacks %v, %v", found, err)
	}
	if g := p.Grants("sluice"); !strings.Contains(g, "sluice") {
		t.Errorf("the grants do not name the role: %s", g)
	}
	if l, ok := s.(Lesser); ok {
		found, err := p.Preflight(t.Context(), l.Lesser(t))
		if err != nil || len(found) == 0 {
			t.Errorf("a user that lacks a privilege: %v, %v", found, err)
		}
	}
}
