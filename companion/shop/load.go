package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// request is one line of the log of requests.
type request struct {
	At      time.Time     `json:"at"` // when it was sent
	Took    time.Duration `json:"took"`
	Does    string        `json:"does"` // place, read
	ID      string        `json:"id"`
	Code    int           `json:"code,omitempty"`
	Release string        `json:"release,omitempty"`
	Tries   int           `json:"tries"`
	Failed  string        `json:"failed,omitempty"` // why
}

// generator places orders at a steady rate and reads them back.
type generator struct {
	client  *client
	ledger  *ledger
	log     *json.Encoder
	logging sync.Mutex
	run     string // makes the ids of this run its own
	next    atomic.Int64
	mu      sync.Mutex
	known   []Order // acknowledged, to be read again
}

// load runs until it is told to stop. It then ends what it has begun, so that no request is cut off by itself.
func load(ctx context.Context, args []string, out io.Writer) error {
	var url, file, log string
	var rate, workers int
	f := flag.NewFlagSet("shop load", flag.ContinueOnError)
	f.StringVar(&url, "url", "", "URL of the shop")
	f.StringVar(&file, "ledger", "", "file of the ledger")
	f.StringVar(&log, "log", "", "file for one line per request")
	f.IntVar(&rate, "rate", 40, "orders per second; a fifth as many are read again")
	f.IntVar(&workers, "workers", 16, "requests at the same time")
	if err := f.Parse(args); err != nil {
		return err
	}
	if err := required(map[string]string{"url": url, "ledger": file, "log": log}); err != nil {
		return err
	}
	g, done, err := newGenerator(url, file, log)
	if err != nil {
		return err
	}
	defer done()
	fmt.Fprintln(out, "load begins")
	return g.generate(ctx, rate, workers)
}

func newGenerator(url, file, log string) (*generator, func(), error) {
	earlier, err := readLedger(file)
	if err != nil {
		return nil, nil, err
	}
	l, err := openLedger(file)
	if err != nil {
		return nil, nil, err
	}
	requests, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	// rand.Read never fails.
	run := make([]byte, 4)
	_, _ = rand.Read(run)
	g := &generator{client: newClient(url), ledger: l, log: json.NewEncoder(requests), run: hex.EncodeToString(run)}
	for _, e := range earlier {
		if e.Order != nil {
			g.known = append(g.known, *e.Order)
		}
	}
	return g, func() { l.close(); _ = requests.Close() }, nil
}

// generate lets the workers take turns at the rate. While the shop stalls the workers wait with it, as customers do.
func (g *generator) generate(ctx context.Context, rate, workers int) error {
	turns := make(chan struct{})
	failed := make(chan error, workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			r := mathrand.New(mathrand.NewPCG(mathrand.Uint64(), 3))
			for range turns {
				if err := g.turn(context.WithoutCancel(ctx), r); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	t := time.NewTicker(time.Second / time.Duration(rate))
	defer t.Stop()
	defer wg.Wait()
	defer close(turns)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-t.C:
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case turns <- struct{}{}:
		}
	}
}

// turn places an order, and now and then reads an earlier one.
func (g *generator) turn(ctx context.Context, r *mathrand.Rand) error {
	if err := g.place(ctx, someOrder(r, fmt.Sprintf("n-%s-%06d", g.run, g.next.Add(1)))); err != nil {
		return err
	}
	g.mu.Lock()
	var known *Order
	if n := len(g.known); n > 0 && r.IntN(5) == 0 {
		known = &g.known[r.IntN(n)]
	}
	g.mu.Unlock()
	if known == nil {
		return nil
	}
	return g.readAgain(ctx, *known)
}

func (g *generator) place(ctx context.Context, o Order) error {
	at := time.Now().UTC()
	rep, err := g.client.place(ctx, o)
	q := request{At: at, Does: "place", ID: o.ID, Failed: failure(rep, err)}
	if q.Failed == "" && !rep.Order.same(o) {
		q.Failed = "another order was acknowledged than was placed"
	}
	if q.Failed == "" {
		if err := g.ledger.append(entry{At: time.Now().UTC(), Order: &rep.Order}); err != nil {
			return err
		}
		g.mu.Lock()
		g.known = append(g.known, rep.Order)
		g.mu.Unlock()
	}
	return g.note(q, rep)
}

func (g *generator) readAgain(ctx context.Context, o Order) error {
	at := time.Now().UTC()
	rep, err := g.client.read(ctx, o.ID)
	q := request{At: at, Does: "read", ID: o.ID, Failed: failure(rep, err)}
	if q.Failed == "" && rep.Order != o {
		q.Failed = "another order was read than was acknowledged"
	}
	return g.note(q, rep)
}

func failure(r reply, err error) string {
	switch {
	case err != nil:
		return err.Error()
	case r.Code/100 != 2:
		return r.Text
	}
	return ""
}

func (g *generator) note(q request, r reply) error {
	q.Took, q.Code, q.Release, q.Tries = r.Took, r.Code, r.Release, r.Tries
	g.logging.Lock()
	defer g.logging.Unlock()
	return g.log.Encode(q)
}
