//go:build e2e

package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
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
	in := inLab{t: t, program: program, dir: dir, lab: l}
	for _, point := range []struct {
		name string
		// reached says that the start has come so far.
		reached func() bool
	}{
		{"as soon as the slot is taken", func() bool { found, err := l.Clusters(); return err == nil && len(found) > 0 }},
		{"while the runtime starts", in.exists("killed/pid/containerd")},
		{"when the API server was started", in.exists("killed/pid/kube-apiserver")},
		{"when the kubelet was started", in.exists("killed/pid/kubelet")},
		{"when the pool is mounted", in.exists("pool/volumes")},
		{"when it runs", in.running},
	} {
		t.Run(point.name, func(t *testing.T) {
			in := inLab{t: t, program: program, dir: dir, lab: l}
			in.killAt(point.reached, "up", "--images=", "killed")
			if left, err := l.Leftovers(); err != nil || len(left) == 0 {
				t.Errorf("the killed start left nothing (%v): this proves nothing", err)
			}
			in.down()
		})
	}
	t.Run("while it is taken down", func(t *testing.T) {
		in := inLab{t: t, program: program, dir: dir, lab: l}
		in.killAt(in.running, "up", "--images=", "killed")
		c, err := l.Cluster("killed")
		if err != nil {
			t.Fatal(err)
		}
		in.killAt(func() bool { return c.Healthy(t.Context()) != nil }, "down")
		in.down()
	})
}

// inLab runs the program in a lab of its own.
type inLab struct {
	t            *testing.T
	program, dir string
	lab          *cluster.Lab
}

func (l inLab) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, l.program, args...)
	c.Env = append(os.Environ(), "LAB_DIR="+l.dir)
	return c
}

// killAt starts a command of the program and kills it when a point is reached. It may have ended by itself by then.
func (l inLab) killAt(reached func() bool, args ...string) {
	l.t.Helper()
	command := l.command(l.t.Context(), args...)
	// A file, and no pipe: what the command started keeps its output open.
	log, err := os.Create(filepath.Join(l.t.TempDir(), "log"))
	if err != nil {
		l.t.Fatal(err)
	}
	defer log.Close()
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		l.t.Fatal(err)
	}
	labtest.Eventually(l.t, func(context.Context) error {
		if reached() {
			return nil
		}
		return errors.New("the point is not reached")
	})
	command.Process.Kill()
	command.Wait()
}

// down takes everything down by a fresh process, and looks what is left.
func (l inLab) down() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Minute)
	defer cancel()
	if out, err := l.command(ctx, "down").CombinedOutput(); err != nil {
		l.t.Fatalf("lab down: %v\n%s", err, out)
	}
	if err := l.lab.NothingLeft(); err != nil {
		l.t.Error(err)
	}
}

func (l inLab) exists(path string) func() bool {
	return func() bool { _, err := os.Stat(filepath.Join(l.dir, path)); return err == nil }
}

func (l inLab) running() bool {
	found, err := l.lab.Clusters()
	return err == nil && len(found) > 0 && found[0].Ready
}
