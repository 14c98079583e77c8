package e2e

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// hook is one request that a receiver got.
type hook struct {
	method, path, query, body string
	header                    http.Header
}

// receiver is where webhooks go. What a path does is said by a handler; without one it answers 204, as GitHub does.
type receiver struct {
	*httptest.Server
	t     *testing.T
	mu    sync.Mutex
	hooks []hook
	does  map[string]func(http.ResponseWriter, hook)
	calls sync.WaitGroup
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{t: t, does: map[string]func(http.ResponseWriter, hook){}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if err != nil {
			t.Errorf("read a webhook: %v", err)
		}
		h := hook{q.Method, q.URL.Path, q.URL.RawQuery, string(body), q.Header}
		r.mu.Lock()
		r.hooks = append(r.hooks, h)
		do := r.does[h.path]
		r.mu.Unlock()
		if do == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		do(w, h)
	}))
	t.Cleanup(func() {
		r.Close()
		r.calls.Wait()
	})
	return r
}

// on says what a path does.
func (r *receiver) on(path string, do func(http.ResponseWriter, hook)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.does[path] = do
}

// callsBack makes a path accept, and call back with a body afterwards, at the address that the request hands out.
func (r *receiver) callsBack(path, body string, address func(hook) string) {
	r.on(path, func(w http.ResponseWriter, h hook) {
		w.WriteHeader(http.StatusAccepted)
		r.calls.Go(func() { r.call(address(h), body) })
	})
}

// call does what a job does at its end; any bearer will do.
func (r *receiver) call(address, body string) {
	req, err := http.NewRequest(http.MethodPost, address, strings.NewReader(body))
	if err != nil {
		r.t.Errorf("call back: %v", err)
		return
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer of-another-service")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Errorf("call back: %v", err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(resp.Body)
		r.t.Errorf("call back at %s: %s: %s", address, resp.Status, text)
	}
}

// got returns the requests to a path.
func (r *receiver) got(path string) []hook {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []hook
	for _, h := range r.hooks {
		if h.path == path {
			out = append(out, h)
		}
	}
	return out
}

// one returns the one request that a path got.
func (r *receiver) one(path string) hook {
	r.t.Helper()
	all := r.got(path)
	if len(all) != 1 {
		r.t.Fatalf("%s was called %d times: %+v", path, len(all), all)
	}
	return all[0]
}
