package mongodb

import (
	"context"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/databasetest"
	"github.com/sluice-cd/sluice/internal/fault"
)

// TestLargeTogether reads a collection whose large documents stand together: a batch by their average size is larger
// than a message may be, which FerretDB does not see to.
func TestLargeTogether(t *testing.T) {
	t.Parallel()
	f := harness{newer}.New(t).(*ferret)
	body := string(hugeText())
	for i := range int64(7) {
		if i == 1 {
			f.insert(t, "mixed", 300, func(n int64) bson.D { return bson.D{{Key: "_id", Value: n}} })
		}
		large := bson.D{{Key: "_id", Value: 1000 + i}, {Key: "body", Value: body}}
		if _, err := f.collection("mixed").InsertOne(context.Background(), large); err != nil {
			t.Fatal(err)
		}
	}
	r := documents(databasetest.Shop, "mixed")
	p := &database.Projection{Columns: r.Columns, Key: []int{0}}
	for _, frozen := range []bool{true, false} {
		u := f.URL()
		u.Frozen = frozen
		s, err := newEngine().Open(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		v, err := s.View(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		seen, size := map[string]bool{}, 0
		n, err := v.Scan(t.Context(), database.Range{Relation: r}, p, func(row database.Row) error {
			seen[string(row.Key)] = true
			size += len(row.Values[0])
			return nil
		})
		switch {
		case frozen && (err != nil || n != 307 || len(seen) != 307 || size < 7*len(body)):
			t.Errorf("%d documents by the server, %d with %d bytes were read: %v", n, len(seen), size, err)
		case !frozen && !fault.Is(err, fault.Invalid):
			t.Errorf("a live scan gives %d of %d documents and %v", len(seen), n, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
