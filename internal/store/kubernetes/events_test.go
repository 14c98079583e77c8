package kubernetes

import (
	"encoding/json"
	"io"
	"log/slog"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/store"
)

// TestEvents holds what people are told of a delivery, by its Events and conditions.
func TestEvents(t *testing.T) {
	s := &Store{o: Config{Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, events: make(chan *corev1.Event, 10)}
	d := &v1alpha1.Delivery{ObjectMeta: metav1.ObjectMeta{Name: "d1"}}
	told := func(records []store.Record, st delivery.Status) []string {
		t.Helper()
		old := d.DeepCopy()
		d.Status.Revision++
		if err := (&client{}).write(t.Context(), d, st); err != nil {
			t.Fatal(err)
		}
		s.tell(old, d)
		s.tellRefused(d, records)
		var out []string
		for len(s.events) > 0 {
			e := <-s.events
			out = append(out, e.Name+" "+e.Type+" "+e.Reason+": "+e.Message)
		}
		return out
	}
	refused, err := json.Marshal(store.Refusal{Signal: delivery.Signal{Kind: delivery.Approve, Path: "x", By: "eve"}, Why: "step x has not begun"})
	if err != nil {
		t.Fatal(err)
	}
	blocked := delivery.Status{State: delivery.Running, Waits: "delivery d0 is still running", Reason: "it waits: delivery d0 is still running"}
	for i, c := range []struct {
		records []store.Record
		status  delivery.Status
		events  []string
		reason  string // of the conditions Ready and Reconciling
	}{
		{nil, blocked, []string{"d1.1 Warning WaitingForLock: it waits: delivery d0 is still running"}, "WaitingForLock"},
		{nil, blocked, nil, "WaitingForLock"},
		{[]store.Record{{Kind: "intent"}, {Kind: store.Refused, Data: refused}}, delivery.Status{State: delivery.Running},
			[]string{"d1.3.refused-1 Warning ActionRefused: approve x by eve: step x has not begun"}, "Running"},
		{nil, delivery.Status{State: delivery.Failed, Reason: "x failed"}, []string{"d1.4 Warning Failed: x failed"}, "Failed"},
	} {
		if got := told(c.records, c.status); !slices.Equal(got, c.events) {
			t.Errorf("%d: told is %q, want %q", i, got, c.events)
		}
		for _, kind := range []string{"Ready", "Reconciling"} {
			if got := meta.FindStatusCondition(d.Status.Conditions, kind); got == nil || got.Reason != c.reason {
				t.Errorf("%d: the condition %s is %+v", i, kind, got)
			}
		}
	}
}
