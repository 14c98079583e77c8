package mongodb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"

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

// An answer must fit into one message of 48 MB. FerretDB does not cut batches by their size as mongod does, so they are
// cut by the average size of a document, and where large ones stand together, to one.
const (
	batchBytes = 4 << 20
	batchMost  = 200
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
	seen, err := v.find(ctx, n, bson.D{{Key: "batchSize", Value: size}}, p, each)
	if err != nil && tooLarge(err) && size > 1 && !v.Live() {
		// The order of a scan stands still with the data, so it goes on where it was.
		var rest int64
		rest, err = v.find(ctx, n, bson.D{{Key: "batchSize", Value: 1}, {Key: "skip", Value: seen}}, p, each)
		seen += rest
	}
	if err != nil {
		return seen, v.scanProblem(err, n)
	}
	after, err := v.s.measure(ctx, n)
	if err != nil {
		return seen, err
	}
	if before.documents != after.documents && v.Live() {
		// It is being written: what the cursor gave, to its end, is all that the server says.
		return seen, nil
	}
	return after.documents, nil
}

func (v *view) scanProblem(err error, n database.Name) error {
	if tooLarge(err) {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "read %s: a batch of its documents is larger than a message may be", n),
			"compare a copy that nobody writes to: there it is read one document at a time")
	}
	var own *callback
	if errors.As(err, &own) {
		return own.error
	}
	return v.s.problem(err, "read "+n.String())
}

// tooLarge recognises the driver's refusal of a message, which has no type.
func tooLarge(err error) bool {
	return strings.Contains(err.Error(), "length of read message too large")
}

// callback is an error of the caller's own function, which is passed on as it is.
type callback struct{ error }

// find reads what a query gives, to its end. It returns how many documents were passed on.
func (v *view) find(ctx context.Context, n database.Name, query bson.D, p *database.Projection, each func(database.Row) error) (seen int64, err error) {
	command := append(bson.D{{Key: "find", Value: n.Relation}}, query...)
	cursor, err := v.s.client.Database(n.Database).RunCommandCursor(undated{ctx}, command)
	if err != nil {
		return 0, err
	}
	defer func() {
		// A cursor that was left in the middle is ended on the server even when the context is over.
		if e := cursor.Close(undated{context.WithoutCancel(ctx)}); err == nil && e != nil {
			err = e
		}
	}()
	for _, e := range query {
		if n, ok := e.Value.(int64); ok && e.Key == "batchSize" {
			cursor.SetBatchSize(int32(n))
		} else if n, ok := e.Value.(int); ok && e.Key == "batchSize" {
			cursor.SetBatchSize(int32(n))
		}
	}
	var row rowBuffer
	for cursor.Next(undated{ctx}) {
		r, err := row.read(cursor.Current, p)
		if err != nil {
			return seen, &callback{fmt.Errorf("%s: %w", n, err)}
		}
		seen++
		if err := each(r); err != nil {
			return seen, &callback{err}
		}
	}
	return seen, cursor.Err()
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
	for _, filter := range v.filters(ids) {
		if _, err := v.find(ctx, r.Name, bson.D{{Key: "filter", Value: bson.D{{Key: "_id", Value: filter}}}, {Key: "batchSize", Value: 1}}, p, only); err != nil {
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
