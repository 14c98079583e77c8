package postgres

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/internal/fault"
)

// tablespaceVersion is the directory that every server keeps its files of a tablespace in: PG_15_202209061.
var tablespaceVersion = regexp.MustCompile(`^PG_\d+_\d+$`)

// walSegment is the name of a segment of the log.
var walSegment = regexp.MustCompile(`^[0-9A-F]{24}$`)

// repoint makes every symbolic link of a copy that leads out of it lead into it, to where the same thing was copied. A
// copy's links are production's: a clone that followed one would write into production. Links whose target is not in the
// copy are returned.
func (v *volumes) repoint() (moved []string, astray []string, err error) {
	links, err := v.links()
	if err != nil {
		return nil, nil, err
	}
	spaces := map[string]string{} // tablespaces that were moved, by OID
	for _, link := range links {
		to, err := leadsTo(link)
		if err != nil {
			return nil, nil, err
		}
		if v.holds(to) {
			continue
		}
		now, err := v.counterpart(link, to)
		if err != nil {
			return nil, nil, err
		}
		if now == "" {
			astray = append(astray, fmt.Sprintf("%s leads to %s", link, to))
			continue
		}
		if err := v.relink(link, now); err != nil {
			return nil, nil, err
		}
		if filepath.Dir(link) == v.path("pg_tblspc") {
			spaces[filepath.Base(link)] = now
		}
		moved = append(moved, fmt.Sprintf("%s led to %s and now leads to %s", link, to, now))
	}
	if err := v.remap(spaces); err != nil {
		return nil, nil, err
	}
	return moved, astray, nil
}

// counterpart finds what a link led to in the copy: a tablespace by its version directory, the log by its segments.
func (v *volumes) counterpart(link, to string) (string, error) {
	var is func(dir string, entries []fs.DirEntry) bool
	switch {
	case filepath.Dir(link) == v.path("pg_tblspc"):
		is = func(_ string, entries []fs.DirEntry) bool {
			return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.IsDir() && tablespaceVersion.MatchString(e.Name()) })
		}
	case link == v.path("pg_wal"):
		is = func(dir string, entries []fs.DirEntry) bool {
			return dir != v.data && slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == "archive_status" })
		}
	default:
		return "", nil
	}
	var all []string
	for _, d := range v.dirs {
		err := filepath.WalkDir(d, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() {
				return err
			}
			entries, err := os.ReadDir(path)
			if err != nil {
				return err
			}
			if is(path, entries) {
				all = append(all, path)
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("look for %s in the copy: %w", to, err)
		}
	}
	return likest(all, to), nil
}

// likest returns the path that ends most like the wanted one. Two that are equally like it are none: a clone must not be
// given the wrong files.
func likest(all []string, want string) string {
	best, length, twice := "", -1, false
	for _, p := range all {
		switch n := commonTail(p, want); {
		case n > length:
			best, length, twice = p, n, false
		case n == length:
			twice = true
		}
	}
	if twice {
		return ""
	}
	return best
}

// commonTail counts the last elements that two paths have in common.
func commonTail(a, b string) int {
	x, y := strings.Split(a, "/"), strings.Split(b, "/")
	n := 0
	for n < len(x) && n < len(y) && x[len(x)-1-n] == y[len(y)-1-n] {
		n++
	}
	return n
}

// relink replaces a link in one step, so that there is never none.
func (v *volumes) relink(link, to string) error {
	part := link + ".sluice"
	if err := os.Remove(part); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.Symlink(to, part); err != nil {
		return err
	}
	if err := v.give(part); err != nil {
		return err
	}
	return os.Rename(part, link)
}

// remap writes the new places into the tablespace map of a copy that was put together by the backup mode: recovery makes
// the links anew from it.
func (v *volumes) remap(spaces map[string]string) error {
	path := v.path("tablespace_map")
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		oid, to, ok := strings.Cut(s.Text(), " ")
		if now := spaces[oid]; ok && now != "" {
			to = now
		} else if link, err := leadsTo(v.path("pg_tblspc", oid)); ok && err == nil {
			to = link // moved by an earlier call
		}
		if ok && !v.holds(to) {
			return fault.Newf(fault.Invalid, "tablespace %s of the copy is at %s, which is not part of it", oid, to)
		}
		fmt.Fprintf(&out, "%s %s\n", oid, to)
	}
	if bytes.Equal(out.Bytes(), b) {
		return nil
	}
	return v.write(path, out.Bytes())
}
