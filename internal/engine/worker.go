package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/store"
)

// worker carries one delivery. It alone changes the status; the steps' goroutines tell it what they saw.
type worker struct {
	e       *Engine
	id      string
	wake    chan struct{}
	seen    chan seen
	running map[string]*entry
	status  delivery.Status
	lock    time.Time     // when the lock is to be taken again
	held    bool          // the lock is the delivery's
	why     string        // it is not
	gone    chan struct{} // closed when the worker has ended
}

type entry struct {
	entry     int
	cancel    context.CancelFunc
	withdrawn bool // what it returns does not count: the step is entered again, as after a crash
}

// withdraw ends an entry that may not be in flight.
func (e *entry) withdraw() {
	e.withdrawn = true
	e.cancel()
}

// seen is an observation; done is closed once it is kept.
type seen struct {
	obs     delivery.Observation
	done    chan struct{}
	returns bool
}

func (w *worker) run(ctx context.Context) error {
	defer close(w.gone)
	defer func() {
		for _, e := range w.running {
			e.cancel()
		}
	}()
	var spec delivery.Spec
	var obs []delivery.Observation
	var kept []chan struct{}
	for {
		actions, present, err := w.keep(ctx, obs)
		if err != nil {
			w.leave(ctx, spec)
			return err
		}
		spec = present
		for _, c := range kept {
			close(c)
		}
		kept = nil
		if w.status.Done {
			return nil
		}
		obs = nil
		switch why := w.locked(ctx, spec); {
		case ctx.Err() != nil:
			return ctx.Err()
		case why != w.status.Waits:
			obs = []delivery.Observation{{Kind: delivery.Blocked, Error: why}}
		case why == "":
			obs = w.perform(ctx, spec, actions)
		}
		if len(obs) > 0 {
			continue
		}
		timer, stop := w.timer()
		select {
		case <-ctx.Done():
			stop()
			return ctx.Err()
		case <-w.wake:
		case <-timer:
		case s := <-w.seen:
			if e := w.running[s.obs.Path]; !s.returns || !e.withdrawn {
				obs = append(obs, s.obs)
			}
			if s.returns {
				w.running[s.obs.Path].cancel()
				delete(w.running, s.obs.Path)
			}
			if s.done != nil {
				kept = append(kept, s.done)
			}
		}
		stop()
	}
}

// leave ends what is in flight of a delivery that is gone, and gives its lock back.
func (w *worker) leave(ctx context.Context, spec delivery.Spec) {
	for _, e := range w.running {
		e.cancel()
	}
	for len(w.running) > 0 {
		select {
		case s := <-w.seen:
			if s.returns {
				delete(w.running, s.obs.Path)
			}
		case <-ctx.Done():
			return
		}
	}
	if w.held {
		w.unlock(ctx, spec)
	}
}

func (w *worker) timer() (<-chan time.Time, func()) {
	at, now := w.status.Wake(), w.e.o.Clock.Now()
	if lock := w.lookAtLock(now); !lock.IsZero() && (at.IsZero() || lock.Before(at)) {
		at = lock
	}
	if at.IsZero() {
		return nil, func() {}
	}
	return w.e.o.Clock.After(at.Sub(now))
}

// keep is step, tried again for as long as the store cannot keep what follows: a full disk must not end a delivery. What was
// observed is still in hand, and what was kept after all is not taken in twice. Only that the delivery itself is gone ends it.
func (w *worker) keep(ctx context.Context, obs []delivery.Observation) ([]delivery.Action, delivery.Spec, error) {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		actions, spec, err := w.step(ctx, obs)
		if err == nil || ctx.Err() != nil {
			return actions, spec, err
		}
		if fault.Is(err, fault.NotFound) {
			if _, gone := w.e.o.Store.Head(ctx, w.id); fault.Is(gone, fault.NotFound) {
				return nil, spec, gone
			}
		}
		if !fault.Is(err, fault.Conflict) { // then somebody was faster, and the next load shows it
			w.e.o.Log.Error("the store cannot keep how a delivery goes on; it is tried again", "delivery", w.id, "error", err, "in", pause)
		}
		again, stop := w.e.o.Clock.After(pause)
		select {
		case <-ctx.Done():
			stop()
			return nil, spec, ctx.Err()
		case <-again:
		}
	}
}

