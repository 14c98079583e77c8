package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// machine is what `server status -o json` tells of processes.
type machine struct {
	Server   struct{ PID int }
	Accounts []struct{ Node int }
}

func (s *site) machine() machine {
	s.t.Helper()
	var m machine
	if err := json.Unmarshal([]byte(s.must("server", "status", "-o", "json").out), &m); err != nil {
		s.t.Fatal(err)
	}
	if m.Server.PID == 0 || len(m.Accounts) == 0 || m.Accounts[0].Node == 0 {
		s.t.Fatalf("server status tells %+v", m)
	}
	return m
}

func (s *site) kill(pid int) {
	s.t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
}

// superuser is a connection that works.
const superuser = "postgres://sluice@postgres:5432/postgres"

// TestServerKilledDuringCopy: the next command starts a server that goes on, and nothing of the broken copy is left.
func TestServerKilledDuringCopy(t *testing.T) {
	long(t)
	p := newProduction(t, "")
	id := p.start(p.copying("killed", superuser, "postgres:new"))
	const copies = "staging/before/1-copyData"
	p.until(id, "copying", func(d delivery) bool { return d.step(copies).Phase == "running" })
	p.kill(p.machine().Server.PID)
	d := p.ended(id, "SUCCEEDED")
	if m := d.step("staging/after/1-verifyData").Message; !strings.Contains(m, "equal") {
		t.Errorf("the comparison says %q", m)
	}
	p.unchanged()
}

// TestNodeKilled: what runs is taken over by the successor of a node, and a delivery goes on.
func TestNodeKilled(t *testing.T) {
	long(t)
	p := newProduction(t, "")
	id := p.start(p.write("gated.yaml", `
application: gated
targets: {one: {account: local, namespace: gated, constraints: {beforeDeployment: [{pause: {untilApproved: true}}]}}}
manifests:
  - inline: |`+strings.Replace(webManifests, "IMAGE", "web:1", 1)))
	p.until(id, "waiting", waiting("one/before/1-approval"))
	before := p.machine()
	p.kill(before.Accounts[0].Node)
	p.must("deploy", "approve", id)
	p.ended(id, "SUCCEEDED")
	if after := p.machine(); after.Accounts[0].Node == before.Accounts[0].Node || after.Server.PID != before.Server.PID {
		t.Errorf("the processes are %+v, were %+v", after, before)
	}
	p.unchanged()
}

// TestUpgradeWithoutCommand: a version that cannot be started is found behind the fence, and the old one is back with all
// that it had.
func TestUpgradeWithoutCommand(t *testing.T) {
	long(t)
	p := newProduction(t, "")
	d := p.ended(p.start(p.write("upgrade.yaml", fmt.Sprintf(`
application: upgrade
targets: {prod: {account: local, namespace: prod}}
manifests:
  - inline: |%s
data: {databases: [{name: orders, engine: postgres, target: prod, workload: statefulset/postgres, connection: "%s"}]}
`, postgresManifests(t, "postgres:17"), superuser))), "FAILED")
	says(t, d.Reason, `image "postgres:17" is not mapped to one (add command:`, "is taken back")
	now := p.state()
	if now["started"] == p.before["started"] {
		t.Error("the fence did not stop the database")
	}
	p.before["started"] = now["started"]
	p.unchanged()
}

// TestDiskFull: there is room for the copy of production, and none for the twins that are made of it.
func TestDiskFull(t *testing.T) {
	long(t)
	if os.Geteuid() != 0 {
		t.Skip("a small file system can only be mounted by root")
	}
	dir, err := os.MkdirTemp("", "small")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=220m,mode=755"); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	p := newProduction(t, filepath.Join(dir, "account"))
	d := p.stops(p.start(p.copying("full", superuser, "postgres:new")))
	says(t, d.String(), "a copy of", "MiB free (free ", "or use a file system that shares blocks (btrfs, xfs)")
	p.eventually("what was copied is gone", func() error {
		left, err := os.ReadDir(filepath.Join(dir, "account/volumes/.copies"))
		if len(left) > 0 {
			return fmt.Errorf("left are %v", left)
		}
		return err
	})
	if r := p.must("data", "list", "-o", "json"); strings.TrimSpace(r.out) != "[]" {
		t.Errorf("copies are listed: %s", r.out)
	}
	p.unchanged()
}

// TestProviderSilent: a metric provider that does not answer is no pass; after five tries a person is asked.
func TestProviderSilent(t *testing.T) {
	long(t)
	p := newProduction(t, "")
	p.configure("metricProviders:\n  silent: {kind: prometheus, url: \"http://127.0.0.1:1\"}\n", "")
	d := p.stops(p.start(p.judged("silent", analysed, "silent", "web:1")))
	says(t, d.String(), "Prometheus cannot be asked", "connection refused (check that it runs, and its url: under metricProviders: in sluice.yaml)")
	p.unchanged()
}
