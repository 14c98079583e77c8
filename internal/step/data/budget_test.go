package data_test

import (
	"context"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/mongodb"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
)

// unreadable is an engine with a fake log that nobody can read.
type unreadable struct {
	*mongodb.Engine
	database.Log
}

func (unreadable) Countable(context.Context, []string) error {
	return fault.Newf(fault.NotFound, "logdump is not installed here")
}

// TestBudgetThatCannotBeCounted holds that production is not fenced where a restore could not keep within its budget.
func TestBudgetThatCannotBeCounted(t *testing.T) {
	s := newSite(t)
	s.engines["mongodb"] = unreadable{Engine: s.engines["mongodb"].(*mongodb.Engine)}
	s.install(mongoAt("mongo:1", ""))
	f := file(false)
	f.Data.Databases[0].Upgrade.MaxLost = 3
	s.deploy("d1", f, "", mongoAt("mongo:2", ""))
	d := s.until("d1", "done", done)
	if d.Status.State != delivery.Failed || !strings.Contains(d.Status.Reason, "logdump is not installed here (leave maxLost out") {
		t.Errorf("%s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
	}
	if fence := d.Status.Nodes["production/deploy/orders/fence"]; len(fence.Saved) > 0 {
		t.Errorf("the fence has begun: %s", fence.Saved)
	}
	if got := s.running(); got != "mongo:1" {
		t.Errorf("production runs %s", got)
	}
}