// step takes in the signals and observations and keeps what follows before anything is done about it.
func (w *worker) step(ctx context.Context, obs []delivery.Observation) ([]delivery.Action, delivery.Spec, error) {
	var d store.Delivery
	err := w.e.inTurn(ctx, func() (err error) {
		d, err = w.e.o.Store.Load(ctx, w.id)
		return err
	})
	if err != nil {
		return nil, d.Spec, err
	}
	now := w.e.o.Clock.Now()
	refused, err := refusals(d, now, obs)
	if err != nil {
		return nil, d.Spec, err
	}
	for _, s := range d.Signals {
		obs = append(obs, delivery.Observation{Kind: delivery.Signalled, Seq: s.Seq, Signal: &s.Signal})
	}
	next, actions := delivery.Next(d.Spec, d.Status, now, obs)
	if next.Done {
		// Nothing is left to do. Once that is kept nobody comes back to give the lock back.
		w.unlock(ctx, d.Spec)
	}
	w.status = next
	before, err := json.Marshal(d.Status)
	if err != nil {
		return nil, d.Spec, err
	}
	after, err := json.Marshal(next)
	if err != nil {
		return nil, d.Spec, err
	}
	if !bytes.Equal(before, after) {
		records, err := w.records(obs, actions, now)
		if err != nil {
			return nil, d.Spec, err
		}
		err = w.e.inTurn(ctx, func() error {
			_, err := w.e.o.Store.Swap(ctx, w.id, d.Revision, next, append(refused, records...))
			return err
		})
		if err != nil {
			return nil, d.Spec, err
		}
	}
	return actions, d.Spec, nil
}

// refusals are the records of signals that a delivery cannot take in, and why: whoever sent one past Signal is not told
// otherwise. obs are what comes before them.
func refusals(d store.Delivery, now time.Time, obs []delivery.Observation) (out []store.Record, err error) {
	s := d.Status
	for _, sig := range d.Signals {
		if sig.Seq <= d.Status.Seen {
			continue
		}
		s, _ = delivery.Next(d.Spec, s, now, obs)
		if why := delivery.Check(d.Spec, s, sig.Signal); why != nil {
			data, err := json.Marshal(store.Refusal{Signal: sig.Signal, Why: why.Error()})
			if err != nil {
				return nil, err
			}
			out = append(out, store.Record{Kind: store.Refused, Path: sig.Path, At: now, Data: data})
		}
		obs = []delivery.Observation{{Kind: delivery.Signalled, Seq: sig.Seq, Signal: &sig.Signal}}
	}
	return out, nil
}

// inTurn calls f when it is its turn.
func (e *Engine) inTurn(ctx context.Context, f func() error) error {
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-e.turn }()
	return f()
}

func (w *worker) records(obs []delivery.Observation, actions []delivery.Action, now time.Time) ([]store.Record, error) {
	var out []store.Record
	for _, o := range obs {
		if o.Kind == delivery.Signalled {
			continue
		}
		data, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		kind := "outcome"
		switch o.Kind {
		case delivery.SavedSome:
			kind = "saved"
		case delivery.Blocked:
			kind = "blocked"
		}
		out = append(out, store.Record{Kind: kind, Path: o.Path, Entry: o.Entry, At: now, Data: data})
	}
	for _, a := range actions {
		if _, ok := w.running[a.Path]; ok {
			continue
		}
		data, err := json.Marshal(a)
		if err != nil {
			return nil, err
		}
		out = append(out, store.Record{Kind: "intent", Path: a.Path, Entry: a.Entry, At: now, Data: data})
	}
	return out, nil
}

