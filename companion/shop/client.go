package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// client is somebody who orders by HTTP.
type client struct {
	url  string
	http *http.Client
}

// newClient connects anew for every request, as if each were another customer's: where connections are what is shared out
// among versions, as a Service of a cluster does, so are the customers. One whose connection is not taken tries another one.
func newClient(url string) *client {
	dial := (&net.Dialer{Timeout: time.Second}).DialContext
	return &client{url: strings.TrimRight(url, "/"), http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// reply is how one request ended.
type reply struct {
	Code    int
	Release string
	Order   Order
	Text    string
	Tries   int // more than one where a connection broke off before there was an answer
	Took    time.Duration
}

// must says what is wrong with a reply that should have had a code.
func (r reply) must(code int, err error) error {
	if err == nil && r.Code != code {
		err = fmt.Errorf("the answer is %d %s, and should be %d", r.Code, r.Text, code)
	}
	return err
}

// reconnects is for how long a broken connection is tried again.
const reconnects = 20 * time.Second

func (c *client) place(ctx context.Context, o Order) (reply, error) {
	body, err := json.Marshal(o)
	if err != nil {
		return reply{}, err
	}
	return c.ask(ctx, http.MethodPost, "/orders", body)
}

func (c *client) read(ctx context.Context, id string) (reply, error) {
	return c.ask(ctx, http.MethodGet, "/orders/"+id, nil)
}

// ask sends one request. Only where a connection broke off without an answer it is sent again: an order has an id, so
// sending it twice is sending it once. An answer is an answer, whatever it says.
func (c *client) ask(ctx context.Context, method, path string, body []byte) (reply, error) {
	start := time.Now()
	r := reply{}
	for {
		r.Tries++
		err := c.once(ctx, &r, method, path, body)
		r.Took = time.Since(start)
		if err == nil || ctx.Err() != nil || r.Took > reconnects || !brokeOff(err) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func brokeOff(err error) bool {
	_, op := errors.AsType[*net.OpError](err)
	return op || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

func (c *client) once(ctx context.Context, r *reply, method, path string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	r.Code, r.Release, r.Text = resp.StatusCode, resp.Header.Get(releaseHeader), strings.TrimSpace(string(text))
	if r.Code/100 != 2 {
		return nil
	}
	if err := json.Unmarshal(text, &r.Order); err != nil {
		return fmt.Errorf("%s %s: the answer cannot be read: %w", method, path, err)
	}
	return nil
}
