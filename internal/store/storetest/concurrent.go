package storetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/store"
)

func twice(t *testing.T, s Full) {
	create(t, s, spec("a"))
	if _, err := s.Create(t.Context(), spec("a")); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second delivery of the id while the first runs: %v", err)
	}
	if _, err := s.Swap(t.Context(), "a", 1, delivery.Status{State: delivery.Succeeded, Done: true}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), spec("a")); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second delivery of the id after the first: %v", err)
	}
}

func wholeStatus(t *testing.T, s Full) {
	d := spec("a")
	d.Graph = plan.Graph{Targets: []plan.Target{{Name: "prod eu"}}, Nodes: []plan.Node{{Path: "prod eu/deploy/1", Args: json.RawMessage(`{"n":12345678901234567890}`)}}}
	create(t, s, d)
	at := time.Date(2026, 1, 2, 3, 4, 5, 123456789, time.UTC)
	want := delivery.Status{State: delivery.Running, Seen: 0, Nodes: map[string]delivery.NodeStatus{"prod eu/deploy/1": {Phase: delivery.StepWaiting, Saved: json.RawMessage(`{"a":1}`),
		Deadline: at, Awaits: []string{"k"}, Signals: []delivery.Signal{{Key: "k", At: at, Data: map[string]string{"x": "y \u2028 <"}}}}},
		Targets: map[string]delivery.TargetStatus{"prod eu": {State: delivery.Running}}, Started: at}
	if _, err := s.Swap(t.Context(), "a", 1, want, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a store may remember what it has read once
		got, err := s.Load(t.Context(), "a")
		if err != nil || !reflect.DeepEqual(got.Status, want) || !reflect.DeepEqual(got.Spec.Graph, d.Graph) {
			t.Errorf("got  %+v\nwant %+v (%v)", got, want, err)
		}
	}
}

// raceOfCreates starts many deliveries of one application at once.
func raceOfCreates(t *testing.T, s Full) {
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() { _, errs[i] = s.Create(t.Context(), spec(fmt.Sprintf("d%d", i))) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if _, ok := errors.AsType[*store.ErrRunning](err); !ok {
			t.Error(err)
		}
	}
	open, err := s.List(t.Context(), true)
	if won != 1 || len(open) != 1 || err != nil {
		t.Errorf("%d were started, %d are open (%v)", won, len(open), err)
	}
}

func raceOfSignals(t *testing.T, s Full) {
	create(t, s, spec("a"))
	var wg sync.WaitGroup
	won := make([]bool, 8)
	errs := make([]error, len(won))
	for i := range won {
		wg.Go(func() {
			won[i], errs[i] = s.Signal(t.Context(), "a", delivery.Signal{Key: "approve/p", By: fmt.Sprint(i)})
		})
	}
	wg.Wait()
	d, err := s.Load(t.Context(), "a")
	if err = errors.Join(append(errs, err)...); err != nil || len(d.Signals) != 1 {
		t.Fatalf("%+v %v", d.Signals, err)
	}
	for i, w := range won {
		if w != (d.Signals[0].By == fmt.Sprint(i)) {
			t.Errorf("signal %d was told %v, and the one of %s is kept", i, w, d.Signals[0].By)
		}
	}
}

// signalsBesideSwaps gives signals while a worker takes them in, as the server and the engine do.
func signalsBesideSwaps(t *testing.T, s Full) {
	const senders, each = 4, 25
	create(t, s, spec("a"))
	events, err := s.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for n := range each {
				if first, err := s.Signal(t.Context(), "a", delivery.Signal{Key: fmt.Sprintf("%d/%d", i, n), Data: map[string]string{"n": fmt.Sprint(n)}}); err != nil || !first {
					t.Errorf("signal %d of sender %d: %v %v", n, i, first, err)
				}
			}
		})
	}
	defer wg.Wait()
	next := map[byte]int{}
	for taken := 0; taken < senders*each; {
		select {
		case <-events: // each change is told, so waiting for one is enough
		case <-time.After(30 * time.Second):
			t.Fatalf("after %d signals no event came", taken)
		}
		d, err := s.Load(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if len(d.Signals) == 0 {
			continue
		}
		for _, sig := range d.Signals {
			sender := sig.Key[0]
			if sig.Seq <= d.Status.Seen || sig.Data["n"] != fmt.Sprint(next[sender]) {
				t.Fatalf("signal %s with number %d came after %d and %d of its sender", sig.Key, sig.Seq, d.Status.Seen, next[sender])
			}
			next[sender]++
			d.Status.Seen = sig.Seq
			taken++
		}
		if _, err := s.Swap(t.Context(), "a", d.Revision, d.Status, []store.Record{{Kind: "outcome"}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Journal(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

// besideEachOther changes many deliveries at once and reads them back.
func besideEachOther(t *testing.T, s Full) {
	const deliveries, swaps = 6, 20
	var wg sync.WaitGroup
	for i := range deliveries {
		wg.Go(func() {
			id := fmt.Sprintf("d%d", i)
			d := spec(id)
			d.Application = id
			rev, err := s.Create(t.Context(), d)
			for n := 0; err == nil && n < swaps; n++ {
				rev, err = s.Swap(t.Context(), id, rev, delivery.Status{State: delivery.Running, Begun: n + 1}, []store.Record{{Kind: "intent", Path: id, Entry: n}})
			}
			if err != nil {
				t.Errorf("delivery %s: %v", id, err)
			}
		})
	}
	wg.Wait()
	for i := range deliveries {
		id := fmt.Sprintf("d%d", i)
		d, err := s.Load(t.Context(), id)
		j, err2 := s.Journal(t.Context(), id)
		if err = errors.Join(err, err2); err != nil || d.Status.Begun != swaps || len(j) != swaps+1 {
			t.Fatalf("%s: begun %d, %d records, %v", id, d.Status.Begun, len(j), err)
		}
		for n, r := range j {
			if r.Seq != int64(n+1) || n > 0 && (r.Path != id || r.Entry != n-1) {
				t.Fatalf("record %d of %s is %+v", n, id, r)
			}
		}
	}
}
