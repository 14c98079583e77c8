package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// started is a running program and what it scrapes.
type started struct {
	url  string
	stop func()
}

func start(t *testing.T, data, scrape string) started {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	r, w := io.Pipe()
	o := options{listen: "127.0.0.1:0", data: data, scrapes: scrapes{}, interval: 200 * time.Millisecond, retention: time.Hour, out: w}
	if err := o.scrapes.Set("shop=" + scrape); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, o, slog.New(slog.NewTextHandler(&log, nil)))
		w.CloseWithError(fmt.Errorf("it ended: %w", errors.Join(errors.New("before it was told to"), err)))
		ended <- err
	}()
	var address string
	if _, err := fmt.Fscanf(r, "listening on %s\n", &address); err != nil {
		t.Fatal(err)
	}
	return started{url: "http://" + address, stop: func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("%v\n%s", err, log.String())
		}
	}}
}

type body struct {
	Status string
	Error  string
	Data   struct {
		ResultType string
		Result     json.RawMessage
	}
}

func (s started) get(t *testing.T, path string, q url.Values) body {
	t.Helper()
	resp, err := http.Get(s.url + path + "?" + q.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b body
	if err := json.NewDecoder(resp.Body).Decode(&b); err != nil {
		t.Fatal(err)
	}
	return b
}

func metrics(t *testing.T) (string, *atomic.Int64) {
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "# TYPE requests_total counter\nrequests_total{code=\"200\"} %d\n", n.Add(1))
	}))
	t.Cleanup(s.Close)
	return s.URL + "/metrics", &n
}

// TestScrapesAndAnswers has a counter scraped and asked for, also after a restart on the same samples.
func TestScrapesAndAnswers(t *testing.T) {
	scrape, n := metrics(t)
	data := t.TempDir()
	s := start(t, data, scrape)
	waitFor(t, func() bool { return n.Load() > 4 })
	waitFor(t, func() bool {
		b := s.get(t, "/api/v1/query", url.Values{"query": {`requests_total{job="shop"}`}})
		var v []struct {
			Metric map[string]string
			Value  [2]any
		}
		if err := json.Unmarshal(b.Data.Result, &v); err != nil || b.Data.ResultType != "vector" {
			t.Fatalf("%+v: %v", b, err)
		}
		return len(v) == 1 && v[0].Metric["code"] == "200" && v[0].Value[1] != "1"
	})
	now := time.Now()
	at := func(d time.Duration) string { return fmt.Sprintf("%.3f", float64(now.Add(d).UnixMilli())/1000) }
	b := s.get(t, "/api/v1/query_range", url.Values{"query": {"sum(requests_total)"}, "start": {at(-time.Second)}, "end": {at(0)}, "step": {"0.2"}})
	var m []struct{ Values [][2]any }
	if err := json.Unmarshal(b.Data.Result, &m); err != nil || len(m) != 1 || len(m[0].Values) < 2 {
		t.Errorf("%s %s: %v", b.Error, b.Data.Result, err)
	}
	s.stop()
	again := start(t, data, scrape)
	defer again.stop()
	b = again.get(t, "/api/v1/query", url.Values{"query": {"requests_total"}, "time": {at(0)}})
	if !strings.Contains(string(b.Data.Result), `"code":"200"`) {
		t.Errorf("after a restart: %s", b.Data.Result)
	}
}

func TestAnswersOfOtherTypes(t *testing.T) {
	scrape, _ := metrics(t)
	s := start(t, t.TempDir(), scrape)
	defer s.stop()
	for query, want := range map[string]string{"1 + 1": `"2"]`, `"word"`: `"word"]`, "nothing_like_it": `[]`, "vector(0) / 0": `"NaN"]`, "vector(1) / 0": `"+Inf"]`} {
		if b := s.get(t, "/api/v1/query", url.Values{"query": {query}}); b.Status != "success" || !strings.Contains(string(b.Data.Result), want) {
			t.Errorf("%s: %s %s", query, b.Error, b.Data.Result)
		}
	}
}

func TestRefuses(t *testing.T) {
	scrape, _ := metrics(t)
	s := start(t, t.TempDir(), scrape)
	defer s.stop()
	for name, q := range map[string]url.Values{
		"/api/v1/query":       {"query": {"rate("}},
		"/api/v1/query_range": {"query": {"up"}, "start": {"1"}, "end": {"2"}, "step": {"no"}},
	} {
		if b := s.get(t, name, q); b.Status != "error" || b.Error == "" {
			t.Errorf("%s: %+v", name, b)
		}
	}
	if b := s.get(t, "/api/v1/query", url.Values{"query": {"up"}, "time": {"noon"}}); b.Status != "error" || !strings.Contains(b.Error, "noon") {
		t.Errorf("%+v", b)
	}
	if err := (scrapes{}).Set("nonsense"); err == nil {
		t.Error("a scrape without a URL is accepted")
	}
}

func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	o := options{listen: l.Addr().String(), data: t.TempDir(), interval: time.Second, out: io.Discard}
	if err := run(t.Context(), o, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "listen") {
		t.Errorf("%v", err)
	}
	if err := run(t.Context(), options{}, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "--data") {
		t.Errorf("%v", err)
	}
}

func waitFor(t *testing.T, is func() bool) {
	t.Helper()
	over := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-over:
			t.Fatal("it did not come to pass")
		case <-tick.C:
		}
	}
}
