package data_test

import (
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/step/data"
)

// TestCheckpointExpires holds that a checkpoint is kept for its time and deleted afterwards.
func TestCheckpointExpires(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", ""))
	s.place("before", 10)
	f := file(false)
	f.Targets[0].BeforeDeployment = []deployfile.Step{{CheckpointData: &deployfile.CheckpointData{Database: "orders", Name: "before", TTL: time.Hour}}}
	s.deploy("d1", f, "", "")
	d := s.until("d1", "done", done)
	if d.Status.State != delivery.Succeeded {
		t.Fatalf("%s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
	}
	copies := func() int {
		t.Helper()
		all, err := s.volumes.List(t.Context(), "d1")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	ended := d.Status.Nodes["production/before/1-checkpoint"].Ended
	next, err := data.Expire(t.Context(), s.ports, d.Spec, d.Status, ended.Add(time.Minute))
	if err != nil || !next.Equal(ended.Add(time.Hour)) || copies() != 1 {
		t.Errorf("before its time: next %v, %d copies, %v", next, copies(), err)
	}
	for range 2 {
		next, err = data.Expire(t.Context(), s.ports, d.Spec, d.Status, ended.Add(time.Hour))
		if err != nil || !next.IsZero() || copies() != 0 {
			t.Errorf("after its time: next %v, %d copies, %v", next, copies(), err)
		}
	}
}
