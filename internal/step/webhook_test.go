package step

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
)

// received is one request as a webhook's server saw it.
type received struct {
	method, path, body string
	header             http.Header
}

// hook is a webhook's server: it answers with the statuses given to it in order, the last one for ever.
type hook struct {
	*httptest.Server
	mu     sync.Mutex
	got    []received
	status []int
	body   string
}

func newHook(t *testing.T, body string, status ...int) *hook {
	h := &hook{status: status, body: body}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.got = append(h.got, received{r.Method, r.URL.RequestURI(), string(text), r.Header})
		w.Header().Set("Location", "/login") // which only a redirection means
		w.WriteHeader(h.status[min(len(h.got), len(h.status))-1])
		_, _ = io.WriteString(w, h.body)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hook) requests() []received {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.got)
}

func where() plan.Where {
	return plan.Where{Application: "shop", Target: "prod eu", Account: "here", Namespace: "shop", ReplicaSetName: "web-12345678", Previews: []string{"p/deploy/expose"}}
}

func TestWebhookTemplates(t *testing.T) {
	h := newHook(t, "", 204)
	r := newRunner(t, webhook{ports()}, plan.WebhookArgs{Name: "notify", URI: h.URL + "/hooks?to={{armory.callbackUri}}/callback",
		Headers: []plan.Header{{Key: "Authorization", Value: "Bearer {{secrets.token}}"}, {Key: "X-Env", Value: "{{context.env}}"}},
		Body: `{"app": "{{armory.applicationName}}", "run": "{{armory.deploymentId}}", "target": "{{armory.environmentName}}", "rs": "{{armory.replicaSetName}}",
"account": "{{armory.accountName}}", "ns": "{{ armory.namespace }}", "url": "{{armory.preview.web}}", "nothing": "{{armory.pipelineId}}{{TF_WS_ID}}"}
# not JSON`, Context: map[string]string{"env": "a<b&c"}, Where: where()})
	r.call.Siblings = func(path string) json.RawMessage {
		if path == "p/deploy/expose" {
			return json.RawMessage(`{"expose": {"preview.web": "http://preview"}}`)
		}
		return nil
	}
	out := r.enter()
	if out.Verdict != "" || !slices.Equal(out.Wait, []string{"callback/p/deploy/1"}) || !out.Deadline.Equal(epoch.Add(24*time.Hour)) {
		t.Fatalf("%+v", out)
	}
	got := h.requests()
	if len(got) != 1 {
		t.Fatalf("%d requests", len(got))
	}
	want := received{method: "POST", path: "/hooks?to=http://sluice/callbacks/of-d/p/deploy/1/1/callback",
		body: `{"app": "shop", "run": "d", "target": "prod eu", "rs": "web-12345678",
"account": "here", "ns": "shop", "url": "http://preview", "nothing": ""}
# not JSON`}
	if g := got[0]; g.method != want.method || g.path != want.path || g.body != want.body {
		t.Errorf("got %+v", g)
	}
	for k, v := range map[string]string{"Authorization": "Bearer s3cr+t/value", "X-Env": "a<b&c", "Idempotency-Key": "d/p/deploy/1/1", "Content-Type": ""} {
		if g := got[0].header.Get(k); g != v {
			t.Errorf("header %s is %q, want %q", k, g, v)
		}
	}
	if len(r.lines) == 0 {
		t.Error("nobody was told of the unknown names")
	}
}

func TestWebhookOutcomes(t *testing.T) {
	for _, c := range []struct {
		name     string
		status   []int
		body     string
		args     plan.WebhookArgs
		signal   map[string]string
		want     delivery.Verdict
		message  string // a part of it
		requests int
	}{
		{"any 2xx is acceptance", []int{202}, "", plan.WebhookArgs{DisableCallback: true}, nil, delivery.Pass, "202 Accepted", 1},
		{"not accepted", []int{500}, "out of disk", plan.WebhookArgs{}, nil, delivery.Fail, "500 Internal Server Error (text/plain; charset=utf-8): out of disk", 1},
		{"a redirection to a page is no acceptance", []int{302, 200}, "", plan.WebhookArgs{DisableCallback: true}, nil, delivery.Fail, "302 Found", 1},
		{"retries of the trigger", []int{500, 503, 204}, "", plan.WebhookArgs{RetryCount: 2, DisableCallback: true}, nil, delivery.Pass, "204", 3},
		{"as many retries as asked for", []int{500, 500, 500, 204}, "", plan.WebhookArgs{RetryCount: 2}, nil, delivery.Fail, "3 attempts", 3},
		{"called back", []int{200}, "", plan.WebhookArgs{}, map[string]string{"success": "true", "mdMessage": "**42** tests"}, delivery.Pass, "**42** tests", 1},
		{"called back without success", []int{200}, "", plan.WebhookArgs{}, map[string]string{"success": "false", "mdMessage": "2 failed"}, delivery.Fail, "2 failed", 1},
		{"called back with nonsense", []int{200}, "", plan.WebhookArgs{}, map[string]string{"success": "maybe"}, delivery.Fail, "success: false", 1},
		{"silence", []int{200}, "", plan.WebhookArgs{}, nil, delivery.Fail, "nobody called back within 24h0m0s", 1},
		{"an agent that is an account", []int{200}, "", plan.WebhookArgs{Agent: "here", DisableCallback: true}, nil, delivery.Pass, "200", 1},
		{"an agent that nobody knows", []int{200}, "", plan.WebhookArgs{Agent: "there", DisableCallback: true}, nil, delivery.Fail, `there is no account "there"`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHook(t, c.body, c.status...)
			c.args.Name, c.args.URI = "hook", h.URL
			r := newRunner(t, webhook{ports()}, c.args)
			if c.signal != nil {
				if out := r.enter(); out.Verdict != "" {
					t.Fatalf("it did not wait: %+v", out)
				}
				r.signal(delivery.Callback, c.signal)
			}
			out := r.end()
			if out.Verdict != c.want || !strings.Contains(out.Message, c.message) {
				t.Errorf("%s: %s", out.Verdict, out.Message)
			}
			got := h.requests()
			if len(got) != c.requests {
				t.Errorf("%d requests, want %d", len(got), c.requests)
			}
			for _, g := range got {
				if g.header.Get("Idempotency-Key") != r.call.Key {
					t.Errorf("a request had the key %q", g.header.Get("Idempotency-Key"))
				}
			}
		})
	}
}

