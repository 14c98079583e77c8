package kubernetes

import (
	"sync"

	"github.com/sluice-cd/sluice/internal/delivery"
)

// specsLimit is how many bytes of plans are kept in memory. Those of deliveries that rest may be dropped: they are read again
// when one goes on.
const specsLimit = 16 << 20

// specs are plans that were read and may be needed again soon.
type specs struct {
	mu    sync.Mutex
	size  int
	plans map[string]delivery.Spec // by delivery
}

func (s *specs) get(id string) (delivery.Spec, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	spec, ok := s.plans[id]
	return spec, ok
}

// put keeps a plan, in place of any others where there are too many: many deliveries that go on at once, one after another,
// would drop just what is needed next if the oldest went first.
func (s *specs) put(id string, spec delivery.Spec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.plans[id]; ok {
		return
	}
	if s.plans == nil {
		s.plans = map[string]delivery.Spec{}
	}
	s.size += sizeOf(spec)
	for other := range s.plans {
		if s.size <= specsLimit {
			break
		}
		s.removeLocked(other)
	}
	s.plans[id] = spec
}

func (s *specs) remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeLocked(id)
}

func (s *specs) removeLocked(id string) {
	if spec, ok := s.plans[id]; ok {
		s.size -= sizeOf(spec)
		delete(s.plans, id)
	}
}

// sizeOf is about how much memory a plan takes: its arguments, which hold the manifests, and some for each step.
func sizeOf(spec delivery.Spec) int {
	n := 0
	for _, node := range spec.Graph.Nodes {
		n += 512 + len(node.Args)
	}
	return n
}
