package data_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/store"
	"github.com/sluice-cd/sluice/internal/volume"
)

// rolledBack fails unless production is as it was before: the old version on its own volumes.
func (s *site) rolledBack(d delivery.Status, orders ...[]string) {
	s.t.Helper()
	if got := d.Targets["production"]; d.State != delivery.Failed || got.State != delivery.RolledBack {
		s.t.Fatalf("%s, production %s: %s", d.State, got.State, d.Reason)
	}
	s.holds(orders...)
	if got := s.running(); got != "mongo:1" {
		s.t.Errorf("production runs %s", got)
	}
}

// TestEndedWhileTheNewVersionIsApplied rolls back when the platform has applied the new version and Sluice has not kept that it
// did: the way back must know of it all the same.
func TestEndedWhileTheNewVersionIsApplied(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", ""))
	before := s.place("before", 100)
	was := s.bound("data-mongo-0")
	applied := make(chan struct{})
	s.isolated.applied = func(ctx context.Context, key string) error {
		if strings.HasSuffix(key, "/swap/1/apply") && ctx.Err() == nil {
			s.isolated.applied = nil
			close(applied)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	s.deploy("d1", file(false), "", mongoAt("mongo:2", ""))
	select {
	case <-applied:
	case <-time.After(time.Minute):
		t.Fatal("the new version is not applied")
	}
	if _, err := s.engine.Signal(t.Context(), "d1", delivery.Signal{Kind: delivery.Rollback, Key: "rollback/production", Path: "production"}); err != nil {
		t.Fatal(err)
	}
	s.rolledBack(s.until("d1", "done", done).Status, before)
	if got := s.bound("data-mongo-0"); got != was {
		t.Errorf("the claim is bound to %s, want the volume from before, %s", got, was)
	}
}

// TestAnotherVersionIsNotStartedOnTheOldVolumes has somebody declare the new version behind the fence: R0 does not start it on
// the old volumes, and does when the old version is declared again.
func TestAnotherVersionIsNotStartedOnTheOldVolumes(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", ""))
	before := s.place("before", 100)
	late := s.place("late", 1)
	declare := func(ctx context.Context, image string) error {
		_, err := s.platform.Apply(ctx, "somebody/"+image, objects(t, strings.Replace(mongoAt(image, ""), "replicas: 1", "replicas: 0", 1)), platform.Options{Namespace: "prod"})
		return err
	}
	s.isolated.applied = func(ctx context.Context, key string) error {
		if !strings.Contains(key, "/upgrade/1/up/") {
			return nil
		}
		s.isolated.applied = nil
		return declare(ctx, "mongo:2")
	}
	s.deploy("d1", file(false), "", mongoAt("mongo:2", "fails"))
	const fence = "production/deploy/orders/fence"
	d := s.until("d1", "refusing", deliveryWhere(fence, func(n delivery.NodeStatus) bool { return n.Phase == delivery.StepUndoFailed }))
	if m := d.Status.Nodes[fence].Message; !strings.Contains(m, "asks for mongo:2, and its volumes are those of mongo:1") || !strings.Contains(m, "sluice deploy retry d1") {
		t.Errorf("it says: %s", m)
	}
	if err := declare(t.Context(), "mongo:1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.engine.Signal(t.Context(), "d1", delivery.Signal{Kind: delivery.Retry, Key: "retry/1"}); err != nil {
		t.Fatal(err)
	}
	s.rolledBack(s.until("d1", "done", done).Status, before, late)
}

// TestRefusedBeforeTheFenceCloses holds that a new version which could not start on the upgraded volumes, or from which there
// would be no way back, is refused while production still runs.
func TestRefusedBeforeTheFenceCloses(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", ""))
	before := s.place("before", 10)
	next := mongoAt("mongo:2", "")
	for id, c := range map[string]struct{ old, new, says string }{
		"renamed": {"{name: data", "{name: files", "mounts the claims data-mongo-0 as it runs, and files-mongo-0 in its manifest"},
		"deletes": {"  replicas: 1", "  replicas: 1\n  persistentVolumeClaimRetentionPolicy: {whenScaled: Delete}", "in its manifest cannot be stopped: its persistentVolumeClaimRetentionPolicy deletes the claims"},
	} {
		s.deploy(id, file(false), "", strings.ReplaceAll(next, c.old, c.new))
		d := s.until(id, "done", done)
		if n := d.Status.Nodes["production/deploy/orders/fence"]; n.Ran == nil || !strings.Contains(n.Ran.Message, c.says) {
			t.Errorf("%s: the fence says %s, after %+v", id, n.Message, n.Ran)
		}
		if m := d.Status.Nodes["production/deploy/orders/fence"].Message; m != "the database was not touched" {
			t.Errorf("%s: the undo says %s", id, m)
		}
		s.rolledBack(d.Status, before)
	}
}

// TestRefusedBeforehand has the platform refuse an object of the database, one that is applied after it and one that gets a canary:
// production is not held back for what is known to fail, and what the platform may say otherwise later is asked again.
func TestRefusedBeforehand(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", "") + "---" + strings.Replace(web, "%s", "1", 1))
	before := s.place("before", 10)
	const fence = "production/deploy/orders/fence"
	next := mongoAt("mongo:2", "") + "---" + strings.Replace(web, "%s", "2", 1)
	for id, refused := range map[string]manifest.Ref{
		"database": {Kind: "StatefulSet", Name: "mongo"},
		"plain":    {Kind: "Service", Name: "web"},
		"canary":   {Kind: "Deployment", Name: "web"},
	} {
		away := true
		s.isolated.refuses = func(objects []manifest.Object) error {
			if !slices.ContainsFunc(objects, func(o manifest.Object) bool { return o.GetKind() == refused.Kind && o.GetName() == refused.Name }) {
				return nil
			}
			if away {
				away = false
				return fault.Newf(fault.Transient, "the cluster is away")
			}
			return fault.Newf(fault.Conflict, "%s is somebody else's", refused)
		}
		s.deploy(id, file(false), "", next)
		d := s.until(id, "done", done)
		if n := d.Status.Nodes[fence]; n.Ran == nil || !strings.Contains(n.Ran.Message, refused.String()+" is somebody else's") || n.Message != "the database was not touched" {
			t.Errorf("%s: the fence says %s, after %+v", id, n.Message, n.Ran)
		}
		s.rolledBack(d.Status, before)
	}
}

// TestProductionDoesNotWaitForTheClone holds that R0 starts production while the clone's pod still takes its time to end, and that
// the clone is deleted when it has.
func TestProductionDoesNotWaitForTheClone(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", ""))
	before := s.place("before", 100)
	next := strings.Replace(mongoAt("mongo:lingering", "fails"), "    spec:\n      containers:\n      - name: mongo", "    spec:\n      terminationGracePeriodSeconds: 300\n      containers:\n      - name: mongo", 1)
	clone := ""
	end := func() { _ = os.WriteFile(filepath.Join(clone, "end"), nil, 0o644) }
	defer end() // also where the test fails, as the platform waits for the pod, too
	s.deploy("d1", file(false), "", next)
	s.until("d1", "back", func(d store.Delivery) bool {
		if n := d.Status.Nodes["production/deploy/orders/upgrade"]; clone == "" && n.Order != 0 {
			clone, _ = s.platform.Bound(t.Context(), volume.Place{Account: "here", Namespace: "prod-upgrade", Claim: "data-mongo-0"})
		}
		return d.Status.Nodes["production/deploy/orders/fence"].Phase == delivery.StepUndone
	})
	s.holds(before)
	end()
	s.rolledBack(s.until("d1", "done", done).Status, before)
	for _, c := range s.copies("d1") {
		t.Errorf("the copy %s is left behind", c.ID())
	}
}

// TestTheFenceEndsInTime has what is done behind the fence take longer than the fence may stand: it is not waited for, and R0
// follows by itself.
func TestTheFenceEndsInTime(t *testing.T) {
	within := func(d time.Duration) *deployfile.File {
		f := file(false)
		f.Data.Databases[0].Upgrade.Deadline = d
		return f
	}
	t.Run("the old version does not stop", func(t *testing.T) {
		s := newSite(t)
		s.install(strings.Replace(mongoAt("mongo:lingering", ""), "    spec:\n      containers:\n      - name: mongo", "    spec:\n      terminationGracePeriodSeconds: 300\n      containers:\n      - name: mongo", 1))
		before := s.place("before", 10)
		end := func() {
			if err := os.WriteFile(filepath.Join(s.bound("data-mongo-0"), "end"), nil, 0o644); err != nil {
				t.Error(err)
			}
		}
		defer end()
		s.deploy("d1", within(time.Second), "", mongoAt("mongo:2", ""))
		d := s.until("d1", "going back", deliveryWhere("production/deploy/orders/fence", func(n delivery.NodeStatus) bool { return n.Phase == delivery.StepUndoing }))
		if m := d.Status.Nodes["production/deploy/orders/fence"].Ran.Message; !strings.Contains(m, "the fence stands for 1s, its deadline") || !strings.Contains(m, "not stopped") {
			t.Errorf("the fence says: %s", m)
		}
		end()
		d = s.until("d1", "done", done)
		if got := d.Status.Targets["production"].State; got != delivery.RolledBack || s.running() != "mongo:lingering" {
			t.Errorf("production is %s and runs %s\n%s", got, s.running(), steps(d))
		}
		s.holds(before)
	})
	t.Run("the new version is not accepted", func(t *testing.T) {
		s := newSite(t)
		s.install(mongoAt("mongo:1", ""))
		before := s.place("before", 10)
		s.isolated.applied = func(ctx context.Context, key string) error {
			if !strings.HasSuffix(key, "/swap/1/apply") {
				return nil
			}
			s.isolated.applied = nil
			<-ctx.Done()
			return ctx.Err()
		}
		s.deploy("d1", within(8*time.Second), "", mongoAt("mongo:2", ""))
		d := s.until("d1", "done", done)
		if n := d.Status.Nodes["production/deploy/orders/swap"]; n.Ran == nil || !strings.Contains(n.Ran.Message, "the fence stands for 8s, its deadline") {
			t.Errorf("the swap says: %s\n%s", n.Message, steps(d))
		}
		s.rolledBack(d.Status, before)
	})
}
