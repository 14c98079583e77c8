package kubernetes

import (
	"testing"

	"github.com/sluice-cd/sluice/internal/store/storetest"
)

// TestConformanceOfRequests runs the suite on an API server that is made for tests; TestConformance does on a real one.
func TestConformanceOfRequests(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Full {
		f := newFake(t)
		return f.open(t, f.config(t, "controller"))
	})
}
