//go:build e2e

package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/kube/kubetest"
)

// call is a line of an API server's audit log.
type call struct{ kubetest.Call }

// as is who is acted for.
func (c call) as() string { return c.As() }

// did reports whether the cluster has done what it was asked for.
func (c call) did() bool { return c.Did() }

// may reports whether the cluster may have done what whoever asked was told nothing about: it has ended before the answer.
func (c call) may() bool { return c.Said.Code == http.StatusGatewayTimeout }

// sluices reports whether Sluice has asked; the cluster's own programs go by the administrator's name, too.
func (c call) sluices() bool { return strings.HasPrefix(c.UserAgent, "sluice") }

// calls reads what a cluster was asked to change from an instant on.
func (c cluster) calls(t *testing.T, since time.Time) (all []call) {
	t.Helper()
	for _, k := range kubetest.Calls(t, c.file, since, true) {
		all = append(all, call{k})
	}
	return all
}
