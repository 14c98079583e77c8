package mongodb

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// server implements database.Server and database.Querier.
type server struct {
	client *mongo.Client
	frozen bool
	only   string // the database that the URL names; "" means all
	host   string // as the URL names it

	hello    bson.Raw
	build    bson.Raw
	ferretdb bool
}

// greet learns who answers.
func (s *server) greet(ctx context.Context) error {
	var err error
	if s.hello, err = s.run(ctx, "admin", bson.D{{Key: "hello", Value: 1}}); err != nil {
		return s.problem(err, "connect to the database")
	}
	if s.build, err = s.run(ctx, "admin", bson.D{{Key: "buildInfo", Value: 1}}); err != nil {
		return s.problem(err, "ask the database for its version")
	}
	_, s.ferretdb = text(s.build, "ferretdbVersion")
	if kind, _ := text(s.hello, "msg"); kind == "isdbgrid" {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "%s is the router of a sharded cluster, which Sluice cannot copy or compare", s.host),
			"name the members of one replica set")
	}
	return nil
}

// run sends a command and returns the answer.
func (s *server) run(ctx context.Context, db string, command bson.D) (bson.Raw, error) {
	return s.client.Database(db).RunCommand(undated{ctx}, command).Raw()
}

// Close implements database.Server.
func (s *server) Close() error {
	// Its work is done; closing must not hang on a server that is gone.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.client.Disconnect(ctx); err != nil {
		return fmt.Errorf("disconnect from %s: %w", s.host, err)
	}
	return nil
}

// unknownVersion stands where FerretDB does not tell: embedded, every release of it calls itself "unknown" and claims
// the same version of MongoDB.
const unknownVersion = "(it does not tell its version)"

// Describe implements database.Server.
func (s *server) Describe(ctx context.Context) (database.Info, error) {
	i := database.Info{Engine: "mongodb", Role: s.role(), Durable: true}
	i.Version, _ = text(s.build, "version")
	if s.ferretdb {
		i.ServedBy = "FerretDB"
		if i.Version, _ = text(s.build, "ferretdbVersion"); i.Version == "" || i.Version == "unknown" {
			i.Version = unknownVersion
		}
	}
	// Only servers that keep their data in files here can be held, which the URL does not tell; Quiesce says so by name.
	i.Abilities = []string{"quiesce"}
	if t, p, ok := s.hello.Lookup("lastWrite", "opTime", "ts").TimestampOK(); ok {
		i.Position = strconv.FormatUint(uint64(t)<<32|uint64(p), 10)
	}
	status, err := s.run(ctx, "admin", bson.D{{Key: "serverStatus", Value: 1}})
	if err != nil {
		return i, s.problem(err, "ask the database for its status")
	}
	if up, ok := number(status.Lookup("uptimeMillis")); ok {
		i.Started = time.Now().Add(-time.Duration(up) * time.Millisecond).UTC().Truncate(time.Second)
	}
	return i, nil
}

func (s *server) role() string {
	if _, ok := text(s.hello, "setName"); !ok {
		return "standalone"
	}
	if writable, _ := s.hello.Lookup("isWritablePrimary").BooleanOK(); writable {
		return "primary"
	}
	return "secondary"
}

// extent is what the server says about the size of a collection.
type extent struct{ documents, bytes int64 }

// measure asks for the size of a collection without writing. On FerretDB that leaves dataSize: collStats, dbStats and
// validate run ANALYZE, which writes to the files that were only to be read.
func (s *server) measure(ctx context.Context, n database.Name) (extent, error) {
	if s.ferretdb {
		r, err := s.run(ctx, n.Database, bson.D{{Key: "dataSize", Value: n.String()}})
		if err != nil {
			return extent{}, s.problem(err, "count "+n.String())
		}
		documents, okD := number(r.Lookup("numObjects"))
		bytes, okB := number(r.Lookup("size"))
		if !okD || !okB {
			return extent{}, fault.Newf(fault.Invalid, "count %s: the server answered without a number", n)
		}
		return extent{documents, bytes}, nil
	}
	r, err := s.run(ctx, n.Database, bson.D{{Key: "count", Value: n.Relation}})
	if err != nil {
		return extent{}, s.problem(err, "count "+n.String())
	}
	documents, ok := number(r.Lookup("n"))
	if !ok {
		return extent{}, fault.Newf(fault.Invalid, "count %s: the server answered without a number", n)
	}
	// mongod takes collStats from its metadata; where the privilege for it is missing only an estimate is lost.
	size := int64(0)
	if r, err := s.run(ctx, n.Database, bson.D{{Key: "collStats", Value: n.Relation}}); err == nil {
		size, _ = number(r.Lookup("size"))
	}
	return extent{documents, size}, nil
}

