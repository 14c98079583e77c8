package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
)

// result is what a workflow calls back with.
type result struct {
	Success   *truth `json:"success"`
	MDMessage string `json:"mdMessage"`
}

// truth is a boolean that may stand in quotes: workflows put it together from text.
type truth bool

// UnmarshalJSON reads true, "true", and the like.
func (t *truth) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseBool(strings.ToLower(strings.Trim(string(b), `"`)))
	if err != nil {
		return fault.Newf(fault.Invalid, "success is %s, not true or false", b)
	}
	*t = truth(v)
	return nil
}

// accepted is the answer to a callback.
type accepted struct {
	Accepted bool `json:"accepted"`
	First    bool `json:"first"` // false: an earlier callback of the same URL has won
}

// callback takes in the result of a webhook. Whoever knows the URL may call it, with any bearer or none: the URL is the
// credential. The first result wins and is durable before it is acknowledged; a repeated call is acknowledged as well,
// because the caller may not have heard the first answer.
func (f *Front) callback(w http.ResponseWriter, r *http.Request) {
	first, code, err := f.called(r)
	if err != nil {
		f.metrics.callback("refused")
		if code == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", strconv.Itoa(int(callAgain/time.Second)))
		}
		refuse(w, code, err)
		return
	}
	if first {
		f.metrics.callback("first")
	} else {
		f.metrics.callback("repeated")
	}
	reply(w, http.StatusOK, accepted{Accepted: true, First: first})
}

func (f *Front) called(r *http.Request) (first bool, code int, err error) {
	d, path, err := f.invocation(r.Context(), r.PathValue("capability"))
	if err != nil {
		return false, status(err), err
	}
	// Only whoever knows the URL gets this far, so a long body costs a stranger's request nothing to refuse.
	res, err := body[result](r, callbackLimit)
	if err == nil && res.Success == nil {
		err = fault.Newf(fault.Invalid, `the body has no "success"`)
	}
	if err != nil {
		return false, status(err), fault.WithRemedy(err, `send {"success": true, "mdMessage": "what happened"} of at most %d KiB`, callbackLimit>>10)
	}
	sig := delivery.Signal{Kind: delivery.Callback, Path: path, Key: "callback/" + path, By: "callback",
		Data: map[string]string{"success": strconv.FormatBool(bool(*res.Success)), "mdMessage": res.MDMessage}}
	if answered(d, sig) {
		return false, 0, nil
	}
	first, err = f.carrier.Signal(r.Context(), d.Spec.ID, sig)
	if fault.Is(err, fault.Conflict) {
		// It may have ended by the very first callback, between being loaded and being checked.
		if again, e := f.carrier.Load(r.Context(), d.Spec.ID); e == nil && answered(again, sig) {
			return false, 0, nil
		}
		return false, http.StatusGone, err
	}
	if err != nil {
		return false, status(err), err
	}
	return first, 0, nil
}

// invocation returns the step that a capability was handed out for, once it has begun. Callers take it for final that a URL is
// not known or that nothing waits, so neither is said from a state that others may have left behind.
func (f *Front) invocation(ctx context.Context, capability string) (store.Delivery, string, error) {
	unknown := fault.Newf(fault.NotFound, "no webhook was given this callback URL")
	key, ok := signed(f.key, capability)
	if !ok {
		return store.Delivery{}, "", unknown
	}
	id, _, _ := strings.Cut(key, "/")
	d, err := f.carrier.Load(ctx, id)
	path, begun := stepOf(d, key)
	if r, lags := f.carrier.(Refresher); lags && (fault.Is(err, fault.NotFound) || err == nil && path != "" && !begun) {
		if err = r.Refresh(ctx, id); err == nil {
			d, err = f.carrier.Load(ctx, id)
		}
		path, begun = stepOf(d, key)
	}
	switch {
	case fault.Is(err, fault.NotFound) || err == nil && path == "":
		return d, "", unknown
	case err != nil:
		return d, "", err
	case !begun:
		return d, "", fault.WithRemedy(fault.Newf(fault.Transient, "step %s has not begun", path), "call back again in %s", callAgain)
	}
	return d, path, nil
}

// callAgain is how long a caller is to wait before it calls again.
const callAgain = 5 * time.Second

// stepOf returns the step of a delivery that a key is of, and whether it has begun.
func stepOf(d store.Delivery, key string) (path string, begun bool) {
	for _, n := range d.Spec.Graph.Nodes {
		if own := delivery.Key(d.Spec.ID, n.Path); key == own || strings.HasPrefix(key, own+"/") {
			phase := d.Status.Nodes[n.Path].Phase
			return n.Path, phase != "" && phase != delivery.StepPending
		}
	}
	return "", false
}

// answered reports whether a signal of the key has come, whether or not the step has taken it in.
func answered(d store.Delivery, sig delivery.Signal) bool {
	same := func(key string) bool { return key == sig.Key }
	return slices.ContainsFunc(d.Signals, func(s store.Signal) bool { return same(s.Key) }) ||
		slices.ContainsFunc(d.Status.Nodes[sig.Path].Signals, func(s delivery.Signal) bool { return same(s.Key) })
}

// issue hands out a token as the authority of Armory CD-as-a-Service did, whatever the credentials: workflows that fetch
// one before they call back work without a change other than the host. The token opens nothing; a callback's URL does.
func (f *Front) issue(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": rand.Text(), "token_type": "Bearer", "expires_in": 86400})
}
