package mongodb

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/databasetest"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// The mutation suite: damage of known classes is planted in one of two twins, and the report must name exactly it.
// Control always runs the older version and candidate the newer one, so each case also holds that the versions alone
// make no difference.

// documentsEach is how many documents the collections have that are damaged.
const documentsEach = 5000

// mutation is one damage.
type mutation struct {
	class int // of the list of damage classes
	name  string
	base  string // the database that is damaged
	// damage plants it in a running server, and writes down what must be reported.
	damage func(t *testing.T, d *damage)
	// offline plants it in the stopped clone's file instead, for what no wire lets through.
	offline func(t *testing.T, d *damage)
}

// damage is one planting.
type damage struct {
	*ferret
	random *rand.Rand
	want   findings
}

// findings is a report as far as it is held to be exact.
type findings struct {
	Verdict string           `json:"verdict"`
	Schema  []string         `json:"schema,omitempty"`
	Changed map[string]int64 `json:"changed,omitempty"` // documents, where several fields of one may have changed
	Classes map[string]found `json:"classes,omitempty"` // "orders value email" →
}

type found struct {
	Count   int64    `json:"count"`
	Keys    []string `json:"keys"` // at most as many as the report keeps
	Pattern string   `json:"pattern,omitempty"`
}

const keysKept = 20

// changed writes down how many documents of a collection both sides have and differ.
func (d *damage) changed(collection string, n int64) { d.want.Changed[collection] = n }

// rows writes down that whole rows are missing, extra or otherwise of a class of rows.
func (d *damage) rows(collection, class string, keys ...string) {
	d.expect(collection, class, "", "", keys)
}

// field writes down that a field of documents changed in a way.
func (d *damage) field(collection, class, path string, keys ...string) {
	d.expect(collection, class, path, "", keys)
}

// pattern is field where the numbers have a constant difference.
func (d *damage) pattern(collection, class, path, pattern string, keys ...string) {
	d.expect(collection, class, path, pattern, keys)
}

func (d *damage) expect(collection, class, path, pattern string, keys []string) {
	d.want.Verdict = string(fingerprint.Different)
	slices.Sort(keys)
	name := collection + " " + class
	if path != "" {
		name += " " + path
	}
	d.want.Classes[name] = found{Count: int64(len(keys)), Keys: keys[:min(len(keys), keysKept)], Pattern: pattern}
}

// schema writes down a difference of the schema.
func (d *damage) schema(object, class string) {
	d.want.Verdict = string(fingerprint.Different)
	d.want.Schema = append(d.want.Schema, object+": "+class)
}

// reported reduces a report to what the suite compares.
func reported(r *fingerprint.Report) findings {
	f := findings{Verdict: string(r.Verdict), Changed: map[string]int64{}, Classes: map[string]found{}}
	for _, s := range r.Schema {
		f.Schema = append(f.Schema, s.Object+": "+s.Class)
	}
	for _, x := range r.Tables {
		if x.Changed != 0 || x.NotClassified != 0 {
			f.Changed[x.Name.Relation] = x.Changed + x.NotClassified
		}
		for _, c := range x.Classes {
			name := x.Name.Relation + " " + c.Class
			if c.Column != "" {
				name += " " + c.Column
			}
			y := found{Count: c.Count, Keys: []string{}}
			for _, e := range c.Examples {
				y.Keys = append(y.Keys, e.Key)
			}
			if c.Pattern != nil && c.Pattern.Constant {
				y.Pattern = c.Pattern.Text
			}
			slices.Sort(y.Keys)
			f.Classes[name] = y
		}
	}
	slices.Sort(f.Schema)
	return f
}

