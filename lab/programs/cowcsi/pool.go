package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that the driver turns into the codes of CSI.
var (
	errMissing = errors.New("does not exist")
	errTaken   = errors.New("exists already with other properties")
)

// pool is a directory of volumes and snapshots, each one a file. Several drivers may work in one pool: a file gets its
// final name in one step, and names are unique because Kubernetes makes them from UIDs.
type pool struct {
	dir string

	// mu makes the check for an existing file and its creation one step, against repeated calls.
	mu sync.Mutex
}

// snapshot is what is kept beside a snapshot's file.
type snapshot struct {
	ID     string    `json:"id"`
	Source string    `json:"source"`
	Size   int64     `json:"size"`
	Cut    time.Time `json:"cut"`
}

// openPool makes the directories and tries that the file system shares blocks, so that a wrong one is found at the
// start and not by a copy that takes minutes.
func openPool(dir string) (*pool, error) {
	p := &pool{dir: dir}
	for _, d := range []string{"volumes", "snapshots"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	probe, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(probe.Name())
	defer probe.Close()
	if _, err := probe.WriteString("x"); err != nil {
		return nil, err
	}
	twin := probe.Name() + "-twin"
	defer os.Remove(twin)
	if err := clone(probe.Name(), twin); err != nil {
		return nil, fmt.Errorf("%s cannot share blocks between files (%w): use btrfs, or xfs with reflinks", dir, err)
	}
	return p, nil
}

func (p *pool) volume(id string) string {
	return filepath.Join(p.dir, "volumes", filepath.Base(id)+".img")
}
func (p *pool) snapshot(id string) string {
	return filepath.Join(p.dir, "snapshots", filepath.Base(id)+".img")
}

// create makes a volume of a size: empty, or from the file of a snapshot or another volume. What exists already with
// this name and size is what an earlier call made.
func (p *pool) create(ctx context.Context, id string, size int64, from string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	path := p.volume(id)
	if info, err := os.Stat(path); err == nil {
		if info.Size() != size {
			return fmt.Errorf("volume %s of %d bytes: %w", id, info.Size(), errTaken)
		}
		return nil
	}
	begun := path + ".new"
	if err := os.Remove(begun); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var err error
	if from == "" {
		err = format(ctx, begun, size)
	} else if err = clone(from, begun); err == nil {
		err = grow(ctx, begun, size)
	}
	if err != nil {
		os.Remove(begun)
		return fmt.Errorf("volume %s: %w", id, err)
	}
	return os.Rename(begun, path)
}

// cut clones a volume's file into a snapshot. What programs wrote before the call is in it, also what they did not sync.
func (p *pool) cut(id, source string) (snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s, err := p.describe(id); err == nil {
		if s.Source != source {
			return snapshot{}, fmt.Errorf("snapshot %s of volume %s: %w", id, s.Source, errTaken)
		}
		return s, nil
	} else if !errors.Is(err, errMissing) {
		return snapshot{}, err
	}
	volume := p.volume(source)
	info, err := os.Stat(volume)
	if err != nil {
		return snapshot{}, fmt.Errorf("volume %s: %w", source, missing(err))
	}
	if err := flush(volume); err != nil {
		return snapshot{}, fmt.Errorf("flush volume %s: %w", source, err)
	}
	path := p.snapshot(id)
	// A file without its description is from a call that was cut off.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return snapshot{}, err
	}
	s := snapshot{ID: id, Source: source, Size: info.Size(), Cut: time.Now()}
	if err := clone(volume, path); err != nil {
		return snapshot{}, fmt.Errorf("snapshot %s: %w", id, err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		return snapshot{}, err
	}
	return s, writeWhole(path+".json", b)
}

// describe reads what is known about a snapshot.
func (p *pool) describe(id string) (snapshot, error) {
	b, err := os.ReadFile(p.snapshot(id) + ".json")
	if err != nil {
		return snapshot{}, fmt.Errorf("snapshot %s: %w", id, missing(err))
	}
	var s snapshot
	if err := json.Unmarshal(b, &s); err != nil {
		return snapshot{}, fmt.Errorf("snapshot %s: %w", id, err)
	}
	return s, nil
}

// snapshots lists them all, or those of one volume.
func (p *pool) snapshots(source string) ([]snapshot, error) {
	files, err := filepath.Glob(filepath.Join(p.dir, "snapshots", "*.img.json"))
	if err != nil {
		return nil, err
	}
	var all []snapshot
	for _, f := range files {
		s, err := p.describe(strings.TrimSuffix(filepath.Base(f), ".img.json"))
		switch {
		case errors.Is(err, errMissing): // deleted meanwhile
		case err != nil:
			return nil, err
		case source == "" || s.Source == source:
			all = append(all, s)
		}
	}
	return all, nil
}

func (p *pool) deleteVolume(id string) error { return removeAll(p.volume(id)) }

func (p *pool) deleteSnapshot(id string) error {
	// The description goes first: a snapshot without one does not exist.
	return removeAll(p.snapshot(id)+".json", p.snapshot(id))
}

// format makes a sparse file with an empty ext4.
func format(ctx context.Context, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	// No blocks are kept back for root: a claim of 100 MiB can hold nearly 100 MiB.
	return command(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", path)
}

// grow makes a cloned volume larger. That is done here and not when it is mounted, because growing a mounted ext4 needs
// a right that not every root has.
func grow(ctx context.Context, path string, size int64) error {
	info, err := os.Stat(path)
	if err != nil || info.Size() == size {
		return err
	}
	if err := os.Truncate(path, size); err != nil {
		return err
	}
	// The clone may have been cut from a mounted volume, so its journal is replayed first. Code 1 says that it was.
	var exit *exec.ExitError
	if err := command(ctx, "e2fsck", "-f", "-y", path); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		return err
	}
	return command(ctx, "resize2fs", path)
}

// clone makes a file that shares all blocks with another one.
func clone(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return missing(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		os.Remove(to)
		return fmt.Errorf("clone %s: %w", filepath.Base(from), err)
	}
	return nil
}

func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// writeWhole puts a file in place in one step.
func writeWhole(path string, b []byte) error {
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func removeAll(paths ...string) error {
	for _, p := range paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errMissing
	}
	return err
}