// TestWebhookBacksOff holds that retries wait, ever longer, and that a callback ends the wait.
func TestWebhookBacksOff(t *testing.T) {
	h := newHook(t, "", 500)
	r := newRunner(t, webhook{ports()}, plan.WebhookArgs{Name: "hook", URI: h.URL, RetryCount: 9})
	for i, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		out := r.enter()
		if got := out.Deadline.Sub(r.call.Now); got != want || !slices.Contains(out.Wait, "callback/p/deploy/1") {
			t.Fatalf("attempt %d: waits %s for %v, want %s", i+1, got, out.Wait, want)
		}
		if again := r.enter(); !again.Deadline.Equal(out.Deadline) || len(h.requests()) != i+1 {
			t.Fatalf("entered too early it sent %d requests", len(h.requests()))
		}
		r.call.Now = out.Deadline
	}
	r.signal(delivery.Callback, map[string]string{"success": "true"})
	if out := r.enter(); out.Verdict != delivery.Pass || len(h.requests()) != 3 {
		t.Errorf("%+v after %d requests", out, len(h.requests()))
	}
}

// TestWebhookKilled kills Sluice at each save: the request is sent again under the same key only where nobody can know
// whether it arrived, and then the message says so.
func TestWebhookKilled(t *testing.T) {
	for at, want := range map[int]struct {
		requests int
		doubt    bool
	}{1: {1, false}, 2: {2, true}} {
		h := newHook(t, "", 200)
		r := newRunner(t, webhook{ports()}, plan.WebhookArgs{Name: "hook", URI: h.URL})
		r.failAt = at
		if _, err := r.step.Run(t.Context(), r.call); err == nil {
			t.Fatalf("save %d did not happen", at)
		}
		out := r.enter()
		if out.Verdict != "" || len(h.requests()) != want.requests || strings.Contains(out.Message, "sent again") != want.doubt {
			t.Errorf("killed at save %d: %d requests, %+v", at, len(h.requests()), out)
		}
		r.signal(delivery.Callback, map[string]string{"success": "true"})
		if out := r.enter(); out.Verdict != delivery.Pass || strings.Contains(out.Message, "sent again 1 time under the same Idempotency-Key") != want.doubt {
			t.Errorf("killed at save %d: %+v", at, out)
		}
	}
}

func TestWebhookHidesSecrets(t *testing.T) {
	h := newHook(t, `no such user: s3cr+t/value, s3cr%2Bt%2Fvalue, call http://sluice/callbacks/of-d/p/deploy/1/1/callback`, 401)
	for name, uri := range map[string]string{"in the answer": h.URL + "/?t={{secrets.token}}&c={{armory.callbackUri}}",
		"where nothing listens": "http://127.0.0.1:1/{{secrets.token}}", "in a URL that is none": "{{secrets.token}}"} {
		out := newRunner(t, webhook{ports()}, plan.WebhookArgs{Name: "hook", URI: uri, Headers: []plan.Header{{Key: "X", Value: "{{secrets.token}}"}}}).end()
		if out.Verdict != delivery.Fail || strings.Contains(out.Message, "s3cr") || strings.Contains(out.Message, "callbacks/") {
			t.Errorf("%s: %s", name, out.Message)
		}
	}
	out := newRunner(t, webhook{ports()}, plan.WebhookArgs{Name: "hook", URI: h.URL, Body: "{{secrets.other}}"}).end()
	if out.Verdict != delivery.Fail || !strings.Contains(out.Message, `there is no secret "other"`) {
		t.Errorf("a secret that is missing: %+v", out)
	}
}

func TestWebhookPlan(t *testing.T) {
	for _, c := range []struct {
		args plan.WebhookArgs
		ok   bool
	}{
		{plan.WebhookArgs{Name: "a", URI: "{{secrets.url}}"}, true},
		{plan.WebhookArgs{Name: "a", URI: "http://x", Method: "get"}, true},
		{plan.WebhookArgs{Name: "a", URI: " "}, false},
		{plan.WebhookArgs{Name: "a", URI: "http://x", Method: "GET IT"}, false},
	} {
		body, err := json.Marshal(c.args)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (webhook{}).Plan(plan.Node{Args: body}); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.args, err)
		}
	}
}
