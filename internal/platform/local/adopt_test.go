package local

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/manifest"
)

// TestPodsAdopted kills the node of several pods: each goes on under the address that it has, and all of them serve.
func TestPodsAdopted(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", fmt.Sprintf(web, 4, "one"))
	p.until(t, ref("Deployment", "web"), "ready", isReady)
	before := p.pods(t)
	p.killNode(t)
	p.until(t, ref("Deployment", "web"), "ready", isReady)
	if after := p.pods(t); len(before) != 4 || !maps.Equal(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
	served := map[string]bool{}
	for range 40 {
		served[p.answer(t)] = true
	}
	if len(served) != 4 {
		t.Errorf("of four pods %v answer", served)
	}
}

func (p *Platform) answer(t *testing.T) string {
	t.Helper()
	at, err := p.Address(t.Context(), ref("Service", "web"), "80")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + at)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", resp.Status, body, err)
	}
	return string(body)
}

// TestFamilyAdopted: a process whose children lead sessions of their own, as a database's do, stays whole.
func TestFamilyAdopted(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", script("StatefulSet", "db", "setsid sleep 1000 & setsid sleep 1001 & wait", ""))
	db := ref("StatefulSet", "db")
	p.until(t, db, "ready", isReady)
	family := func() []int {
		all, err := marked(p.c.Dir)
		if err != nil {
			t.Fatal(err)
		}
		var pids []int
		for _, f := range all {
			pids = append(pids, f.pid)
		}
		slices.Sort(pids)
		return pids
	}
	before := family()
	if len(before) != 3 {
		t.Fatalf("the family is %v", before) // it has run for a moment by now: that is what ready means without a probe
	}
	p.killNode(t)
	p.until(t, db, "ready", isReady)
	if after := family(); !slices.Equal(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
	// The children are in groups of their own; they go with the pod all the same.
	if err := p.Delete(t.Context(), "x", "d", []manifest.Ref{db}); err != nil {
		t.Fatal(err)
	}
	p.until(t, db, "gone", isGone)
	over := time.Now().Add(within)
	for left := family(); len(left) > 0; left = family() {
		// They were killed, and are gone once the kernel has taken them apart.
		if time.Now().After(over) {
			t.Fatalf("left behind: %v", left)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestUnregisteredAdopted: the node dies after it has started a process and before it has kept which one it is.
func TestUnregisteredAdopted(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", fmt.Sprintf(web, 1, "one"))
	p.until(t, ref("Deployment", "web"), "ready", isReady)
	before := p.pods(t)
	p.killNode(t)
	if err := os.RemoveAll(filepath.Join(p.c.Dir, "processes")); err != nil {
		t.Fatal(err)
	}
	p.until(t, ref("Deployment", "web"), "ready", isReady)
	all, err := marked(p.c.Dir)
	if err != nil || len(all) != 1 || all[0].pid != slices.Collect(maps.Values(before))[0] {
		t.Errorf("before %v, after %v, %v", before, all, err)
	}
}

// TestNumberReused: the number of a pod's process has come to mean another program while no node ran.
func TestNumberReused(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", script("Deployment", "app", "exec sleep 1000", ""))
	app := ref("Deployment", "app")
	p.until(t, app, "ready", isReady)
	p.killNode(t)
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	files, err := filepath.Glob(filepath.Join(p.c.Dir, "processes", "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	body, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	pid := slices.Collect(maps.Values(p.pods(t)))[0]
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	forged := strings.Replace(string(body), fmt.Sprintf(`"pid":%d`, pid), fmt.Sprintf(`"pid":%d`, other.Process.Pid), 1)
	if err := os.WriteFile(files[0], []byte(forged), 0o600); err != nil {
		t.Fatal(err)
	}
	p.until(t, app, "ready", isReady)
	for name, got := range p.pods(t) {
		if got == pid || got == other.Process.Pid {
			t.Errorf("pod %s is process %d", name, got)
		}
	}
	if err := p.Delete(t.Context(), "x", "d", []manifest.Ref{app}); err != nil {
		t.Fatal(err)
	}
	p.until(t, app, "gone", isGone)
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a program that is not ours was ended: %v", err)
	}
}
