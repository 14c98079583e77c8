package reflink

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/volume"
	"github.com/sluice-cd/sluice/internal/volume/volumetest"
)

func env(dir string, subvolume bool) func(t *testing.T) volumetest.Env {
	return func(t *testing.T) volumetest.Env {
		root := dir
		if root == "" {
			root = t.TempDir()
		} else {
			sub, err := os.MkdirTemp(dir, "test")
			if err != nil {
				t.Fatal(err)
			}
			root = sub
		}
		b := &volumetest.Binder{Dir: root}
		return volumetest.Env{Driver: New(b, "a"), Binder: b, Volume: func(t *testing.T, name string) string {
			path := filepath.Join(root, name)
			if subvolume {
				run(t, "btrfs", "subvolume", "create", path)
				return path
			}
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			return path
		}}
	}
}

func TestHere(t *testing.T) { volumetest.Run(t, env("", false)) }

// TestFileSystems runs the suite on each file system, on loop devices. It needs root.
func TestFileSystems(t *testing.T) {
	if os.Getenv("SLUICE_LONG") == "" || os.Geteuid() != 0 {
		t.Skip("loop devices need root, and SLUICE_LONG=1")
	}
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		dir := mount(t, fs)
		t.Run(fs, func(t *testing.T) { volumetest.Run(t, env(dir, false)) })
		if fs == "btrfs" {
			t.Run("btrfs subvolume", func(t *testing.T) { volumetest.Run(t, env(dir, true)) })
		}
		t.Run(fs+" full", func(t *testing.T) { full(t, dir) })
	}
}

// full copies more than there is room for: nothing is left behind, and the source is whole.
func full(t *testing.T, dir string) {
	e := env(dir, false)(t)
	src := e.Volume(t, "big")
	m, _, err := method(src, dir)
	if err != nil {
		t.Fatal(err)
	}
	if m != volume.Plain {
		return // blocks are shared: a copy needs no room
	}
	if err := os.WriteFile(filepath.Join(src, "file"), make([]byte, 250<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = e.Driver.Cut(t.Context(), "cut", "d1", []volume.Source{{Claim: "big", Dir: src}})
	if err == nil || !strings.Contains(err.Error(), "free") {
		t.Errorf("the message says not what to do: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(filepath.Dir(src), ".copies")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if i, err := os.Stat(filepath.Join(src, "file")); err != nil || i.Size() != 250<<20 {
		t.Errorf("the source: %v, %v", i, err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

func mount(t *testing.T, fs string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), fs+".img")
	dir := t.TempDir()
	run(t, "truncate", "-s", "400M", image)
	run(t, "mkfs."+fs, "-q", image)
	run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { run(t, "umount", dir) })
	return dir
}
