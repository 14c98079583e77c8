package stream

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/fault"
)

// receiving is one connection of the receiver's. It trusts the other end to be the sender, and not what is written on the
// sender's volume: every path is resolved below the root, and no link is followed.
type receiving struct {
	w    *wire
	id   string
	root *os.Root
	fd   int // of the root
	sum  *tally

	order   order
	entries []entry
	known   [][]digest // of the batch's files: the pieces that are there
}

// receive makes dir hold what the sender has. What is there already stays, where it is the same.
func receive(w *wire, id, dir string) (Summary, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Summary{}, err
	}
	defer func() { _ = root.Close() }() // it was opened for resolving names only
	d, err := root.Open(".")
	if err != nil {
		return Summary{}, err
	}
	defer d.Close()
	r := &receiving{w: w, id: id, root: root, fd: int(d.Fd()), sum: newTally()}
	if err := r.greet(dir); err != nil {
		return Summary{}, err
	}
	for {
		k, body, err := w.next()
		if err != nil {
			return Summary{}, err
		}
		switch k {
		case batch:
			if err := r.batch(body); err != nil {
				return Summary{}, err
			}
		case end:
			return r.end(body)
		default:
			return Summary{}, fault.Newf(fault.Invalid, "a frame of kind %d arrived where a batch was due", k)
		}
	}
}

// greet refuses a sender of another transfer, and a volume that is too small.
func (r *receiving) greet(dir string) error {
	var g greeting
	if err := r.w.expect(hello, &g); err != nil {
		return err
	}
	switch {
	case g.Version != version:
		return fault.WithRemedy(fault.Newf(fault.Invalid, "the sender speaks version %d of the stream and the receiver version %d", g.Version, version),
			"use the image of the same version of Sluice as jobs.image of both accounts")
	case g.ID != r.id:
		return fault.Newf(fault.Invalid, "the sender sends %q and the receiver awaits %q", g.ID, r.id)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(r.fd, &fs); err != nil {
		return err
	}
	there, err := sizeOf(dir)
	if err != nil {
		return err
	}
	room := int64(fs.Bfree)*fs.Bsize + there.Space // what is kept for root counts, because that is who writes
	if g.Size.Space > room {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "the target volume has room for %s, and what is to be copied takes %s", bytesText(room), bytesText(g.Size.Space)),
			"have the target's claim ask for more storage")
	}
	if names := int64(fs.Ffree) + there.Files; fs.Files > 0 && g.Size.Files > names {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "the target volume has room for %d files, and %d are to be copied", names, g.Size.Files),
			"make the target's claim larger, or have its StorageClass make more inodes")
	}
	return r.w.frame(welcome)
}

// batch takes a batch: it says what it has, writes what comes, makes it durable, reads it back, and sets the attributes.
func (r *receiving) batch(body []byte) error {
	r.entries, r.known = nil, nil
	if err := decode(body, &r.entries); err != nil {
		return err
	}
	for _, e := range r.entries {
		if err := errors.Join(e.valid(), r.order.next(e)); err != nil {
			return err
		}
		if err := r.place(e); err != nil {
			return err
		}
	}
	if err := r.look(); err != nil {
		return err
	}
	if err := r.w.say(have, r.known); err != nil {
		return err
	}
	digests, wrote, err := r.write()
	if err != nil {
		return err
	}
	if err := r.sync(); err != nil {
		return err
	}
	n := 0
	for i, e := range r.entries {
		var d digest
		if e.Sort == regular {
			if n >= len(digests) {
				return fault.Newf(fault.Invalid, "the sender left files of a batch out")
			}
			d = digests[n]
			if err := r.check(e, d, r.known[n], wrote[i]); err != nil {
				return err
			}
			n++
		}
		if err := r.dress(e); err != nil {
			return err
		}
		now, err := r.reread(e)
		if err != nil {
			return err
		}
		r.sum.add(now, d)
	}
	return r.w.frame(stored)
}

