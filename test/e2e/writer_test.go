//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
)

// undated is a context without its deadline, which the driver would tell to a server that does not understand it.
type undated struct{ context.Context }

func (undated) Deadline() (time.Time, bool) { return time.Time{}, false }

// writer writes orders one after the other, each again until it is acknowledged.
type writer struct {
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	acked   map[int32]time.Time
	longest time.Duration
}

// write starts one at a number.
func write(t *testing.T, orders *mongo.Collection, from int32) *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{stop: cancel, done: make(chan struct{}), acked: map[int32]time.Time{}}
	t.Cleanup(w.end)
	go func() {
		defer close(w.done)
		last := time.Now()
		for i := from; ctx.Err() == nil; i++ {
			for ctx.Err() == nil {
				_, err := orders.InsertOne(undated{ctx}, bson.D{{Key: "_id", Value: i}, {Key: "total", Value: int64(i) * 3}})
				if err == nil || mongo.IsDuplicateKeyError(err) {
					break
				}
			}
			if ctx.Err() != nil {
				return
			}
			now := time.Now()
			w.mu.Lock()
			w.acked[i] = now
			w.longest = max(w.longest, now.Sub(last))
			w.mu.Unlock()
			last = now
		}
	}()
	return w
}

// end stops it.
func (w *writer) end() {
	w.stop()
	<-w.done
}

// stall is the longest time between two acknowledgements so far; it is forgotten then.
func (w *writer) stall() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.longest
	w.longest = 0
	return l
}

// wait waits until some more orders have been acknowledged.
func (w *writer) wait(s *site, n int) {
	s.t.Helper()
	count := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.acked)
	}
	until := count() + n
	s.eventually(fmt.Sprintf("%d more orders are written", n), func() error {
		if c := count(); c < until {
			return fmt.Errorf("there are %d of %d", c, until)
		}
		return nil
	})
}

// holds checks that a collection holds every order that was acknowledged before an instant.
func (w *writer) holds(t *testing.T, orders *mongo.Collection, before time.Time) {
	t.Helper()
	cursor, err := orders.Find(context.Background(), bson.D{})
	if err != nil {
		t.Fatal(err)
	}
	have := map[int32]bool{}
	for cursor.Next(context.Background()) {
		var d struct {
			ID    int32 `bson:"_id"`
			Total int64 `bson:"total"`
		}
		if err := cursor.Decode(&d); err != nil {
			t.Fatal(err)
		}
		if d.Total != int64(d.ID)*3 {
			t.Errorf("order %d is worth %d", d.ID, d.Total)
		}
		have[d.ID] = true
	}
	if err := cursor.Err(); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for i, at := range w.acked {
		if at.After(before) {
			continue
		}
		n++
		if !have[i] {
			t.Errorf("order %d, acknowledged at %s, is missing", i, at.Format(time.TimeOnly))
		}
	}
	if n == 0 {
		t.Error("nothing was acknowledged that could be missing")
	}
	t.Logf("%d acknowledged orders are among %d", n, len(have))
}
