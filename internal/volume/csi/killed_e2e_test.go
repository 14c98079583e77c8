//go:build e2e

package csi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sluice-cd/sluice/internal/volume"
)

// mortal is the connection of a Sluice that dies at one of its writes: nothing of it reaches the cluster any more.
type mortal struct {
	next http.RoundTripper

	mu    sync.Mutex
	left  int  // writes until it dies
	after bool // the last write reaches the cluster, and its answer is lost
	dead  bool
}

// RoundTrip implements http.RoundTripper.
func (m *mortal) RoundTrip(r *http.Request) (*http.Response, error) {
	m.mu.Lock()
	died := errors.New("this Sluice is dead")
	last := false
	if r.Method != http.MethodGet && !m.dead {
		m.left--
		last = m.left == 0
	}
	dead := m.dead || last && !m.after
	m.dead = m.dead || last
	m.mu.Unlock()
	if dead {
		return nil, died
	}
	answer, err := m.next.RoundTrip(r)
	if err == nil && last {
		answer.Body.Close()
		return nil, died
	}
	return answer, err
}

// doomed is a driver that dies at its nth write.
func (l *lab) doomed(t *testing.T, n int, after bool) (*Driver, *mortal) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv(variables()[prod]))
	if err != nil {
		t.Fatal(err)
	}
	m := &mortal{left: n, after: after}
	config.QPS, config.Burst = 50, 100
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { m.next = next; return m })
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return New(prod, func(string) (Clients, error) { return Clients{client, client}, nil }, nil, Deadlines{}), m
}

// deaths calls what is to be done by drivers that die at their first write, at their second and so on, until one survives.
func (l *lab) deaths(t *testing.T, call func(ctx context.Context, d *Driver, id string) error, afterwards func(t *testing.T, id string)) {
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			id := fmt.Sprintf("%s/%t/%d", l.name, after, n)
			d, m := l.doomed(t, n, after)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			err := call(ctx, d, id)
			cancel()
			if !m.dead && err != nil || m.dead && err == nil {
				t.Fatalf("dies at write %d: %t, %v", n, m.dead, err)
			}
			afterwards(t, id)
			if !m.dead {
				t.Logf("%d writes, answers lost: %t", n-1, after)
				break
			}
		}
	}
}

