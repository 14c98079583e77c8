package server_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/store"
)

func TestCallback(t *testing.T) {
	c, _ := inProcess(t, server.Options{})
	job, urls := receiver(t)
	start(t, c, spec("one", webhook(t, "eu/a b/0", job)))
	url := next(t, urls)
	until(t, c, "one", waits("eu/a b/0"))

	for name, x := range map[string]struct {
		url, body string
		code      int
		says      string
	}{
		"another's signature": {tampered(url), `{"success": true}`, http.StatusNotFound, "no webhook"},
		"no signature":        {info(t, c).URL + "/callbacks/b25l/callback", `{"success": true}`, http.StatusNotFound, "no webhook"},
		"no JSON":             {url, `success`, http.StatusBadRequest, "mdMessage"},
		"no result":           {url, `{"mdMessage": "done"}`, http.StatusBadRequest, "no \\\"success\\\""},
		"neither":             {url, `{"success": "perhaps"}`, http.StatusBadRequest, "perhaps"},
		"far too long":        {url, `{"success": true, "mdMessage": "` + strings.Repeat("x", 70<<10) + `"}`, http.StatusRequestEntityTooLarge, "64 KiB"},
	} {
		if code, text := post(t, x.url, x.body); code != x.code || !strings.Contains(text, x.says) {
			t.Errorf("%s: %d %s, want %d with %q", name, code, text, x.code, x.says)
		}
	}
	if d := until(t, c, "one", waits("eu/a b/0")); len(d.Signals) > 0 || len(d.Status.Nodes["eu/a b/0"].Signals) > 0 {
		t.Errorf("a refused callback was taken in: %+v", d)
	}

	well := `{"success": true, "mdMessage": "**all** \"well\""}`
	if code, text := post(t, url, well, "Authorization", "Bearer whatever"); code != http.StatusOK || !strings.Contains(text, `"first":true`) {
		t.Errorf("the first callback: %d %s", code, text)
	}
	if code, text := post(t, url, `{"success": false}`); code != http.StatusOK || !strings.Contains(text, `"first":false`) {
		t.Errorf("a repeated callback: %d %s", code, text)
	}
	d := until(t, c, "one", done)
	if st := d.Status.Nodes["eu/a b/0"]; d.Status.State != delivery.Succeeded || !strings.Contains(st.Message, `**all** "well"`) {
		t.Errorf("%s: %+v", d.Status.State, st)
	}
	if code, text := post(t, url, `{"success": true}`); code != http.StatusOK || !strings.Contains(text, `"first":false`) {
		t.Errorf("a callback repeated after the end: %d %s", code, text)
	}
}

func tampered(url string) string {
	i := strings.LastIndex(url, "/callback") - 5
	b := []byte(url)
	if b[i]++; b[i] > 'y' {
		b[i] = 'A'
	}
	return string(b)
}

// standby carries callbacks from what it was told some time ago.
type standby struct {
	told, now store.Delivery // one without an id is not there
	away      error
	kept      []delivery.Signal
}

func (s *standby) Load(_ context.Context, id string) (store.Delivery, error) {
	if s.told.Spec.ID != id && s.away == nil {
		return store.Delivery{}, fault.Newf(fault.NotFound, "there is no delivery %q", id)
	}
	return s.told, s.away
}

func (s *standby) Refresh(_ context.Context, id string) error {
	if s.now.Spec.ID != id {
		return fault.Newf(fault.NotFound, "there is no delivery %q", id)
	}
	s.told = s.now
	return nil
}

func (s *standby) Signal(_ context.Context, _ string, sig delivery.Signal) (bool, error) {
	if err := delivery.Check(s.told.Spec, s.told.Status, sig); err != nil {
		return false, err
	}
	s.kept = append(s.kept, sig)
	return true, nil
}

// TestCallbackToAStandby calls back to a process that lags behind the one that has called the webhook.
func TestCallbackToAStandby(t *testing.T) {
	at := func(phase delivery.Phase) store.Delivery {
		return store.Delivery{Spec: spec("one", webhook(t, "w", "http://job")), Status: delivery.Status{Nodes: map[string]delivery.NodeStatus{"w": {Phase: phase}}}}
	}
	none := store.Delivery{}
	for name, x := range map[string]struct {
		carrier standby
		code    int
		again   string
	}{
		"knows it":                               {standby{told: at(delivery.StepWaiting), now: none}, http.StatusOK, ""},
		"does not know the delivery yet":         {standby{told: none, now: at(delivery.StepRunning)}, http.StatusOK, ""},
		"knows a step that has not begun yet":    {standby{told: at(delivery.StepPending), now: at(delivery.StepWaiting)}, http.StatusOK, ""},
		"finds that the step has not begun":      {standby{told: none, now: at(delivery.StepPending)}, http.StatusServiceUnavailable, "5"},
		"finds that the step is over":            {standby{told: at(delivery.StepPending), now: at(delivery.StepCancelled)}, http.StatusGone, ""},
		"finds that there is no delivery":        {standby{told: none, now: none}, http.StatusNotFound, ""},
		"cannot read what the delivery is to do": {standby{told: none, now: none, away: fault.Newf(fault.Transient, "the cluster is away")}, http.StatusServiceUnavailable, "5"},
	} {
		f := server.NewFront(make([]byte, 32), "")
		h := f.Handler(&x.carrier, func(context.Context) error { return nil })
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, f.Callback(delivery.Key("one", "w"))+"/callback", strings.NewReader(`{"success": true}`)))
		if again := w.Header().Get("Retry-After"); w.Code != x.code || again != x.again || (len(x.carrier.kept) == 1) != (x.code == http.StatusOK) {
			t.Errorf("one that %s answers %d %s, Retry-After %q, and keeps %v", name, w.Code, w.Body, again, x.carrier.kept)
		}
	}
}

