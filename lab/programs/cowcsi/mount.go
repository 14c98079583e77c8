package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mounted returns where a volume's file is mounted, "" where it is not. It asks the kernel and keeps nothing, so that a
// driver that was killed and started again knows it too.
func mounted(file string) (target string, err error) {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	devices := map[string]bool{}
	for _, b := range backing {
		// A device may be gone by now.
		if name, err := os.ReadFile(b); err == nil && strings.TrimSpace(string(name)) == file {
			devices["/dev/"+strings.Split(b, "/")[3]] = true
		}
	}
	if len(devices) == 0 {
		return "", nil
	}
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	defer mounts.Close()
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) > 1 && devices[f[0]] {
			return f[1], nil
		}
	}
	return "", lines.Err()
}

// flush brings to the volume's file what programs wrote to the mounted volume.
func flush(file string) error {
	target, err := mounted(file)
	if err != nil || target == "" {
		return err
	}
	dir, err := os.Open(target)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Syncfs(int(dir.Fd()))
}

// bind shows a directory at another place as well.
func bind(from, to string, readOnly bool) error {
	if err := os.MkdirAll(to, 0o750); err != nil {
		return err
	}
	var a, b unix.Stat_t
	if err := unix.Stat(from, &a); err != nil {
		return err
	}
	if err := unix.Stat(to, &b); err != nil {
		return err
	}
	if a.Dev == b.Dev && a.Ino == b.Ino {
		return nil
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", to, err)
	}
	if !readOnly {
		return nil
	}
	return unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// unmount takes a mount away, and its directory. Where there is none the work was done before.
func unmount(target string) error {
	if err := unix.Unmount(target, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
