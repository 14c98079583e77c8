package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	longest    = 10 * time.Minute // that a command may take
	patience   = time.Minute      // for the callback to be taken
	most       = 64 << 10         // bytes of a request
	mostOfText = 4 << 10          // bytes of what the command wrote, in the message
)

// request is the body of POST /cmd. What follows the JSON value is not looked at: real files have comments there.
type request struct {
	Cmd      string `json:"cmd"`
	Arg      string `json:"arg"`
	Callback string `json:"callbackURL"`
	Expect   string `json:"expect"`
}

// answer is the body of a callback.
type answer struct {
	Success bool   `json:"success"`
	Message string `json:"mdMessage"`
}

// hook runs commands, each key once.
type hook struct {
	ctx     context.Context
	allowed [][]string
	running sync.WaitGroup
	mu      sync.Mutex
	keys    map[string]bool
}

func newHook(ctx context.Context, allowed [][]string) *hook {
	return &hook{ctx: ctx, allowed: allowed, keys: map[string]bool{}}
}

func (h *hook) serve(w http.ResponseWriter, r *http.Request) {
	var q request
	if err := json.NewDecoder(io.LimitReader(r.Body, most)).Decode(&q); err != nil {
		http.Error(w, "the body is no JSON: "+err.Error(), http.StatusBadRequest)
		return
	}
	words := append([]string{q.Cmd}, strings.Fields(q.Arg)...)
	switch {
	case q.Callback == "":
		http.Error(w, "callbackURL is missing", http.StatusBadRequest)
		return
	case !h.allows(words):
		http.Error(w, fmt.Sprintf("%q is not allowed here", strings.Join(words, " ")), http.StatusForbidden)
		return
	}
	w.WriteHeader(http.StatusAccepted)
	if h.known(r.Header.Get("Idempotency-Key")) {
		return
	}
	h.running.Go(func() {
		a := h.run(words, q.Expect)
		log.Printf("%s: success %t: %s", strings.Join(words, " "), a.Success, a.Message)
		if err := call(context.WithoutCancel(h.ctx), q.Callback, a); err != nil {
			log.Printf("the callback of %s: %v", words[0], err)
		}
	})
}

// known reports whether a request with this key has come before: a sender that does not know whether it was heard asks again.
func (h *hook) known(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := key != "" && h.keys[key]
	h.keys[key] = true
	return before
}

func (h *hook) allows(words []string) bool {
	return slices.ContainsFunc(h.allowed, func(begin []string) bool {
		return len(words) >= len(begin) && slices.Equal(words[:len(begin)], begin)
	})
}

// run runs a command to its end. There is no shell, so nothing in the words means more than itself.
func (h *hook) run(words []string, expect string) answer {
	ctx, cancel := context.WithTimeout(h.ctx, longest)
	defer cancel()
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	said := strings.TrimSpace(out.String())
	if err != nil {
		return answer{Message: tail(fmt.Sprintf("%s: %v\n%s\n%s", words[0], err, said, strings.TrimSpace(errs.String())))}
	}
	return answer{Success: strings.HasPrefix(said, expect), Message: tail(said)}
}

func tail(text string) string {
	if len(text) > mostOfText {
		text = "…" + text[len(text)-mostOfText:]
	}
	return strings.ToValidUTF8(strings.TrimSpace(text), "")
}

// call tells how it ended. Whoever waits may be away for a moment.
func call(ctx context.Context, url string, a answer) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	for pause := 100 * time.Millisecond; ; pause *= 2 {
		if err = post(ctx, url, body); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

func post(ctx context.Context, url string, body []byte) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}
