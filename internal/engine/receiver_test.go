package engine_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// receiver is the other side of webhooks and queries, in a process that is not killed: a webhook's server that begins one
// job per Idempotency-Key and calls back when it is done, and a Prometheus whose numbers follow from query and time.
type receiver struct {
	*httptest.Server
	t     *testing.T
	dir   string // where the child's socket is
	stop  context.CancelFunc
	ctx   context.Context //nolint:containedctx // of the jobs, which outlive the requests that begin them
	jobs  sync.WaitGroup
	mu    sync.Mutex
	got   map[string][]string // key → every request of it, as text
	asked map[string]bool     // each query with its instant
}

func newReceiver(t *testing.T, dir string) *receiver {
	r := &receiver{t: t, dir: dir, got: map[string][]string{}, asked: map[string]bool{}}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.Server = httptest.NewServer(r)
	return r
}

// close ends the jobs that still want to call back.
func (r *receiver) close() {
	r.stop()
	r.jobs.Wait()
	r.Server.Close()
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if strings.HasSuffix(req.URL.Path, "/query") {
		r.query(w, req)
		return
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest) // killed while it was sending
		return
	}
	key := req.Header.Get("Idempotency-Key")
	r.mu.Lock()
	r.got[key] = append(r.got[key], fmt.Sprintf("%s %s %s %s", req.Method, req.URL.Path, req.Header.Get("Authorization"), body))
	n := len(r.got[key])
	r.mu.Unlock()
	kind := path.Base(req.URL.Path)
	begin := 1
	if kind == "flaky" {
		begin = 2
	}
	if n < begin {
		http.Error(w, "try again", http.StatusServiceUnavailable)
		return
	}
	if n == begin && kind != "tell" {
		var asked struct{ URL string }
		if err := json.Unmarshal(body, &asked); err != nil {
			r.t.Errorf("%s: %v", body, err)
		}
		r.jobs.Go(func() { r.callBack(asked.URL, kind != "bad") })
	}
	w.WriteHeader(http.StatusAccepted)
}

// callBack calls back until somebody has kept it: Sluice may be dead just now.
func (r *receiver) callBack(url string, success bool) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(r.dir, "socket"))
	}}}
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for {
		req, err := http.NewRequestWithContext(r.ctx, http.MethodPost, fmt.Sprintf("%s?success=%v", url, success), http.NoBody)
		if err != nil {
			r.t.Error(err)
			return
		}
		if res, err := client.Do(req); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-r.ctx.Done():
			return
		case <-again.C:
		}
	}
}

// query answers as Prometheus does.
func (r *receiver) query(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.asked[req.FormValue("query")+" @"+req.FormValue("time")] = true
	r.mu.Unlock()
	at, err := strconv.ParseFloat(req.FormValue("time"), 64)
	if err != nil {
		r.t.Errorf("a query without an instant: %v", err)
	}
	at = math.Floor(at)
	value, ok := map[string]float64{"good": 1, "bad": 9, "canary_total": 10 * at, "canary_bad": 3 * at, "stable_total": 90 * at, "stable_bad": at}[req.FormValue("query")]
	if !ok {
		r.t.Errorf("query %q", req.FormValue("query"))
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[%f,"%f"]}]}}`, at, value)
}
