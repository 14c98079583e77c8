package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Check says what this machine lacks to run clusters, and what to do about it.
func Check() error {
	var lacks []string
	if os.Geteuid() != 0 {
		lacks = append(lacks, "this is not root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		lacks = append(lacks, "there are no loop devices (/dev/loop-control)")
	}
	// Each program with the Debian package that has it.
	programs := []struct{ name, pkg string }{
		{"containerd", "containerd"}, {"ctr", "containerd"}, {"runc", "runc"}, {"nft", "nftables"}, {"iptables", "iptables"},
		{"conntrack", "conntrack"}, {"ip", "iproute2"}, {"nsenter", "util-linux"}, {"mount", "mount"},
		{"mkfs.ext4", "e2fsprogs"}, {"resize2fs", "e2fsprogs"}, {"mkfs.xfs", "xfsprogs"}, {"mkfs.btrfs", "btrfs-progs"},
	}
	var packages []string
	for _, p := range programs {
		if _, err := exec.LookPath(p.name); err != nil && !strings.Contains(strings.Join(packages, " ")+" ", p.pkg+" ") {
			packages = append(packages, p.pkg)
		}
	}
	if _, err := os.Stat(filepath.Join(cniPlugins, "bridge")); err != nil {
		packages = append(packages, "containernetworking-plugins")
	}
	if len(packages) > 0 {
		lacks = append(lacks, "programs are missing: apt-get install --no-install-recommends "+strings.Join(packages, " "))
	}
	if _, err := cgroups(); err != nil {
		lacks = append(lacks, err.Error())
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("this machine cannot run the lab:\n  - %s\n"+
		"To use clusters that exist, give their kubeconfigs in LAB_KUBECONFIG (production) and LAB_KUBECONFIG_STAGING", strings.Join(lacks, "\n  - "))
}

// inotifyInstances limits how many programs watch files. A cluster has dozens, and the kernel's 128 are used up by three.
const (
	inotifyInstances     = "fs/inotify/max_user_instances"
	mostInotifyInstances = 1024
)

// sysctls are what kubelets and the lab set on the whole machine.
func sysctls() []string {
	return []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
		inotifyInstances}
}

// raiseLimits lets several clusters fit on the machine, whose values are saved before.
func raiseLimits() error {
	path := filepath.Join("/proc/sys", inotifyInstances)
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || n >= mostInotifyInstances {
		return err
	}
	return os.WriteFile(path, []byte(strconv.Itoa(mostInotifyInstances)), 0o644)
}

func sysctlFile() string { return filepath.Join(machineDir, "sysctl.json") }

// saveSysctls keeps the machine's values. What a killed run kept is older, so it is the truth and stays.
func saveSysctls() error {
	if _, err := os.Stat(sysctlFile()); err == nil {
		return nil
	}
	values := map[string]string{}
	for _, name := range sysctls() {
		b, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		values[name] = strings.TrimSpace(string(b))
	}
	b, err := json.Marshal(values)
	if err != nil {
		return err
	}
	if err := os.WriteFile(sysctlFile()+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(sysctlFile()+".new", sysctlFile())
}

// restoreSysctls gives the machine its values back.
func restoreSysctls() error {
	b, err := os.ReadFile(sysctlFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	values := map[string]string{}
	if err := json.Unmarshal(b, &values); err != nil {
		return fmt.Errorf("%s: %w", sysctlFile(), err)
	}
	for name, value := range values {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
			return fmt.Errorf("restore %s: %w", name, err)
		}
	}
	return os.Remove(sysctlFile())
}
