package data_test

import (
	"os"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/step/data"
	"github.com/sluice-cd/sluice/internal/store"
)

// TestVolumesExpire takes two upgrades and holds that what each took out of service is deleted when its bake is over, and
// neither before nor what production runs on.
func TestVolumesExpire(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", ""))
	orders := s.place("before", 10)
	first := s.bound("data-mongo-0")
	upgrade := func(id, image string) (store.Delivery, string) {
		t.Helper()
		f := file(false)
		f.Data.Databases[0].Upgrade.Bake = time.Millisecond // the driver protects by the real clock
		s.deploy(id, f, "", mongoAt(image, ""))
		d := s.until(id, "done", done)
		if d.Status.State != delivery.Succeeded {
			t.Fatalf("%s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
		}
		return d, s.bound("data-mongo-0")
	}
	expire := func(d store.Delivery, at time.Time) time.Time {
		t.Helper()
		next, err := data.Expire(t.Context(), s.ports, d.Spec, d.Status, at)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	exists := func(dir string) bool { _, err := os.Stat(dir); return err == nil }

	one, second := upgrade("d1", "mongo:2")
	over := one.Status.Nodes["production/deploy/orders/swap"].Ended.Add(2 * time.Second)
	if next := expire(one, over.Add(-time.Hour)); next.IsZero() || !exists(first) {
		t.Errorf("before the bake was over: next %v, the old volume is there: %v", next, exists(first))
	}
	failed := one
	failed.Status.State = delivery.Failed
	if next := expire(failed, over); !next.IsZero() || !exists(first) {
		t.Error("the old volume of a delivery that failed is deleted")
	}
	for range 2 {
		if next := expire(one, over); !next.IsZero() || exists(first) || !exists(second) {
			t.Errorf("after the bake: next %v, the old volume is there: %v, production's: %v", next, exists(first), exists(second))
		}
	}
	s.holds(orders)

	two, third := upgrade("d2", "mongo:1")
	over = two.Status.Nodes["production/deploy/orders/swap"].Ended.Add(2 * time.Second)
	expire(two, over)
	expire(one, over)
	if exists(second) || !exists(third) {
		t.Errorf("after the second bake: the old volume is there: %v, production's: %v", exists(second), exists(third))
	}
	if left := s.copies("d1"); len(left) != 0 {
		t.Errorf("%d copies of the first delivery are left: %v", len(left), left)
	}
	s.holds(orders)
}

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
