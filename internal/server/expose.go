package server

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// exposedMark begins what the address of a Service is signed over. No key of a step begins so: their ids hold no space.
const exposedMark = "exposed "

// Exposure is a Service that is reached by an address for a time.
type Exposure struct {
	Account string       `json:"account"`
	Service manifest.Ref `json:"service"`
	Until   time.Time    `json:"until"`
}

// host is what the Service is told that it was called.
func (e Exposure) host() string { return e.Service.Name + "." + e.Service.Namespace }

// Dial connects to the only port of a Service of an account.
type Dial func(ctx context.Context, account string, service manifest.Ref) (net.Conn, error)

// Expose returns the address of a Service. Whoever knows it may use it until its time is over: all that is told by the
// address stands in it, signed, so that every front of the key answers, after every start.
func (f *Front) Expose(e Exposure) string {
	body, _ := json.Marshal(e) // names and a time: it has a form
	return f.url + "/exposed/" + capability(f.key, exposedMark+string(body))
}

// Reach has the front answer for what it exposes, by connections that dial makes. It is called before Handler.
func (f *Front) Reach(dial Dial) {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			e, ok := ctx.Value(exposureKey{}).(Exposure)
			if !ok {
				return nil, errors.New("a request for no Service")
			}
			return dial(ctx, e.Account, e.Service)
		},
		// Where a Service leads changes with every weight: a kept connection would stay with whom it led to before.
		DisableKeepAlives: true,
	}
	f.exposed = &httputil.ReverseProxy{Transport: transport, FlushInterval: -1, Rewrite: toService, ModifyResponse: fromService, ErrorHandler: unreachable}
}

// exposureKey is under what the context of a request holds its Exposure.
type exposureKey struct{}

// serveExposed passes a request on to the Service that its address is for. What is still open at the end of its time ends.
func (f *Front) serveExposed(w http.ResponseWriter, r *http.Request) {
	text, ok := signed(f.key, r.PathValue("capability"))
	body, is := strings.CutPrefix(text, exposedMark)
	var e Exposure
	if !ok || !is || f.exposed == nil || json.Unmarshal([]byte(body), &e) != nil {
		http.Error(w, "nothing is exposed at this address", http.StatusNotFound)
		return
	}
	ctx, cancel := context.WithDeadlineCause(context.WithValue(r.Context(), exposureKey{}, e), e.Until, errOver)
	defer cancel()
	if ctx.Err() != nil && r.Context().Err() == nil {
		http.Error(w, errOver.Error(), http.StatusGone)
		return
	}
	// A client that does not take what it is sent ends a moment after the Service's answer does.
	_ = http.NewResponseController(w).SetWriteDeadline(e.Until.Add(grace))
	http.StripPrefix(prefixOf(r.URL), f.exposed).ServeHTTP(w, r.WithContext(ctx))
}

// grace is how long a client may take to be told that the time is over.
const grace = 5 * time.Second

// errOver is why an address is not answered any more.
var errOver = errors.New("the time of this address is over; the deploy file gives it with ttl: of exposeServices")

// prefixOf is the part of a path that is the address itself: /exposed/CAPABILITY.
func prefixOf(u *url.URL) string {
	parts := strings.SplitN(u.Path, "/", 4)
	return strings.Join(parts[:min(3, len(parts))], "/")
}

// toService makes a request be one to the Service.
func toService(r *httputil.ProxyRequest) {
	e, _ := r.In.Context().Value(exposureKey{}).(Exposure)
	// A transport may give a connection that was made for one request to another of the same host: accounts must not meet.
	r.Out.URL.Scheme, r.Out.URL.Host = "http", hex.EncodeToString([]byte(e.Account+"/"+e.Service.String()))
	r.Out.Host = e.host()
	if r.Out.URL.Path == "" {
		r.Out.URL.Path = "/"
	}
	r.SetXForwarded()
	r.Out.Header.Set("X-Forwarded-Prefix", forwardedPrefix(r.In))
}

// forwardedPrefix is the path that a request was sent to, without what the Service sees of it.
func forwardedPrefix(r *http.Request) string {
	u, err := url.ParseRequestURI(r.RequestURI)
	if err != nil {
		return ""
	}
	return prefixOf(u)
}

// fromService has redirections and cookies of the Service stay below its address, which pages it links to are not told.
func fromService(r *http.Response) error {
	prefix := r.Request.Header.Get("X-Forwarded-Prefix")
	if to, err := r.Location(); err == nil && (to.Host == r.Request.URL.Host || to.Host == r.Request.Host) {
		r.Header.Set("Location", (&url.URL{Path: prefix + to.Path, RawQuery: to.RawQuery, Fragment: to.Fragment}).String())
	}
	if cookies := r.Cookies(); len(cookies) > 0 {
		r.Header.Del("Set-Cookie")
		for _, c := range cookies {
			c.Path, c.Domain = prefix+"/"+strings.TrimPrefix(c.Path, "/"), ""
			r.Header.Add("Set-Cookie", c.String())
		}
	}
	r.Header.Set("Referrer-Policy", "same-origin")
	return nil
}

// unreachable says why a Service does not answer.
func unreachable(w http.ResponseWriter, r *http.Request, err error) {
	e, _ := r.Context().Value(exposureKey{}).(Exposure)
	code := http.StatusBadGateway
	switch {
	case errors.Is(context.Cause(r.Context()), errOver):
		code, err = http.StatusGone, errOver
	case fault.Is(err, fault.Transient), fault.Is(err, fault.NotFound):
		code = http.StatusServiceUnavailable
	}
	http.Error(w, "Service "+e.Service.String()+": "+err.Error(), code)
}
