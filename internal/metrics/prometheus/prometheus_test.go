package prometheus

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/metrics/metricstest"
)

// start starts the embedded Prometheus, which scrapes the URL, and returns its own.
func start(t *testing.T, scrape string) string {
	t.Helper()
	dir := os.Getenv("SLUICE_COMPANIONS")
	if dir == "" {
		dir = "../../../bin"
	}
	program, err := filepath.Abs(filepath.Join(dir, "prometheus"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v; run: make companions", err)
	}
	return metricstest.Prometheus(t, program, scrape)
}

func provider(t *testing.T, c Config) *Provider {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConformance(t *testing.T) {
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprint(w, "# TYPE orders_total counter\norders_total{track=\"stable\"} 90\norders_total{track=\"canary\"} 10\n")
	}))
	defer target.Close()
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	p := provider(t, Config{URL: start(t, target.URL+"/metrics")})
	// Nothing tells when the first scrape is done.
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	at := time.Now()
	for deadline := at.Add(30 * time.Second); ; at = <-look.C {
		s, err := p.Query(t.Context(), "orders_total", at)
		if err != nil || at.After(deadline) {
			t.Fatalf("nothing was scraped: %v %v", s, err)
		}
		if len(s) == 2 {
			break
		}
	}
	metricstest.Run(t, metricstest.Harness{Provider: p, Dead: provider(t, Config{URL: dead.URL}), At: at, One: "sum(orders_total)", Value: 100, Many: "orders_total",
		None: "no_such_total", Nonsense: "sum(", Instant: "time()"})
	t.Run("a range is no number", func(t *testing.T) {
		if _, err := p.Query(t.Context(), "orders_total[1m]", at); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "aggregate it") {
			t.Errorf("%v", err)
		}
	})
}

// TestCredentials holds that credentials are read at each request and go nowhere but into it.
func TestCredentials(t *testing.T) {
	var got []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Authorization"))
		w.Header().Set("Content-Type", "application/json")
		if !strings.HasSuffix(got[len(got)-1], "right") && !strings.HasPrefix(got[len(got)-1], "Basic ") {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, "who are you?")
			return
		}
		_, _ = io.WriteString(w, `{"status":"success","data":{"resultType":"scalar","result":[1,"4"]}}`)
	}))
	defer s.Close()
	secret := "wrong"
	read := func() (string, error) { return secret, nil }
	p := provider(t, Config{URL: s.URL, Bearer: read})
	if _, err := p.Query(t.Context(), "1", time.Now()); !fault.Is(err, fault.Denied) || strings.Contains(err.Error(), secret) {
		t.Errorf("with a wrong token: %v is %q", err, fault.KindOf(err))
	}
	secret = "right"
	if v, err := p.Query(t.Context(), "1", time.Now()); err != nil || len(v) != 1 || v[0].Value != 4 {
		t.Errorf("%+v %v", v, err)
	}
	if _, err := provider(t, Config{URL: s.URL, User: "ann", Password: read}).Query(t.Context(), "1", time.Now()); err != nil {
		t.Error(err)
	}
	if want := "[Bearer wrong Bearer right Basic YW5uOnJpZ2h0]"; fmt.Sprint(got) != want {
		t.Errorf("sent %v, want %s", got, want)
	}
	missing := func() (string, error) { return "", fault.Newf(fault.NotFound, "there is no secret %q", "prom") }
	if _, err := provider(t, Config{URL: s.URL, Bearer: missing}).Query(t.Context(), "1", time.Now()); err == nil || !strings.Contains(err.Error(), `there is no secret "prom"`) {
		t.Errorf("without the secret: %v", err)
	}
}

// TestKinds holds that what may work later is told apart from what will not.
func TestKinds(t *testing.T) {
	for body, want := range map[string]fault.Kind{
		`400 {"status":"error","errorType":"bad_data","error":"parse error"}`:    fault.Invalid,
		`422 {"status":"error","errorType":"execution","error":"many-to-many"}`:  fault.Transient,
		`503 {"status":"error","errorType":"timeout","error":"query timed out"}`: fault.Transient,
		`500 {"status":"error","errorType":"internal","error":"storage"}`:        fault.Transient,
		`502 a proxy's page`: fault.Transient,
		`403 a proxy's page`: fault.Denied,
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			var code int
			_, _ = fmt.Sscan(body[:3], &code)
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body[4:])
		}))
		if _, err := provider(t, Config{URL: s.URL}).Query(t.Context(), "1", time.Now()); !fault.Is(err, want) {
			t.Errorf("%s: %v is %q, want %q", body, err, fault.KindOf(err), want)
		}
		s.Close()
	}
}