// text is what two findings are compared by.
func (f findings) text(t *testing.T) string {
	t.Helper()
	slices.Sort(f.Schema)
	b, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// base is a stopped database that twins are cloned from, with its control.
type base struct {
	once    sync.Once
	dirs    []string
	control database.Server
	catalog database.Catalog
	failed  bool

	mu      sync.Mutex
	digests map[string]*fingerprint.Digest // of control, by plan and seed: it never changes
}

// digest fingerprints control, or returns the fingerprint made earlier.
func (b *base) digest(t *testing.T, plan *fingerprint.Plan, seed fingerprint.Seed, without fingerprint.Part) *fingerprint.Digest {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	name := plan.Digest() + seed.Digest() + string(without)
	if d := b.digests[name]; d != nil {
		return d
	}
	v, err := b.control.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	d, err := fingerprint.ScanWithout(t.Context(), v, plan, fingerprint.ScanOptions{Role: fingerprint.Source, Seed: seed}, without)
	if err != nil {
		t.Fatal(err)
	}
	b.digests[name] = d
	return d
}

// suite keeps the bases of one run.
type suite struct {
	t     *testing.T // the whole suite: bases live as long as it
	bases map[string]*base
	seeds map[uint64]fingerprint.Seed
	fill  map[string]func(testing.TB, *ferret)
}

func newSuite(t *testing.T) *suite {
	s := &suite{t: t, bases: map[string]*base{}, fill: map[string]func(testing.TB, *ferret){
		"orders": fillOrders, "people": fillPeople, "keys": fillKeys, "schema": fillSchema, "huge": fillHuge, "doubled": fillOrders}}
	for name := range s.fill {
		s.bases[name] = &base{digests: map[string]*fingerprint.Digest{}}
	}
	return s
}

// base fills a database with the newer version, which has capped collections, and starts control on a clone of it.
func (s *suite) base(t *testing.T, name string) *base {
	t.Helper()
	b := s.bases[name]
	b.once.Do(func() {
		b.failed = true
		f := harness{newer}.New(s.t).(*ferret)
		s.fill[name](s.t, f)
		f.Stop(s.t)
		b.dirs = f.Dirs()
		if name == "doubled" {
			double(s.t, &damage{ferret: f}, orderID(doubled))
		}
		control := databasetest.Raise(s.t, harness{older}, databasetest.Copy(s.t, b.dirs), database.Control)
		b.control, b.catalog = opened(s.t, control.URL())
		b.failed = false
	})
	if b.failed {
		t.Fatalf("the database %s could not be made", name)
	}
	return b
}

// opened connects to a server that nobody else writes to, and reads its catalog.
func opened(t *testing.T, u database.URL) (database.Server, database.Catalog) {
	t.Helper()
	u.Frozen = true
	s, err := newEngine().Open(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // the server may be gone by then
	c, err := s.Catalog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

// compare compares a candidate with the control of its base, by the whole method (nothing is left out) or without a part.
func (b *base) compare(t *testing.T, candidate database.Server, c database.Catalog, seed fingerprint.Seed, without fingerprint.Part) *fingerprint.Report {
	t.Helper()
	plan, err := fingerprint.NewPlan(b.catalog, c, fingerprint.PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	o := fingerprint.Options{Source: fingerprint.Side{Server: b.control}, Target: fingerprint.Side{Server: candidate},
		Plan: plan, Seed: seed, SpillDir: t.TempDir(), SourceDigest: b.digest(t, plan, seed, without)}
	r, err := fingerprint.CompareWithout(t.Context(), o, without)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// run plants one damage and compares.
func (s *suite) run(t *testing.T, m mutation, seed uint64) {
	b := s.base(t, m.base)
	dirs := databasetest.Copy(t, b.dirs)
	d := newDamage(seed, m.class)
	if m.offline != nil {
		d.ferret = &ferret{dir: dirs[0]}
		m.offline(t, d)
	}
	d.ferret = databasetest.Raise(t, harness{newer}, dirs, database.Candidate).(*ferret)
	if m.damage != nil {
		m.damage(t, d)
	}
	candidate, catalog := opened(t, d.URL())
	d.holds(t, seed, b.compare(t, candidate, catalog, s.seeds[seed], ""))
	if seed == 1 {
		d.ablate(t, fmt.Sprintf("%d %s", m.class, m.name), func(part fingerprint.Part) *fingerprint.Report {
			return b.compare(t, candidate, catalog, s.seeds[seed], part)
		})
	}
	d.Kill(t)
}

// suiteSeeds numbers the seeds of the run: they choose what is damaged, and each has a seed of hashes of its own.
func suiteSeeds() ([]uint64, map[uint64]fingerprint.Seed) {
	numbers := []uint64{1, 2, 3}
	if os.Getenv("SLUICE_LONG") != "1" {
		numbers = numbers[:1]
	}
	seeds := map[uint64]fingerprint.Seed{}
	for _, n := range numbers {
		seeds[n] = fingerprint.NewSeed()
	}
	return numbers, seeds
}

func newDamage(seed uint64, class int) *damage {
	return &damage{random: rand.New(rand.NewPCG(seed, uint64(class))),
		want: findings{Verdict: string(fingerprint.Equal), Changed: map[string]int64{}, Classes: map[string]found{}}}
}

// holds compares what was reported with what was planted.
func (d *damage) holds(t *testing.T, seed uint64, r *fingerprint.Report) {
	t.Helper()
	if want, got := d.want.text(t), d.told(t, r); got != want {
		t.Errorf("seed %d: reported %s\nwant %s", seed, got, want)
	}
}

// told is a report as far as the damage asks for it.
func (d *damage) told(t *testing.T, r *fingerprint.Report) string {
	t.Helper()
	got := reported(r)
	for name, f := range got.Classes {
		if int64(len(f.Keys)) != min(f.Count, keysKept) {
			t.Errorf("%s: %d of %d keys are shown", name, len(f.Keys), f.Count)
		}
		if d.want.Classes[name].Pattern == "" { // any single number makes a pattern; it is held where the damage has one
			f.Pattern = ""
			got.Classes[name] = f
		}
	}
	return got.text(t)
}

// everyday are the classes that are run where there is no time for all: one of each way to plant damage.
var everyday = []int{1, 2, 7, 9, 10, 11, 12, 15, 19, 32, 36}

// TestMutations runs the suite: every case with three seeds, or some with one.
func TestMutations(t *testing.T) {
	t.Parallel()
	s := newSuite(t)
	classes := everyday
	if testing.Short() {
		classes = []int{7, 9, 10, 19} // a document more, one in another's place, another key, another number
	}
	numbers, seeds := suiteSeeds()
	s.seeds = seeds
	whole := len(numbers) > 1
	if !whole {
		t.Logf("only classes %v; SLUICE_LONG=1 runs them all, with three seeds", classes)
	}
	t.Run("cases", func(t *testing.T) {
		for _, m := range slices.Concat(wireMutations(), schemaMutations(), fileMutations()) {
			if !whole && !slices.Contains(classes, m.class) {
				continue
			}
			t.Run(fmt.Sprintf("%d %s", m.class, m.name), func(t *testing.T) {
				t.Parallel()
				for _, n := range numbers {
					s.run(t, m, n)
				}
			})
		}
	})
}

// pick draws n different numbers between 1 and documentsEach, in order.
func (d *damage) pick(n int) []int64 {
	chosen := map[int64]bool{}
	for len(chosen) < n {
		chosen[1+d.random.Int64N(documentsEach)] = true
	}
	return slices.Sorted(maps.Keys(chosen))
}

// orderID is the _id of an order of the suite.
func orderID(i int64) string { return fmt.Sprintf("order-%06d", i) }

func orderIDs(numbers []int64) []string {
	ids := make([]string, len(numbers))
	for i, n := range numbers {
		ids[i] = orderID(n)
	}
	return ids
}

// suiteOrder is an order with a field for each class.
func suiteOrder(i int64) bson.D {
	d := bson.D{
		{Key: "_id", Value: orderID(i)},
		{Key: "email", Value: fmt.Sprintf("Kunde.%d@münchen.example", i)},
		{Key: "placed", Value: bson.NewDateTimeFromTime(noon) + bson.DateTime(i*60_123)},
		{Key: "quantity", Value: int32(i % 9)},
		{Key: "cents", Value: 1<<53 + 2*i + 1},
		{Key: "weight", Value: float64(i) / 7},
		{Key: "zero", Value: 0.0},
		{Key: "items", Value: bson.A{fmt.Sprintf("a-%d", i), fmt.Sprintf("b-%d", i+1), "c"}},
		{Key: "tags", Value: bson.A{}},
		{Key: "address", Value: bson.D{{Key: "street", Value: fmt.Sprintf("%d Main St", i)}, {Key: "city", Value: "Utrecht"}}},
		{Key: "left", Value: fmt.Sprintf("x%d", i)},
		{Key: "right", Value: fmt.Sprintf("y%d|z%d", i, i)},
		{Key: "token", Value: bson.Binary{Subtype: byte(i % 2 * 3), Data: []byte(fmt.Sprintf("sixteen bytes %02d", i%100))}},
		{Key: "long", Value: fmt.Sprintf("%0300d", i)},
		{Key: "customer", Value: fmt.Sprintf("customer-%d", i%100)},
	}
	switch i % 4 {
	case 0:
		d = append(d, bson.E{Key: "note", Value: nil})
	case 1:
		d = append(d, bson.E{Key: "note", Value: "NULL"})
	case 2:
		d = append(d, bson.E{Key: "note", Value: ""})
	}
	return d
}

func fillOrders(t testing.TB, f *ferret) {
	f.insert(t, "orders", documentsEach, suiteOrder)
	f.index(t, "orders", bson.D{{Key: "placed", Value: 1}}, "placed_1", false)
	f.index(t, "orders", bson.D{{Key: "customer", Value: 1}, {Key: "placed", Value: -1}}, "by_customer", false)
	f.insert(t, "counters", 1, func(int64) bson.D {
		return bson.D{{Key: "_id", Value: "orders"}, {Key: "seq", Value: int64(documentsEach)}}
	})
	f.insert(t, "single", 1, func(int64) bson.D { return bson.D{{Key: "_id", Value: "only"}, {Key: "value", Value: int32(1)}} })
}

func fillPeople(t testing.TB, f *ferret) {
	f.insert(t, "people", documentsEach, func(i int64) bson.D {
		return bson.D{{Key: "_id", Value: int32(i)}, {Key: "name", Value: fmt.Sprintf("person %d", i)}}
	})
	f.insert(t, "spelled", documentsEach, func(i int64) bson.D {
		return bson.D{{Key: "_id", Value: fmt.Sprintf("Name-%05d", i)}, {Key: "n", Value: i}}
	})
}

// prefix is long enough that keys cut at 200 bytes would be one.
func longKey(i int64) string { return fmt.Sprintf("%0200d%06d", 7, i) }

func fillKeys(t testing.TB, f *ferret) {
	f.insert(t, "keys", documentsEach, func(i int64) bson.D {
		return bson.D{{Key: "_id", Value: longKey(i)}, {Key: "value", Value: i}}
	})
	f.insert(t, "composite", documentsEach, func(i int64) bson.D {
		return bson.D{{Key: "_id", Value: bson.D{{Key: "a", Value: fmt.Sprintf("a%d", i)}, {Key: "b", Value: fmt.Sprintf("bc%d", i)}}}, {Key: "value", Value: i}}
	})
}

func fillHuge(t testing.TB, f *ferret) {
	f.insert(t, "files", documentsEach, func(i int64) bson.D {
		d := bson.D{{Key: "_id", Value: orderID(i)}, {Key: "size", Value: i}}
		if i == documentsEach/2 || i == documentsEach/2+1 {
			d = append(d, bson.E{Key: "body", Value: string(hugeText())})
		}
		return d
	})
}

// hugeText is 8 MB.
func hugeText() []byte {
	b := make([]byte, 8<<20)
	for i := range b {
		b[i] = 'a' + byte(i%23)
	}
	return b
}

func fillSchema(t testing.TB, f *ferret) {
	f.insert(t, "orders", documentsEach, func(i int64) bson.D {
		return bson.D{{Key: "_id", Value: orderID(i)}, {Key: "a", Value: i}, {Key: "b", Value: -i}}
	})
	f.index(t, "orders", bson.D{{Key: "a", Value: 1}}, "a_1", true)
	f.index(t, "orders", bson.D{{Key: "a", Value: 1}, {Key: "b", Value: -1}}, "a_1_b_-1", false)
	create := bson.D{{Key: "create", Value: "log"}, {Key: "capped", Value: true}, {Key: "size", Value: int64(1 << 20)}, {Key: "max", Value: int64(1000)}}
	if err := f.client.Database(databasetest.Shop).RunCommand(context.Background(), create).Err(); err != nil {
		t.Fatal(err)
	}
	f.insert(t, "log", 100, func(i int64) bson.D { return bson.D{{Key: "_id", Value: orderID(i)}} })
	if _, err := f.client.Database("second").Collection("things").InsertOne(context.Background(), bson.D{{Key: "_id", Value: "a"}}); err != nil {
		t.Fatal(err)
	}
}

// index makes an index.
func (f *ferret) index(t testing.TB, collection string, key bson.D, name string, unique bool) {
	t.Helper()
	spec := bson.D{{Key: "key", Value: key}, {Key: "name", Value: name}}
	if unique {
		spec = append(spec, bson.E{Key: "unique", Value: true})
	}
	command := bson.D{{Key: "createIndexes", Value: collection}, {Key: "indexes", Value: bson.A{spec}}}
	if err := f.client.Database(databasetest.Shop).RunCommand(context.Background(), command).Err(); err != nil {
		t.Fatal(err)
	}
}

// rewrite puts a document in the place of another by deleting it first: FerretDB takes 1 and 1.0 for the same and
// leaves what it takes for the same.
func (f *ferret) rewrite(t testing.TB, collection string, id any, d bson.D) {
	t.Helper()
	f.remove(t, collection, id)
	if _, err := f.collection(collection).InsertOne(context.Background(), d); err != nil {
		t.Fatal(err)
	}
}

// get and with read and change a field of a document.
func get(d bson.D, key string) any {
	for _, e := range d {
		if e.Key == key {
			return e.Value
		}
	}
	return nil
}

func with(d bson.D, key string, value any) bson.D {
	d = slices.Clone(d)
	for i := range d {
		if d[i].Key == key {
			d[i].Value = value
			return d
		}
	}
	return append(d, bson.E{Key: key, Value: value})
}

func without(d bson.D, key string) bson.D {
	return slices.DeleteFunc(slices.Clone(d), func(e bson.E) bool { return e.Key == key })
}

// replace gives one field another value, whatever its type.
func (d *damage) replace(t *testing.T, i int64, key string, value any) {
	t.Helper()
	d.rewrite(t, "orders", orderID(i), with(suiteOrder(i), key, value))
}

// reload drops a collection and writes its documents anew, as a dump and restore does.
func (f *ferret) reload(t testing.TB, collection string, documents []bson.D, batch int) {
	t.Helper()
	if err := f.collection(collection).Drop(context.Background()); err != nil {
		t.Fatal(err)
	}
	for part := range slices.Chunk(documents, batch) {
		var all []any
		for _, d := range part {
			all = append(all, d)
		}
		if _, err := f.collection(collection).InsertMany(context.Background(), all); err != nil {
			t.Fatal(err)
		}
	}
}

// allOrders are the documents of the base.
func allOrders() []bson.D {
	out := make([]bson.D, documentsEach)
	for i := range out {
		out[i] = suiteOrder(int64(i) + 1)
	}
	return out
}

// table returns the name of a collection's table, and the file it is in.
func (d *damage) table(t *testing.T, collection string) (file, table string) {
	t.Helper()
	file = filepath.Join(d.dir, databasetest.Shop+extension)
	db := outside(t, file)
	defer db.Close()
	if err := db.QueryRow("SELECT table_name FROM "+collectionsOf+" WHERE name = ?", collection).Scan(&table); err != nil {
		t.Fatal(err)
	}
	return file, table
}
