package mongodb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// Prepare implements database.Engine.
//
// FerretDB connects to nobody, runs nothing by itself and has no address of another server in its files, so a clone is
// neutral when every file that it opens is inside the clone. That is all there is to see to, and it is seen to: a link
// that leads outside, by symbol or by hard link, is refused.
func (*Engine) Prepare(_ context.Context, dirs []string, r database.Role) (database.Launch, error) {
	inside := make([]string, len(dirs))
	for i, dir := range dirs {
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			return database.Launch{}, fmt.Errorf("prepare %s: %w", dir, err)
		}
		inside[i] = real
	}
	q := &quarantine{inside: inside, links: map[uint64]*hardLink{}}
	for _, dir := range inside {
		if err := filepath.WalkDir(dir, q.entry); err != nil {
			return database.Launch{}, err
		}
	}
	for _, l := range q.links {
		if l.found < l.count {
			err := fault.Newf(fault.Denied, "%s is a hard link to a file outside the copy: writing to it would write there", l.path)
			return database.Launch{}, fault.WithRemedy(err, "copy the file instead of linking it")
		}
	}
	if len(q.files) == 0 && r != database.Production {
		return database.Launch{}, fault.Newf(fault.NotFound, "there is no database of FerretDB on SQLite (*%s) in %v", extension, dirs)
	}
	launch := database.Launch{Notes: []string{fmt.Sprintf("every file of %d databases is inside the copy", len(q.files))}}
	if r == database.Production || r == database.Upgrade {
		return launch, nil
	}
	for _, path := range q.shared {
		// It is the index of the write-ahead log in the memory of processes that are not here; SQLite builds it anew.
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return launch, fmt.Errorf("remove %s: %w", path, err)
		}
	}
	if len(q.shared) > 0 {
		launch.Notes = append(launch.Notes, fmt.Sprintf("%d files of shared memory were removed", len(q.shared)))
	}
	return launch, nil
}

// quarantine collects what is in a copy.
type quarantine struct {
	inside []string
	files  []string
	shared []string
	links  map[uint64]*hardLink // by inode
}

type hardLink struct {
	path         string
	found, count uint64
}

func (q *quarantine) entry(path string, e fs.DirEntry, err error) error {
	if err != nil {
		return fmt.Errorf("prepare %s: %w", path, err)
	}
	name := e.Name()
	if e.Type()&fs.ModeSymlink != 0 {
		return q.symlink(path)
	}
	if strings.HasPrefix(name, "WiredTiger") || name == "mongod.lock" {
		err := fault.Newf(fault.Invalid, "%s belongs to a real mongod: neutralising a copy (replica set identity, TTL monitor) is not built", path)
		return fault.WithRemedy(err, "use FerretDB on SQLite, or wait for a later release")
	}
	if !e.Type().IsRegular() {
		return nil
	}
	info, err := e.Info()
	if err != nil {
		return fmt.Errorf("prepare %s: %w", path, err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
		if q.links[st.Ino] == nil {
			q.links[st.Ino] = &hardLink{path: path, count: uint64(st.Nlink)} //nolint:unconvert // it has 32 bits on other machines
		}
		q.links[st.Ino].found++
	}
	switch {
	case strings.HasSuffix(name, extension):
		q.files = append(q.files, path)
	case strings.HasSuffix(name, extension+sharedMemory):
		q.shared = append(q.shared, path)
	}
	return nil
}

// symlink refuses a link that leads out of the copy, or nowhere: a server that creates what it points to would do so
// outside.
func (q *quarantine) symlink(path string) error {
	target, err := filepath.EvalSymlinks(path)
	if err == nil {
		for _, dir := range q.inside {
			if target == dir || strings.HasPrefix(target, dir+string(filepath.Separator)) {
				return nil
			}
		}
	} else {
		target, _ = os.Readlink(path) // what it says is told even where it leads nowhere
	}
	return fault.WithRemedy(fault.Newf(fault.Denied, "%s leads to %s, outside the copy: a server started on the copy would write there", path, target),
		"put the file itself into the volume")
}