// perform makes the entries in flight be those that the actions name. It returns what can be said at once.
func (w *worker) perform(ctx context.Context, spec delivery.Spec, actions []delivery.Action) []delivery.Observation {
	var obs []delivery.Observation
	for path, r := range w.running {
		if !slices.ContainsFunc(actions, func(a delivery.Action) bool { return a.Path == path && a.Entry == r.entry }) {
			r.withdraw()
		}
	}
	for _, a := range actions {
		r, ok := w.running[a.Path]
		switch {
		case a.Kind == delivery.Stop && ok:
			r.cancel()
		case a.Kind == delivery.Stop:
			obs = append(obs, delivery.Observation{Kind: delivery.Stopped, Path: a.Path, Entry: a.Entry})
		case !ok:
			w.enter(ctx, spec, a)
		}
	}
	return obs
}

func (w *worker) enter(ctx context.Context, spec delivery.Spec, a delivery.Action) {
	ctx, cancel := context.WithCancel(ctx)
	w.running[a.Path] = &entry{entry: a.Entry, cancel: cancel}
	call, node := w.call(spec, a)
	w.e.wg.Go(func() {
		o := delivery.Observation{Kind: delivery.Returned, Path: a.Path, Entry: a.Entry}
		out, err := w.do(ctx, node, a, call)
		if err == nil {
			o.Result = &delivery.Result{Verdict: out.Verdict, Ask: out.Ask, Message: out.Message, Kept: out.Kept, Wait: out.Wait, Deadline: out.Deadline,
				Expose: out.Expose}
			if out.Evidence != nil {
				o.Result.Evidence, err = json.Marshal(out.Evidence)
			}
		}
		if err != nil {
			o.Kind, o.Result, o.Error, o.Transient = delivery.Erred, nil, err.Error(), fault.Is(err, fault.Transient)
		}
		w.tell(ctx, seen{obs: o, returns: true})
	})
}

// tell hands an observation to the worker unless the whole engine ends: then the entry is made again at the next start.
func (w *worker) tell(ctx context.Context, s seen) {
	given := ctx.Done()
	if s.returns {
		// A step that was told to end still reports that it has.
		given = nil
	}
	select {
	case w.seen <- s:
	case <-given:
	case <-w.gone:
	}
}

func (w *worker) do(ctx context.Context, n plan.Node, a delivery.Action, c step.Call) (out step.Outcome, err error) {
	defer func() {
		if p := recover(); p != nil {
			w.e.o.Log.Error("a step broke", "delivery", w.id, "step", a.Path, "error", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("step %s broke: %v (the server's log says where)", a.Path, p)
		}
	}()
	s, ok := w.e.o.Steps[n.Kind]
	if !ok {
		return out, fault.Newf(fault.Invalid, "step %s needs %s, not built yet", a.Path, n.Kind)
	}
	switch a.Kind {
	case delivery.Undo:
		return s.Undo(ctx, c)
	case delivery.Clean:
		if cl, ok := s.(step.Cleaner); ok {
			return cl.Clean(ctx, c)
		}
		return step.Done(delivery.Pass, ""), nil
	default:
		return s.Run(ctx, c)
	}
}

func (w *worker) call(spec delivery.Spec, a delivery.Action) (step.Call, plan.Node) {
	var node plan.Node
	for _, n := range spec.Graph.Nodes {
		if n.Path == a.Path {
			node = n
		}
	}
	st := w.status.Nodes[a.Path]
	saved := map[string]json.RawMessage{}
	for p, n := range w.status.Nodes {
		saved[p] = n.Saved
	}
	clock := w.e.o.Clock
	return step.Call{Key: a.Key, Delivery: spec.ID, Target: node.Target, Path: a.Path, Args: node.Args, Saved: st.Saved,
		Signals: st.Signals, Now: clock.Now(), Attempt: st.Attempt,
		Save: func(ctx context.Context, v any) error { return w.save(ctx, a, v) },
		Progress: func(format string, args ...any) {
			w.e.o.Progress(Progress{Delivery: spec.ID, Path: a.Path, Line: fmt.Sprintf(format, args...), At: clock.Now()})
		},
		Siblings: func(path string) json.RawMessage { return saved[path] },
	}, node
}

// save returns once the value is kept.
func (w *worker) save(ctx context.Context, a delivery.Action, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	s := seen{obs: delivery.Observation{Kind: delivery.SavedSome, Path: a.Path, Entry: a.Entry, Saved: body}, done: make(chan struct{})}
	w.tell(ctx, s)
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
