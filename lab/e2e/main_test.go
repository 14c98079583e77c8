//go:build e2e

// Package e2e proves on real clusters what the lab promises.
package e2e

import (
	"os"
	"testing"

	"github.com/sluice-cd/sluice/lab/labtest"
)

// clusters are started once for all tests; each test has namespaces of its own.
var clusters labtest.Clusters

func TestMain(m *testing.M) {
	os.Exit(labtest.Main(m, func(c labtest.Clusters) { clusters = c }))
}
