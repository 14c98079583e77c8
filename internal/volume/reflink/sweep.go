package reflink

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// occupy makes the folder of a copy and says that somebody is at it, until done is called or the process ends.
func occupy(dir string) (done func(), err error) {
	for {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		f, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // somebody swept it away in between
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil && same(f, dir) {
			return func() { f.Close() }, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
}

// same reports whether an open folder is still the one of that name.
func same(f *os.File, dir string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(dir)
	return err == nil && os.SameFile(a, b)
}

// sweep removes the halves of copies that nobody is at: their makers have died, and are made again under another id where
// the hold on the writers died with them.
func sweep(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		if !e.IsDir() {
			continue
		}
		if _, err := os.Lstat(filepath.Join(dir, infoFile)); err == nil || !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := sweepOne(dir); err != nil {
			return fmt.Errorf("remove the half of a copy %s: %w", dir, err)
		}
	}
	return nil
}

func sweepOne(dir string) error {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // somebody is at it
	}
	// It may have been completed since it was looked at.
	if _, err := os.Lstat(filepath.Join(dir, infoFile)); err == nil || !errors.Is(err, fs.ErrNotExist) || !same(f, dir) {
		return nil
	}
	return remove(dir)
}
