package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// cgroups are the mount points of all hierarchies of control groups.
func cgroups() ([]string, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, m := range mounts {
		if m.kind == "cgroup" || m.kind == "cgroup2" {
			found = append(found, m.target)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no control groups are mounted")
	}
	return found, nil
}

// makeCgroup makes the control group below which all pods of the cluster will be, in every hierarchy: the kubelet wants
// it to exist.
func (c *Cluster) makeCgroup() error {
	hierarchies, err := cgroups()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		dir := h + c.slot.cgroup()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		// In the first version a group without processors and memory nodes takes no process.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(h, f))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, f), value, 0o644); err != nil {
				return err
			}
		}
		// In the second version every level must hand its controllers down.
		controllers, err := os.ReadFile(filepath.Join(h, "cgroup.controllers"))
		if err != nil {
			continue
		}
		for _, name := range strings.Fields(string(controllers)) {
			for _, level := range []string{h, dir} {
				if err := os.WriteFile(filepath.Join(level, "cgroup.subtree_control"), []byte("+"+name), 0o644); err != nil {
					return fmt.Errorf("hand %s down to control group %s: %w", name, dir, err)
				}
			}
		}
	}
	return nil
}

// podProcesses are all processes in the cluster's control groups.
func (c *Cluster) podProcesses() ([]process, error) {
	var all []process
	err := c.walkCgroups(func(dir string) error {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return ignoreMissing(err)
		}
		for _, field := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			if start, _, err := stat(pid); err == nil {
				all = append(all, process{PID: pid, Start: start})
			}
		}
		return nil
	})
	return all, err
}

// removeCgroup deletes the groups, the inner ones first. A group is busy until its last process is buried, of which
// nobody tells us.
func (c *Cluster) removeCgroup(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var dirs []string
		if err := c.walkCgroups(func(dir string) error { dirs = append(dirs, dir); return nil }); err != nil {
			return err
		}
		if len(dirs) == 0 {
			return nil
		}
		var busy error
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				busy = err
			}
		}
		if busy == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove control groups: %w", busy)
		case <-tick.C:
		}
	}
}

// walkCgroups visits the cluster's groups in all hierarchies, the outer ones first.
func (c *Cluster) walkCgroups(visit func(dir string) error) error {
	hierarchies, err := cgroups()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		err := filepath.WalkDir(h+c.slot.cgroup(), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return ignoreMissing(err)
			}
			if !d.IsDir() {
				return nil
			}
			return visit(path)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func ignoreMissing(err error) error {
	// A group that is deleted while it is read answers "no such device".
	if errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "no such device") {
		return nil
	}
	return err
}

// mount is a line of /proc/self/mounts.
type mount struct{ source, target, kind string }

func readMounts() ([]mount, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []mount
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // overlays name all their layers
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 {
			continue
		}
		all = append(all, mount{fields[0], strings.ReplaceAll(fields[1], `\040`, " "), fields[2]})
	}
	return all, lines.Err()
}
