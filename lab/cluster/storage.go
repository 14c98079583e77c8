package cluster

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/lab/kube"
)

// Names that tests and manifests use.
const (
	// Driver is the CSI driver's name, in every cluster.
	Driver = "cow.csi.sluice.dev"
	// StorageClass binds at once and is the default; LateStorageClass waits for the first consumer.
	StorageClass, LateStorageClass = "cow", "cow-late"
	// SnapshotClass deletes the physical snapshot with its content.
	SnapshotClass = "cow"

	poolName = "pool"
)

//go:embed manifests/storage.yaml
var storageManifests string

func (s Storage) withDefaults() Storage {
	s.FileSystem = cmp.Or(s.FileSystem, "xfs")
	s.Size = cmp.Or(s.Size, 16<<30)
	return s
}

// pool is where the cluster's volumes are.
func (c *Cluster) pool() string {
	if c.storage.Own {
		return c.path(poolName)
	}
	return filepath.Join(c.lab.Dir, poolName)
}

// startStorage mounts the pool, starts the driver and what turns claims and snapshots into calls of it.
func (c *Cluster) startStorage(ctx context.Context, client *kube.Client) error {
	if err := c.lab.makePool(ctx, c.pool(), c.storage); err != nil {
		return err
	}
	socket := c.path("kubelet", "plugins", "cow", "csi.sock")
	if err := c.program(ctx, "cowcsi", "--name="+Driver, "--pool="+c.pool(), "--node="+c.slot.node(), "--socket="+socket,
		"--plugins="+c.path("kubelet", "plugins_registry")); err != nil {
		return err
	}
	definitions, err := c.programs.Definitions()
	if err != nil {
		return err
	}
	for _, path := range definitions {
		if err := client.ApplyFile(ctx, "", path); err != nil {
			return err
		}
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "snapshot.storage.k8s.io_"), ".yaml") + ".snapshot.storage.k8s.io"
		definition := kube.Ref{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition", Name: name}
		if _, err := client.Wait(ctx, definition, kube.Condition("Established")); err != nil {
			return err
		}
	}
	manifests, err := fillTemplate(storageManifests, map[string]string{
		"Driver": Driver, "Class": StorageClass, "Late": LateStorageClass, "Snapshots": SnapshotClass,
	})
	if err != nil {
		return err
	}
	if err := client.Apply(ctx, "", manifests); err != nil {
		return err
	}
	err = c.until(ctx, "the CSI driver listens", []string{"cowcsi"}, func(context.Context) error { _, err := os.Stat(socket); return err })
	if err != nil {
		return err
	}
	// Their own limit is five requests a second, for which several copies at once would queue.
	usual := []string{"--kubeconfig=" + c.Kubeconfig(), "--leader-election=false", "--kube-api-qps=50", "--kube-api-burst=100"}
	for name, args := range map[string][]string{
		"csi-provisioner":     {"--csi-address=" + socket, "--default-fstype=ext4", "--feature-gates=Topology=false"},
		"csi-snapshotter":     {"--csi-address=" + socket},
		"snapshot-controller": nil,
	} {
		if err := c.program(ctx, name, append(args, usual...)...); err != nil {
			return err
		}
	}
	node := kube.Ref{APIVersion: "storage.k8s.io/v1", Kind: "CSINode", Name: c.slot.node()}
	if _, err := client.Wait(ctx, node, hasDriver); err != nil {
		return fmt.Errorf("the kubelet knows the CSI driver: %w%s", err, c.lastLog("cowcsi"))
	}
	return nil
}

func hasDriver(o *unstructured.Unstructured) (bool, error) {
	drivers, err := kube.List(o, "spec", "drivers")
	return slices.ContainsFunc(drivers, func(m map[string]any) bool { return m["name"] == Driver }), err
}

// makePool makes a pool's file system in a sparse file and mounts it, unless it is mounted.
func (l *Lab) makePool(ctx context.Context, dir string, s Storage) error {
	unlock, err := lockFile(ctx, filepath.Join(l.Dir, "."+poolName+".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.target == dir {
			if m.kind != s.FileSystem {
				return fmt.Errorf("the pool of this lab's clusters is %s: choose that, or --own-storage", m.kind)
			}
			return nil
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file := dir + ".img"
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(s.Size); err != nil {
		return err
	}
	options := "loop"
	switch s.FileSystem {
	case "btrfs":
		err = command(ctx, "mkfs.btrfs", "-q", file)
	case "xfs":
		err = command(ctx, "mkfs.xfs", "-q", "-m", "reflink=1", file)
		// The system's mount would refuse a second file system with the same identity.
		options = "loop,nouuid"
	default:
		return fmt.Errorf("storage on %q is not possible: use btrfs or xfs", s.FileSystem)
	}
	if err != nil {
		return err
	}
	return command(ctx, "mount", "-t", s.FileSystem, "-o", options, file, dir)
}

// releasePool takes the shared pool away when the last cluster that uses it is gone.
func (l *Lab) releasePool(ctx context.Context) error {
	if _, err := os.Stat(l.Dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	unlock, err := lockFile(ctx, filepath.Join(l.Dir, "."+poolName+".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	clusters, err := l.Clusters()
	if err != nil {
		return err
	}
	for _, c := range clusters {
		if !c.storage.Own {
			return nil
		}
	}
	dir := filepath.Join(l.Dir, poolName)
	if err := unmountBelow(dir); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(dir), os.RemoveAll(dir+".img"))
}

// unmountBelow takes all mounts at and below a directory away, the inner ones first.
func unmountBelow(dir string) error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	var failed []error
	for i := len(mounts) - 1; i >= 0; i-- {
		m := mounts[i]
		if m.target != dir && !strings.HasPrefix(m.target, dir+"/") {
			continue
		}
		// Detached ones disappear as soon as nothing uses them; nothing will for long, its processes are gone.
		if err := unix.Unmount(m.target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			failed = append(failed, fmt.Errorf("unmount %s: %w", m.target, err))
		}
	}
	return errors.Join(failed...)
}
