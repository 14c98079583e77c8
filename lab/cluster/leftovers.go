package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Leftovers lists what exists on the machine of this lab's clusters, and what no cluster of any lab owns. It is empty
// after all were taken down.
func (l *Lab) Leftovers() ([]string, error) {
	var left []string
	for _, look := range []func() ([]string, error){l.leftFiles, l.leftMounts, l.leftProcesses, leftNames} {
		found, err := look()
		if err != nil {
			return nil, err
		}
		left = append(left, found...)
	}
	return left, nil
}

// NothingLeft fails where anything is left of this lab's clusters, and names it.
func (l *Lab) NothingLeft() error {
	left, err := l.Leftovers()
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	return err
}

func (l *Lab) leftFiles() ([]string, error) {
	entries, err := os.ReadDir(l.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var left []string
	for _, e := range entries {
		if e.IsDir() || filepath.Ext(e.Name()) != ".lock" {
			left = append(left, "file "+filepath.Join(l.Dir, e.Name()))
		}
	}
	return left, nil
}

func (l *Lab) leftMounts() ([]string, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	var left []string
	for _, m := range mounts {
		if l.owns(m.target) {
			left = append(left, "mount "+m.target)
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, f := range loops {
		// A device may be gone by now.
		if b, err := os.ReadFile(f); err == nil && l.owns(strings.TrimSpace(string(b))) {
			left = append(left, "loop device of "+strings.TrimSpace(string(b)))
		}
	}
	return left, nil
}

func (l *Lab) owns(path string) bool { return strings.HasPrefix(path, l.Dir+"/") }

func (l *Lab) leftProcesses() ([]string, error) {
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil, err
	}
	var left []string
	for _, f := range environments {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte("\x00"+markVariable+"="+l.Dir+"/")) {
			left = append(left, "process "+strings.Split(f, "/")[2])
		}
	}
	return left, nil
}

// leftNames are network namespaces, links and control groups of slots that nobody holds.
func leftNames() ([]string, error) {
	taken, err := readSlots()
	if err != nil {
		return nil, err
	}
	held := map[int]bool{}
	for _, s := range taken {
		held[s.Number] = true
	}
	hierarchies, err := cgroups()
	if err != nil {
		return nil, err
	}
	var left []string
	if len(taken) == 0 {
		if _, err := os.Stat(sysctlFile()); err == nil {
			left = append(left, "values of /proc/sys that were not restored: "+sysctlFile())
		}
	}
	for n := range slots {
		if held[n] {
			continue
		}
		s := slot{Number: n}
		paths := []string{"/run/netns/" + s.namespace(), "/sys/class/net/" + s.hostLink()}
		for _, h := range hierarchies {
			paths = append(paths, h+s.cgroup())
		}
		for _, path := range paths {
			if _, err := os.Lstat(path); err == nil {
				left = append(left, fmt.Sprintf("%s of slot %d", path, n))
			}
		}
	}
	return left, nil
}
