package local

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// identity is a process beyond its number: a number comes to mean another program, but not one with the same start in
// the same boot.
type identity struct {
	Pod   string `json:"pod"`
	Hash  string `json:"hash"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since the boot
	Boot  string `json:"boot"`
}

// alive reports whether the process still runs.
func (i identity) alive(boot string) bool {
	_, start, err := stat(i.PID)
	return err == nil && i.Boot == boot && i.Start == start
}

// bootID names this boot of the machine.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// stat returns the parent and the start of a process. What is a zombie has ended.
func stat(pid int) (parent int, start uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The name before the last parenthesis may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return 0, 0, fmt.Errorf("process %d has ended", pid)
	}
	parent, err = strconv.Atoi(f[1])
	if err != nil {
		return 0, 0, err
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return parent, start, err
}

// register keeps which process a pod is, outside of what the pod may write. It needs no sync: after a crash of the machine
// there is no process either.
func (n *node) register(pod, hash string, pid int) error {
	_, start, gone := stat(pid)
	if gone != nil {
		return nil //nolint:nilerr // a process that has ended already is nobody's to adopt
	}
	body, err := json.Marshal(identity{Pod: pod, Hash: hash, PID: pid, Start: start, Boot: n.boot})
	if err != nil {
		return err
	}
	path := n.registered(pod)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", body, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (n *node) registered(pod string) string {
	return filepath.Join(n.dir, "processes", url.PathEscape(pod)+".json")
}

func (n *node) forget(pod string) {
	// What stays behind names a process that has ended.
	_ = os.Remove(n.registered(pod))
}

// running returns the registered processes that still run, by pod.
func (n *node) running() (map[string]identity, error) {
	files, err := filepath.Glob(filepath.Join(n.dir, "processes", "*.json"))
	if err != nil {
		return nil, err
	}
	out := map[string]identity{}
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("read which processes an earlier node has started: %w", err)
		}
		var i identity
		if json.Unmarshal(body, &i) == nil && i.alive(n.boot) {
			out[i.Pod] = i
		}
	}
	return out, nil
}

// found is a process that carries a node's mark.
type found struct {
	pid, parent int
	pod, hash   string
}

// marked finds the processes that nodes of this directory started and that lead their sessions.
func marked(dir string) ([]found, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for the pods of an earlier node: %w", err)
	}
	var all []found
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil {
			continue // another user's, or gone
		}
		f := found{pid: pid}
		ours := false
		for v := range bytes.SplitSeq(env, []byte{0}) {
			name, value, _ := strings.Cut(string(v), "=")
			switch name {
			case markNode:
				ours = value == dir
			case markPod:
				f.pod = value
			case markHash:
				f.hash = value
			}
		}
		sid, err := unix.Getsid(pid)
		if !ours || f.pod == "" || err != nil || sid != pid {
			continue
		}
		if f.parent, _, err = stat(pid); err == nil {
			all = append(all, f)
		}
	}
	return all, nil
}

// sweep ends what a pod's process has left behind in sessions of its own: the next one would find its files locked and its
// ports taken.
func sweep(dir, pod string) {
	all, err := marked(dir)
	if err != nil {
		return // without /proc nothing is found, and nothing was marked either
	}
	for _, f := range all {
		if f.pod == pod {
			_ = syscall.Kill(-f.pid, syscall.SIGKILL)
		}
	}
}

// strays returns the marked processes that belong to no process in known: what an earlier node had started but not yet
// registered, and what has outlived the pod that started it. Children of a known process that lead sessions of their own,
// as PostgreSQL's do, are that process's.
func strays(all []found, known map[int]bool) []found {
	led := map[int]bool{}
	for _, f := range all {
		led[f.pid] = true
	}
	belongs := func(pid int) bool {
		for pid > 1 {
			if known[pid] || led[pid] {
				return true
			}
			parent, _, err := stat(pid)
			if err != nil {
				return false
			}
			pid = parent
		}
		return false
	}
	var out []found
	for _, f := range all {
		if !known[f.pid] && !belongs(f.parent) {
			out = append(out, f)
		}
	}
	return out
}

// adopt takes over what an earlier node started: wanted pods go on, others end.
func (n *node) adopt() error {
	registered, err := n.running()
	if err != nil {
		return err
	}
	all, err := marked(n.dir)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listenAll()
	wanted := map[string]want{}
	for k, r := range n.state.Objects {
		for _, w := range n.wants(k, r) {
			wanted[w.name] = w
		}
	}
	known := map[int]bool{}
	for _, i := range registered {
		known[i.PID] = true
		n.takeOver(wanted, i.Pod, i.Hash, i.PID)
	}
	for _, f := range strays(all, known) {
		n.takeOver(wanted, f.pod, f.hash, f.pid)
	}
	for k, e := range n.state.Exposed {
		n.expose(k, e, nil)
	}
	n.kick()
	return nil
}

// takeOver adopts a process as the pod that is wanted, or ends it.
func (n *node) takeOver(wanted map[string]want, pod, hash string, pid int) {
	p, err := adopt(pid)
	if err != nil {
		return // it has ended meanwhile
	}
	w, ok := wanted[pod]
	if _, twice := n.pods[pod]; ok && w.hash == hash && !twice {
		n.log.Info("pod adopted", "pod", pod, "pid", pid)
		n.launch(w, p)
		return
	}
	n.log.Info("a process that is no longer wanted is ended", "pod", pod, "pid", pid)
	n.wg.Go(func() { p.stop(syscall.SIGTERM, time.Now().Add(10*time.Second)) })
}