// place makes an entry exist, empty where it did not. What is there and is something else goes: the claim was made for this copy.
func (r *receiving) place(e entry) error {
	info, err := r.root.Lstat(e.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		if r.fits(e, info) {
			return nil
		}
		if err := r.root.RemoveAll(e.Path); err != nil {
			return err
		}
	}
	switch e.Sort {
	case left:
		return fault.Newf(fault.Lost, "the folder %s is gone from the target volume", e.Path)
	case folder:
		return r.root.Mkdir(e.Path, 0o700)
	case regular:
		f, err := r.root.OpenFile(e.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		return f.Close()
	case symlink:
		return r.root.Symlink(e.Target, e.Path)
	case link:
		return r.root.Link(e.Target, e.Path)
	case fifo, socket:
		return r.within(e.Path, func(dir int, name string) error {
			mode := uint32(unix.S_IFIFO)
			if e.Sort == socket {
				mode = unix.S_IFSOCK
			}
			return unix.Mknodat(dir, name, mode|0o600, 0)
		})
	}
	return fault.Newf(fault.Invalid, "%s is of a sort that the receiver does not know: %q", e.Path, e.Sort)
}

// fits tells whether what is there is what an entry wants there, but for content and attributes.
func (r *receiving) fits(e entry, info fs.FileInfo) bool {
	switch e.Sort {
	case folder, left:
		return info.IsDir()
	case regular:
		return info.Mode().IsRegular()
	case symlink:
		to, err := r.root.Readlink(e.Path)
		return err == nil && to == e.Target
	case link:
		first, err := r.root.Lstat(e.Target)
		return err == nil && os.SameFile(first, info)
	case fifo:
		return info.Mode().Type() == fs.ModeNamedPipe
	case socket:
		return info.Mode().Type() == fs.ModeSocket
	}
	return false
}

// within calls do with the open folder that an entry is in.
func (r *receiving) within(path string, do func(dir int, name string) error) error {
	d, err := r.root.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := do(int(d.Fd()), filepath.Base(path)); err != nil {
		return &fs.PathError{Op: "make", Path: path, Err: err}
	}
	return nil
}

// sync makes durable what was written.
func (r *receiving) sync() error {
	if err := unix.Syncfs(r.fd); err != nil {
		return fmt.Errorf("the target volume did not take what was written: %w", err)
	}
	return nil
}

// open opens a file of the volume for reading and writing.
func (r *receiving) open(e entry) (*os.File, error) {
	f, err := r.root.OpenFile(e.Path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrPermission) && r.root.Chmod(e.Path, 0o600) == nil {
		return r.root.OpenFile(e.Path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	}
	return f, err
}

// look finds out what of the batch's files is there, as it is on the disk. What an end that was killed has left half is found here.
func (r *receiving) look() error {
	var filled []entry
	for _, e := range r.entries {
		if e.Sort == regular {
			filled = append(filled, e)
		}
	}
	r.known = make([][]digest, len(filled))
	synced := false
	for i, e := range filled {
		info, err := r.root.Lstat(e.Path)
		if err := errors.Join(r.w.ended(), err); err != nil {
			return err
		}
		if info.Size() == 0 && e.Size == 0 {
			continue
		}
		if info.Size() > 0 && !synced {
			if err := r.sync(); err != nil {
				return err
			}
			synced = true
		}
		if err := func() error {
			f, err := r.open(e)
			if err != nil {
				return err
			}
			defer f.Close()
			if info.Size() > 0 {
				if r.known[i], err = r.present(f, e, info.Size()); err != nil {
					return err
				}
				if err := reserved(f, e, info.Size(), r.known[i]); err != nil {
					return err
				}
			}
			return f.Truncate(e.Size)
		}(); err != nil {
			return err
		}
	}
	return nil
}

// present returns the digests of the pieces that a file holds, none where it has something where a hole must be: then it begins
// anew.
func (r *receiving) present(f *os.File, e entry, size int64) ([]digest, error) {
	uncache(f)
	clean, err := r.hollow(f, e, size)
	if err != nil {
		return nil, err
	}
	if !clean {
		return nil, f.Truncate(0)
	}
	var out []digest
	buffer := make([]byte, pieceSize)
	for _, x := range e.pieces() {
		if x.At+x.Len > size {
			break
		}
		if err := r.w.ended(); err != nil {
			return nil, err
		}
		if _, err := f.ReadAt(buffer[:x.Len], x.At); err != nil {
			return nil, err
		}
		out = append(out, sha256.Sum256(buffer[:x.Len]))
	}
	return out, nil
}

// reserved forgets the pieces that are holes and must not be: zeros that a file reads by itself have no room on the disk yet.
func reserved(f *os.File, e entry, size int64, known []digest) error {
	data, err := extentsOf(f, size)
	if err != nil {
		return err
	}
	for n, x := range e.pieces()[:len(known)] {
		for len(data) > 0 && data[0].At+data[0].Len < x.At+x.Len {
			data = data[1:]
		}
		if len(data) == 0 || data[0].At > x.At {
			known[n] = digest{}
		}
	}
	return nil
}

// uncache has the next reads come from the disk, as far as the system lets go of what it has in memory.
func uncache(f *os.File) {
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // a hint
}

// hollow tells whether a file is empty wherever the entry has no data.
func (r *receiving) hollow(f *os.File, e entry, size int64) (bool, error) {
	data, err := extentsOf(f, min(size, e.Size))
	if err != nil {
		return false, err
	}
	buffer := make([]byte, pieceSize)
	for _, gap := range gaps(e) {
		for _, x := range data {
			from, to := max(gap.At, x.At), min(gap.At+gap.Len, x.At+x.Len)
			for at := from; at < to; {
				if err := r.w.ended(); err != nil {
					return false, err
				}
				n, err := f.ReadAt(buffer[:min(pieceSize, to-at)], at)
				if err != nil && err != io.EOF {
					return false, err
				}
				for _, b := range buffer[:n] {
					if b != 0 {
						return false, nil
					}
				}
				if n == 0 {
					break
				}
				at += int64(n)
			}
		}
	}
	return true, nil
}

// gaps are the holes of an entry.
func gaps(e entry) []extent {
	var out []extent
	at := int64(0)
	for _, x := range e.Data {
		if x.At > at {
			out = append(out, extent{at, x.At - at})
		}
		at = x.At + x.Len
	}
	if at < e.Size {
		out = append(out, extent{at, e.Size - at})
	}
	return out
}

// write writes the pieces that come until the batch is sealed. It returns the digests of the batch's files, and which entries were
// written to.
func (r *receiving) write() (digests []digest, wrote map[int]bool, err error) {
	wrote = map[int]bool{}
	current, file, pieces := -1, (*os.File)(nil), []extent(nil)
	defer func() {
		if file != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	for {
		k, body, err := r.w.next()
		if err != nil {
			return nil, nil, err
		}
		if k == sealed {
			return digests, wrote, decode(body, &digests)
		}
		const head = 8 + sha256.Size
		if k != piece || len(body) < head {
			return nil, nil, fault.Newf(fault.Invalid, "a frame of kind %d and %d bytes arrived where a piece was due", k, len(body))
		}
		i, n := int(binary.BigEndian.Uint32(body)), int(binary.BigEndian.Uint32(body[4:]))
		if i >= len(r.entries) || r.entries[i].Sort != regular {
			return nil, nil, fault.Newf(fault.Invalid, "a piece of no file arrived")
		}
		e := r.entries[i]
		if i != current {
			if file != nil {
				if err := file.Close(); err != nil {
					return nil, nil, err
				}
				file = nil
			}
			if file, err = r.open(e); err != nil {
				return nil, nil, err
			}
			current, pieces = i, e.pieces()
			wrote[i] = true
		}
		if n >= len(pieces) || int64(len(body)-head) != pieces[n].Len {
			return nil, nil, fault.Newf(fault.Invalid, "a piece of %s arrived that it does not have", e.Path)
		}
		if d := digest(sha256.Sum256(body[head:])); d != digest(body[8:head]) {
			return nil, nil, fault.WithRemedy(fault.Newf(fault.Lost, "the bytes of %s from %d on arrived changed: their SHA-256 is another one than the sender's", e.Path, pieces[n].At),
				"what was copied before stays; try again, and have the memory and the network of both nodes looked at")
		}
		if _, err := file.WriteAt(body[head:], pieces[n].At); err != nil {
			return nil, nil, err
		}
	}
}

// check reads a file back from the disk and compares it with what the sender has read. One to which nothing was written was
// read when it was looked for.
func (r *receiving) check(e entry, want digest, known []digest, wrote bool) error {
	if wrote {
		f, err := r.open(e)
		if err != nil {
			return err
		}
		defer f.Close()
		if known, err = r.present(f, e, e.Size); err != nil {
			return err
		}
	}
	whole := sha256.New()
	for _, d := range known {
		whole.Write(d[:])
	}
	if digest(whole.Sum(nil)) != want {
		return fault.WithRemedy(fault.Newf(fault.Lost, "%s was written and reads back changed: its SHA-256 is another one than the sender's", e.Path),
			"the target's storage is not sound: have it looked at before it is used")
	}
	return nil
}

// end compares both volumes as a whole, and makes the last of it durable.
func (r *receiving) end(body []byte) (Summary, error) {
	var theirs Summary
	if err := decode(body, &theirs); err != nil {
		return Summary{}, err
	}
	if err := r.order.end(); err != nil {
		return Summary{}, err
	}
	ours := r.sum.summary()
	if ours != theirs {
		return ours, fault.Newf(fault.Lost, "the sender sent %d entries with the SHA-256 %s, and the receiver has %d with %s", theirs.Entries, theirs.SHA256, ours.Entries, ours.SHA256)
	}
	if err := r.sync(); err != nil {
		return ours, err
	}
	return ours, r.w.frame(done)
}
