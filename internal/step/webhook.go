package step

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
)

const (
	callbackWithin = 24 * time.Hour   // silence for longer is a failure, as in the dialect
	triggerWithin  = 30 * time.Second // one request
	excerptBytes   = 1024             // of an answer that is shown
)

// webhook sends a request and waits until somebody calls back.
type webhook struct{ ports Ports }

// sent is what webhook keeps. Sending is set before a request leaves and cleared once its answer is known: found set at
// an entry, a crash came in between and nobody can say whether the request arrived.
type sent struct {
	Attempts int       `json:"attempts,omitempty"` // requests whose answer is known
	Sending  bool      `json:"sending,omitempty"`
	Unknown  int       `json:"unknown,omitempty"` // requests of which nobody knows whether they arrived
	RetryAt  time.Time `json:"retryAt,omitzero"`
	Until    time.Time `json:"until,omitzero"` // the deadline of the callback; set once the trigger has been accepted
	Answer   string    `json:"answer,omitempty"`
}

// Plan says what is called, and refuses what cannot be sent.
func (webhook) Plan(n plan.Node) (plan.Description, error) {
	a, err := read[plan.WebhookArgs](n.Args)
	if err != nil {
		return plan.Description{}, err
	}
	if strings.TrimSpace(a.URI) == "" {
		return plan.Description{}, fault.Newf(fault.Invalid, "webhook %q has no uriTemplate", a.Name)
	}
	if strings.ContainsFunc(method(a), func(r rune) bool { return r != '-' && (r < 'A' || r > 'Z') }) {
		return plan.Description{}, fault.Newf(fault.Invalid, "webhook %q: method %q is none of HTTP", a.Name, a.Method)
	}
	d := plan.Description{Does: fmt.Sprintf("sends %s to webhook %q", method(a), a.Name), UndoneBy: "nothing: what it triggers is not Sluice's"}
	if a.Agent != "" {
		d.Does += fmt.Sprintf(" from this machine, which is the network of account %s", a.Agent)
	}
	if !a.DisableCallback {
		d.WaitsFor = fmt.Sprintf("a callback (at most %s)", callbackWithin)
	}
	return d, nil
}

func method(a plan.WebhookArgs) string {
	if a.Method == "" {
		return http.MethodPost
	}
	return strings.ToUpper(a.Method)
}

// Run sends, or goes on waiting.
func (st webhook) Run(ctx context.Context, c Call) (Outcome, error) {
	a, err := read[plan.WebhookArgs](c.Args)
	if err != nil {
		return Outcome{}, err
	}
	s, err := read[sent](c.Saved)
	if err != nil {
		return Outcome{}, err
	}
	// A callback counts even where the trigger's answer has not come, or was an error: the job that calls back has begun.
	if i := slices.IndexFunc(c.Signals, func(g delivery.Signal) bool { return g.Kind == delivery.Callback }); i >= 0 && !a.DisableCallback {
		return calledBack(a, s, c.Signals[i]), nil
	}
	if !s.Until.IsZero() {
		if c.Now.Before(s.Until) {
			return s.wait(a, c), nil
		}
		return Done(delivery.Fail, fmt.Sprintf("webhook %q: nobody called back within %s%s", a.Name, callbackWithin, s.doubt())), nil
	}
	if c.Now.Before(s.RetryAt) {
		return Wait(s.RetryAt, s.retrying(a), callbackKey(c)), nil
	}
	return st.trigger(ctx, c, a, s)
}

// trigger sends the request once, with a record of it before and after.
func (st webhook) trigger(ctx context.Context, c Call, a plan.WebhookArgs, s sent) (Outcome, error) {
	v := variablesOf(c, st.ports, a.Where, a.Context)
	req, err := st.request(ctx, c, a, v)
	if err != nil {
		return Done(delivery.Fail, v.scrub(fmt.Sprintf("webhook %q cannot be sent: %s", a.Name, err))), nil
	}
	v.warn()
	if s.Sending {
		s.Unknown++
	}
	s.Sending, s.RetryAt = true, time.Time{}
	if err := c.Save(ctx, s); err != nil {
		return Outcome{}, err
	}
	accepted, answer := st.send(req)
	if ctx.Err() != nil {
		return Outcome{}, ctx.Err()
	}
	s.Sending, s.Attempts, s.Answer = false, s.Attempts+1, v.scrub(answer)
	switch {
	case accepted && a.DisableCallback:
		return Done(delivery.Pass, fmt.Sprintf("webhook %q was accepted: %s%s", a.Name, s.Answer, s.doubt())), nil
	case accepted:
		s.Until = c.Now.Add(callbackWithin)
	case s.Attempts > a.RetryCount:
		return Done(delivery.Fail, fmt.Sprintf("webhook %q was not accepted in %s: %s%s", a.Name, times(s.Attempts, "attempt"), s.Answer, s.doubt())), nil
	default:
		s.RetryAt = c.Now.Add(time.Second << min(s.Attempts-1, 6))
	}
	if err := c.Save(ctx, s); err != nil {
		return Outcome{}, err
	}
	if accepted {
		return s.wait(a, c), nil
	}
	return Wait(s.RetryAt, s.retrying(a), callbackKey(c)), nil
}

