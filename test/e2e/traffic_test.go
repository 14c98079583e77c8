package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// answer is one request of a load: when it was sent and when its answer was whole, and which version gave it.
type answer struct {
	sent, whole time.Time
	version     string
	replicaSet  string
	err         error
}

// ask sends one request.
func ask(client *http.Client, at string) answer {
	a := answer{sent: time.Now()}
	resp, err := client.Get("http://" + at + "/work")
	if err == nil {
		var body []byte
		body, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		a.version, a.replicaSet, _ = strings.Cut(string(body), " ")
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, body)
		}
	}
	a.whole, a.err = time.Now(), err
	return a
}

// load is one client that sends one request after another, at most 200 in a second.
type load struct {
	t       *testing.T
	stop    chan struct{}
	stopped sync.WaitGroup
	mu      sync.Mutex
	more    *sync.Cond
	answers []answer
}

func newLoad(t *testing.T, at string) *load {
	l := &load{t: t, stop: make(chan struct{})}
	l.more = sync.NewCond(&l.mu)
	client := &http.Client{Timeout: within, Transport: &http.Transport{}}
	l.stopped.Go(func() {
		defer client.CloseIdleConnections()
		pace := time.NewTicker(5 * time.Millisecond)
		defer pace.Stop()
		for {
			select {
			case <-l.stop:
				return
			case <-pace.C:
			}
			a := ask(client, at)
			l.mu.Lock()
			l.answers = append(l.answers, a)
			l.mu.Unlock()
			l.more.Broadcast()
		}
	})
	t.Cleanup(func() { l.end() })
	return l
}

// further waits until so many more requests have been answered.
func (l *load) further(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for until := len(l.answers) + n; len(l.answers) < until; {
		l.more.Wait()
	}
}

// end stops the load and returns everything that it saw. No request may have failed.
func (l *load) end() []answer {
	l.t.Helper()
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.stopped.Wait()
	for _, a := range l.answers {
		if a.err != nil {
			l.t.Errorf("a request failed at %s: %v", a.sent.Format(time.StampMilli), a.err)
			break
		}
	}
	return l.answers
}

// between returns the answers to what was sent after one instant and answered before another; a zero instant is no limit.
func between(all []answer, from, to time.Time) []answer {
	var out []answer
	for _, a := range all {
		if a.sent.After(from) && (to.IsZero() || a.whole.Before(to)) {
			out = append(out, a)
		}
	}
	return out
}

// of counts the answers of a version.
func of(all []answer, version string) int {
	n := 0
	for _, a := range all {
		if a.version == version {
			n++
		}
	}
	return n
}
