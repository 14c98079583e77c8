package postgres

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/sluice-cd/sluice/internal/fault"
)

// searchDepth is how far below a volume's root its data directory may lie: a claim mounted at /var/lib/postgresql often
// holds 15/main.
const searchDepth = 3

// volumes are the directories of a database's volumes, with the data directory in one of them.
type volumes struct {
	dirs    []string // absolute, without symbolic links
	data    string
	version int // major
}

// findVolumes finds the data directory.
func findVolumes(dirs []string) (*volumes, error) {
	v := &volumes{}
	var found []string
	for _, d := range dirs {
		real, err := filepath.EvalSymlinks(d)
		if err != nil {
			return nil, fmt.Errorf("look for a data directory: %w", err)
		}
		if real, err = filepath.Abs(real); err != nil {
			return nil, err
		}
		v.dirs = append(v.dirs, real)
		in, err := dataDirs(real, searchDepth)
		if err != nil {
			return nil, fmt.Errorf("look for a data directory: %w", err)
		}
		found = append(found, in...)
	}
	switch len(found) {
	case 0:
		return nil, fault.Newf(fault.NotFound, "none of %s holds a data directory of PostgreSQL", strings.Join(dirs, ", "))
	case 1:
		v.data = found[0]
	default:
		return nil, fault.Newf(fault.Invalid, "there are several data directories, and it is not clear which is meant: %s", strings.Join(found, ", "))
	}
	b, err := os.ReadFile(filepath.Join(v.data, "PG_VERSION"))
	if err != nil {
		return nil, err
	}
	if v.version, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
		return nil, fault.Newf(fault.Invalid, "%s holds %q, no version that is supported", filepath.Join(v.data, "PG_VERSION"),
			strings.TrimSpace(string(b)))
	}
	return v, nil
}

func dataDirs(dir string, depth int) ([]string, error) {
	if _, err := os.Stat(filepath.Join(dir, "global", "pg_control")); err == nil {
		if _, err := os.Stat(filepath.Join(dir, "PG_VERSION")); err == nil {
			return []string{dir}, nil
		}
	}
	if depth == 0 {
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		found, err := dataDirs(filepath.Join(dir, e.Name()), depth-1)
		if err != nil && !os.IsPermission(err) {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// path is a file of the data directory.
func (v *volumes) path(parts ...string) string {
	return filepath.Join(append([]string{v.data}, parts...)...)
}

// holds tells whether a path lies in one of the volumes.
func (v *volumes) holds(path string) bool {
	for _, d := range v.dirs {
		if rel, err := filepath.Rel(d, path); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return true
		}
	}
	return false
}

// owner is who owns the data directory: files that are added must be his.
func (v *volumes) owner() (uid, gid int) {
	i, err := os.Stat(v.data)
	if err != nil {
		return -1, -1
	}
	s, ok := i.Sys().(*syscall.Stat_t)
	if !ok {
		return -1, -1
	}
	return int(s.Uid), int(s.Gid)
}

// write writes a file of the data directory as the server's user would, and makes it durable.
func (v *volumes) write(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := v.give(path); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// give makes the server's user own what Sluice made as root.
func (v *volumes) give(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	uid, gid := v.owner()
	return os.Lchown(path, uid, gid)
}

// links lists the symbolic links of all volumes.
func (v *volumes) links() ([]string, error) {
	var out []string
	for _, d := range v.dirs {
		err := filepath.WalkDir(d, func(path string, e fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil // a running server removes files
			}
			if err != nil {
				return err
			}
			if e.Type()&fs.ModeSymlink != 0 {
				out = append(out, path)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("look for symbolic links: %w", err)
		}
	}
	return out, nil
}

// leadsTo is where a link leads, as an absolute path, whether or not there is something.
func leadsTo(link string) (string, error) {
	to, err := os.Readlink(link)
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(to) {
		to = filepath.Join(filepath.Dir(link), to)
	}
	if real, err := filepath.EvalSymlinks(to); err == nil {
		return real, nil
	}
	return filepath.Clean(to), nil
}
