package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// server is a database that can be stopped and started again on the same files.
type server struct {
	t       *testing.T
	address string
	dir     string
	cmd     *exec.Cmd
}

// newServer starts FerretDB from the companions.
func newServer(t *testing.T) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, address: l.Addr().String(), dir: t.TempDir()}
	l.Close()
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *server) url() string { return "mongodb://" + s.address + "/shop" }

func (s *server) start() {
	s.t.Helper()
	program := filepath.Join(os.Getenv("SLUICE_COMPANIONS"), "ferretdb-a")
	if _, err := os.Stat(program); errors.Is(err, fs.ErrNotExist) || os.Getenv("SLUICE_COMPANIONS") == "" {
		if os.Getenv("CI") != "" {
			s.t.Fatal("there is no ferretdb-a in $SLUICE_COMPANIONS")
		}
		s.t.Skip("NOT TESTED: there is no ferretdb-a in $SLUICE_COMPANIONS; `make companions` builds it")
	}
	s.cmd = exec.Command(program, "--listen", s.address, "--dir", s.dir)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait()
}

// shopOn serves a shop.
func shopOn(t *testing.T, database string, failing int) string {
	t.Helper()
	s, err := openStore(database)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(counted((&shop{store: s, release: "1", failing: failing}).handler()))
	t.Cleanup(func() { web.Close(); s.close() })
	return web.URL
}

func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), args, &out); err != nil {
		t.Fatalf("shop %s: %v", strings.Join(args, " "), err)
	}
	return out.String()
}

func requests(t *testing.T, file string) []request {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []request
	for line := range strings.Lines(string(body)) {
		var q request
		if err := json.Unmarshal([]byte(line), &q); err != nil {
			t.Fatal(err)
		}
		all = append(all, q)
	}
	return all
}

// TestFence stops the database under load and starts it again: the shop's callers wait, and nothing that was
// acknowledged is lost.
func TestFence(t *testing.T) {
	s := newServer(t)
	ledger, log := filepath.Join(t.TempDir(), "ledger"), filepath.Join(t.TempDir(), "log")
	mustRun(t, "seed", "--database", s.url(), "--ledger", ledger, "--orders", "300")
	url := shopOn(t, s.url(), 0)
	mustRun(t, "test", "--url", url)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"load", "--url", url, "--ledger", ledger, "--log", log, "--rate", "100"}, &bytes.Buffer{})
	}()
	until(t, func() bool { e, err := readLedger(ledger); return err == nil && len(e) > 550 })
	s.stop()
	time.Sleep(700 * time.Millisecond) // the fence: the time itself is what is tested
	s.start()
	before, err := readLedger(ledger)
	if err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { e, err := readLedger(ledger); return err == nil && len(e) > len(before)+50 })
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	worst := time.Duration(0)
	for _, q := range requests(t, log) {
		if q.Failed != "" {
			t.Errorf("%s %s failed: %s", q.Does, q.ID, q.Failed)
		}
		worst = max(worst, q.Took)
	}
	if worst < 700*time.Millisecond {
		t.Errorf("the worst stall is %s, and the database was away for longer", worst)
	}
	if out := mustRun(t, "check", "--url", s.url(), "--ledger", ledger); !strings.Contains(out, `"missing":[],"differing":[]`) {
		t.Error(out)
	}
}

// TestDamage has the checker find every damage of a bad migration.
func TestDamage(t *testing.T) {
	s := newServer(t)
	ledger := filepath.Join(t.TempDir(), "ledger")
	mustRun(t, "seed", "--database", s.url(), "--ledger", ledger, "--orders", "300")
	mustRun(t, "migrate", "--database", s.url(), "--damage", "--seed", "5", "--orders", "300")
	var all []damage
	if err := json.Unmarshal([]byte(mustRun(t, "damages", "--seed", "5", "--orders", "300")), &all); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"check", "--url", s.url(), "--ledger", ledger}, &out); err == nil {
		t.Error("the checker passes damaged data")
	}
	var r result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	shifted := 0
	for _, d := range all {
		name := strings.TrimSuffix(d.Collection, "s") + " " + d.ID
		found := slices.Contains(r.Missing, name)
		if d.Field != "" {
			found = slices.ContainsFunc(r.Differing, func(l string) bool { return strings.HasPrefix(l, name+": "+d.Field+" is ") })
		}
		if !found {
			t.Errorf("%+v was not found", d)
		}
		if d.Field == "placedAt" {
			shifted++
		}
	}
	if n := len(r.Missing) + len(r.Differing); n != len(all) || shifted%2 != 0 || shifted == 0 {
		t.Errorf("%d found, %d injected, %d shifted", n, len(all), shifted)
	}
}

// TestFaultyRelease has its failures logged with the release that caused them, and not acknowledged.
func TestFaultyRelease(t *testing.T) {
	s := newServer(t)
	url := shopOn(t, s.url(), 50)
	dir := t.TempDir()
	ledger, log := filepath.Join(dir, "ledger"), filepath.Join(dir, "log")
	mustRun(t, "seed", "--database", s.url(), "--ledger", ledger, "--orders", "10")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"load", "--url", url, "--ledger", ledger, "--log", log, "--rate", "100"}, &bytes.Buffer{})
	}()
	until(t, func() bool { e, err := readLedger(ledger); return err == nil && len(e) > 230 })
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	failed := 0
	for _, q := range requests(t, log) {
		if q.Failed != "" {
			failed++
			if q.Code != 500 || q.Release != "1" || !strings.Contains(q.Failed, "has a fault") {
				t.Errorf("%+v", q)
			}
		}
	}
	if failed == 0 {
		t.Error("nothing failed")
	}
	if n := counter(t, url, `shop_requests_total{code="500"}`); n != fmt.Sprint(failed) {
		t.Errorf("%s failed requests are counted, %d were seen", n, failed)
	}
	mustRun(t, "check", "--url", s.url(), "--ledger", ledger)
}

// counter reads a counter as Prometheus would.
func counter(t *testing.T, url, name string) string {
	t.Helper()
	r, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("there is no %s in\n%s", name, body)
	return ""
}

func TestLedgerEnds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ledger")
	l, err := openLedger(file)
	if err != nil {
		t.Fatal(err)
	}
	c := someCustomer(1)
	if err := l.append(entry{Customer: &c}, entry{Customer: &c}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.f.WriteString(`{"at":"2026-`); err != nil {
		t.Fatal(err)
	}
	l.close()
	if all, err := readLedger(file); err != nil || len(all) != 2 {
		t.Errorf("%d entries, %v", len(all), err)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"no"}, {"seed"}, {"load"}, {"check"}, {"test"}, {"web", "--database", "mongodb://h"}} {
		if err := run(t.Context(), args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}

func until(t *testing.T, is func() bool) {
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
