package kubernetes

import (
	"strconv"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/api/v1alpha1"
)

// TestMirrorGoesForward holds that what was written here is not forgotten between two looks: a reader beside the watch never
// finds an older version than the last one written.
func TestMirrorGoesForward(t *testing.T) {
	s := lagging(t)
	s.tells(t, "a", "1")
	for version := 2; version < 30000; version++ {
		v := strconv.Itoa(version)
		s.mirror.wrote(&v1alpha1.Delivery{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a", ResourceVersion: v}})
		var watch sync.WaitGroup
		watch.Go(func() { s.tells(t, "a", v) })
		for range 3 {
			if got := s.mirror.delivery("ns", "a").ResourceVersion; got != v {
				t.Fatalf("after version %s was written it is %s", v, got)
			}
		}
		if got := s.mirror.all()["a"].ResourceVersion; got != v {
			t.Fatalf("after version %s was written all have %s", v, got)
		}
		watch.Wait()
	}
}
