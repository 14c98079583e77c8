package fingerprint

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/database"
)

// fake is a database in memory: rows of canonical values, in the order in which they are scanned.
type fake struct {
	live      bool
	relations []database.Relation
	rows      map[string][]database.Row
	cut       int                   // a scan ends without an error after so many rows, 0 never
	onScan    func(relation string) // called before a scan
	onFetch   func(keys int)        // called before a fetch
	scans     map[string]int
}

func newFake() *fake { return &fake{rows: map[string][]database.Row{}, scans: map[string]int{}} }

func (f *fake) catalog() database.Catalog {
	return database.Catalog{Info: database.Info{Engine: "memory", Version: "1"}, Databases: []string{"shop"}, Relations: f.relations}
}

func (f *fake) Live() bool   { return f.live }
func (f *fake) Close() error { return nil }

func (f *fake) Ranges(_ context.Context, r database.Relation, n int) ([]database.Range, error) {
	total := len(f.rows[r.Name.String()])
	var out []database.Range
	for i := range n {
		out = append(out, database.Range{Relation: r, Part: [2]int{i * total / n, (i + 1) * total / n}})
	}
	return out, nil
}

// project brings a full row into the order of the projection.
func project(r database.Relation, p *database.Projection, row database.Row) database.Row {
	out := database.Row{Key: row.Key}
	if len(r.Columns) == 1 && r.Columns[0].Family == database.Document {
		out.Values = row.Values
		return out
	}
	for _, c := range p.Columns {
		i := slices.IndexFunc(r.Columns, func(x database.Column) bool { return x.Name == c.Name })
		out.Values = append(out.Values, row.Values[i])
	}
	for _, k := range p.Key {
		out.Key = database.AppendKey(out.Key, out.Values[k])
	}
	return out
}

func (f *fake) Scan(_ context.Context, r database.Range, p *database.Projection, each func(database.Row) error) (int64, error) {
	name := r.Relation.Name.String()
	if f.onScan != nil {
		f.onScan(name)
	}
	part := r.Part.([2]int)
	rows := f.rows[name][part[0]:min(part[1], len(f.rows[name]))]
	for i, row := range rows {
		if f.cut > 0 && i == f.cut {
			break
		}
		if err := each(project(r.Relation, p, row)); err != nil {
			return 0, err
		}
	}
	return int64(len(rows)), nil
}