// Query implements database.Querier.
func (s *server) Query(ctx context.Context, query string) (string, error) {
	bad := func(format string, args ...any) (string, error) {
		return "", fault.WithRemedy(fault.Newf(fault.Invalid, format, args...),
			`write one command as JSON with "$db", such as {"count": "orders", "query": {"paid": false}, "$db": "shop"}`)
	}
	var d bson.D
	if !json.Valid([]byte(query)) || bson.UnmarshalExtJSON([]byte(query), false, &d) != nil || len(d) == 0 {
		return bad("the query is not a JSON document")
	}
	db, command := "", d[:0:0]
	for _, e := range d {
		if e.Key == "$db" {
			db, _ = e.Value.(string)
			continue
		}
		command = append(command, e)
	}
	if db == "" || len(command) == 0 {
		return bad(`the query names no database in "$db"`)
	}
	switch command[0].Key {
	case "count", "distinct", "aggregate", "find":
	default:
		return bad("the query runs %q, and only count, distinct, aggregate and find are known to read", command[0].Key)
	}
	for _, e := range command {
		if stages, ok := e.Value.(bson.A); ok && e.Key == "pipeline" && writes(stages) {
			return bad("the query's pipeline writes")
		}
	}
	r, err := s.run(ctx, db, command)
	if err != nil {
		return "", s.problem(err, "run the query")
	}
	return single(command[0].Key, r)
}

// writes reports whether a pipeline has a stage that writes.
func writes(stages bson.A) bool {
	for _, stage := range stages {
		d, ok := stage.(bson.D)
		if ok && len(d) > 0 && (d[0].Key == "$out" || d[0].Key == "$merge") {
			return true
		}
	}
	return false
}

// single takes the one value out of a command's answer.
func single(command string, r bson.Raw) (string, error) {
	none := func(n int, what string) (string, error) {
		return "", fault.Newf(fault.Invalid, "the query returned %d %s, and an invariant needs exactly one", n, what)
	}
	switch command {
	case "count":
		return plain(r.Lookup("n")), nil
	case "distinct":
		values, _ := array(r.Lookup("values"))
		if len(values) != 1 {
			return none(len(values), "values")
		}
		return plain(values[0]), nil
	}
	documents, _ := array(r.Lookup("cursor", "firstBatch"))
	if len(documents) != 1 {
		return none(len(documents), "documents")
	}
	elements, err := document(documents[0]).Elements()
	if err != nil {
		return none(0, "fields")
	}
	var rest []bson.RawElement
	for _, e := range elements {
		if e.Key() != "_id" || len(elements) == 1 {
			rest = append(rest, e)
		}
	}
	if len(rest) != 1 {
		return none(len(rest), "fields besides _id")
	}
	return plain(rest[0].Value()), nil
}

// plain writes a value as people write it.
func plain(v bson.RawValue) string {
	if n, ok := number(v); ok {
		return strconv.FormatInt(n, 10)
	}
	return valueText(v)
}

// text returns a string field.
func text(d bson.Raw, key ...string) (string, bool) { return d.Lookup(key...).StringValueOK() }

// array returns the values of an array; the driver's own way panics where a server answers with something else.
func array(v bson.RawValue) ([]bson.RawValue, bool) {
	a, ok := v.ArrayOK()
	if !ok {
		return nil, false
	}
	values, err := a.Values()
	return values, err == nil
}

// document returns a document, or an empty one where a server answers with something else.
func document(v bson.RawValue) bson.Raw {
	d, ok := v.DocumentOK()
	if !ok {
		return bson.Raw{5, 0, 0, 0, 0}
	}
	return d
}

// number returns a whole number of any type.
func number(v bson.RawValue) (int64, bool) {
	switch v.Type {
	case bson.TypeInt32, bson.TypeInt64:
		return v.AsInt64OK()
	case bson.TypeDouble:
		f, ok := v.DoubleOK()
		return int64(f), ok && f == float64(int64(f))
	default:
		return 0, false
	}
}
