package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/fault"
)

// receivingTo is a receiver whose sender is nobody.
func receivingTo(t *testing.T, dir string) *receiving {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	a, b := net.Pipe()
	w := newWire(a)
	t.Cleanup(func() { w.close(); b.Close() })
	return &receiving{w: w, root: root, sum: newTally()}
}

func TestNoLinkIsFollowedWhenAFileIsDressed(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := folderOf(t)
	if err := os.Symlink(outside, filepath.Join(dir, "x")); err != nil {
		t.Fatal(err)
	}
	e := entry{Sort: regular, Path: "x", Mode: 0o4777, UID: os.Getuid(), GID: os.Getgid(), Xattrs: []xattr{{"user.was", []byte("here")}}}
	if err := receivingTo(t, dir).dress(e); err == nil {
		t.Error("a link was dressed as the file that it leads to")
	}
	info, err := os.Stat(outside)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the file outside is %v, %v", info.Mode(), err)
	}
	if n, err := unix.Getxattr(outside, "user.was", make([]byte, 10)); err == nil {
		t.Errorf("the file outside has an attribute of %d bytes", n)
	}
}

func TestWhatReadsBackChangedIsNotCounted(t *testing.T) {
	dir := folderOf(t)
	path := filepath.Join(dir, "x")
	if err := os.WriteFile(path, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := entry{Sort: regular, Path: "x", Size: 3, Mode: 0o640, UID: os.Getuid(), GID: os.Getgid(), MTime: 1_000_000_000_123_456_789}
	r := receivingTo(t, dir)
	dressed := func() {
		t.Helper()
		if err := r.dress(e); err != nil {
			t.Fatal(err)
		}
	}
	dressed()
	now, err := r.reread(e)
	if err != nil || now.words() != e.words() {
		t.Errorf("%s, %v", now.words(), err)
	}
	for name, change := range map[string]func() error{
		"the permissions": func() error { return os.Chmod(path, 0o600) },
		"the size":        func() error { return os.Truncate(path, 2) },
		"the time":        func() error { return os.Chtimes(path, time.Time{}, time.Unix(999_999_990, 0)) },
		"the sort":        func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o640)) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, []byte("abc"), 0o600)); err != nil {
				t.Fatal(err)
			}
			dressed()
			if err := change(); err != nil {
				t.Fatal(err)
			}
			if _, err := r.reread(e); !fault.Is(err, fault.Lost) || !strings.Contains(err.Error(), "x was made as") {
				t.Error(err)
			}
		})
	}
	// A file system may keep seconds only.
	if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, []byte("abc"), 0o600)); err != nil {
		t.Fatal(err)
	}
	dressed()
	if err := os.Chtimes(path, time.Time{}, time.Unix(1_000_000_000, 0)); err != nil {
		t.Fatal(err)
	}
	if now, err := r.reread(e); err != nil || now.MTime != e.MTime {
		t.Errorf("%s, %v", now.words(), err)
	}
}

// TestAnAccessControlListIsNotInherited has a folder with a default list on the target when a file is made in it.
func TestAnAccessControlListIsNotInherited(t *testing.T) {
	from, to := folderOf(t), folderOf(t)
	list := []byte{2, 0, 0, 0}
	for _, x := range [][3]uint32{{1, 7, 1<<32 - 1}, {2, 6, 1000}, {4, 5, 1<<32 - 1}, {16, 7, 1<<32 - 1}, {32, 0, 1<<32 - 1}} {
		list = binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(list, uint16(x[0])), uint16(x[1]))
		list = binary.LittleEndian.AppendUint32(list, x[2])
	}
	const usual, access = "system.posix_acl_default", "system.posix_acl_access"
	if err := os.WriteFile(filepath.Join(from, "plain"), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from, "listed"), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Setxattr(from, usual, list, 0), unix.Setxattr(filepath.Join(from, "listed"), access, list, 0), unix.Setxattr(to, usual, list, 0)); err != nil {
		t.Skipf("the file system of the tests keeps no access control lists: %v", err)
	}
	if _, _, a, b := session(t, from, to, tcp(t, nil)); a != nil || b != nil {
		t.Fatal(a, b)
	}
	equal(t, from, to)
	got := make([]byte, 100)
	if n, err := unix.Getxattr(filepath.Join(to, "plain"), access, got); !errors.Is(err, unix.ENODATA) {
		t.Errorf("the file without a list has one of %d bytes, %v", n, err)
	}
	if n, err := unix.Getxattr(filepath.Join(to, "listed"), access, got); err != nil || string(got[:n]) != string(list) {
		t.Errorf("the list is %x, want %x: %v", got[:max(n, 0)], list, err)
	}
}

func TestASenderIsHeldToTheOrderOfAWalk(t *testing.T) {
	var o order
	if err := walk(fill(t, folderOf(t), 9), func(e entry) error { return o.next(e) }); err != nil {
		t.Error(err)
	}
	if err := o.end(); err != nil {
		t.Error(err)
	}
	root, done := entry{Sort: folder, Path: "."}, entry{Sort: left, Path: "."}
	in := func(sort sort, path string) entry { return entry{Sort: sort, Path: path} }
	for name, all := range map[string][]entry{
		"no root":                   {in(regular, "a")},
		"a root that is a file":     {in(regular, ".")},
		"a name twice":              {root, in(regular, "a"), in(symlink, "a")},
		"a name before another":     {root, in(regular, "b"), in(regular, "a")},
		"a folder twice":            {root, in(folder, "a"), in(left, "a"), in(folder, "a")},
		"the root twice":            {root, root},
		"the root after its end":    {root, done, root},
		"below a link":              {root, in(symlink, "a"), in(regular, "a/b")},
		"below what did not come":   {root, in(regular, "a/b")},
		"below what was left":       {root, in(folder, "a"), in(left, "a"), in(regular, "a/b")},
		"above what is not left":    {root, in(folder, "a"), in(regular, "b")},
		"another folder's end":      {root, in(folder, "a"), done},
		"an end of no folder":       {in(left, ".")},
		"something after the end":   {root, done, in(regular, "a")},
		"the end of a folder twice": {root, in(folder, "a"), in(left, "a"), in(left, "a")},
	} {
		t.Run(name, func(t *testing.T) {
			var o order
			for i, e := range all {
				err := o.next(e)
				if last := i == len(all)-1; last != fault.Is(err, fault.Denied) {
					t.Errorf("entry %d: %v", i, err)
				}
			}
		})
	}
	o = order{}
	if err := errors.Join(o.next(root), o.next(in(folder, "a"))); err != nil || o.end() == nil {
		t.Errorf("half a volume passes for a whole one: %v", err)
	}
}

func TestWhatTheStorageDoesMayPass(t *testing.T) {
	for err, kind := range map[error]fault.Kind{
		unix.EIO: fault.Transient, unix.ESTALE: fault.Transient, unix.EROFS: fault.Transient, unix.ETIMEDOUT: fault.Transient,
		unix.ENOSPC: fault.Invalid, unix.EDQUOT: fault.Invalid, unix.ENAMETOOLONG: "", fault.Newf(fault.Lost, "changed: %w", unix.EIO): fault.Lost,
	} {
		if got := ofStorage("target", &os.PathError{Op: "write", Path: "x", Err: err}); fault.KindOf(got) != kind || !errors.Is(got, err) {
			t.Errorf("%v is of kind %q, want %q", got, fault.KindOf(got), kind)
		}
	}
	if err := ofStorage("target", fmt.Errorf("a: %w", unix.EIO)); !strings.Contains(err.Error(), "the storage of the target volume fails: a: ") {
		t.Error(err)
	}
}
