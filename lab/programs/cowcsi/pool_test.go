//go:build e2e

package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// sharing mounts a file system that shares blocks.
func sharing(t *testing.T, kind string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("file systems are mounted as root, which this is not")
		}
		t.Skip("NOT TESTED: file systems are mounted as root, which this is not")
	}
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "pool.img")
	for _, args := range map[string][][]string{
		"xfs":   {{"truncate", "-s", "1G", file}, {"mkfs.xfs", "-q", "-m", "reflink=1", file}, {"mount", "-o", "loop,nouuid", file, dir}},
		"btrfs": {{"truncate", "-s", "1G", file}, {"mkfs.btrfs", "-q", file}, {"mount", "-o", "loop", file, dir}},
	}[kind] {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// newDriver serves no socket; its methods are called as the sidecars and the kubelet call them.
func newDriver(t *testing.T, kind string) *driver {
	t.Helper()
	p, err := openPool(sharing(t, kind))
	if err != nil {
		t.Fatal(err)
	}
	return &driver{name: "test", node: "here", pool: p}
}

func (d *driver) make(t *testing.T, name string, size int64, from *csi.VolumeContentSource) *csi.Volume {
	t.Helper()
	answer, err := d.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, VolumeContentSource: from,
	})
	if err != nil {
		t.Fatal(err)
	}
	return answer.Volume
}

func fromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

// stage mounts a volume and returns where; it is unmounted after the test.
func (d *driver) stage(t *testing.T, id string) string {
	t.Helper()
	target := filepath.Join(t.TempDir(), "staged")
	request := &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: target}
	for range 2 { // the kubelet repeats calls whose answer it lost
		if _, err := d.NodeStageVolume(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for range 2 {
			if _, err := d.NodeUnstageVolume(context.Background(), &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: target}); err != nil {
				t.Error(err)
			}
		}
	})
	return target
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func wantContent(t *testing.T, path, want string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != want {
		t.Errorf("%s holds %q (%v), want %q", path, b, err, want)
	}
}

func TestASnapshotHoldsWhatWasWrittenBefore(t *testing.T) {
	for _, kind := range []string{"xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			d := newDriver(t, kind)
			d.make(t, "v", 64*mebibyte, nil)
			v := d.stage(t, "v")
			put(t, filepath.Join(v, "rows"), "before")
			request := &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: "v"}
			begun := time.Now()
			first, err := d.CreateSnapshot(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("cut in %v", time.Since(begun))
			put(t, filepath.Join(v, "rows"), "after")
			again, err := d.CreateSnapshot(t.Context(), request)
			if err != nil || !again.Snapshot.CreationTime.AsTime().Equal(first.Snapshot.CreationTime.AsTime()) {
				t.Errorf("the repeated call cut again: %v, %v (%v)", first, again, err)
			}

			d.make(t, "copy", 128*mebibyte, fromSnapshot("s"))
			copied := d.stage(t, "copy")
			wantContent(t, filepath.Join(copied, "rows"), "before")
			wantContent(t, filepath.Join(v, "rows"), "after")
			var s unix.Statfs_t
			if err := unix.Statfs(copied, &s); err != nil {
				t.Fatal(err)
			}
			if size := int64(s.Blocks) * s.Bsize; size < 100*mebibyte {
				t.Errorf("the larger copy's file system has %d bytes", size)
			}

			// A snapshot outlives its volume, and a copy its snapshot.
			if _, err := d.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: "s"}); err != nil {
				t.Fatal(err)
			}
			wantContent(t, filepath.Join(copied, "rows"), "before")
			listed, err := d.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{SnapshotId: "s"})
			if err != nil || len(listed.Entries) != 0 {
				t.Errorf("the deleted snapshot is listed: %v (%v)", listed, err)
			}
		})
	}
}

func TestAFullVolumeSaysSo(t *testing.T) {
	d := newDriver(t, "xfs")
	d.make(t, "v", 16*mebibyte, nil)
	err := os.WriteFile(filepath.Join(d.stage(t, "v"), "big"), make([]byte, 20*mebibyte), 0o644)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("20 MiB in a volume of 16: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	d := newDriver(t, "xfs")
	d.make(t, "v", 16*mebibyte, nil)
	d.make(t, "other", 16*mebibyte, nil)
	if _, err := d.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: "v"}); err != nil {
		t.Fatal(err)
	}
	create := func(r *csi.CreateVolumeRequest) error { _, err := d.CreateVolume(t.Context(), r); return err }
	size := func(bytes int64) *csi.CapacityRange { return &csi.CapacityRange{RequiredBytes: bytes} }
	block := []*csi.VolumeCapability{{AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}}}
	_, otherSource := d.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: "other"})
	_, noSource := d.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s2", SourceVolumeId: "never"})
	_, noVolume := d.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: "never", StagingTargetPath: t.TempDir()})
	for name, c := range map[string]struct {
		err  error
		want codes.Code
	}{
		"the same call again":                {create(&csi.CreateVolumeRequest{Name: "v", CapacityRange: size(16 * mebibyte)}), codes.OK},
		"the same name with another size":    {create(&csi.CreateVolumeRequest{Name: "v", CapacityRange: size(32 * mebibyte)}), codes.AlreadyExists},
		"a copy smaller than its snapshot":   {create(&csi.CreateVolumeRequest{Name: "c", CapacityRange: size(8 * mebibyte), VolumeContentSource: fromSnapshot("s")}), codes.OutOfRange},
		"a copy of a snapshot that is not":   {create(&csi.CreateVolumeRequest{Name: "c", CapacityRange: size(16 * mebibyte), VolumeContentSource: fromSnapshot("never")}), codes.NotFound},
		"a raw block volume":                 {create(&csi.CreateVolumeRequest{Name: "c", VolumeCapabilities: block}), codes.InvalidArgument},
		"a snapshot's name with another one": {otherSource, codes.AlreadyExists},
		"a snapshot of a volume that is not": {noSource, codes.NotFound},
		"a mount of a volume that is not":    {noVolume, codes.NotFound},
	} {
		if got := status.Code(c.err); got != c.want {
			t.Errorf("%s: %v, want %v", name, c.err, c.want)
		}
	}
	files, err := filepath.Glob(filepath.Join(d.pool.dir, "*", "*.new"))
	if err != nil || len(files) > 0 {
		t.Errorf("refused calls left %v (%v)", files, err)
	}
}

func TestAFileSystemThatCopiesIsRefused(t *testing.T) {
	dir := t.TempDir()
	if os.Geteuid() == 0 {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, 0) })
	}
	if _, err := openPool(dir); err == nil {
		t.Error("a pool that cannot share blocks was opened")
	}
}
