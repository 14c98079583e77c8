//go:build e2e

package data_test

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// writer is a client that writes numbers to whoever takes them, and keeps those that were acknowledged.
type writer struct {
	r       *replicated
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	acked   []int
	longest time.Duration
}

func (r *replicated) write() *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{r: r, cancel: cancel}
	w.wg.Go(func() { w.run(ctx) })
	return w
}

func (w *writer) run(ctx context.Context) {
	open := map[string]*pgx.Conn{}
	last := time.Now()
	for n := 0; ctx.Err() == nil; n++ {
		for i := 0; ctx.Err() == nil; i++ {
			name := fmt.Sprintf("pg-%d", i%3)
			within, cancel := context.WithTimeout(ctx, 3*time.Second)
			if open[name] == nil {
				c, err := w.r.session(within, name)
				if err != nil {
					cancel()
					continue
				}
				open[name] = c
			}
			_, err := open[name].Exec(within, "INSERT INTO numbers (n) VALUES ($1) ON CONFLICT DO NOTHING", n)
			cancel()
			if err == nil {
				w.acked = append(w.acked, n)
				w.longest, last = max(w.longest, time.Since(last)), time.Now()
				break
			}
			if open[name].IsClosed() {
				open[name] = nil
			}
		}
	}
}

// end stops the client and counts what is there.
func (w *writer) end() {
	w.r.t.Helper()
	w.cancel()
	w.wg.Wait()
	for i := range 3 {
		name := fmt.Sprintf("pg-%d", i)
		c, err := w.r.session(w.r.t.Context(), name)
		if err != nil {
			w.r.t.Fatal(err)
		}
		var missing int
		deadline := time.Now().Add(30 * time.Second) // followers may be behind by what was written just now
		for {
			if err := c.QueryRow(w.r.t.Context(), "SELECT count(*) FROM unnest($1::int[]) a LEFT JOIN numbers ON n = a WHERE n IS NULL", w.acked).Scan(&missing); err != nil {
				w.r.t.Fatal(err)
			}
			if missing == 0 || time.Now().After(deadline) {
				break
			}
		}
		if missing != 0 {
			w.r.t.Errorf("%s lacks %d of %d acknowledged writes", name, missing, len(w.acked))
		}
		c.Close(w.r.t.Context())
	}
	if len(w.acked) < 100 {
		w.r.t.Errorf("only %d writes were acknowledged", len(w.acked))
	}
	w.r.t.Logf("%d writes were acknowledged, none is missing; the longest wait for one was %s", len(w.acked), w.longest.Round(time.Millisecond))
}
