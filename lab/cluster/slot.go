package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// machineDir holds what the clusters of all labs share. It is gone after a reboot, as they are.
const machineDir = "/run/sluice-lab"

// slots is how many clusters can run at once: their addresses are cut from fixed ranges.
const slots = 15

// slot is a cluster's place on the machine. Its number decides names and addresses.
type slot struct {
	Number  int     `json:"number"`
	Dir     string  `json:"dir"`
	Name    string  `json:"name"`
	Ready   bool    `json:"ready"`
	Storage Storage `json:"storage"`
}

func (s slot) namespace() string  { return fmt.Sprintf("sluice-lab-%d", s.Number) }
func (s slot) cgroup() string     { return fmt.Sprintf("/sluice-lab-%d", s.Number) }
func (s slot) hostLink() string   { return fmt.Sprintf("slab%dh", s.Number) }
func (s slot) nodeLink() string   { return fmt.Sprintf("slab%dn", s.Number) }
func (s slot) hostIP() string     { return fmt.Sprintf("10.200.%d.1", s.Number) }
func (s slot) nodeIP() string     { return fmt.Sprintf("10.200.%d.2", s.Number) }
func (s slot) pods() string       { return fmt.Sprintf("10.202.%d.0/24", s.Number) }
func (s slot) services() string   { return fmt.Sprintf("10.201.%d.0/20", s.Number*16) }
func (s slot) apiService() string { return fmt.Sprintf("10.201.%d.1", s.Number*16) }
func (s slot) dns() string        { return fmt.Sprintf("10.201.%d.10", s.Number*16) }
func (s slot) server() string     { return "https://" + s.nodeIP() + ":6443" }
func (s slot) node() string       { return "node-" + s.Name }
func (s slot) file() string {
	return filepath.Join(machineDir, "slots", strconv.Itoa(s.Number)+".json")
}

// save writes the slot file in one step.
func (s slot) save() error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.file()+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(s.file()+".new", s.file())
}

// takeSlot claims the first free slot, and saves what clusters change on the machine before the first one does.
func takeSlot(ctx context.Context, want slot) (slot, error) {
	if err := os.MkdirAll(filepath.Join(machineDir, "slots"), 0o755); err != nil {
		return slot{}, err
	}
	unlock, err := lockMachine(ctx)
	if err != nil {
		return slot{}, err
	}
	defer unlock()
	taken, err := readSlots()
	if err != nil {
		return slot{}, err
	}
	if len(taken) == 0 {
		if err := saveSysctls(); err != nil {
			return slot{}, err
		}
		if err := raiseLimits(); err != nil {
			return slot{}, err
		}
	}
	for n := range slots {
		if slices.ContainsFunc(taken, func(s slot) bool { return s.Number == n }) {
			continue
		}
		want.Number = n
		return want, want.save()
	}
	return slot{}, fmt.Errorf("%d clusters run on this machine: take one down with `lab down`; `lab status --all` shows them", slots)
}

// freeSlot gives a slot back; the last one restores the machine.
func freeSlot(ctx context.Context, s slot) error {
	unlock, err := lockMachine(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.Remove(s.file()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	left, err := readSlots()
	if err != nil || len(left) > 0 {
		return err
	}
	return restoreSysctls()
}

func lockMachine(ctx context.Context) (func(), error) {
	return lockFile(ctx, filepath.Join(machineDir, "lock"))
}

// readSlots lists the clusters of all labs on the machine.
func readSlots() ([]slot, error) {
	files, err := filepath.Glob(filepath.Join(machineDir, "slots", "*.json"))
	if err != nil {
		return nil, err
	}
	var all []slot
	for _, f := range files {
		b, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var s slot
		if err := json.Unmarshal(b, &s); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b slot) int { return cmp.Compare(a.Number, b.Number) })
	return all, nil
}

// lockFile waits for a lock that ends with this process, whatever ends it. Programs started meanwhile do not inherit it.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	// The kernel offers no event that a context could end.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("another process works on it (it holds %s): %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}
