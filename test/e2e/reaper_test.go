//go:build e2e

package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	deliveries "github.com/sluice-cd/sluice/internal/delivery"
)

// leaseOf is how long the controllers' Lease is.
const leaseOf = 3 * time.Second

// harm is what a reaper does to a controller.
type harm int

const (
	kill harm = iota // SIGKILL
	stop             // SIGSTOP for longer than two periods of the Lease, and then SIGCONT
	both             // the one and the other, in turn
)

// reaper stands between controllers and the API server that holds their deliveries. It harms the controller that has written
// a status: the API server has it, the controller never hears that it does, or only when it no longer leads.
type reaper struct {
	t *testing.T

	mu       sync.Mutex
	seats    []*seat
	silences []silence
	armed    bool
	harm     harm
	every    int
	places   map[string]bool
	written  int // status writes
	again    int // of these, those that only say what an earlier one had said
	kills    int
	stops    int
}

// newReaper harms at every nth place of a delivery.
func newReaper(t *testing.T, every int) *reaper {
	return &reaper{t: t, every: every, places: map[string]bool{}}
}

// answered sees the API server's answers to the controller of a seat.
func (r *reaper) answered(s *seat, resp *http.Response) error {
	q := resp.Request
	if q.Method != http.MethodPut || resp.StatusCode >= 300 || !strings.Contains(q.URL.Path, "/deliveries/") || !strings.HasSuffix(q.URL.Path, "/status") {
		return nil
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	at, err := place(body)
	if err != nil {
		r.t.Errorf("a status that cannot be read: %v", err)
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written++
	if r.places[at] {
		r.again++
		return nil
	}
	r.places[at] = true
	if r.armed && len(r.places)%r.every == 0 {
		r.strike(s)
	}
	return nil
}

// strike harms the controller of a seat. One that nobody can stand in for is not stopped.
func (r *reaper) strike(s *seat) {
	h := r.harm
	if h == both {
		h = harm((r.kills + r.stops) % 2)
	}
	var err error
	switch {
	case s.stopped:
		return
	case h == kill:
		if err = s.controller.Process.Kill(); err == nil {
			r.kills++
		}
	case slices.ContainsFunc(r.seats, func(o *seat) bool { return o != s && !o.stopped }):
		if err = s.stop(); err == nil {
			r.stops++
		}
	}
	// One that has lost its Lease has ended by itself.
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		r.t.Errorf("%s: %v", s.name, err)
	}
}

// left takes a seat away.
func (r *reaper) left(s *seat) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seats = slices.DeleteFunc(r.seats, func(o *seat) bool { return o == s })
}

// place says where a delivery is: how far every step is, how often it was entered, and what it has kept. When that was, and
// how often an error came, is not part of it.
func place(body []byte) (string, error) {
	var d v1alpha1.Delivery
	if err := json.Unmarshal(body, &d); err != nil {
		return "", err
	}
	if len(d.Status.State) == 0 {
		return d.Name + " " + d.Status.Phase, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(d.Status.State))
	if err != nil {
		return "", err
	}
	var s deliveries.Status
	if err := json.NewDecoder(z).Decode(&s); err != nil {
		return "", err
	}
	lines := []string{d.Name, string(s.State), fmt.Sprint(s.Done)}
	for path, n := range s.Nodes {
		lines = append(lines, fmt.Sprint(path, n.Phase, n.Entry, n.Verdict, n.Held, n.Stopping, n.Cleaning, n.Cleaned, !n.Deadline.IsZero(), keys(n.Saved)))
	}
	slices.Sort(lines[3:])
	return strings.Join(lines, "\n"), nil
}

// keys are the names of what a step keeps, with the lengths of lists.
func keys(saved json.RawMessage) []string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(saved, &fields) != nil {
		return nil
	}
	var out []string
	for k, v := range fields {
		var list []json.RawMessage
		if json.Unmarshal(v, &list) == nil {
			k += fmt.Sprint(len(list))
		}
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// arm has it do harm from now on.
func (r *reaper) arm(h harm) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.armed, r.harm, r.kills, r.stops, r.written, r.again = true, h, 0, 0, 0, 0
}
