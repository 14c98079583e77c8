// Package reflink copies volumes that are directories of this machine: by btrfs snapshot where the directory is a
// subvolume, else file by file with blocks shared where the file system can share them, else every byte.
package reflink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/volume"
)

// Driver copies directories. Copies live beside the platform's volumes, in the folder .copies, one folder each: the
// directories of the copy, numbered like its sources, and copy.json, which is written last. A folder without it is half a
// copy and is removed when it is met.
type Driver struct {
	binder  volume.Binder
	account string
	mu      sync.Mutex
}

// New returns a driver for the volumes of one account.
func New(b volume.Binder, account string) *Driver { return &Driver{binder: b, account: account} }

const infoFile = "copy.json"

func (d *Driver) root(ctx context.Context) (string, error) {
	dir, err := d.binder.VolumesDir(ctx)
	if err != nil {
		return "", err
	}
	root := filepath.Join(dir, ".copies")
	return root, os.MkdirAll(root, 0o755)
}

// folder returns where the copy of an id is: ids hold slashes, and what is replaced must not make two ids one. No
// % is used for it: engines are given this path, and some read it as part of a URL.
func folder(root, id string) string {
	return filepath.Join(root, strings.NewReplacer("~", "~0", "/", "~1").Replace(id))
}

// Probe implements volume.Driver.
func (d *Driver) Probe(ctx context.Context, src []volume.Source) (volume.Ability, error) {
	root, err := d.root(ctx)
	if err != nil {
		return volume.Ability{}, err
	}
	if len(src) == 0 {
		return volume.Ability{}, fault.Newf(fault.Invalid, "there is no volume to copy")
	}
	if src, err = d.located(ctx, src); err != nil {
		return volume.Ability{}, err
	}
	a := volume.Ability{Atomic: volume.None}
	if a.Method, a.Reason, err = method(src[0].Dir, root); err != nil {
		return a, err
	}
	if a.Method == volume.Snapshot {
		a.Atomic = volume.PerVolume
	}
	if a.Method == volume.Plain {
		for _, s := range src {
			n, err := size(s.Dir)
			if err != nil {
				return a, err
			}
			a.Bytes += n
		}
	}
	a.FreeBytes, err = free(root)
	return a, err
}

func free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// size is how many bytes the files of a directory take on the disk.
func size(dir string) (int64, error) {
	var n int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		i, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			// Blocks, not the length: the holes of a file are not copied. A length that is no multiple of a block is
			// counted up, as the copy's will be.
			n += i.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return n, nil
}

// Cut implements volume.Driver.
func (d *Driver) Cut(ctx context.Context, id, owner string, src []volume.Source) (volume.Copy, error) {
	src, err := d.located(ctx, src)
	if err != nil {
		return volume.Copy{}, err
	}
	var dirs []string
	for _, s := range src {
		dirs = append(dirs, s.Dir)
	}
	return d.make(ctx, volume.CopyInfo{ID: id, Owner: owner, Sources: src}, dirs)
}

// located returns the sources with the directories that are behind their claims.
func (d *Driver) located(ctx context.Context, src []volume.Source) ([]volume.Source, error) {
	out := slices.Clone(src)
	for n, s := range out {
		if s.Dir != "" {
			continue
		}
		dir, err := d.binder.Bound(ctx, place(s))
		if err != nil {
			return nil, err
		}
		out[n].Dir = dir
	}
	return out, nil
}

// Ready implements volume.Driver: a copy of directories is ready when it is cut.
func (d *Driver) Ready(context.Context, volume.Copy) error { return nil }

// Clone implements volume.Driver.
func (d *Driver) Clone(ctx context.Context, id, owner string, from volume.Copy, to []volume.Place) (volume.Copy, error) {
	f := from.Info()
	if len(to) != len(f.Dirs) {
		return volume.Copy{}, fault.Newf(fault.Invalid, "copy %s has %d volumes and is to be bound to %d claims", f.ID, len(f.Dirs), len(to))
	}
	info := volume.CopyInfo{ID: id, Owner: owner, Sources: f.Sources, Parent: f.ID, Places: to}
	c, err := d.make(ctx, info, f.Dirs)
	if err != nil {
		return c, err
	}
	for i, dir := range c.Info().Dirs {
		if err := d.binder.Bind(ctx, to[i], dir); err != nil {
			return c, fmt.Errorf("bind claim %s: %w", to[i].Claim, err)
		}
	}
	return c, nil
}

