package mongodb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// view implements database.View and database.Renderer.
type view struct{ s *server }

// View implements database.Server. The protocol has no snapshot that FerretDB knows, so a view stands still only where
// nobody can write.
func (s *server) View(context.Context) (database.View, error) { return &view{s}, nil }

// Live implements database.View.
func (v *view) Live() bool { return !v.s.frozen }

// Close implements database.View.
func (*view) Close() error { return nil }

// Ranges implements database.View. FerretDB pushes no range of _id down to its storage: two ranges would cost two whole
// scans. One cursor also reads one state of the collection, because it is one SELECT.
func (*view) Ranges(_ context.Context, r database.Relation, _ int) ([]database.Range, error) {
	return []database.Range{{Relation: r}}, nil
}

// An answer must fit into one message. FerretDB does not cut batches by their size as mongod does: it ends the connection
// over an answer that is too large. So batches are cut by the average size of a document, and where large ones stand
// together, to one.
const (
	batchBytes = 4 << 20
	batchMost  = 200
	message    = 48_000_000
)

// Scan implements database.View.
func (v *view) Scan(ctx context.Context, r database.Range, p *database.Projection, each func(database.Row) error) (int64, error) {
	n := r.Relation.Name
	before, err := v.s.measure(ctx, n)
	if err != nil {
		return 0, err
	}
	size := int64(batchMost)
	if before.documents > 0 {
		size = min(max(batchBytes/max(before.bytes/before.documents, 1), 1), batchMost)
	}
	read, err := v.find(ctx, n, query{batch: size}, p, each)
	if err != nil && size > 1 && v.tooLarge(err, before.bytes-read.bytes) {
		if v.Live() {
			err := fault.Newf(fault.Invalid, "read %s: the server ended the connection, most likely over a batch of large documents: %w", n, err)
			return read.documents, fault.WithRemedy(err, "compare a copy that nobody writes to: there it is read one document at a time")
		}
		// The order of a scan stands still with the data, so it goes on where it was.
		var rest extent
		rest, err = v.find(ctx, n, query{batch: 1, skip: read.documents}, p, each)
		read.documents += rest.documents
	}
	if err != nil {
		return read.documents, v.scanProblem(err, n)
	}
	after, err := v.s.measure(ctx, n)
	if err != nil {
		return read.documents, err
	}
	if before.documents != after.documents && v.Live() {
		// It is being written: what the cursor gave, to its end, is all that the server says.
		return read.documents, nil
	}
	return after.documents, nil
}

// tooLarge tells whether an error can have come from a batch that is too large: there must be as much left to read. Any
// other loss of a connection is one.
func (v *view) tooLarge(err error, left int64) bool {
	_, own := errors.AsType[*callback](err)
	return v.s.ferretdb && !own && left > message && (mongo.IsNetworkError(err) || strings.Contains(err.Error(), "length of read message too large"))
}

func (v *view) scanProblem(err error, n database.Name) error {
	if own, ok := errors.AsType[*callback](err); ok {
		return own.error
	}
	return v.s.problem(err, "read "+n.String())
}

// callback is an error of the caller's own function, which is passed on as it is.
type callback struct{ error }

// query is what is asked of a collection; all of it by default.
type query struct {
	filter any // of _id
	batch  int64
	skip   int64
}

func (q query) command(collection string) bson.D {
	c := bson.D{{Key: "find", Value: collection}, {Key: "batchSize", Value: q.batch}}
	if q.filter != nil {
		c = append(c, bson.E{Key: "filter", Value: bson.D{{Key: "_id", Value: q.filter}}})
	}
	if q.skip > 0 {
		c = append(c, bson.E{Key: "skip", Value: q.skip})
	}
	return c
}