func TestCallbackOfFailure(t *testing.T) {
	c, _ := inProcess(t, server.Options{})
	job, urls := receiver(t)
	start(t, c, spec("one", webhook(t, "w", job), webhook(t, "later", job, "w")))
	if code, text := post(t, next(t, urls), `{"success": "False", "mdMessage": "3 tests failed"}`, "Content-Type", "text/plain"); code != http.StatusOK {
		t.Fatalf("%d %s", code, text)
	}
	d := until(t, c, "one", done)
	if d.Status.State != delivery.Failed || !strings.Contains(d.Status.Nodes["w"].Message, "3 tests failed") {
		t.Errorf("%s: %+v", d.Status.State, d.Status.Nodes["w"])
	}
}

// TestLateCallback calls back to a step that has ended without a callback.
func TestLateCallback(t *testing.T) {
	c, _ := inProcess(t, server.Options{})
	job, urls := receiver(t)
	start(t, c, spec("one", webhook(t, "w", job)))
	url := next(t, urls)
	until(t, c, "one", waits("w"))
	if won, err := c.Signal(limited(t), "one", delivery.Signal{Key: "cancel", Kind: delivery.CancelAll}); err != nil || !won {
		t.Fatal(won, err)
	}
	until(t, c, "one", done)
	if code, text := post(t, url, `{"success": true}`); code != http.StatusGone || !strings.Contains(text, "no longer waits") {
		t.Errorf("%d %s", code, text)
	}
}

// TestCallbackAfterCrash: a URL that was handed out before the server was killed works after it runs again.
func TestCallbackAfterCrash(t *testing.T) {
	dir := t.TempDir()
	c := detached(t, dir)
	job, urls := receiver(t)
	start(t, c, spec("one", webhook(t, "w", job)))
	url := next(t, urls)
	until(t, c, "one", waits("w"))
	before := info(t, c)
	if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c = detached(t, dir)
	if after := info(t, c); after.PID == before.PID || after.URL != before.URL {
		t.Fatalf("before %+v, after %+v", before, after)
	}
	if code, text := post(t, url, `{"success": true}`); code != http.StatusOK {
		t.Fatalf("%d %s", code, text)
	}
	if d := until(t, c, "one", done); d.Status.State != delivery.Succeeded {
		t.Errorf("%s: %s", d.Status.State, d.Status.Reason)
	}
}

// TestTokenForWorkflows plays a workflow written for Armory CD-as-a-Service: first a token, then the callback.
func TestTokenForWorkflows(t *testing.T) {
	c, dir := inProcess(t, server.Options{})
	job, urls := receiver(t)
	start(t, c, spec("one", webhook(t, "w", job)))
	url := next(t, urls)
	code, text := post(t, info(t, c).URL+"/oauth/token", "grant_type=client_credentials&client_id=a&client_secret=b&audience=https://api.cloud.armory.io",
		"Content-Type", "application/x-www-form-urlencoded")
	bearer := between(text, `"access_token":"`, `"`)
	if code != http.StatusOK || bearer == "" || !strings.Contains(text, `"token_type":"Bearer"`) || !strings.Contains(text, `"expires_in":86400`) {
		t.Fatalf("%d %s", code, text)
	}
	if bearer == token(t, dir) {
		t.Error("the API's token was handed out")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, info(t, c).URL+"/api/v1/deliveries", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	if code, text := do(t, req); code != http.StatusUnauthorized {
		t.Errorf("the token opens the API: %d %s", code, text)
	}
	if code, text := post(t, url, `{"success": true, "mdMessage": ""}`, "Authorization", "Bearer "+bearer, "Content-Type", "application/json"); code != http.StatusOK {
		t.Errorf("%d %s", code, text)
	}
	if d := until(t, c, "one", done); d.Status.State != delivery.Succeeded {
		t.Errorf("%s: %s", d.Status.State, d.Status.Reason)
	}
}

func between(s, from, to string) string {
	_, rest, _ := strings.Cut(s, from)
	v, _, _ := strings.Cut(rest, to)
	return v
}

// TestCallbackToOneOfTwo: each of two waiting webhooks has a URL of its own.
func TestCallbackToOneOfTwo(t *testing.T) {
	c, _ := inProcess(t, server.Options{})
	job, urls := receiver(t)
	named := func(path string) plan.Node {
		return node(t, path, plan.KindWebhook, plan.WebhookArgs{Name: path, Method: "POST", URI: job, Body: path + "={{armory.callbackUri}}/callback"})
	}
	start(t, c, spec("one", named("x"), named("x/y")))
	got := map[string]string{}
	for range 2 {
		name, url, _ := strings.Cut(next(t, urls), "=")
		got[name] = url
	}
	if code, text := post(t, got["x"], `{"success": true}`); code != http.StatusOK {
		t.Fatalf("%d %s", code, text)
	}
	d := until(t, c, "one", func(d store.Delivery) bool { return d.Status.Nodes["x"].Phase == delivery.StepPassed })
	if p := d.Status.Nodes["x/y"].Phase; p != delivery.StepRunning && p != delivery.StepWaiting {
		t.Errorf("the other webhook is %s", p)
	}
	if code, text := post(t, got["x/y"], `{"success": true}`); code != http.StatusOK {
		t.Fatalf("%d %s", code, text)
	}
	until(t, c, "one", done)
}
