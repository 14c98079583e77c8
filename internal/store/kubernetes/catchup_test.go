package kubernetes

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/fault"
)

// lagging is a store whose watches are not connected: it is told by the test. The cluster has delivery a at version 5, b at 7, and
// had c when it listed them.
func lagging(t *testing.T) *Store {
	t.Helper()
	reply := func(w http.ResponseWriter, code int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	page := func(more string, items ...metav1.PartialObjectMetadata) metav1.PartialObjectMetadataList {
		return metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadataList"},
			ListMeta: metav1.ListMeta{ResourceVersion: "9", Continue: more}, Items: items}
	}
	one := func(name, version string) metav1.PartialObjectMetadata {
		return metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, ResourceVersion: version}}
	}
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case strings.HasSuffix(r.URL.Path, "/deliveries/c"):
			reply(w, http.StatusNotFound, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
				Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound})
		case strings.HasSuffix(r.URL.Path, "/deliveries/a"):
			reply(w, http.StatusOK, v1alpha1.Delivery{TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion().String(), Kind: "Delivery"},
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a", ResourceVersion: "5"}})
		case !strings.HasSuffix(r.URL.Path, "/namespaces/ns/deliveries") || q.Has("resourceVersion") || q.Get("limit") == "":
			t.Errorf("the cluster is asked for %s", r.URL)
			w.WriteHeader(http.StatusBadRequest)
		case q.Get("continue") == "":
			reply(w, http.StatusOK, page("more", one("a", "5")))
		default:
			reply(w, http.StatusOK, page("", one("b", "7"), one("c", "3")))
		}
	}))
	t.Cleanup(api.Close)
	c, err := newClient(&rest.Config{Host: api.URL}, "ns")
	if err != nil {
		t.Fatal(err)
	}
	s := &Store{c: c, any: c, order: map[string]*order{}}
	if s.mirror, err = newMirror(c, "", slog.New(slog.NewTextHandler(io.Discard, nil)), s.changed); err != nil {
		t.Fatal(err)
	}
	return s
}

// tells is what a watch does.
func (s *Store) tells(t *testing.T, name, version string) {
	t.Helper()
	d := &v1alpha1.Delivery{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, ResourceVersion: version}}
	if err := s.mirror.deliveries.GetStore().Add(d); err != nil {
		t.Fatal(err)
	}
	s.mirror.told(d, s.changed)
}

// TestCatchUp holds that a new leader waits for what the one before it has written, and not for what is deleted.
func TestCatchUp(t *testing.T) {
	s := lagging(t)
	s.tells(t, "a", "5")
	s.tells(t, "b", "6")
	s.order["b"] = &order{last: 3, seq: map[string]int64{"b-approve": 3}}
	done := make(chan error, 1)
	go func() { done <- s.CatchUp(t.Context(), time.Minute) }()
	select {
	case err := <-done:
		t.Fatalf("it has caught up with version 6 of what is at 7: %v", err)
	case <-time.After(askAgain + askAgain/2): // c is found out to be gone meanwhile
	}
	s.tells(t, "b", "8")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(s.order) > 0 {
		t.Errorf("actions keep the numbers %v that they had before", s.order)
	}
}

// TestCatchUpEnds holds that a watch which stays behind is an error after a while.
func TestCatchUpEnds(t *testing.T) {
	s := lagging(t)
	s.tells(t, "a", "5")
	err := s.CatchUp(t.Context(), 700*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "does not tell about 2 deliveries") {
		t.Errorf("it ends with %v", err)
	}
}

// TestRefresh holds that a delivery is known as the cluster has it, before a watch tells, and no older than that.
func TestRefresh(t *testing.T) {
	s := lagging(t)
	for _, told := range []string{"4", "6"} {
		s.tells(t, "a", told)
		if err := s.Refresh(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if got, want := s.mirror.delivery("ns", "a").ResourceVersion, max(told, "5"); got != want {
			t.Errorf("told version %s, after the cluster's 5 it is %s, want %s", told, got, want)
		}
	}
	if err := s.Refresh(t.Context(), "c"); !fault.Is(err, fault.NotFound) {
		t.Errorf("one that is gone: %v", err)
	}
}
