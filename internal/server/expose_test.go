package server_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/server"
)

var exposedWeb = manifest.Ref{Kind: "Service", Namespace: "shop", Name: "web"}

// exposing is a front on a listener of its own, which reaches Services of accounts by what they stand for here.
func exposing(t *testing.T, key byte, services map[string]*httptest.Server) (*server.Front, *httptest.Server) {
	t.Helper()
	srv := httptest.NewUnstartedServer(nil)
	f := server.NewFront(bytes.Repeat([]byte{key}, 32), "http://"+srv.Listener.Addr().String())
	f.Reach(func(ctx context.Context, account string, service manifest.Ref) (net.Conn, error) {
		to, ok := services[account+"/"+service.Name]
		if !ok {
			return nil, fault.Newf(fault.Transient, "no pod of Service %s is ready", service)
		}
		var d net.Dialer
		return d.DialContext(ctx, "tcp", to.Listener.Addr().String())
	})
	srv.Config.Handler = f.Handler(nil, func(context.Context) error { return nil })
	srv.Start()
	t.Cleanup(srv.Close)
	return f, srv
}

// web tells what it was asked.
func web(t *testing.T, name string) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/login":
			http.SetCookie(w, &http.Cookie{Name: "session", Value: "s", Path: "/app"})
			http.Redirect(w, r, "/app?x=1", http.StatusFound)
		case "/endless":
			_, _ = io.WriteString(w, "begun\n")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		default:
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s host=%s body=%s", name, r.Method, r.URL.RequestURI(), r.Host, body)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

// asked returns the status and the text of an answer.
func asked(t *testing.T, address string) (int, string) {
	t.Helper()
	resp, err := http.Post(address, "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// An address reaches the Service of its account, also after the program was started anew, and no other key's does.
func TestExposed(t *testing.T) {
	services := map[string]*httptest.Server{"prod/web": web(t, "prod"), "staging/web": web(t, "staging")}
	f, _ := exposing(t, 1, services)
	for _, account := range []string{"prod", "staging"} {
		at := f.Expose(server.Exposure{Account: account, Service: exposedWeb, Until: time.Now().Add(time.Minute)})
		code, text := asked(t, at+"/a%2Fb?c=d")
		if want := account + " POST /a%2Fb?c=d host=web.shop body=hello"; code != http.StatusOK || text != want {
			t.Errorf("%d %q, not %q", code, text, want)
		}
		if code, text := asked(t, at); code != http.StatusOK || !strings.Contains(text, "POST / ") {
			t.Errorf("without a path: %d %q", code, text)
		}
		again, srv := exposing(t, 1, services)
		moved := srv.URL + "/exposed/" + at[strings.LastIndex(at, "/")+1:]
		if code, text := asked(t, moved); code != http.StatusOK || !strings.HasPrefix(text, account) {
			t.Errorf("after another start: %d %q", code, text)
		}
		if other, srv := exposing(t, 2, services); other != nil {
			if code, _ := asked(t, srv.URL+"/exposed/"+at[strings.LastIndex(at, "/")+1:]); code != http.StatusNotFound {
				t.Errorf("under another key: %d", code)
			}
		}
		// What was signed for a callback opens nothing here.
		if code, _ := asked(t, strings.Replace(again.Callback("exposed/"+account), "/callbacks/", "/exposed/", 1)); code != http.StatusNotFound {
			t.Errorf("a callback's address: %d", code)
		}
	}
	at := f.Expose(server.Exposure{Account: "prod", Service: manifest.Ref{Kind: "Service", Namespace: "shop", Name: "other"}, Until: time.Now().Add(time.Minute)})
	if code, text := asked(t, at); code != http.StatusServiceUnavailable || !strings.Contains(text, "no pod of Service shop/Service/other is ready") {
		t.Errorf("a Service without pods: %d %q", code, text)
	}
}

// Redirections and cookies stay below the address.
func TestExposedStaysBelow(t *testing.T) {
	f, _ := exposing(t, 1, map[string]*httptest.Server{"prod/web": web(t, "prod")})
	at := f.Expose(server.Exposure{Account: "prod", Service: exposedWeb, Until: time.Now().Add(time.Minute)})
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Get(at + "/login")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Header.Get("Location"); got != u.Path+"/app?x=1" {
		t.Errorf("redirected to %s", got)
	}
	if c := resp.Cookies(); len(c) != 1 || c[0].Path != u.Path+"/app" || c[0].Value != "s" {
		t.Errorf("the cookies %v", c)
	}
	if got := resp.Header.Get("Referrer-Policy"); got != "same-origin" {
		t.Errorf("others are told the address: %q", got)
	}
}

// At the end of its time an address is not answered, and what is still open through it ends.
func TestExposedExpires(t *testing.T) {
	f, _ := exposing(t, 1, map[string]*httptest.Server{"prod/web": web(t, "prod")})
	until := time.Now().Add(700 * time.Millisecond)
	at := f.Expose(server.Exposure{Account: "prod", Service: exposedWeb, Until: until})
	resp, err := http.Get(at + "/endless")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("before its end: %s", resp.Status)
	}
	text, err := io.ReadAll(resp.Body)
	if !strings.HasPrefix(string(text), "begun") || err == nil {
		t.Errorf("an endless answer is %q, %v", text, err)
	}
	if time.Now().Before(until) {
		t.Error("it ended before its time")
	}
	if code, text := asked(t, at); code != http.StatusGone || !strings.Contains(text, "is over") {
		t.Errorf("after its end: %d %q", code, text)
	}
}
