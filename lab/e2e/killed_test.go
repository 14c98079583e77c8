//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/lab/cluster"
	"github.com/sluice-cd/sluice/lab/labtest"
)

// TestKilledStartsLeaveNothing kills the program that starts a cluster at several points, without a chance to clean up,
// and takes down what it left with another one.
func TestKilledStartsLeaveNothing(t *testing.T) {
	if clusters.Lab == nil {
		t.Skip("existing clusters are used: nothing is started here")
	}
	program := filepath.Join(t.TempDir(), "lab")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", program, "../cmd/lab").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir := cluster.DefaultDir() + "-kill"
	l, err := labtest.Open(dir, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range []struct {
		name string
		// reached says that the start has come so far.
		reached func() bool
	}{
		{"as soon as the slot is taken", func() bool { found, err := l.Clusters(); return err == nil && len(found) > 0 }},
		{"while the runtime starts", exists(dir, "killed/pid/containerd")},
		{"when the API server was started", exists(dir, "killed/pid/kube-apiserver")},
		{"when the kubelet was started", exists(dir, "killed/pid/kubelet")},
		{"when the pool is mounted", exists(dir, "pool/volumes")},
		{"when it runs", func() bool { found, err := l.Clusters(); return err == nil && len(found) > 0 && found[0].Ready }},
	} {
		t.Run(point.name, func(t *testing.T) {
			up := exec.Command(program, "up", "--images=", "killed")
			up.Env = append(os.Environ(), "LAB_DIR="+dir)
			log, err := os.Create(filepath.Join(t.TempDir(), "log"))
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			up.Stdout, up.Stderr = log, log
			if err := up.Start(); err != nil {
				t.Fatal(err)
			}
			labtest.Eventually(t, func(context.Context) error {
				if point.reached() {
					return nil
				}
				return context.DeadlineExceeded
			})
			// It may have ended by itself at the last point.
			up.Process.Kill()
			up.Wait()
			if left, err := l.Leftovers(); err != nil || len(left) == 0 {
				t.Errorf("the killed start left nothing (%v): this proves nothing", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			down := exec.CommandContext(ctx, program, "down")
			down.Env = up.Env
			if out, err := down.CombinedOutput(); err != nil {
				t.Fatalf("lab down: %v\n%s", err, out)
			}
			if left, err := l.Leftovers(); err != nil || len(left) > 0 {
				t.Errorf("left behind (%v):\n  %s", err, strings.Join(left, "\n  "))
			}
		})
	}
}

func exists(dir, path string) func() bool {
	return func() bool { _, err := os.Stat(filepath.Join(dir, path)); return err == nil }
}
