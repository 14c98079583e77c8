package mongodb

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// TestStopLosesNothing stops each version, in the everyday tests the newer one, while clients write: what was acknowledged is there afterwards, nothing is
// waited for that is idle, and the files are left as one, without a log.
func TestStopLosesNothing(t *testing.T) {
	t.Parallel()
	versions := []string{older, newer}
	if testing.Short() {
		versions = versions[1:]
	}
	for _, version := range versions {
		f := harness{version}.New(t).(*ferret)
		var acknowledged sync.Map
		var count atomic.Int64
		var writers sync.WaitGroup
		enough := make(chan struct{})
		for w := range int64(4) {
			writers.Go(func() {
				for id := w * 1_000_000; ; id++ {
					if err := f.Insert(context.Background(), id); err != nil {
						return // the server is stopping, which is what this waits for
					}
					acknowledged.Store(id, true)
					if count.Add(1) == 400 {
						close(enough)
					}
				}
			})
		}
		<-enough
		begun := time.Now()
		f.Stop(t)
		took := time.Since(begun)
		if err := f.client.Disconnect(t.Context()); err != nil {
			t.Fatal(err)
		}
		writers.Wait()
		if took > 3*time.Second {
			t.Errorf("%s took %s to stop", version, took)
		}
		if _, err := os.Stat(f.file() + writeAheadLog); !os.IsNotExist(err) {
			t.Errorf("%s left its log behind: %v", version, err)
		}
		again := startFerret(t, version, f.dir)
		cursor, err := again.collection("orders").Find(t.Context(), bson.D{})
		if err != nil {
			t.Fatal(err)
		}
		var all []struct {
			ID int64 `bson:"_id"`
		}
		if err := cursor.All(t.Context(), &all); err != nil {
			t.Fatal(err)
		}
		there := map[int64]bool{}
		for _, x := range all {
			there[x.ID] = true
		}
		acknowledged.Range(func(id, _ any) bool {
			if !there[id.(int64)] {
				t.Errorf("%s: order %d was acknowledged and is gone", version, id)
			}
			return true
		})
	}
}
