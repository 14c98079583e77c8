package reflink

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
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
		e := volumetest.Env{Driver: New(b, "a"), Owner: "d1", Live: volume.Place{Account: "a", Namespace: "prod", Claim: "data"},
			Twins: [2]volume.Place{{Account: "a", Namespace: "staging", Claim: "data"}, {Account: "a", Namespace: "other", Claim: "data"}}}
		if err := b.Bind(t.Context(), e.Live, newVolume(t, root, subvolume)); err != nil {
			t.Fatal(err)
		}
		dirOf := func(t *testing.T, p volume.Place) string {
			dir, err := b.Bound(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			return dir
		}
		e.Write = func(t *testing.T, p volume.Place, name, text string) { put(t, dirOf(t, p), name, text) }
		e.Read = func(t *testing.T, p volume.Place, name string) (string, bool) {
			text, err := os.ReadFile(filepath.Join(dirOf(t, p), name))
			return string(text), err == nil
		}
		e.Volume = dirOf
		e.VolumeExists = func(_ *testing.T, _ volume.Place, dir string) bool { _, err := os.Stat(dir); return err == nil }
		e.Exists = func(t *testing.T, p volume.Place) bool { _, err := b.Bound(t.Context(), p); return err == nil }
		return e
	}
}

// newVolume makes an empty volume as the method under test needs it.
func newVolume(t *testing.T, root string, subvolume bool) string {
	t.Helper()
	path := filepath.Join(root, "source")
	if !subvolume {
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for range 2 {
		if err := MakeVolume(path); err != nil {
			t.Fatal(err)
		}
	}
	if m, _, err := method(path, root); err != nil || m != volume.Snapshot {
		t.Fatalf("a volume made here is copied by %s, %v", m, err)
	}
	return path
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

// tree reads a directory: path → mode and content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.Walk(dir, func(path string, i os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		v := i.Mode().String()
		if i.Mode()&os.ModeSymlink != 0 {
			to, _ := os.Readlink(path)
			v += " → " + to
		} else if i.Mode().IsRegular() {
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			v += " " + i.ModTime().UTC().Format(time.RFC3339Nano) + " " + string(body)
		}
		if rel != "." {
			out[rel] = v
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// faithful copies a directory with all kinds of files, and the source stays as it is.
func faithful(t *testing.T, root string, subvolume bool) {
	src := newVolume(t, root, subvolume)
	put(t, src, "a.txt", "one")
	put(t, src, "deep/b.txt", "two")
	if err := os.Symlink("a.txt", filepath.Join(src, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(src, "a.txt"), filepath.Join(src, "hard")); err != nil {
		t.Fatal(err)
	}
	before := tree(t, src)
	c, err := New(&volumetest.Binder{Dir: root}, "a").Cut(t.Context(), "d/x/cut", "d", []volume.Source{{Account: "a", Namespace: "n", Claim: "c", Dir: src}})
	if err != nil {
		t.Fatal(err)
	}
	if got := tree(t, c.Info().Dirs[0]); len(before) != 5 || !maps.Equal(got, before) {
		t.Errorf("copied %v, want %v", got, before)
	}
	if got := tree(t, src); !maps.Equal(got, before) {
		t.Error("the source has changed")
	}
	var st [2]syscall.Stat_t
	for n, name := range []string{"a.txt", "hard"} {
		if err := syscall.Stat(filepath.Join(c.Info().Dirs[0], name), &st[n]); err != nil {
			t.Fatal(err)
		}
	}
	if st[0].Ino != st[1].Ino {
		t.Error("what was one file under two names is two")
	}
}

func TestHere(t *testing.T) { volumetest.Run(t, env("", false)) }

func TestFaithful(t *testing.T) { faithful(t, t.TempDir(), false) }

// TestFileSystems runs the suite on each file system, on loop devices. It needs root.
func TestFileSystems(t *testing.T) {
	if os.Getenv("SLUICE_LONG") == "" || os.Geteuid() != 0 {
		t.Skip("loop devices need root, and SLUICE_LONG=1")
	}
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		dir := mount(t, fs)
		for _, subvolume := range []bool{false, true} {
			if subvolume && fs != "btrfs" {
				continue
			}
			t.Run(fmt.Sprintf("%s, subvolume: %t", fs, subvolume), func(t *testing.T) {
				volumetest.Run(t, env(dir, subvolume))
				root, err := os.MkdirTemp(dir, "faithful")
				if err != nil {
					t.Fatal(err)
				}
				faithful(t, root, subvolume)
			})
		}
		t.Run(fs+" full", func(t *testing.T) { fullDisk(t, dir) })
	}
}

// fullDisk copies more than there is room for: nothing is left behind, and the source is whole.
func fullDisk(t *testing.T, dir string) {
	root, err := os.MkdirTemp(dir, "full")
	if err != nil {
		t.Fatal(err)
	}
	src := newVolume(t, root, false)
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
	_, err = New(&volumetest.Binder{Dir: root}, "a").Cut(t.Context(), "cut", "d1", []volume.Source{{Claim: "big", Dir: src}})
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

// tmpfs mounts a small file system; options bound it.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system that is small enough to fill")
	}
	dir := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "-o", options, "tmpfs", dir)
	t.Cleanup(func() { run(t, "umount", dir) })
	return dir
}

// TestDiskFull copies what does not fit, as it turns out before the first byte, and as it turns out in the middle: the
// message says what to do, nothing is left behind, the sources are whole, and with room the same call works.
func TestDiskFull(t *testing.T) {
	for name, c := range map[string]struct {
		options string
		files   int
		bytes   int
		says    []string
	}{
		"too large":      {"size=40m", 2, 15 << 20, []string{"needs 31 MiB", "MiB free", "free "}},
		"no inodes left": {"size=64m,nr_inodes=60", 100, 10, []string{"the disk ran full", "free space or inodes", "what was copied is removed"}},
	} {
		t.Run(name, func(t *testing.T) {
			small := tmpfs(t, c.options)
			src := t.TempDir()
			for i := range c.files {
				if err := os.WriteFile(filepath.Join(src, strconv.Itoa(i)), bytes.Repeat([]byte{1}, c.bytes), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			d := New(&volumetest.Binder{Dir: small}, "a")
			cut := func() (volume.Copy, error) {
				return d.Cut(t.Context(), "d/step/1", "d", []volume.Source{{Account: "a", Namespace: "n", Claim: "c", Dir: src}})
			}
			_, err := cut()
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("%v", err)
			}
			for _, s := range append(c.says, small) {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q is not said by: %v", s, err)
				}
			}
			if left, err := os.ReadDir(filepath.Join(small, ".copies")); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			if listed, err := d.List(t.Context(), ""); err != nil || len(listed) != 0 {
				t.Errorf("listed: %v, %v", listed, err)
			}
			if whole, err := os.ReadDir(src); err != nil || len(whole) != c.files {
				t.Errorf("the source has %d files, %v", len(whole), err)
			}
			run(t, "mount", "-o", "remount,size=200m,nr_inodes=1000", small)
			made, err := cut()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadDir(made.Info().Dirs[0]); err != nil || len(got) != c.files {
				t.Errorf("with room %d files were copied, %v", len(got), err)
			}
		})
	}
}

// TestHoles: what a file does not hold takes no room, neither in the calculation nor in the copy.
func TestHoles(t *testing.T) {
	root := t.TempDir()
	src := filepath.Join(root, "src")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(src, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("end"), 8<<40); err != nil {
		t.Skipf("the file system has no files of 8 TiB: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	d := New(&volumetest.Binder{Dir: root}, "a")
	s := []volume.Source{{Account: "a", Namespace: "n", Claim: "c", Dir: src}}
	a, err := d.Probe(t.Context(), s)
	if err != nil || a.Bytes > 1<<20 {
		t.Fatalf("%+v, %v", a, err)
	}
	c, err := d.Cut(t.Context(), "d/step/1", "d", s)
	if err != nil {
		t.Fatal(err)
	}
	i, err := os.Stat(filepath.Join(c.Info().Dirs[0], "sparse"))
	if err != nil || i.Size() != 8<<40+3 || i.Sys().(*syscall.Stat_t).Blocks > 1024 {
		t.Errorf("%+v, %v", i, err)
	}
	got := make([]byte, 3)
	out, err := os.Open(filepath.Join(c.Info().Dirs[0], "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := out.ReadAt(got, 8<<40); err != nil || string(got) != "end" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestHalvesAreSwept: what a maker that died has left is removed by the next copy, what another one is at is not.
func TestHalvesAreSwept(t *testing.T) {
	root := t.TempDir()
	src := filepath.Join(root, "src")
	for _, d := range []string{"src", ".copies/dead/0/deep", ".copies/busy/0"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, d, "file"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	done, err := occupy(filepath.Join(root, ".copies", "busy"))
	if err != nil {
		t.Fatal(err)
	}
	d := New(&volumetest.Binder{Dir: root}, "a")
	left := func(id string) []string {
		if _, err := d.Cut(t.Context(), id, "d", []volume.Source{{Account: "a", Namespace: "n", Claim: "c", Dir: src}}); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(filepath.Join(root, ".copies"))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	if got := left("one"); !slices.Equal(got, []string{"busy", "one"}) {
		t.Errorf("left %v", got)
	}
	done()
	if got := left("two"); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("left %v", got)
	}
}
