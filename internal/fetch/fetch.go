// Package fetch reads deploy files and manifests at addresses of the web.
package fetch

import (
	"context"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
)

// The limits of one file.
const (
	Limit  = 8 << 20 // bytes
	within = 30 * time.Second
	hops   = 5 // redirections
)

// Fetcher fetches files. The zero value takes https everywhere, and http from this machine alone: what comes by it can be
// changed on the way, and a deploy file says which commands run.
type Fetcher struct {
	AllowHTTP bool
}

// IsURL reports whether a path is an address.
func IsURL(name string) bool { return strings.Contains(name, "://") }

// Name is an address as messages may show it: without what opens it, a password or a token in the query.
func Name(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		before, _, _ := strings.Cut(address, "?")
		if i := strings.LastIndex(before, "@"); i >= 0 {
			scheme, _, _ := strings.Cut(before, "://")
			before = scheme + "://" + before[i+1:]
		}
		return before
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// Beside returns the address of a file that a file at an address names by a relative path: it begins in the folder of that
// file, also where the path begins with a slash, which once stood for a workspace.
func Beside(address, name string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", fault.Newf(fault.Invalid, "%s is no address", Name(address))
	}
	u.Path = path.Join("/", path.Dir(u.Path), name)
	u.RawPath, u.RawQuery, u.Fragment = "", "", ""
	return u.String(), nil
}

// Get fetches one file. One that is not there is an error of kind not found; where the server is away or broken, of kind
// transient.
func (f Fetcher) Get(ctx context.Context, address string) ([]byte, error) {
	name := Name(address)
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return nil, fault.Newf(fault.Invalid, "%s is no address of a file", name)
	}
	if err := f.secure(u); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "%s is no address of a file", name)
	}
	client := http.Client{Timeout: within, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > hops {
			return fault.Newf(fault.Invalid, "%s leads from one address to the next, more than %d times", name, hops)
		}
		return f.secure(r.URL)
	}}
	resp, err := client.Do(req)
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // the whole would name the address with what opens it
	}
	if fault.Is(err, fault.Invalid) {
		return nil, err
	}
	if err != nil {
		return nil, fault.Newf(fault.Transient, "fetch %s: %w", name, err)
	}
	defer resp.Body.Close()
	if err := answered(name, resp); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, Limit+1))
	if err != nil {
		return nil, fault.Newf(fault.Transient, "fetch %s: %w", name, err)
	}
	if len(body) > Limit {
		return nil, fault.Newf(fault.Invalid, "%s is larger than %d MiB", name, Limit>>20)
	}
	return body, nil
}

// secure refuses an address from which nothing is taken.
func (f Fetcher) secure(u *url.URL) error {
	name := Name(u.String())
	switch {
	case u.Scheme == "https":
		return nil
	case u.Scheme != "http":
		return fault.WithRemedy(fault.Newf(fault.Invalid, "%s: files are fetched by https, not by %s", name, u.Scheme), "fetch it first and name the file")
	case f.AllowHTTP || loopback(u.Hostname()):
		return nil
	}
	return fault.WithRemedy(fault.Newf(fault.Invalid, "%s: what comes by http can be changed on the way", name), "write https, or give --allow-http")
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// answered explains an answer that is no file.
func answered(name string, resp *http.Response) error {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return fault.Newf(fault.NotFound, "%s does not exist: its server answers %s", name, resp.Status)
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return fault.WithRemedy(fault.Newf(fault.Denied, "%s is closed: its server answers %s", name, resp.Status), "fetch it first and name the file")
	case resp.StatusCode != http.StatusOK:
		return fault.Newf(fault.Transient, "fetch %s: its server answers %s", name, resp.Status)
	case kind == "text/html":
		return fault.WithRemedy(fault.Newf(fault.Invalid, "%s is a web page, no YAML", name), "give the address of the file itself, which sites often call raw")
	}
	return nil
}
