package kubernetes

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
)

// TestSpecs holds that plans take no more memory than they may, however many deliveries there are.
func TestSpecs(t *testing.T) {
	var s specs
	large := delivery.Spec{Graph: plan.Graph{Nodes: []plan.Node{{Path: "apply", Args: make(json.RawMessage, 1<<20)}}}}
	for i := range 100 {
		id := fmt.Sprint(i)
		s.put(id, large)
		s.put(id, large)
		if _, ok := s.get(id); !ok {
			t.Fatalf("plan %s was dropped for itself", id)
		}
	}
	if n := len(s.plans); n == 0 || n > specsLimit>>20 || s.size != n*sizeOf(large) {
		t.Errorf("%d plans of a MiB are kept, and counted as %d bytes", n, s.size)
	}
	for i := range 100 {
		s.remove(fmt.Sprint(i))
	}
	if s.size != 0 || len(s.plans) != 0 {
		t.Errorf("without plans they take %d bytes", s.size)
	}
}