// TestSwapIsKilled: whatever the last write of a swap was, the same call finishes it.
func TestSwapIsKilled(t *testing.T) {
	t.Parallel()
	l := theLab(t)
	live, cut := l.source(t)
	twin := volume.Place{Account: prod, Namespace: live.Namespace, Claim: "twin"}
	in, err := l.driver(prod).Clone(t.Context(), l.name+"/clone", l.name, cut, []volume.Place{twin})
	if err != nil {
		t.Fatal(err)
	}
	l.write(t, twin, "rows", "upgraded")
	held := [2]string{l.volume(t, live), l.volume(t, twin)} // what the claim has, and what is to be swapped in
	rows := [2]string{"rows of production", "upgraded"}
	l.deaths(t, func(ctx context.Context, d *Driver, id string) error {
		_, err := d.Swap(ctx, id, sourceOf(live), in, time.Time{})
		return err
	}, func(t *testing.T, id string) {
		old, err := l.driver(prod).Swap(t.Context(), id, sourceOf(live), in, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		if l.volume(t, live) != held[1] || !l.volumeExists(t, live, held[0]) {
			t.Fatalf("after %s the claim has %s, want %s", id, l.volume(t, live), held[1])
		}
		in = old
		held[0], held[1] = held[1], held[0]
		rows[0], rows[1] = rows[1], rows[0]
	})
	if got, _ := l.read(t, live, "rows"); got != rows[0] {
		t.Errorf("the claim holds %q, want %q", got, rows[0])
	}
	v, err := l.cluster(prod).get(t.Context(), volumes(), "", held[0])
	if err != nil || v.text("spec", "persistentVolumeReclaimPolicy") != deletes {
		t.Errorf("production's volume is no longer treated as its class says: %v, %v", v.text("spec", "persistentVolumeReclaimPolicy"), err)
	}
}

// TestKilledSwapIsTakenBack: whatever the last write of a swap was, production gets its volume back under another id, treated as its class
// says, and what was to be swapped in is not kept for production's claim any longer.
func TestKilledSwapIsTakenBack(t *testing.T) {
	t.Parallel()
	l := theLab(t)
	live, cut := l.source(t)
	twin := volume.Place{Account: prod, Namespace: live.Namespace, Claim: "twin"}
	in, err := l.driver(prod).Clone(t.Context(), l.name+"/clone", l.name, cut, []volume.Place{twin})
	if err != nil {
		t.Fatal(err)
	}
	l.write(t, twin, "rows", "upgraded")
	production, upgraded := l.volume(t, live), l.volume(t, twin)
	l.deaths(t, func(ctx context.Context, d *Driver, id string) error {
		_, err := d.Swap(ctx, id, sourceOf(live), in, time.Time{})
		return err
	}, func(t *testing.T, id string) {
		all, err := l.driver(prod).List(t.Context(), l.name)
		if err != nil {
			t.Fatal(err)
		}
		for _, swapped := range all {
			if swapped.ID() != id {
				continue
			}
			if _, err := l.driver(prod).Swap(t.Context(), id+"/back", sourceOf(live), swapped, time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		v, err := l.cluster(prod).get(t.Context(), volumes(), "", production)
		if err != nil || v.text("spec", "persistentVolumeReclaimPolicy") != deletes || l.volume(t, live) != production {
			t.Fatalf("after %s the claim has %s, and production's volume is %v, %v", id, l.volume(t, live), v, err)
		}
		if _, err := l.cluster(prod).await(t.Context(), volumes(), "", upgraded, func(o *object) (bool, error) {
			return o != nil && o.text("status", "phase") != "Available", nil
		}); err != nil {
			t.Fatalf("what was to be swapped in is kept for production's claim after %s: %v", id, err)
		}
	})
	if got, _ := l.read(t, live, "rows"); got != "rows of production" {
		t.Errorf("the claim holds %q", got)
	}
	if err := l.driver(prod).Delete(t.Context(), in); err != nil || l.volumeExists(t, live, upgraded) {
		t.Errorf("what was to be swapped in stays: %v", err)
	}
}

// TestCloneIsKilled: whatever the last write of a clone was, the same call finishes it, and it can be deleted, also as it is;
// and a deletion that was killed can be repeated.
func TestCloneIsKilled(t *testing.T) {
	t.Parallel()
	l := theLab(t)
	live, cut := l.source(t)
	base := volume.Place{Account: prod, Namespace: live.Namespace, Claim: "base"}
	from, err := l.driver(prod).Clone(t.Context(), l.name+"/base", l.name, cut, []volume.Place{base})
	if err != nil {
		t.Fatal(err)
	}
	before := len(l.mine(t, prod))
	to := []volume.Place{{Account: prod, Namespace: l.namespace(t, prod, "target"), Claim: "data"}}
	find := func(t *testing.T, id string) (volume.Copy, bool) {
		all, err := l.driver(prod).List(t.Context(), l.name)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range all {
			if c.ID() == id {
				return c, true
			}
		}
		return volume.Copy{}, false
	}
	discard := func(t *testing.T, id string) {
		if c, ok := find(t, id); ok {
			if err := l.driver(prod).Delete(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		if left := l.mine(t, prod); len(left) != before {
			t.Fatalf("after %s there are %v", id, left)
		}
	}
	clone := func(ctx context.Context, d *Driver, id string) error {
		_, err := d.Clone(ctx, id, l.name, from, to)
		return err
	}
	t.Run("and deleted as it is", func(t *testing.T) { l.deaths(t, clone, discard) })
	t.Run("and finished", func(t *testing.T) {
		l.deaths(t, clone, func(t *testing.T, id string) {
			if err := clone(t.Context(), l.driver(prod), id); err != nil {
				t.Fatal(err)
			}
			if c, ok := find(t, id); !ok || c.Info().CutAt.IsZero() {
				t.Errorf("listed %+v", c)
			}
			discard(t, id)
		})
	})
	t.Run("in its deletion", func(t *testing.T) {
		l.deaths(t, func(ctx context.Context, d *Driver, id string) error {
			if err := clone(ctx, l.driver(prod), id); err != nil {
				t.Fatal(err)
			}
			c, _ := find(t, id)
			return d.Delete(ctx, c)
		}, discard)
	})
	t.Run("a cut", func(t *testing.T) {
		l.deaths(t, func(ctx context.Context, d *Driver, id string) error {
			_, err := d.Cut(ctx, id, l.name, sourceOf(live))
			return err
		}, discard)
	})
}
