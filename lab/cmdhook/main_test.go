package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// waiter is whoever waits for callbacks.
func waiter(t *testing.T, refused int) (url string, got <-chan answer) {
	all := make(chan answer, 10)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refused > 0 {
			refused--
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		var a answer
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
			t.Error(err)
		}
		all <- a
	}))
	t.Cleanup(s.Close)
	return s.URL, all
}

// ask sends a request and returns the status.
func ask(h *hook, key, body string) int {
	r := httptest.NewRequest(http.MethodPost, "/cmd", strings.NewReader(body))
	r.Header.Set("Idempotency-Key", key)
	w := httptest.NewRecorder()
	h.serve(w, r)
	return w.Code
}

func TestCommandsCallBack(t *testing.T) {
	for name, c := range map[string]struct {
		body    string
		refused int
		success bool
		says    string
	}{
		"success":               {`{"cmd": "echo", "arg": "a  b; $HOME"`, 0, true, "a b; $HOME"},
		"failure":               {`{"cmd": "false"`, 0, false, "exit status 1"},
		"errors are told":       {`{"cmd": "ls", "arg": "/nowhere/at-all"`, 0, false, "/nowhere/at-all"},
		"what was expected":     {`{"cmd": "echo", "arg": "Successful: 1 volume", "expect": "Successful"`, 0, true, "Successful: 1 volume"},
		"what was not expected": {`{"cmd": "echo", "arg": "Failed: the volume is in use", "expect": "Successful"`, 0, false, "Failed: the volume is in use"},
		"a waiter that is away": {`{"cmd": "echo", "arg": "hello"`, 2, true, "hello"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHook(t.Context(), beginnings("# what may be run\n\necho\nfalse\nls /nowhere/at-all\n"))
			url, got := waiter(t, c.refused)
			if code := ask(h, "", c.body+`, "callbackURL": "`+url+"\"}\n# a comment that slipped into the body"); code != http.StatusAccepted {
				t.Fatalf("it is answered %d", code)
			}
			h.running.Wait()
			if a := <-got; a.Success != c.success || !strings.Contains(a.Message, c.says) {
				t.Errorf("the callback says %+v", a)
			}
		})
	}
}

func TestWhatIsNotAllowedDoesNotRun(t *testing.T) {
	h := newHook(t.Context(), beginnings("kubectl scale statefulset\n"))
	url, got := waiter(t, 0)
	for body, code := range map[string]int{
		`{"cmd": "kubectl", "arg": "delete statefulset db", "callbackURL": "` + url + `"}`: http.StatusForbidden,
		`{"cmd": "kubectl", "arg": "scale", "callbackURL": "` + url + `"}`:                 http.StatusForbidden,
		`{"cmd": "kubectl scale statefulset", "callbackURL": "` + url + `"}`:               http.StatusForbidden,
		`{"cmd": "kubectl", "arg": "scale statefulset db"}`:                                http.StatusBadRequest,
		`hello`: http.StatusBadRequest,
	} {
		if is := ask(h, "", body); is != code {
			t.Errorf("%s is answered %d, and should be %d", body, is, code)
		}
	}
	h.running.Wait()
	if len(got) > 0 {
		t.Errorf("it was called back: %+v", <-got)
	}
}

func TestAKeyIsCarriedOutOnce(t *testing.T) {
	h := newHook(t.Context(), beginnings("echo"))
	url, got := waiter(t, 0)
	body := `{"cmd": "echo", "callbackURL": "` + url + `"}`
	for _, key := range []string{"one", "one", "two", "", ""} {
		if code := ask(h, key, body); code != http.StatusAccepted {
			t.Errorf("it is answered %d", code)
		}
	}
	h.running.Wait()
	if len(got) != 4 {
		t.Errorf("%d commands were run", len(got))
	}
}