// make returns the copy of an id, made now if it is not there.
func (d *Driver) make(ctx context.Context, info volume.CopyInfo, from []string) (volume.Copy, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	root, err := d.root(ctx)
	if err != nil {
		return volume.Copy{}, err
	}
	dir := folder(root, info.ID)
	if was, err := read(dir); err == nil {
		return volume.NewCopy(was), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return volume.Copy{}, err
	}
	if err := sweep(root); err != nil {
		return volume.Copy{}, err
	}
	done, err := occupy(dir)
	if err != nil {
		return volume.Copy{}, fmt.Errorf("make the folder of copy %s: %w", info.ID, full(err, root))
	}
	defer done()
	// Whoever was at it meanwhile has completed the copy, or has died over it.
	if was, err := read(dir); err == nil {
		return volume.NewCopy(was), nil
	}
	if err := empty(dir); err != nil {
		return volume.Copy{}, err
	}
	if err := d.fill(ctx, dir, &info, from); err != nil {
		if e := remove(dir); e != nil {
			err = fmt.Errorf("%w; and what was copied could not be removed: %w", err, e)
		}
		return volume.Copy{}, err
	}
	return volume.NewCopy(info), nil
}

// fill makes the copy in its folder. Where the disk runs full that is an error which says what to do.
func (d *Driver) fill(ctx context.Context, dir string, info *volume.CopyInfo, from []string) error {
	return full(fill(ctx, dir, info, from), filepath.Dir(dir))
}

func full(err error, dir string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "the disk ran full: %w", err),
			"free space or inodes on the file system of %s; what was copied is removed", dir)
	}
	return err
}

func fill(ctx context.Context, dir string, info *volume.CopyInfo, from []string) error {
	info.Atomic = volume.None
	methods := make([]volume.Method, len(from))
	var whole []string
	for i, src := range from {
		var err error
		if methods[i], _, err = method(src, dir); err != nil {
			return err
		}
		if methods[i] == volume.Plain {
			whole = append(whole, src)
		}
	}
	if err := fits(whole, dir); err != nil {
		return err
	}
	for i, src := range from {
		to := filepath.Join(dir, fmt.Sprint(i))
		if err := copyTree(ctx, methods[i], src, to); err != nil {
			return fmt.Errorf("copy %s: %w", src, err)
		}
		info.Dirs, info.Method = append(info.Dirs, to), methods[i]
		if methods[i] == volume.Snapshot {
			info.Atomic = volume.PerVolume
		}
		n, err := size(to)
		if err != nil {
			return err
		}
		info.Bytes += n
	}
	info.CutAt = time.Now().UTC()
	return write(dir, *info)
}

// fits refuses full copies for which there is no room, before the first byte.
func fits(src []string, dir string) error {
	if len(src) == 0 {
		return nil
	}
	var need int64
	for _, s := range src {
		n, err := size(s)
		if err != nil {
			return err
		}
		need += n
	}
	have, err := free(dir)
	if err != nil {
		return err
	}
	const reserve = 16 << 20
	if need+reserve > have {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "a copy of %s needs %d MiB and the file system of %s has %d MiB free",
			strings.Join(src, ", "), need>>20+1, dir, have>>20),
			"free %d MiB there, or use a file system that shares blocks (btrfs, xfs)", (need+reserve-have)>>20+1)
	}
	return nil
}

func read(dir string) (volume.CopyInfo, error) {
	var i volume.CopyInfo
	body, err := os.ReadFile(filepath.Join(dir, infoFile))
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(body, &i); err != nil {
		return i, fault.Newf(fault.Lost, "%s: %w", filepath.Join(dir, infoFile), err)
	}
	return i, nil
}

// write makes the copy complete: from here on it is one.
func write(dir string, i volume.CopyInfo) error {
	body, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "copy-*")
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if e := f.Sync(); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, infoFile))
	}
	// What names the file, and what names the folder, must be on the disk before a claim is bound to the copy: a folder
	// without the file is half a copy.
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err == nil {
			err = syncDir(d)
		}
	}
	if err != nil {
		return fmt.Errorf("complete the copy %s: %w", i.ID, err)
	}
	return nil
}

