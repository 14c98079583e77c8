//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// customers order all the time: they read the prices in the shop and write their order.
type customers struct {
	p    *pgShop
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	next    int64
	ledger  map[int64]time.Time // acknowledged orders
	visits  map[string][2]int   // by pod: all, and those that failed
	longest time.Duration
}

func newCustomers(p *pgShop) *customers {
	return &customers{p: p, stop: func() {}, ledger: map[int64]time.Time{}, visits: map[string][2]int{}}
}

// ServeHTTP tells how the visits went, as Prometheus reads it.
func (c *customers) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	for pod, n := range c.visits {
		fmt.Fprintf(w, "visits_total{pod=%[1]q} %[2]d\nvisits_failed_total{pod=%[1]q} %[3]d\n", pod, n[0], n[1])
	}
}

// begin sends the customers in.
func (c *customers) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	c.stop, c.done = cancel, make(chan struct{})
	web := "http://" + c.p.prod.address("web")
	c.p.t.Cleanup(c.end)
	go func() {
		defer close(c.done)
		var session *pgx.Conn
		pace := time.NewTicker(20 * time.Millisecond)
		defer pace.Stop()
		last := time.Now()
		for ctx.Err() == nil {
			<-pace.C
			if !c.visit(ctx, web) {
				continue
			}
			within, cancel := context.WithTimeout(ctx, 5*time.Second)
			ok := c.order(within, &session)
			cancel()
			if ok {
				c.mu.Lock()
				c.longest = max(c.longest, time.Since(last))
				c.mu.Unlock()
				last = time.Now()
			}
		}
		if session != nil {
			session.Close(context.Background())
		}
	}()
}

// end sends them home.
func (c *customers) end() {
	if c.stop(); c.done != nil {
		<-c.done
	}
}

// visit reads the prices, each time by a connection of its own, so that the Service chooses the pod anew.
func (c *customers) visit(ctx context.Context, web string) bool {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	get := func(path string) (string, int) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, web+path, nil)
		if err != nil {
			return "", 0
		}
		a, err := client.Do(r)
		if err != nil {
			return "", 0
		}
		defer a.Body.Close()
		body, err := io.ReadAll(a.Body)
		if err != nil {
			return "", 0
		}
		return string(body), a.StatusCode
	}
	who, code := get("/")
	if code != http.StatusOK {
		return false
	}
	pod, _, _ := strings.Cut(who, " ")
	_, code = get("/file/prices/list")
	if code == 0 {
		return false // the pod has ended in between
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.visits[pod]
	n[0]++
	if code != http.StatusOK {
		n[1]++
	}
	c.visits[pod] = n
	return code == http.StatusOK
}

// order writes one order, the same again after a failure: it may have been taken.
func (c *customers) order(ctx context.Context, session **pgx.Conn) bool {
	if *session == nil || (*session).IsClosed() {
		s, err := c.p.connect(ctx)
		if err != nil {
			return false
		}
		*session = s
	}
	c.mu.Lock()
	id := c.next + 1
	c.mu.Unlock()
	if _, err := (*session).Exec(ctx, "INSERT INTO orders VALUES ($1, $2, 'by a customer') ON CONFLICT DO NOTHING", id, id*3); err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next, c.ledger[id] = id, time.Now()
	return true
}

// more waits until some more orders have been acknowledged.
func (c *customers) more(n int) {
	c.p.t.Helper()
	count := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.ledger)
	}
	until := count() + n
	c.p.eventually(fmt.Sprintf("%d more orders are acknowledged", n), func() error {
		if is := count(); is < until {
			return fmt.Errorf("there are %d of %d", is, until)
		}
		return nil
	})
}

// failed counts the failed visits so far.
func (c *customers) failed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, v := range c.visits {
		n += v[1]
	}
	return n
}

// kept holds that every acknowledged order is in production as it was written, and says how long somebody had to wait.
func (c *customers) kept() {
	c.p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	s, err := c.p.connect(ctx)
	if err != nil {
		c.p.t.Fatal(err)
	}
	defer s.Close(context.Background())
	c.mu.Lock()
	var ids []int64
	for id := range c.ledger {
		ids = append(ids, id)
	}
	longest := c.longest
	c.longest = 0
	c.mu.Unlock()
	var missing, differing int
	err = s.QueryRow(ctx, "SELECT count(*) FILTER (WHERE id IS NULL), count(*) FILTER (WHERE total <> a * 3) FROM unnest($1::bigint[]) a LEFT JOIN orders ON id = a", ids).
		Scan(&missing, &differing)
	if err != nil {
		c.p.t.Fatal(err)
	}
	if len(ids) == 0 || missing+differing > 0 {
		c.p.t.Errorf("of %d acknowledged orders %d are missing and %d differ", len(ids), missing, differing)
	}
	c.p.t.Logf("of %d acknowledged orders %d are missing and %d differ; the longest wait was %s", len(ids), missing, differing, longest.Round(time.Millisecond))
}

// since counts the orders that were acknowledged after an instant.
func (c *customers) since(t time.Time) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, at := range c.ledger {
		if at.After(t) {
			n++
		}
	}
	return n
}