func (f *fake) Fetch(_ context.Context, r database.Relation, p *database.Projection, keys [][]byte, each func(database.Row) error) error {
	if f.onFetch != nil {
		f.onFetch(len(keys))
	}
	want := map[string]bool{}
	for _, k := range keys {
		want[string(k)] = true
	}
	for _, row := range f.rows[r.Name.String()] {
		if row := project(r, p, row); want[string(row.Key)] {
			if err := each(row); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *fake) Fields(r database.Relation, p *database.Projection, row database.Row) ([]database.Field, error) {
	if r.Columns[0].Family == database.Document {
		return flatten("", row.Values[0][1:], nil), nil
	}
	var out []database.Field
	for j, c := range p.Columns {
		family, _ := database.FamilyOf(row.Values[j])
		out = append(out, database.Field{Path: c.Name, Type: string(family), Text: database.TextOf(row.Values[j]), Canon: row.Values[j]})
	}
	return out, nil
}

// flatten lists the fields of a BSON document, containers left out.
func flatten(prefix string, raw bson.Raw, out []database.Field) []database.Field {
	elements, err := raw.Elements()
	if err != nil {
		panic(err)
	}
	for _, e := range elements {
		path, v := prefix+e.Key(), e.Value()
		if v.Type == bson.TypeEmbeddedDocument || v.Type == bson.TypeArray {
			if inner := flatten(path+".", v.Value, nil); len(inner) > 0 {
				out = append(out, inner...)
				continue
			}
		}
		field := database.Field{Path: path, Type: v.Type.String(), Text: v.String()}
		if s, ok := v.StringValueOK(); ok {
			field.Text = s
		}
		if n, ok := v.AsInt64OK(); ok {
			x := float64(n)
			field.Number = &x
		}
		if d, ok := v.DateTimeOK(); ok {
			field.Type = "date"
			field.Canon = database.AppendTimestamp(nil, d*1000)
		}
		out = append(out, field)
	}
	return out
}

// table adds a relation. A row is given as canonical values in the order of the columns.
func (f *fake) table(name string, key []string, columns []database.Column, rows [][][]byte) {
	n := database.Name{Database: "shop", Relation: name}
	f.relations = append(f.relations, database.Relation{Name: n, Columns: columns, Key: key, KeyUnique: len(key) > 0, Rows: int64(len(rows))})
	for _, r := range rows {
		f.rows[n.String()] = append(f.rows[n.String()], database.Row{Values: r})
	}
}

// documents adds a collection.
func (f *fake) documents(t testing.TB, name string, docs []bson.D) {
	n := database.Name{Database: "shop", Relation: name}
	f.relations = append(f.relations, database.Relation{Name: n, Key: []string{"_id"}, KeyUnique: true, Rows: int64(len(docs)),
		Columns: []database.Column{{Name: "document", Type: "document", Family: database.Document}}})
	for _, d := range docs {
		raw, err := bson.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		id := bson.Raw(raw).Lookup("_id")
		f.rows[n.String()] = append(f.rows[n.String()], database.Row{
			Key:    database.AppendKey(nil, database.AppendTyped(nil, id.Type.String(), id.Value)),
			Values: [][]byte{database.AppendDocument(nil, raw)},
		})
	}
}

func integer(v int64) []byte { return database.AppendInteger(nil, v) }
func text(s string) []byte   { return database.AppendText(nil, []byte(s)) }
func null() []byte           { return database.AppendNull(nil) }
func float(v float64) []byte { return database.AppendFloat(nil, v) }
func instant(t time.Time) []byte {
	return database.AppendTimestamp(nil, t.UnixMicro())
}
func numeric(s string) []byte {
	b, ok := database.AppendNumericText(nil, s)
	if !ok {
		panic("not a number: " + s)
	}
	return b
}

var day = time.Date(2025, 3, 30, 12, 0, 0, 0, time.UTC)

// orderColumns and order are the table most tests damage.
func orderColumns() []database.Column {
	return []database.Column{
		{Name: "id", Type: "int8", Family: database.Integer}, {Name: "email", Type: "text", Family: database.Text},
		{Name: "placed", Type: "timestamptz", Family: database.Timestamp}, {Name: "total", Type: "numeric", Family: database.Numeric},
		{Name: "weight", Type: "float8", Family: database.Float}, {Name: "note", Type: "text", Family: database.Text},
	}
}

func order(i int) [][]byte {
	return [][]byte{integer(int64(i)), text(fmt.Sprintf("user%d@example.com", i)), instant(day.Add(time.Duration(i) * time.Minute)),
		numeric(fmt.Sprintf("%d.%02d", i, i%100)), float(float64(i) / 8), text(fmt.Sprintf("note %d", i))}
}

func orders(n int) [][][]byte {
	rows := make([][][]byte, n)
	for i := range rows {
		rows[i] = order(i)
	}
	return rows
}

// cloneRows copies rows so that damage to one side leaves the other alone.
func cloneRows(rows [][][]byte) [][][]byte {
	out := make([][][]byte, len(rows))
	for i, r := range rows {
		out[i] = slices.Clone(r)
	}
	return out
}

// verify compares two fakes.
func verify(t testing.TB, a, b *fake, change func(*Options, *PlanOptions)) *Report {
	t.Helper()
	r, err := tryVerify(t, a, b, whole, change)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tryVerify(t testing.TB, a, b *fake, without Part, change func(*Options, *PlanOptions)) (*Report, error) {
	t.Helper()
	o := Options{Source: Side{View: a}, Target: Side{View: b}, Seed: NewSeed(), SpillDir: t.TempDir(), Settle: time.Millisecond}
	var po PlanOptions
	if change != nil {
		change(&o, &po)
	}
	if o.Plan == nil {
		plan, err := NewPlan(a.catalog(), b.catalog(), po)
		if err != nil {
			t.Fatal(err)
		}
		o.Plan = plan
	}
	return compare(context.Background(), o, without)
}

// shuffled returns the rows in another order.
func shuffled(rows [][][]byte, seed uint64) [][][]byte {
	out := slices.Clone(rows)
	rand.New(rand.NewPCG(seed, 1)).Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// summary lists what a report found as class/column=count.
func summary(r *Report) []string {
	var out []string
	for _, x := range r.Tables {
		for _, c := range x.Classes {
			out = append(out, fmt.Sprintf("%s/%s=%d", c.Class, c.Column, c.Count))
		}
	}
	slices.Sort(out)
	return out
}