// find reads what a query gives, to its end. It returns how much was passed on.
func (v *view) find(ctx context.Context, n database.Name, q query, p *database.Projection, each func(database.Row) error) (read extent, err error) {
	cursor, err := v.s.client.Database(n.Database).RunCommandCursor(undated{ctx}, q.command(n.Relation))
	if err != nil {
		return read, err
	}
	defer func() {
		// A cursor that was left in the middle is ended on the server even when the context is over.
		if e := cursor.Close(undated{context.WithoutCancel(ctx)}); err == nil && e != nil {
			err = e
		}
	}()
	cursor.SetBatchSize(int32(q.batch))
	var row rowBuffer
	for cursor.Next(undated{ctx}) {
		r, err := row.read(cursor.Current, p)
		if err != nil {
			return read, &callback{fmt.Errorf("%s: %w", n, err)}
		}
		read.documents++
		read.bytes += int64(len(cursor.Current))
		if err := each(r); err != nil {
			return read, &callback{err}
		}
	}
	return read, cursor.Err()
}

// rowBuffer makes rows of documents; a row is valid until the next.
type rowBuffer struct {
	key, id, value []byte
	values         [1][]byte
}

func (b *rowBuffer) read(raw bson.Raw, p *database.Projection) (database.Row, error) {
	b.value = database.AppendDocument(b.value[:0], raw)
	b.values[0] = b.value
	r := database.Row{Values: b.values[:]}
	if len(p.Key) == 0 {
		return r, nil
	}
	id, err := raw.LookupErr("_id")
	if err != nil {
		return r, fault.WithRemedy(fault.Newf(fault.Invalid, "a document has no readable _id: %w", err), "run the engine's own check on this database")
	}
	b.id = identifier(b.id[:0], id)
	b.key = database.AppendKey(b.key[:0], b.id)
	r.Key = b.key
	return r, nil
}

// pointQueries is how many keys FerretDB is asked for one by one. Its query for one _id does not match the expression of
// its own index, so SQLite walks the table for each; only decoding, which is most of a scan's cost, is saved.
const pointQueries = 16

// fetchBatch is how many documents of the largest size fit into a message; mongod cuts its batches by itself.
const fetchBatch = 2

// Fetch implements database.View.
func (v *view) Fetch(ctx context.Context, r database.Relation, p *database.Projection, keys [][]byte, each func(database.Row) error) error {
	wanted := make(map[string]bool, len(keys))
	for _, k := range keys {
		wanted[string(k)] = true
	}
	only := func(row database.Row) error {
		if !wanted[string(row.Key)] {
			return nil
		}
		return each(row)
	}
	if len(wanted) == 0 {
		return nil
	}
	ids, ok := v.points(wanted)
	if !ok {
		_, err := v.Scan(ctx, database.Range{Relation: r}, p, only)
		return err
	}
	batch := int64(len(ids))
	if v.s.ferretdb {
		batch = fetchBatch
	}
	for _, filter := range v.filters(ids) {
		if _, err := v.find(ctx, r.Name, query{filter: filter, batch: batch}, p, only); err != nil {
			return v.scanProblem(err, r.Name)
		}
	}
	return nil
}

// points returns the _ids of keys, if asking for them is cheaper than a scan.
func (v *view) points(keys map[string]bool) ([]any, bool) {
	if v.s.ferretdb && len(keys) > pointQueries {
		return nil, false
	}
	ids := make([]any, 0, len(keys))
	for k := range keys {
		id, ok := v.s.point([]byte(k))
		if !ok {
			return nil, false
		}
		ids = append(ids, id)
	}
	return ids, true
}

// filters asks for one _id at a time where $in would decode every document, else for all of them.
func (v *view) filters(ids []any) []any {
	if v.s.ferretdb {
		return ids
	}
	return []any{bson.D{{Key: "$in", Value: ids}}}
}

// Fields implements database.View.
func (*view) Fields(_ database.Relation, _ *database.Projection, row database.Row) ([]database.Field, error) {
	return flatten("", database.Payload(row.Values[0]), nil)
}

// Render implements database.Renderer.
func (*view) Render(_ database.Relation, _ *database.Projection, row database.Row) (json.RawMessage, error) {
	out, err := bson.MarshalExtJSON(bson.Raw(database.Payload(row.Values[0])), true, false)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "a document cannot be written as extended JSON: %w", err)
	}
	return out, nil
}