// request fills the templates in.
func (st webhook) request(ctx context.Context, c Call, a plan.WebhookArgs, v *variables) (*http.Request, error) {
	if a.Agent != "" {
		// An account of this machine has this machine's network. One that is not configured is refused by name.
		if _, err := st.ports.Platform(a.Agent); err != nil {
			return nil, fmt.Errorf("agent %s: %w", a.Agent, err)
		}
	}
	callback := st.ports.Callback(c.Key)
	v.armory["callbackUri"] = callback
	v.hide(callback) // who knows it may answer in the job's name
	uri := strings.TrimSpace(v.render(a.URI))
	body := v.render(a.Body)
	headers := http.Header{}
	for _, h := range a.Headers {
		headers.Add(h.Key, v.render(h.Value))
	}
	if v.err != nil {
		return nil, v.err
	}
	if u, err := url.Parse(uri); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fault.Newf(fault.Invalid, "%q is not an http or https URL", uri)
	}
	req, err := http.NewRequestWithContext(ctx, method(a), uri, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = headers
	if h := headers.Get("Host"); h != "" {
		req.Host = h // the HTTP client ignores it among the headers
	}
	if headers.Get("Idempotency-Key") == "" {
		headers.Set("Idempotency-Key", c.Key)
	}
	if headers.Get("User-Agent") == "" {
		headers.Set("User-Agent", "sluice")
	}
	return req, nil
}

// send performs the request and says what came back. Any 2xx is acceptance.
func (st webhook) send(req *http.Request) (accepted bool, answer string) {
	ctx, cancel := context.WithTimeout(req.Context(), triggerWithin)
	defer cancel()
	client := http.Client{}
	if st.ports.HTTP != nil {
		client = *st.ports.HTTP
	}
	client.CheckRedirect = sameMethod
	res, err := client.Do(req.WithContext(ctx))
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the URL, which may be a secret as a whole
		}
		return false, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, excerptBytes+1))
	answer = res.Status
	if t := res.Header.Get("Content-Type"); t != "" {
		answer += " (" + t + ")"
	}
	if excerpt := strings.TrimSpace(strings.ToValidUTF8(string(text[:min(len(text), excerptBytes)]), "?")); excerpt != "" {
		answer += ": " + excerpt
		if len(text) > excerptBytes {
			answer += "…"
		}
	}
	if err != nil {
		answer += fmt.Sprintf(" (its body broke off: %s)", err)
	}
	return res.StatusCode >= 200 && res.StatusCode < 300, answer
}

// sameMethod follows a redirection only where it repeats the request. A login page that answers 200 to a GET is no
// acceptance of a POST.
func sameMethod(req *http.Request, via []*http.Request) error {
	if req.Method != via[0].Method || len(via) >= 10 {
		return http.ErrUseLastResponse
	}
	return nil
}

// calledBack ends the step as the job says.
func calledBack(a plan.WebhookArgs, s sent, g delivery.Signal) Outcome {
	message := strings.TrimSpace(g.Data["mdMessage"])
	if len(message) > 4*excerptBytes {
		message = strings.ToValidUTF8(message[:4*excerptBytes], "") + "…"
	}
	if message != "" {
		message = ": " + message
	}
	// A request that was on its way at a crash may have been what the job answers; from here on it does not matter.
	if ok, err := strconv.ParseBool(g.Data["success"]); err == nil && ok {
		return Done(delivery.Pass, fmt.Sprintf("webhook %q succeeded%s%s", a.Name, message, s.doubt()))
	}
	return Done(delivery.Fail, fmt.Sprintf("webhook %q called back with success: false%s%s", a.Name, message, s.doubt()))
}

func callbackKey(c Call) string { return "callback/" + c.Path }

func (s sent) wait(a plan.WebhookArgs, c Call) Outcome {
	return Wait(s.Until, fmt.Sprintf("webhook %q was accepted (%s); waits for its callback until %s%s", a.Name, firstLine(s.Answer),
		s.Until.Format(time.DateTime), s.doubt()), callbackKey(c))
}

func (s sent) retrying(a plan.WebhookArgs) string {
	return fmt.Sprintf("webhook %q was not accepted: %s; attempt %d of %d follows", a.Name, firstLine(s.Answer), s.Attempts+1, a.RetryCount+1)
}

// doubt says what nobody can know.
func (s sent) doubt() string {
	if s.Unknown == 0 {
		return ""
	}
	return fmt.Sprintf(" (a restart left open whether it had been sent; it was sent again %s under the same Idempotency-Key)", times(s.Unknown, "time"))
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func times(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Undo has nothing to take back.
func (webhook) Undo(_ context.Context, c Call) (Outcome, error) {
	s, err := read[sent](c.Saved)
	return Done(delivery.Pass, "a request that was sent cannot be taken back"+s.doubt()), err
}
