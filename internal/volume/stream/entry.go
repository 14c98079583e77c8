package stream

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/fault"
)

// pieceSize is how much of a file is checked and sent at once.
const pieceSize = 1 << 20

// sort is what an entry is.
type sort byte

const (
	folder  sort = 'd' // is made when it comes
	left    sort = 'D' // the folder is complete, and gets what belongs to it
	regular sort = 'f'
	symlink sort = 'l'
	link    sort = 'h' // another name of a file that came before
	fifo    sort = 'p'
	socket  sort = 's'
)

// entry is one name on a volume.
type entry struct {
	Sort     sort
	Path     string // from the root of the volume, "." for that itself
	Target   string // of both kinds of links
	Mode     uint32 // the permissions, with those above 0777
	UID, GID int
	MTime    int64 // nanoseconds
	Size     int64
	Data     []extent // where the file has data; the rest are holes
	Xattrs   []xattr
	Names    int // how many a folder has
}

// extent is a range of a file.
type extent struct{ At, Len int64 }

type xattr struct {
	Name  string
	Value []byte
}

// digest is what SHA-256 makes of something.
type digest [sha256.Size]byte

// pieces cuts the data of a file at multiples of pieceSize, so that both ends mean the same ranges.
func (e entry) pieces() []extent {
	var out []extent
	for _, x := range e.Data {
		for at := x.At; at < x.At+x.Len; {
			to := min(x.At+x.Len, at/pieceSize*pieceSize+pieceSize)
			out = append(out, extent{at, to - at})
			at = to
		}
	}
	return out
}

// valid refuses what no sender of this version says.
func (e entry) valid() error {
	if e.Path != "." && (!filepath.IsLocal(e.Path) || filepath.Clean(e.Path) != e.Path) {
		return fault.Newf(fault.Denied, "the path %q leads out of the volume", e.Path)
	}
	at := int64(0)
	for _, x := range e.Data {
		if x.At < at || x.Len <= 0 || x.At > e.Size-x.Len {
			return fault.Newf(fault.Invalid, "the data of %s are not in order", e.Path)
		}
		at = x.At + x.Len
	}
	return nil
}

// tally sums a volume up.
type tally struct {
	h       hash.Hash
	entries int64
	bytes   int64
}

func newTally() *tally { return &tally{h: sha256.New()} }

// add counts an entry with the digest of its content, in an unambiguous form.
func (t *tally) add(e entry, content digest) {
	text := func(s string) {
		t.h.Write(binary.AppendUvarint(nil, uint64(len(s))))
		t.h.Write([]byte(s))
	}
	text(string(e.Sort) + e.Path)
	text(e.Target)
	if e.Sort != folder { // a folder is complete when it is left
		text(fmt.Sprintf("%o %d %d %d %d %d", e.Mode, e.UID, e.GID, e.MTime, e.Size, e.Names))
		for _, x := range e.Xattrs {
			text(x.Name)
			text(string(x.Value))
		}
	}
	if e.Sort == regular {
		t.h.Write(content[:])
	}
	t.entries++
	t.bytes += e.Size
}

func (t *tally) summary() Summary {
	return Summary{Entries: t.entries, Bytes: t.bytes, SHA256: fmt.Sprintf("%x", t.h.Sum(nil))}
}

// Summary says what a volume holds: the same at both ends.
type Summary struct {
	Entries int64  `json:"entries"`
	Bytes   int64  `json:"bytes"`
	SHA256  string `json:"sha256"` // of names, attributes and contents in order
}

// lostAndFound is what a file system keeps for itself at its root.
const lostAndFound = "lost+found"

// walker reads the entries of a volume in an order that is always the same.
type walker struct {
	dir   string
	inode map[[2]uint64]string // of files with several names: the first
	each  func(entry) error
}

// walk calls each for every entry below dir; folders twice.
func walk(dir string, each func(entry) error) error {
	w := walker{dir: dir, inode: map[[2]uint64]string{}, each: each}
	return w.folder(".")
}

func (w *walker) folder(path string) error {
	e, err := w.entry(path)
	if err != nil {
		return err
	}
	if e.Sort != folder {
		return fault.Newf(fault.Invalid, "%s is no folder", filepath.Join(w.dir, path))
	}
	if err := w.each(e); err != nil {
		return err
	}
	names, err := namesIn(filepath.Join(w.dir, path), path)
	if err != nil {
		return err
	}
	for _, name := range names {
		below := filepath.Join(path, name)
		e, err := w.entry(below)
		switch {
		case err != nil:
		case e.Sort == folder:
			err = w.folder(below)
		default:
			err = w.each(e)
		}
		if err != nil {
			return err
		}
	}
	e.Sort, e.Names = left, len(names)
	return w.each(e)
}

