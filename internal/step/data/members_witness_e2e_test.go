//go:build e2e

package data_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/delivery"
)

// witness asks each member who it is, all the while and over sessions that it keeps.
type witness struct {
	r    *replicated
	mu   sync.Mutex
	seen map[string][]sight
}

// sight is what a member has answered at an instant between these two.
type sight struct {
	asked, told time.Time
	answer
}

// answer is who a member is, by its own word.
type answer struct {
	role     string  // primary, follower, alone, or away where it does not answer
	release  string  // the name that its settings give it; else "old" up to server_version 15.10 (150010), and "new"
	timeline string  // of a primary: every promotion begins another
	age      float64 // seconds since the newest write that it shows
}

func (a answer) String() string {
	if a.role == "away" {
		return a.role
	}
	return a.role + "/" + a.release
}

const whoAreYou = `
SELECT CASE WHEN NOT pg_is_in_recovery() THEN 'primary' WHEN EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming') THEN 'follower' ELSE 'alone' END,
  CASE WHEN current_setting('cluster_name') <> '' THEN current_setting('cluster_name') WHEN current_setting('server_version_num')::int > 150010 THEN 'new' ELSE 'old' END,
  CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END,
  coalesce(extract(epoch FROM clock_timestamp() - (SELECT at FROM numbers ORDER BY n DESC LIMIT 1)), 0)::float8`

func member(i int) string { return fmt.Sprintf("pg-%d", i) }

// ask asks one member, within twenty seconds. Without a session it opens one, and one that failed is nil after it.
func (r *replicated) ask(ctx context.Context, name string, c **pgx.Conn) (answer, error) {
	within, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	a := answer{role: "away"}
	if *c == nil {
		opened, err := r.session(within, name)
		if err != nil {
			return a, err
		}
		*c = opened
	}
	err := (*c).QueryRow(within, whoAreYou).Scan(&a.role, &a.release, &a.timeline, &a.age)
	if err != nil {
		(*c).Close(within)
		*c, a.role = nil, "away"
	}
	return a, err
}

// begin begins to ask, until the test ends; by then there must have been one primary at most, all the while.
func (w *witness) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() { w.watch(ctx, member(i)) })
	}
	w.r.t.Cleanup(func() {
		cancel()
		all.Wait()
		w.onePrimary()
	})
}

func (w *witness) watch(ctx context.Context, name string) {
	var c *pgx.Conn
	defer func() {
		if c != nil {
			c.Close(context.Background())
		}
	}()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		s := sight{asked: time.Now()}
		var err error
		s.answer, err = w.r.ask(ctx, name, &c)
		s.told = time.Now()
		if ctx.Err() != nil {
			tick.Stop()
			return
		}
		if !errors.Is(err, context.DeadlineExceeded) { // who refuses is away; who says nothing was not seen
			w.mu.Lock()
			w.seen[name] = append(w.seen[name], s)
			w.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// ServeHTTP tells what those who run such a database measure: how old the newest write is that each member shows.
func (w *witness) ServeHTTP(out http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out.Header().Set("Content-Type", "text/plain; version=0.0.4")
	for name, all := range w.seen {
		if last := all[len(all)-1]; last.role != "away" {
			fmt.Fprintf(out, "newest_write_age_seconds{member=%q} %g\n", name, last.age)
		}
	}
}

// between is all that the members have answered between two instants, in their order: "pg-2=follower/old,away" for one that
// was a follower of the old version and then was gone.
func (w *witness) between(from, to time.Time) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for i := range 3 {
		var all []string
		for _, s := range w.seen[member(i)] {
			if s.asked.After(from) && s.told.Before(to) && !slices.Contains(all, s.String()) {
				all = append(all, s.String())
			}
		}
		out = append(out, member(i)+"="+strings.Join(all, ","))
	}
	return strings.Join(out, " ")
}

// during holds that the members were the same for as long as a step ran.
func (w *witness) during(n delivery.NodeStatus, want string) {
	w.r.t.Helper()
	if got := w.between(n.Started, n.Ended); got != want {
		w.r.t.Errorf("in the %s in which %q, the members were %s, not %s", n.Ended.Sub(n.Started).Round(time.Millisecond), n.Message, got, want)
	}
}

// reign is a time through which a member was the primary for certain: it said so before and after it, on one timeline. Who has
// stepped down can only become the primary again on another one.
type reign struct {
	member, timeline string
	from, to         time.Time
}

// reigns are all of them, whatever else a member said in between.
func (w *witness) reigns() (out []reign) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range 3 {
		for _, s := range w.seen[member(i)] {
			if s.role != "primary" {
				continue
			}
			is := func(r reign) bool { return r.member == member(i) && r.timeline == s.timeline }
			if at := slices.IndexFunc(out, is); at >= 0 {
				out[at].to = s.asked
			} else {
				out = append(out, reign{member(i), s.timeline, s.told, s.asked})
			}
		}
	}
	slices.SortFunc(out, func(a, b reign) int { return a.from.Compare(b.from) })
	return out
}

// onePrimary holds that no two members were the primary at one instant.
func (w *witness) onePrimary() {
	all := w.reigns()
	for i, a := range all {
		w.r.t.Logf("%s was the primary on timeline %s for at least %s", a.member, a.timeline, a.to.Sub(a.from).Round(time.Millisecond))
		for _, b := range all[:i] {
			if a.from.Before(b.to) && b.from.Before(a.to) {
				w.r.t.Errorf("%s and %s were both the primary, on timelines %s and %s", b.member, a.member, b.timeline, a.timeline)
			}
		}
	}
	if len(all) == 0 {
		w.r.t.Error("nobody was ever seen to be the primary")
	}
}
