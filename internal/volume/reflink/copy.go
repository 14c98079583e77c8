package reflink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/volume"
)

// firstInode is the inode of the root of every btrfs subvolume.
const firstInode = 256

// method says how a directory is best copied to another one, and why.
func method(src, to string) (volume.Method, string, error) {
	var a, b unix.Statfs_t
	if err := unix.Statfs(src, &a); err != nil {
		return "", "", fmt.Errorf("%s: %w", src, err)
	}
	if err := unix.Statfs(to, &b); err != nil {
		return "", "", fmt.Errorf("%s: %w", to, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(src, &st); err != nil {
		return "", "", fmt.Errorf("%s: %w", src, err)
	}
	if a.Type == unix.BTRFS_SUPER_MAGIC && b.Type == a.Type && st.Ino == firstInode {
		return volume.Snapshot, "the volume is a btrfs subvolume", nil
	}
	shares, err := canShare(to)
	if err != nil {
		return "", "", err
	}
	switch {
	case shares && a.Type == b.Type:
		return volume.Reflink, "the file system shares blocks between files", nil
	case shares:
		return volume.Plain, "the volume is on another file system than its copies", nil
	}
	return volume.Plain, fmt.Sprintf("the file system of %s (type %#x) cannot share blocks", to, b.Type), nil
}

// canShare tries it: file systems of one type differ in it.
func canShare(dir string) (bool, error) {
	a, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return false, fmt.Errorf("probe %s: %w", dir, err)
	}
	defer os.Remove(a.Name())
	defer a.Close()
	b, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return false, err
	}
	defer os.Remove(b.Name())
	defer b.Close()
	if _, err := a.Write(make([]byte, 4096)); err != nil {
		return false, err
	}
	return unix.IoctlFileClone(int(b.Fd()), int(a.Fd())) == nil, nil
}

// copyTree copies a directory. Symbolic links are copied as links, never followed; sockets and pipes are left out.
func copyTree(ctx context.Context, m volume.Method, src, to string) error {
	if m == volume.Snapshot {
		return snapshot(src, to)
	}
	var g errgroup.Group
	g.SetLimit(max(2, runtime.NumCPU()))
	links := map[uint64]string{}
	var dirs []string
	err := filepath.WalkDir(src, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != src {
			return nil // a file that the engine removed meanwhile
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		dest := filepath.Join(to, rel)
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		switch {
		case e.IsDir():
			dirs = append(dirs, rel)
			return os.MkdirAll(dest, 0o700)
		case e.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, dest)
		case !e.Type().IsRegular():
			return nil
		}
		if st.Nlink > 1 {
			if first, ok := links[st.Ino]; ok {
				if err := g.Wait(); err != nil {
					return err
				}
				return os.Link(first, dest)
			}
			links[st.Ino] = dest
		}
		g.Go(func() error { return copyFile(m, path, dest, info) })
		return nil
	})
	if e := g.Wait(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	// Last and deepest first: making files in a directory changes its times, and may need rights that it does not give.
	for i := len(dirs) - 1; i >= 0; i-- {
		info, err := os.Stat(filepath.Join(src, dirs[i]))
		if err != nil {
			return err
		}
		if err := dress(filepath.Join(to, dirs[i]), info); err != nil {
			return err
		}
		if err := syncDir(filepath.Join(to, dirs[i])); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// dress gives a file the mode, the owner (as root) and the times of another.
func dress(path string, info fs.FileInfo) error {
	st := info.Sys().(*syscall.Stat_t)
	if os.Geteuid() == 0 {
		if err := os.Lchown(path, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if err := os.Chmod(path, info.Mode().Perm()|info.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	return os.Chtimes(path, info.ModTime(), info.ModTime())
}

func copyFile(m volume.Method, src, dest string, info fs.FileInfo) error {
	in, err := os.Open(src)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dest, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if m == volume.Reflink {
		err = unix.IoctlFileClone(int(out.Fd()), int(in.Fd()))
	} else {
		err = copyData(in, out)
	}
	if e := out.Sync(); err == nil {
		err = e
	}
	if e := out.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("%s: %w", src, err)
	}
	return dress(dest, info)
}

// copyData copies the data of a file and leaves its holes.
func copyData(in, out *os.File) error {
	info, err := in.Stat()
	if err != nil {
		return err
	}
	end := info.Size()
	if err := out.Truncate(end); err != nil {
		return err
	}
	for at := int64(0); at < end; {
		start, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return err
		}
		if at, err = unix.Seek(int(in.Fd()), start, unix.SEEK_HOLE); err != nil {
			return err
		}
		at = min(at, end)
		if _, err := out.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := in.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, at-start); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}

// volArgs is struct btrfs_ioctl_vol_args of linux/btrfs.h.
type volArgs struct {
	fd   int64
	name [4088]byte
}

// The numbers of BTRFS_IOC_SNAP_CREATE, BTRFS_IOC_SUBVOL_CREATE and BTRFS_IOC_SNAP_DESTROY, which linux/btrfs.h derives from the size of volArgs.
const (
	snapCreate  = 0x50009401
	subCreate   = 0x5000940e
	snapDestroy = 0x5000940f
)

func btrfs(dir string, request uintptr, a *volArgs) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(a))); e != 0 {
		return e
	}
	return nil
}

// MakeVolume makes the directory of a new volume, if it is not there: on btrfs a subvolume, so that it can be cut by a
// snapshot.
func MakeVolume(dir string) error {
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(dir), &st); err != nil {
		return fmt.Errorf("make the volume %s: %w", dir, err)
	}
	if st.Type == unix.BTRFS_SUPER_MAGIC {
		a := &volArgs{}
		copy(a.name[:], filepath.Base(dir))
		if err := btrfs(filepath.Dir(dir), subCreate, a); err != nil {
			return fmt.Errorf("make the btrfs subvolume %s: %w", dir, err)
		}
		return os.Chmod(dir, 0o750)
	}
	return os.Mkdir(dir, 0o750)
}

func snapshot(src, to string) error {
	s, err := os.Open(src)
	if err != nil {
		return err
	}
	defer s.Close()
	a := &volArgs{fd: int64(s.Fd())}
	copy(a.name[:], filepath.Base(to))
	if err := btrfs(filepath.Dir(to), snapCreate, a); err != nil {
		return fmt.Errorf("btrfs snapshot: %w", err)
	}
	return nil
}

// remove removes a folder with the btrfs subvolumes in it.
func remove(dir string) error {
	err := empty(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(dir)
}

// empty removes what is in a folder.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		var fsys unix.Statfs_t
		if unix.Lstat(path, &st) == nil && unix.Statfs(path, &fsys) == nil && e.IsDir() && st.Ino == firstInode && fsys.Type == unix.BTRFS_SUPER_MAGIC {
			a := &volArgs{}
			copy(a.name[:], e.Name())
			if btrfs(dir, snapDestroy, a) == nil {
				continue
			}
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}
