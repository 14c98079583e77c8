//go:build e2e

package kubernetes

import (
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// dying lets a number of writes through and fails all that follow, as the connection of a process that was killed does.
type dying struct {
	next http.RoundTripper
	left atomic.Int64
}

func (d *dying) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet && d.left.Add(-1) < 0 {
		return nil, fmt.Errorf("killed")
	}
	return d.next.RoundTrip(r)
}

// mortal is a platform for the same cluster that is killed after some writes.
func mortal(t *testing.T, p *Platform, writes int64) (*Platform, *dying) {
	t.Helper()
	d := &dying{}
	d.left.Store(writes)
	config := rest.CopyConfig(p.config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { d.next = next; return d })
	m, err := connect(p.c, config)
	if err != nil {
		t.Fatal(err)
	}
	return m, d
}

// TestKilledCanary dies at each write of each step of a canary. What the engine does then takes everything back: it asks once more
// what the start has changed, by the same key, and undoes the steps, the last one first.
func TestKilledCanary(t *testing.T) {
	if os.Getenv("SLUICE_LONG") == "" {
		t.Skip("it starts and takes back some thirty canaries: make test-killed runs it")
	}
	refs := []manifest.Ref{web}
	s := newShop(t)
	begin := func(p *Platform, delivery string) ([]platform.Change, error) {
		return p.StartCanary(s.ctx, delivery+"/start", s.next, platform.Options{Namespace: ns, Delivery: delivery})
	}
	for name, last := range map[string]func(p *Platform, key string) error{
		"start":   func(p *Platform, delivery string) error { _, err := begin(p, delivery); return err },
		"half":    func(p *Platform, delivery string) error { return p.SetWeight(s.ctx, delivery+"/50", refs, 50) },
		"all":     func(p *Platform, delivery string) error { return p.SetWeight(s.ctx, delivery+"/100", refs, 100) },
		"promote": func(p *Platform, delivery string) error { return p.Promote(s.ctx, delivery+"/promote", refs) },
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			for n := int64(0); ; n++ {
				delivery := fmt.Sprintf("%s-%d", name, n)
				if name != "start" {
					_, err := begin(s.Platform, delivery)
					s.must(err)
					s.ready(time.Minute)
				}
				if name == "promote" {
					s.must(s.SetWeight(s.ctx, delivery+"/half", refs, 50))
				}
				m, _ := mortal(t, s.Platform, n)
				died := last(m, delivery)
				changes, err := begin(s.Platform, delivery)
				s.must(err)
				s.must(s.SetWeight(s.ctx, delivery+"/undo", refs, 0))
				s.must(s.Abort(s.ctx, delivery+"/abort", refs))
				s.must(s.Revert(s.ctx, delivery+"/revert", changes))
				s.ready(time.Minute)
				same(t, fmt.Sprintf("taken back after %d writes", n), snapshotOf(t, s.Platform), s.before)
				if t.Failed() || died == nil {
					t.Logf("%d writes and more are the whole", n)
					return
				}
			}
		})
	}
}
