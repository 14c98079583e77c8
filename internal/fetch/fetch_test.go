package fetch

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/fault"
)

func TestGet(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/f.yaml", func(w http.ResponseWriter, r *http.Request) {
		user, _, _ := r.BasicAuth()
		_, _ = w.Write([]byte("a: " + user))
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/f.yaml", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://192.0.2.1/f.yaml", http.StatusFound)
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<!DOCTYPE html><html>")) })
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, Limit+1)) })
	mux.HandleFunc("/closed", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	mux.HandleFunc("/broken", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	s := httptest.NewServer(mux)
	defer s.Close()
	at := func(path string) string {
		return strings.Replace(s.URL, "http://", "http://me:hunter2@", 1) + path + "?token=hunter2"
	}
	for _, c := range []struct {
		address string
		kind    fault.Kind
		says    string
	}{
		{at("/f.yaml"), "", "a: me"},
		{at("/moved"), "", "a: "},
		{at("/away"), fault.Invalid, "http://192.0.2.1/f.yaml: what comes by http can be changed on the way"},
		{at("/loop"), fault.Invalid, "more than 5 times"},
		{at("/page"), fault.Invalid, "is a web page, no YAML"},
		{at("/large"), fault.Invalid, "is larger than 8 MiB"},
		{at("/closed"), fault.Denied, "403"},
		{at("/broken"), fault.Transient, "502"},
		{at("/none"), fault.NotFound, "/none does not exist"},
		{"http://192.0.2.1/f.yaml", fault.Invalid, "--allow-http"},
		{"ftp://127.0.0.1/f.yaml", fault.Invalid, "by https, not by ftp"},
		{"https://", fault.Invalid, "is no address"},
		{"http://127.0.0.1:1/f.yaml?token=hunter2", fault.Transient, "fetch http://127.0.0.1:1/f.yaml: "},
		{"http://me:hunter2@127.0.0.1:x/f?hunter2", fault.Invalid, "http://127.0.0.1:x/f is no address"},
	} {
		body, err := Fetcher{}.Get(t.Context(), c.address)
		text := string(body)
		if err != nil {
			text = err.Error()
		}
		if fault.KindOf(err) != c.kind || !strings.Contains(text, c.says) || strings.Contains(text, "hunter2") {
			t.Errorf("%s: %q, kind %q", Name(c.address), text, fault.KindOf(err))
		}
	}
}

func TestBeside(t *testing.T) {
	for _, c := range [][3]string{
		{"https://h/a/b/deploy.yaml?token=x", "web.yaml", "https://h/a/b/web.yaml"},
		{"https://h/a/b/deploy.yaml", "/m/web.yaml", "https://h/a/b/m/web.yaml"},
		{"https://h/a/b/deploy.yaml", "../web.yaml", "https://h/a/web.yaml"},
		{"https://h/deploy.yaml", "../../web.yaml", "https://h/web.yaml"},
		{"https://h", "a b?.yaml", "https://h/a%20b%3F.yaml"},
	} {
		if got, err := Beside(c[0], c[1]); err != nil || got != c[2] {
			t.Errorf("%s beside %s is %s, %v, not %s", c[1], c[0], got, err, c[2])
		}
	}
}