// namesIn returns the names in a folder, in order.
func namesIn(dir, path string) ([]string, error) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range all {
		if path != "." || d.Name() != lostAndFound {
			names = append(names, d.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// entry reads what a name is.
func (w *walker) entry(path string) (entry, error) {
	full := filepath.Join(w.dir, path)
	info, err := os.Lstat(full)
	if err != nil {
		return entry{}, err
	}
	e, err := inode(path, info)
	if err != nil {
		return e, err
	}
	if e.Sort == symlink {
		e.Target, err = os.Readlink(full)
		return e, err
	}
	if s := info.Sys().(*syscall.Stat_t); s.Nlink > 1 && e.Sort != folder {
		id := [2]uint64{s.Dev, s.Ino}
		if first, known := w.inode[id]; known {
			return entry{Sort: link, Path: path, Target: first}, nil
		}
		w.inode[id] = path
	}
	if e.Xattrs, err = xattrsOf(full); err != nil {
		return e, fmt.Errorf("the extended attributes of %s: %w", path, err)
	}
	if e.Sort == regular {
		e.Data, err = dataOf(full, e.Size)
	}
	return e, err
}

// inode is an entry as far as its inode tells.
func inode(path string, info fs.FileInfo) (entry, error) {
	s := info.Sys().(*syscall.Stat_t)
	e := entry{Path: path, Mode: s.Mode &^ unix.S_IFMT, UID: int(s.Uid), GID: int(s.Gid), MTime: info.ModTime().UnixNano()}
	switch info.Mode().Type() {
	case fs.ModeDir:
		e.Sort = folder
	case fs.ModeSymlink:
		e.Sort = symlink
	case fs.ModeNamedPipe:
		e.Sort = fifo
	case fs.ModeSocket:
		e.Sort = socket
	case 0:
		e.Sort, e.Size = regular, info.Size()
	default:
		return e, fault.WithRemedy(fault.Newf(fault.Invalid, "%s is a device, and the stream carries files only", path), "remove it from the volume")
	}
	return e, nil
}

// words are all that is kept of an entry but for its content.
func (e entry) words() string {
	text := fmt.Sprintf("%c, mode %o, owner %d:%d, time %d, %d bytes", e.Sort, e.Mode, e.UID, e.GID, e.MTime, e.Size)
	if e.Sort == symlink {
		text += ", to " + e.Target
	}
	for _, x := range e.Xattrs {
		text += fmt.Sprintf(", %s %x", x.Name, x.Value)
	}
	return text
}

// dataOf returns where a file has data. Where the file system does not tell, that is everywhere.
func dataOf(path string, size int64) ([]extent, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return extentsOf(f, size)
}

func extentsOf(f *os.File, size int64) ([]extent, error) {
	var out []extent
	for at := int64(0); at < size; {
		from, err := f.Seek(at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			return out, nil
		case errors.Is(err, unix.EINVAL):
			return []extent{{0, size}}, nil
		case err != nil:
			return nil, err
		}
		to, err := f.Seek(from, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		if to = min(to, size); from < to {
			out = append(out, extent{from, to - from})
		}
		at = max(to, from+1)
	}
	return out, nil
}

// open opens a file without leaving a trace on it, where that is allowed.
func open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOATIME|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrPermission) {
		return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	}
	return f, err
}

// carried tells which extended attributes are data: those of users, and access control lists. The others belong to the machine.
func carried(name string) bool {
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "system.posix_acl_")
}

// bareACL is how long an access control list is that says no more than the permissions.
const bareACL = 28

// xattrsOf returns the extended attributes that are data. The path is of no link.
func xattrsOf(path string) ([]xattr, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Listxattr(path, list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []xattr
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if !carried(name) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Getxattr(path, name, value)
		if err != nil {
			return nil, err
		}
		if name == "system.posix_acl_access" && n == bareACL {
			continue
		}
		out = append(out, xattr{name, value[:n]})
	}
	slices.SortFunc(out, func(a, b xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// sized is how much a volume holds.
type sized struct {
	Files int64 // inodes
	Bytes int64 // of data
	Space int64 // as the file system has given it out
}

// sizeOf sums up what is on a volume.
func sizeOf(dir string) (sized, error) {
	var s sized
	seen := map[[2]uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if d.IsDir() && filepath.Join(dir, lostAndFound) == path {
			return filepath.SkipDir
		}
		if st.Nlink > 1 && !d.IsDir() {
			id := [2]uint64{st.Dev, st.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		s.Files++
		s.Space += st.Blocks * 512
		if info.Mode().IsRegular() {
			s.Bytes += min(info.Size(), st.Blocks*512)
		}
		return nil
	})
	return s, err
}