// Swap implements volume.Driver. The old volumes stay where they are and become a copy under the swap's id.
func (d *Driver) Swap(ctx context.Context, id string, live []volume.Source, with volume.Copy, protect time.Time) (volume.Copy, error) {
	w := with.Info()
	if len(live) != len(w.Dirs) {
		return volume.Copy{}, fault.Newf(fault.Invalid, "copy %s has %d volumes for %d claims", w.ID, len(w.Dirs), len(live))
	}
	root, err := d.root(ctx)
	if err != nil {
		return volume.Copy{}, err
	}
	dir := folder(root, id)
	old, err := read(dir)
	if errors.Is(err, fs.ErrNotExist) {
		old = volume.CopyInfo{ID: id, Owner: w.Owner, Sources: live, CutAt: time.Now().UTC(), Protected: protect}
		for _, s := range live {
			bound, err := d.binder.Bound(ctx, place(s))
			if err != nil {
				return volume.Copy{}, err
			}
			n, err := size(bound)
			if err != nil {
				return volume.Copy{}, err
			}
			old.Dirs, old.Bytes = append(old.Dirs, bound), old.Bytes+n
		}
		var done func()
		if done, err = occupy(dir); err != nil {
			return volume.Copy{}, err
		}
		err = write(dir, old)
		done()
	}
	if err != nil {
		return volume.Copy{}, err
	}
	for i, s := range live {
		if err := d.binder.Bind(ctx, place(s), w.Dirs[i]); err != nil {
			return volume.Copy{}, fmt.Errorf("bind claim %s: %w", s.Claim, err)
		}
	}
	return volume.NewCopy(old), nil
}

func place(s volume.Source) volume.Place {
	return volume.Place{Account: s.Account, Namespace: s.Namespace, Claim: s.Claim}
}

// List implements volume.Driver.
func (d *Driver) List(ctx context.Context, owner string) ([]volume.Copy, error) {
	root, err := d.root(ctx)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var out []volume.Copy
	for _, e := range entries {
		i, err := read(filepath.Join(root, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // half a copy: the next copy that is made removes it
		}
		if err != nil {
			return nil, err
		}
		if owner == "" || i.Owner == owner {
			out = append(out, volume.NewCopy(i))
		}
	}
	slices.SortFunc(out, func(a, b volume.Copy) int { return a.Info().CutAt.Compare(b.Info().CutAt) })
	return out, nil
}

// Delete implements volume.Driver.
func (d *Driver) Delete(ctx context.Context, c volume.Copy) error {
	i := c.Info()
	if time.Now().Before(i.Protected) {
		return fault.Newf(fault.Denied, "copy %s is protected until %s", i.ID, i.Protected.Format(time.RFC3339))
	}
	all, err := d.List(ctx, "")
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.Info().Parent == i.ID {
			return fault.Newf(fault.Conflict, "copy %s was cloned as %s, which must go first", i.ID, o.ID())
		}
		if o.ID() != i.ID && time.Now().Before(o.Info().Protected) && shares(o.Info(), i) {
			return fault.Newf(fault.Denied, "the volumes of copy %s were taken out of service as %s, which is protected until %s", i.ID, o.ID(),
				o.Info().Protected.Format(time.RFC3339))
		}
	}
	for n, dir := range i.Dirs {
		if err := d.unbind(ctx, i, n, dir); err != nil {
			return err
		}
	}
	return d.removeCopy(ctx, i, all)
}

// shares reports whether two copies name the same directory: a swap keeps what it takes out of service where it is.
func shares(a, b volume.CopyInfo) bool {
	return slices.ContainsFunc(a.Dirs, func(dir string) bool { return slices.Contains(b.Dirs, dir) })
}

// unbind frees the claims that the copy was made for. A directory that another claim is bound to is in use.
func (d *Driver) unbind(ctx context.Context, i volume.CopyInfo, n int, dir string) error {
	for _, s := range i.Sources {
		if bound, err := d.binder.Bound(ctx, place(s)); err == nil && bound == dir {
			return fault.Newf(fault.Denied, "copy %s is what claim %s of namespace %s is bound to", i.ID, s.Claim, s.Namespace)
		}
	}
	if n >= len(i.Places) {
		return nil
	}
	bound, err := d.binder.Bound(ctx, i.Places[n])
	if fault.Is(err, fault.NotFound) || err == nil && bound != dir {
		return nil
	}
	if err != nil {
		return err
	}
	return d.binder.Unbind(ctx, i.Places[n])
}
