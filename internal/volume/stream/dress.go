package stream

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/fault"
)

// dress gives an entry its owner, permissions, attributes and time. A folder gets them when it is complete.
func (r *receiving) dress(e entry) error {
	switch e.Sort {
	case folder, link:
		return nil
	case left:
		names, err := namesIn(filepath.Join(r.root.Name(), e.Path), e.Path)
		if err != nil {
			return err
		}
		if len(names) != e.Names {
			return fault.WithRemedy(fault.Newf(fault.Conflict, "the folder %s of the target volume has %d names and the sender's has %d", e.Path, len(names), e.Names),
				"somebody else writes to the claim; delete the copy and begin anew")
		}
	default:
	}
	if err := r.root.Lchown(e.Path, e.UID, e.GID); err != nil {
		if errors.Is(err, fs.ErrPermission) && owned(r.root, e) {
			err = nil
		}
		if err != nil {
			return fault.Newf(fault.Denied, "the owner %d:%d of %s cannot be set: %w", e.UID, e.GID, e.Path, err)
		}
	}
	return r.within(e.Path, func(dir int, name string) error {
		if e.Sort != symlink {
			if err := held(dir, name, func(path string) error { return errors.Join(unix.Chmod(path, e.Mode), attributes(path, e)) }); err != nil {
				return err
			}
		}
		now := unix.Timespec{Nsec: unix.UTIME_OMIT}
		return unix.UtimesNanoAt(dir, name, []unix.Timespec{now, unix.NsecToTimespec(e.MTime)}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// held calls do with a path that means what is in a folder by a name now, whatever comes to be there, and follows no link.
func held(dir int, name string, do func(path string) error) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return do(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// owned tells whether an entry has its owner already.
func owned(root *os.Root, e entry) bool {
	info, err := root.Lstat(e.Path)
	if err != nil {
		return false
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == e.UID && int(s.Gid) == e.GID
}

// attributes makes an entry have its extended attributes and no others.
func attributes(path string, e entry) error {
	have, err := xattrsOf(path)
	if err != nil {
		return err
	}
	want := map[string]bool{}
	for _, x := range e.Xattrs {
		want[x.Name] = true
		if err := unix.Setxattr(path, x.Name, x.Value, 0); err != nil {
			return fmt.Errorf("attribute %s: %w", x.Name, err)
		}
	}
	for _, x := range have {
		if !want[x.Name] {
			if err := unix.Removexattr(path, x.Name); err != nil {
				return fmt.Errorf("attribute %s: %w", x.Name, err)
			}
		}
	}
	return nil
}

// coarsest is how far apart the times may be that a file system can keep.
const coarsest = 2 * time.Second

// reread returns what an entry is on the target volume now, and refuses what is not as it was made.
func (r *receiving) reread(e entry) (entry, error) {
	info, err := r.root.Lstat(e.Path)
	if err != nil {
		return e, err
	}
	if e.Sort == folder || e.Sort == link {
		if !r.fits(e, info) {
			return e, changed(e, fmt.Sprintf("is %s now", info.Mode()))
		}
		return e, nil // a folder has the rest when it is left, and another name of a file when that came
	}
	now, err := inode(e.Path, info)
	if err != nil {
		return now, err
	}
	switch now.Sort {
	case symlink:
		now.Mode = e.Mode // nothing heeds it
		now.Target, err = r.root.Readlink(e.Path)
	case folder:
		if e.Sort == left {
			now.Sort, now.Names = left, e.Names
		}
		fallthrough
	default:
		err = r.within(e.Path, func(dir int, name string) error {
			return held(dir, name, func(path string) (err error) {
				now.Xattrs, err = xattrsOf(path)
				return err
			})
		})
	}
	if err != nil {
		return now, err
	}
	if d := e.MTime - now.MTime; d > 0 && d < int64(coarsest) {
		now.MTime = e.MTime
	}
	if want, have := e.words(), now.words(); want != have {
		return now, changed(e, fmt.Sprintf("was made as %q and reads back as %q", want, have))
	}
	return now, nil
}

// changed is the error for an entry that does not read back as it was made.
func changed(e entry, how string) error {
	return fault.WithRemedy(fault.Newf(fault.Lost, "%s %s", e.Path, how),
		"the target's storage does not keep what belongs to a file, or somebody else writes to the claim: use another StorageClass, or find out who")
}
