package server

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
	"net/url"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
	"github.com/sluice-cd/sluice/internal/unixsocket"
)

// Client talks to the server of a data directory. Where the server dies it goes on with its successor, which it starts
// itself if it knows how: every request may be made twice.
type Client struct {
	dir     string
	command []string // starts a server; nil: nobody is started
	http    *http.Client
}

// Event is what a watch tells: a delivery as it is now, or a line of progress.
type Event struct {
	Delivery *store.Delivery
	Progress *engine.Progress
}

func newClient(dir string, command []string) *Client {
	return &Client{dir: dir, command: command, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return unixsocket.Dial(ctx, filepath.Join(dir, socketFile))
		},
	}}}
}

// Connect reaches the server of a data directory, or says that none runs: an error of kind not found.
func Connect(ctx context.Context, dir string) (*Client, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	c := newClient(dir, nil)
	err = c.answers(ctx)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fault.Newf(fault.NotFound, "no server runs in %s", dir)
	}
	if e := c.barred(err); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, fault.Newf(fault.NotFound, "no server runs in %s: %w", dir, err)
	}
	return c, nil
}

// Start keeps a delivery, which the server then carries out. While another one of the application runs the error is a
// *store.ErrRunning.
func (c *Client) Start(ctx context.Context, spec delivery.Spec) error {
	if spec.CreatedAt.IsZero() {
		// Here and not in the server, so that a repeated request is the same one.
		spec.CreatedAt = time.Now().UTC()
	}
	_, err := called[struct{}](ctx, c, http.MethodPost, "deliveries", spec)
	return err
}

// Get returns a delivery.
func (c *Client) Get(ctx context.Context, id string) (store.Delivery, error) {
	return called[store.Delivery](ctx, c, http.MethodGet, "deliveries/"+url.PathEscape(id), nil)
}

// List returns all deliveries, newest first.
func (c *Client) List(ctx context.Context) ([]store.Delivery, error) {
	return called[[]store.Delivery](ctx, c, http.MethodGet, "deliveries", nil)
}

// Journal returns the journal of a delivery.
func (c *Client) Journal(ctx context.Context, id string) ([]store.Record, error) {
	return called[[]store.Record](ctx, c, http.MethodGet, "deliveries/"+url.PathEscape(id)+"/journal", nil)
}

// Signal keeps a decision. It reports false where an earlier one of the key has won.
func (c *Client) Signal(ctx context.Context, id string, s delivery.Signal) (bool, error) {
	r, err := called[sent](ctx, c, http.MethodPost, "deliveries/"+url.PathEscape(id)+"/signals", s)
	return r.Won, err
}

// Info tells about the server.
func (c *Client) Info(ctx context.Context) (Info, error) {
	return called[Info](ctx, c, http.MethodGet, "server", nil)
}

// called makes a request, and once more with the server's successor where it broke off.
func called[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var out T
	var payload []byte
	if in != nil {
		var err error
		if payload, err = json.Marshal(in); err != nil {
			return out, err
		}
	}
	for try := 1; ; try++ {
		err := c.ask(ctx, method, path, payload, &out)
		if !errors.Is(err, errGone) || ctx.Err() != nil || try == tries {
			return out, err
		}
		if err := c.revive(ctx); err != nil {
			return out, err
		}
	}
}

// tries is how often a request is made while the server is being replaced.
const tries = 3

// errGone is the error of a request that was not answered.
var errGone = errors.New("the server does not answer")

func (c *Client) ask(ctx context.Context, method, path string, payload []byte, out any) error {
	resp, err := c.send(ctx, method, path, payload)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return gone(ctx, err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("the server's answer cannot be read: %w", err)
	}
	return nil
}

func gone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fault.Newf(fault.Transient, "%w: %w", errGone, err)
}

// barred explains why this user cannot reach the server of a directory, nil where that is not the reason.
func (c *Client) barred(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return fault.WithRemedy(fault.Newf(fault.Denied, "the server of %s is closed to this user: %w", c.dir, err),
		"its owner opens it with server.socketGroup in sluice.yaml, and gives roles there; the folders above must let this user pass")
}

// send makes a request and returns its answer if it is one of success.
func (c *Client) send(ctx context.Context, method, path string, payload []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://sluice/api/v1/"+path, bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, gone(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, gone(ctx, err)
	}
	var e wireError
	if json.Unmarshal(body, &e) != nil || e.Message == "" {
		return nil, fmt.Errorf("the server answers %s: %.200s", resp.Status, body)
	}
	if e.Running != nil {
		return nil, e.Running
	}
	return nil, &fault.Error{Kind: e.Kind, Err: errors.New(e.Message)}
}

// Watch tells the present state of a delivery and then every change, until it has ended. It goes on with the successor of
// a server that died; where the server was told to end, that is an error of kind transient.
func (c *Client) Watch(ctx context.Context, id string, f func(Event)) error {
	var d store.Delivery
	d.Revision = -1
	for {
		err := c.watchOnce(ctx, id, &d, f)
		if !errors.Is(err, errGone) || ctx.Err() != nil {
			return err
		}
		if err := c.revive(ctx); err != nil {
			return fault.WithRemedy(err, "the delivery goes on when a server runs again: sluice deploy watch %s", id)
		}
	}
}

func (c *Client) watchOnce(ctx context.Context, id string, d *store.Delivery, f func(Event)) error {
	resp, err := c.send(ctx, http.MethodGet, "deliveries/"+url.PathEscape(id)+"/watch", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	in := json.NewDecoder(resp.Body)
	for {
		var x frame
		if err := in.Decode(&x); err != nil {
			return gone(ctx, err)
		}
		switch {
		case x.Leaving:
			return fault.WithRemedy(fault.Newf(fault.Transient, "the server was told to end"),
				"the delivery goes on when it runs again: sluice deploy watch %s", id)
		case x.Progress != nil:
			f(Event{Progress: x.Progress})
		case x.Delivery != nil:
			if x.Spec != nil {
				d.Spec = *x.Spec
			}
			if d.Revision == x.Delivery.Revision && len(d.Signals) == len(x.Delivery.Signals) {
				continue // told before the connection broke
			}
			d.Status, d.Revision, d.Signals = x.Delivery.Status, x.Delivery.Revision, x.Delivery.Signals
			now := *d
			f(Event{Delivery: &now})
			if d.Status.Done {
				return nil
			}
		}
	}
}
