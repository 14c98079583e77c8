package data_test

import (
	"bufio"
	"context"
	"encoding/json"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step/data"
	"github.com/sluice-cd/sluice/internal/volume"
)

// dialer reaches the database of one namespace through the platform, as Sluice itself does.
type dialer struct {
	p         platform.Platform
	namespace string
}

func (d dialer) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	return d.p.Dial(ctx, manifest.Ref{Kind: "Service", Namespace: d.namespace, Name: "mongo"}, "27017")
}

func sorted(ids ...[]string) []string {
	all := slices.Concat(ids...)
	slices.Sort(all)
	return all
}

func (s *site) holds(want ...[]string) {
	s.t.Helper()
	if have, want := slices.Sorted(maps.Keys(s.contents())), sorted(want...); !slices.Equal(have, want) {
		s.t.Errorf("production holds %d orders, want %d", len(have), len(want))
	}
}

// TestUpgradePromoted takes an upgrade through staging, the rehearsal, the fence and the canary.
func TestUpgradePromoted(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", "") + "---" + strings.Replace(web, "%s", "1", 1))
	before := s.place("before", 500)
	s.deploy("d1", file(true), mongoAt("mongo:2", "nothing")+"---"+strings.Replace(web, "%s", "2", 1),
		mongoAt("mongo:2", "nothing")+"---"+strings.Replace(web, "%s", "2", 1))
	d := s.until("d1", "asking for approval", waits("production/deploy/canary/1-approval"))
	if m := d.Status.Nodes["staging/after/1/2-rehearse"].Message; !strings.Contains(m, "R1-engine open, R1-app open") {
		t.Errorf("the rehearsal says: %s", m)
	}
	during := s.place("during", 20)
	if _, err := s.engine.Signal(t.Context(), "d1", delivery.Signal{Kind: delivery.Approve, Key: "approve/production/deploy/canary/1-approval", Path: "production/deploy/canary/1-approval"}); err != nil {
		t.Fatal(err)
	}
	d = s.until("d1", "done", done)
	if d.Status.State != delivery.Succeeded {
		t.Fatalf("%s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
	}
	s.holds(before, during)
	if got := s.running(); got != "mongo:2" {
		t.Errorf("production runs %s", got)
	}
	s.isolated.left(t, "staging", "staging-base", "staging-control", "staging-mark", "staging-rehearsal", "prod-upgrade", "prod-before")
}

// TestWayBackKeepsWrites rolls back after the opening: the old engine runs on the volumes that hold what was written since.
func TestWayBackKeepsWrites(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", "") + "---" + strings.Replace(web, "%s", "1", 1))
	before := s.place("before", 500)
	next := mongoAt("mongo:2", "") + "---" + strings.Replace(web, "%s", "2", 1)
	s.deploy("d1", file(true), next, next)
	s.until("d1", "asking for approval", waits("production/deploy/canary/1-approval"))
	during := s.place("during", 20)
	if _, err := s.engine.Signal(t.Context(), "d1", delivery.Signal{Kind: delivery.Rollback, Key: "rollback/production", Path: "production"}); err != nil {
		t.Fatal(err)
	}
	d := s.until("d1", "done", done)
	if d.Status.State != delivery.Failed || d.Status.Targets["production"].State != delivery.RolledBack {
		t.Fatalf("%s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
	}
	s.holds(before, during)
	if got := s.running(); got != "mongo:1" {
		t.Errorf("production runs %s", got)
	}
}

// TestDamageBehindTheFence plants damage that staging could not see: it is found before the opening, and R0 loses nothing.
func TestDamageBehindTheFence(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", ""))
	before := s.place("before", 500)
	if _, err := s.orders("prod").InsertOne(context.Background(), bson.D{{Key: "_id", Value: "late"}, {Key: "total", Value: int32(7)}}); err != nil {
		t.Fatal(err)
	}
	was := s.contents()
	s.deploy("d1", file(false), "", mongoAt("mongo:2", "damage-late"))
	d := s.until("d1", "done", done)
	if d.Status.State != delivery.Failed || d.Status.Nodes["production/deploy/orders/verify"].Verdict != delivery.Fail {
		t.Fatalf("%s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
	}
	if d.Status.Nodes["production/deploy/orders/open"].Order != 0 {
		t.Error("the fence was opened")
	}
	s.holds(before, []string{"late"})
	if !maps.Equal(was, s.contents()) {
		t.Error("production's orders are not what they were before the fence")
	}
	if got := s.running(); got != "mongo:1" {
		t.Errorf("production runs %s", got)
	}
}

// TestDamageInStaging holds that the gate stops a migration that changes one order, and names it; production is not touched.
func TestDamageInStaging(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", ""))
	s.place("before", 500)
	if _, err := s.orders("prod").InsertOne(context.Background(), bson.D{{Key: "_id", Value: "late"}, {Key: "total", Value: int32(7)}}); err != nil {
		t.Fatal(err)
	}
	was := s.contents()
	s.deploy("d1", file(true), mongoAt("mongo:2", "damage-late"), mongoAt("mongo:2", ""))
	d := s.until("d1", "done", done)
	n := d.Status.Nodes["staging/after/1/1-verifyData"]
	if n.Verdict != delivery.Fail || !strings.Contains(n.Message, "1 rows of shop.orders differ") || strings.Contains(n.Message, "late") {
		t.Errorf("the gate says %s: %s", n.Verdict, n.Message)
	}
	report, err := os.ReadFile(n.Message[strings.LastIndexByte(n.Message, ' ')+1:])
	if err != nil || !strings.Contains(string(report), "late") || !strings.Contains(string(report), "total") {
		t.Errorf("the report is %v\n%s", err, report)
	}
	if d.Status.Targets["production"].State != delivery.Cancelled || !maps.Equal(was, s.contents()) || s.running() != "mongo:1" {
		t.Errorf("production is %s\n%s", d.Status.Targets["production"].State, steps(d))
	}
}

// TestRehearsalClosesWays holds that a version which the old one cannot follow closes the way back, and with require the gate.
func TestRehearsalClosesWays(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", "") + "---" + strings.Replace(web, "%s", "1", 1))
	s.place("before", 100)
	next := mongoAt("mongo:locking", "") + "---" + strings.Replace(web, "%s", "2", 1)
	f := file(true)
	f.Targets[0].AfterDeployment[0].Sequence[1].RehearseRollback.Require = true
	s.deploy("d1", f, next, next)
	d := s.until("d1", "done", done)
	n := d.Status.Nodes["staging/after/1/2-rehearse"]
	if n.Verdict != delivery.Fail || !strings.Contains(n.Message, "R1-engine closed, R1-app open") || !strings.Contains(n.Message, "newer format") {
		t.Errorf("the rehearsal says %s: %s\n%s", n.Verdict, n.Message, steps(d))
	}
	if got := s.running(); got != "mongo:1" {
		t.Errorf("production runs %s", got)
	}
}

// TestRestoreAsks goes back where the old version cannot read what the new one wrote: Sluice fences, counts, exports, and
// restores only when a person has quoted the number and its digest.
func TestRestoreAsks(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", "") + "---" + strings.Replace(web, "%s", "1", 1))
	before := s.place("before", 500)
	s.deploy("d1", file(false), "", mongoAt("mongo:locking", "")+"---"+strings.Replace(web, "%s", "2", 1))
	s.until("d1", "asking for approval", waits("production/deploy/canary/1-approval"))
	during := s.place("during", 25)
	if _, err := s.orders("prod").DeleteOne(context.Background(), bson.D{{Key: "_id", Value: before[0]}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.engine.Signal(t.Context(), "d1", delivery.Signal{Kind: delivery.Rollback, Key: "rollback/production", Path: "production"}); err != nil {
		t.Fatal(err)
	}
	const open = "production/deploy/orders/open"
	asks := func(d delivery.NodeStatus) bool { return d.Phase == delivery.StepUndoing && len(d.Awaits) > 0 }
	d := s.until("d1", "asking for an acknowledgement", deliveryWhere(open, asks))
	message := d.Status.Nodes[open].Message
	if !strings.Contains(message, "26 differing rows") {
		t.Fatalf("it asks: %s", message)
	}
	var kept struct {
		AtRisk struct {
			Value          int
			Digest, Export string
		}
	}
	if err := json.Unmarshal(d.Status.Nodes[open].Saved, &kept); err != nil {
		t.Fatal(err)
	}
	entry := d.Status.Nodes[open].Entry
	acknowledge := func(key, digest string) {
		t.Helper()
		if _, err := s.engine.Signal(t.Context(), "d1", delivery.Signal{Kind: delivery.Acknowledge, Key: key, Path: open, By: "dba",
			Data: map[string]string{"value": strconv.Itoa(kept.AtRisk.Value), "digest": digest}}); err != nil {
			t.Fatal(err)
		}
	}
	acknowledge("acknowledge/1", "0000000000000000")
	d = s.until("d1", "asking again", deliveryWhere(open, func(n delivery.NodeStatus) bool { return n.Entry > entry && asks(n) }))
	if m := d.Status.Nodes[open].Message; !strings.Contains(m, "does not count") {
		t.Errorf("after an outdated acknowledgement it says: %s", m)
	}
	// Whoever goes on does not have what another machine has written: it is counted and exported again before it counts.
	if err := os.Remove(kept.AtRisk.Export); err != nil {
		t.Fatal(err)
	}
	acknowledge("acknowledge/2", kept.AtRisk.Digest)
	d = s.until("d1", "done", done)
	if d.Status.Targets["production"].State != delivery.RolledBack {
		t.Fatalf("%s: %s\n%s", d.Status.State, d.Status.Reason, steps(d))
	}
	s.holds(before)
	if got := s.running(); got != "mongo:1" {
		t.Errorf("production runs %s", got)
	}
	exported(t, kept.AtRisk.Export, during, before[:1])
	failed := 0
	for _, c := range s.copies("d1") {
		if i := c.Info(); time.Until(i.Protected) > 29*24*time.Hour {
			failed++
			for _, dir := range i.Dirs {
				if left, err := os.ReadDir(dir); err != nil || len(left) == 0 {
					t.Errorf("the failed state in %s is gone: %v", dir, err)
				}
			}
		}
	}
	if failed != 1 {
		t.Errorf("%d copies are kept for 30 days, want the failed state", failed)
	}
	if all, err := data.Keeps(d.Spec, d.Status); err != nil || len(all) != 0 {
		t.Errorf("after a restore these would be deleted by themselves: %v, %v", all, err)
	}
	s.isolated.left(t, "", "prod-upgrade", "prod-before", "prod-failed", "prod-restored")
}

// TestRestoreStays asks as above, and a person stays on the new version: where that does not start the question comes again,
// else the fence opens with everything that was written, and the delivery has failed and says so.
func TestRestoreStays(t *testing.T) {
	s := newSite(t)
	s.install(mongoAt("mongo:1", "") + "---" + strings.Replace(web, "%s", "1", 1))
	before := s.place("before", 200)
	f := file(false)
	f.DeploymentConfig.Timeout = 20 * time.Second
	s.deploy("d1", f, "", mongoAt("mongo:locking", "")+"---"+strings.Replace(web, "%s", "2", 1))
	s.until("d1", "asking for approval", waits("production/deploy/canary/1-approval"))
	during := s.place("during", 25)
	signal := func(sig delivery.Signal) {
		t.Helper()
		if _, err := s.engine.Signal(t.Context(), "d1", sig); err != nil {
			t.Fatal(err)
		}
	}
	signal(delivery.Signal{Kind: delivery.Rollback, Key: "rollback/production", Path: "production", By: "ann"})
	const open = "production/deploy/orders/open"
	asks := func(d delivery.NodeStatus) bool { return d.Phase == delivery.StepUndoing && len(d.Awaits) > 0 }
	d := s.until("d1", "asking", deliveryWhere(open, asks))
	if m := d.Status.Nodes[open].Message; !strings.Contains(m, "25 differing rows") || !strings.Contains(m, "or stay on mongo:locking") {
		t.Fatalf("it asks: %s", m)
	}
	if got := delivery.Candidates(d.Spec, d.Status, delivery.Stay); !slices.Equal(got, []string{open}) {
		t.Errorf("staying is offered for %v", got)
	}

	broken := filepath.Join(s.bound("data-mongo-0"), "broken")
	if err := os.WriteFile(broken, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	entry := d.Status.Nodes[open].Entry
	signal(delivery.Signal{Kind: delivery.Stay, Key: "stay/1", Path: open, By: "dba", Data: map[string]string{"reason": "25 orders are worth it"}})
	d = s.until("d1", "asking again", deliveryWhere(open, func(n delivery.NodeStatus) bool { return n.Entry > entry && asks(n) }))
	if m := d.Status.Nodes[open].Message; !strings.Contains(m, "orders cannot stay on mongo:locking, which does not start again") || !strings.Contains(m, "25 differing rows") {
		t.Errorf("where the new version does not start it says: %s", m)
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	signal(delivery.Signal{Kind: delivery.Stay, Key: "stay/2", Path: open, By: "dba", Data: map[string]string{"reason": "25 orders are worth it"}})
	d = s.until("d1", "done", done)
	if d.Status.State != delivery.Failed || d.Status.Targets["production"].State != delivery.Failed {
		t.Errorf("%s, production %s\n%s", d.Status.State, d.Status.Targets["production"].State, steps(d))
	}
	for _, want := range []string{"rolled back by ann", `orders stays on the new version mongo:locking, decided by dba ("25 orders are worth it")`, "25 differing rows",
		"what else the delivery changed in production is taken back"} {
		if !strings.Contains(d.Status.Reason, want) {
			t.Errorf("the reason does not say %q: %s", want, d.Status.Reason)
		}
	}
	s.holds(before, during)
	if got := s.running(); got != "mongo:locking" {
		t.Errorf("production's database runs %s", got)
	}
	s.place("after", 1) // the fence is open
	for _, c := range s.copies("d1") {
		if i := c.Info(); strings.HasSuffix(i.ID, "/restored") || strings.Contains(i.ID, "/failed") {
			t.Errorf("the copy %s is left behind", i.ID)
		}
	}
}

// bound returns the directory behind a claim of production.
func (s *site) bound(claim string) string {
	s.t.Helper()
	dir, err := s.platform.Bound(s.t.Context(), volume.Place{Account: "here", Namespace: "prod", Claim: claim})
	if err != nil {
		s.t.Fatal(err)
	}
	return dir
}

// copies returns the copies of a delivery.
func (s *site) copies(owner string) []volume.Copy {
	s.t.Helper()
	all, err := s.volumes.List(s.t.Context(), owner)
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// exported holds an export against what it must hold: upserts of the orders placed, deletes of the ones deleted.
func exported(t *testing.T, file string, placed, deleted []string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := map[string][]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var l struct {
			Op  string
			Row struct {
				ID string `json:"_id"`
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		got[l.Op] = append(got[l.Op], l.Row.ID)
	}
	if !slices.Equal(sorted(got["upsert"]), sorted(placed)) || !slices.Equal(sorted(got["delete"]), sorted(deleted)) {
		t.Errorf("exported %d upserts and %d deletes, want %d and %d", len(got["upsert"]), len(got["delete"]), len(placed), len(deleted))
	}
}
