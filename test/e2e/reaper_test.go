//go:build e2e

package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	deliveries "github.com/sluice-cd/sluice/internal/delivery"
)

// reaper stands between controllers and the API server that holds their deliveries. It ends the controller with SIGKILL
// when a status has been written: the API server has it, the controller never hears that it does.
type reaper struct {
	t  *testing.T
	at string // kubeconfig of the way through it

	mu      sync.Mutex
	armed   bool
	victim  *exec.Cmd
	every   int
	places  map[string]bool
	written int // status writes
	again   int // of these, those that only say what an earlier one had said
	kills   int
}

// newReaper kills at every nth place of a delivery.
func newReaper(s *site, kubeconfig string, every int) *reaper {
	s.t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		s.t.Fatal(err)
	}
	to, err := url.Parse(config.Host)
	if err != nil {
		s.t.Fatal(err)
	}
	r := &reaper{t: s.t, every: every, places: map[string]bool{}}
	proxy := &httputil.ReverseProxy{FlushInterval: -1, ModifyResponse: r.answered, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
		w.WriteHeader(http.StatusBadGateway) // whoever asked is dead
	}, Rewrite: func(q *httputil.ProxyRequest) { q.SetURL(to) }}
	if proxy.Transport, err = rest.TransportFor(config); err != nil {
		s.t.Fatal(err)
	}
	srv := httptest.NewServer(proxy)
	s.t.Cleanup(srv.Close)
	r.at = s.write("through.kubeconfig", fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q}}],
contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}]}`, srv.URL))
	return r
}

// answered sees the API server's answers.
func (r *reaper) answered(resp *http.Response) error {
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
		r.kills++
		if err := r.victim.Process.Kill(); err != nil {
			r.t.Errorf("kill: %v", err)
		}
	}
	return nil
}

// place says where a delivery is: how far every step is, and what it has kept. How often a step was tried, and when, is not
// part of it.
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
		lines = append(lines, fmt.Sprint(path, n.Phase, n.Verdict, n.Held, n.Stopping, n.Cleaning, n.Cleaned, !n.Deadline.IsZero(), keys(n.Saved)))
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

// arm has it kill from now on, or no more. It returns how often it did since it was asked last.
func (r *reaper) arm(yes bool) (kills, written, again int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kills, written, again = r.kills, r.written, r.again
	r.armed, r.kills, r.written, r.again = yes, 0, 0, 0
	return kills, written, again
}

// controllers runs one controller after the other, with a Lease of three seconds, until the test ends.
func (r *reaper) controllers(s *site, namespace string) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	s.t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	log, err := os.Create(s.path("controller.log"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		log.Close()
		if s.t.Failed() {
			body, _ := os.ReadFile(log.Name())
			s.t.Logf("the controllers:\n%s", body)
		}
	})
	done.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			cmd := s.command(ctx, "controller", "--namespace", namespace, "--kubeconfig", r.at, "--listen", "127.0.0.1:0",
				"--lease-duration", "3s", "--renew-deadline", "2s", "--retry-period", "500ms")
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			cmd.Stdout, cmd.Stderr = log, log
			r.mu.Lock()
			r.victim = cmd
			err := cmd.Start()
			r.mu.Unlock()
			if err != nil {
				s.t.Error(err)
				return
			}
			err = cmd.Wait()
			if e, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
				fmt.Fprintf(log, "controller %d: %v\n", n, err)
			}
		}
	})
}
