package data_test

import (
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// TestWhatBelongsToADatabaseThatStays delivers another version of the application and a changed Service of a database that does not
// change: the Service is applied though nothing is fenced, and goes back with the rest.
func TestWhatBelongsToADatabaseThatStays(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", "") + "---" + strings.Replace(web, "%s", "1", 1))
	orders := s.place("before", 10)
	team := func() string {
		o, err := s.platform.Get(t.Context(), manifest.Ref{Kind: "Service", Namespace: "prod", Name: "mongo"})
		if err != nil {
			t.Fatal(err)
		}
		return o.GetAnnotations()["team"]
	}
	database := strings.Replace(mongoAt("mongo:1", ""), "metadata: {name: mongo}", "metadata: {name: mongo, annotations: {team: data}}", 1)
	s.deploy("d1", file(false), "", database+"---"+strings.Replace(web, "%s", "2", 1))
	d := s.until("d1", "asking for approval", waits("production/deploy/canary/1-approval"))
	if m := d.Status.Nodes["production/deploy/orders/fence"].Message; team() != "data" || !strings.Contains(m, "stays on mongo:1") {
		t.Errorf("the Service is of team %q; the fence says: %s", team(), m)
	}
	if _, err := s.engine.Signal(t.Context(), "d1", delivery.Signal{Kind: delivery.Rollback, Key: "rollback/production", Path: "production"}); err != nil {
		t.Fatal(err)
	}
	s.rolledBack(s.until("d1", "done", done).Status, orders)
	if got := team(); got != "" {
		t.Errorf("after the rollback the Service is of team %q", got)
	}
}
