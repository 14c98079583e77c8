package fingerprint

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// DefaultMemory bounds what a comparison holds of differing rows.
const DefaultMemory = 64 << 20

const maxPartitions = 1024

// spill keeps records in partitions by hash: in memory as long as they are few, then in files.
type spill struct {
	dir     string
	name    string
	limit   int // of a partition's buffer
	parts   []partition
	written *atomic.Int64
}

type partition struct {
	mu   sync.Mutex
	buf  []byte
	file *os.File
	size int64 // of the file
}

// partitionsFor chooses how many partitions let one of both sides fit into a quarter of the memory.
func partitionsFor(bytes, memory int64) int {
	return int(min(maxPartitions, max(1, (bytes+memory/4-1)/max(1, memory/4))))
}

func newSpill(dir, name string, parts int, memory int64, written *atomic.Int64) *spill {
	return &spill{dir: dir, name: name, parts: make([]partition, parts), written: written,
		limit: int(max(4<<10, memory/8/int64(parts)))}
}

// add writes a record to the partition of a hash. The record is appended by put to the partition's buffer.
func (s *spill) add(by Hash, put func([]byte) []byte) error {
	p := &s.parts[by.Lo%uint64(len(s.parts))]
	p.mu.Lock()
	defer p.mu.Unlock()
	p.buf = put(p.buf)
	if len(p.buf) < s.limit {
		return nil
	}
	if p.file == nil {
		f, err := os.CreateTemp(s.dir, s.name+"-")
		if err != nil {
			return spillFault(s.dir, err)
		}
		p.file = f
	}
	n, err := p.file.Write(p.buf)
	p.size += int64(n)
	s.written.Add(int64(n))
	if err != nil {
		return spillFault(s.dir, err)
	}
	if p.buf = p.buf[:0]; cap(p.buf) > 2*s.limit {
		p.buf = nil // one huge record must not keep its space for good
	}
	return nil
}

func spillFault(dir string, err error) error {
	return fault.WithRemedy(fault.Newf(fault.Transient, "writing differing rows to %s: %w", dir, err), "free space there, or name another spill folder")
}

// load reads a partition into buf, growing it as needed, and forgets the partition.
func (s *spill) load(i int, buf []byte) ([]byte, error) {
	p := &s.parts[i]
	need := int(p.size) + len(p.buf)
	buf = slices.Grow(buf[:0], need)[:need]
	if p.file != nil {
		if _, err := io.ReadFull(io.NewSectionReader(p.file, 0, p.size), buf[:p.size]); err != nil {
			return nil, fmt.Errorf("reading differing rows back from %s: %w", p.file.Name(), err)
		}
	}
	copy(buf[p.size:], p.buf)
	return buf, p.drop()
}

// drop removes the partition's file. Failing to remove a file inside our own temporary folder is no reason to fail: the
// folder is removed as a whole.
func (p *partition) drop() error {
	p.buf = nil
	if p.file == nil {
		return nil
	}
	name := p.file.Name()
	err := p.file.Close()
	p.file, p.size = nil, 0
	_ = os.Remove(name)
	return err
}

func (s *spill) close() {
	if s == nil {
		return
	}
	for i := range s.parts {
		_ = s.parts[i].drop()
	}
}

// spaceFor refuses to begin what the disk cannot hold.
func spaceFor(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return spillFault(dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fault.WithRemedy(fault.Newf(fault.Transient, "telling the differing rows apart needs %s in %s, where %s are free", byteText(need), dir, byteText(free)),
			"free space there, or name another spill folder")
	}
	return nil
}

// entry is a record in a loaded partition: where its row lies, if it has one.
type entry struct {
	key, row Hash
	at       int
}

const hashRecord = 32

// hashEntries reads records of two hashes.
func hashEntries(data []byte, out []entry) []entry {
	for at := 0; at+hashRecord <= len(data); at += hashRecord {
		out = append(out, entry{hashAt(data[at:]), hashAt(data[at+16:]), at})
	}
	return out
}

// appendRow appends a record of a whole row: its length, two hashes, the key and the values.
func appendRow(dst []byte, key, row Hash, r database.Row) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = row.appendTo(key.appendTo(dst))
	dst = database.AppendElement(dst, r.Key)
	for _, v := range r.Values {
		dst = database.AppendElement(dst, v)
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst
}

// rowEntries reads records of whole rows.
func rowEntries(data []byte, out []entry) []entry {
	for at := 0; at+4+hashRecord <= len(data); {
		n := int(binary.BigEndian.Uint32(data[at:]))
		out = append(out, entry{hashAt(data[at+4:]), hashAt(data[at+20:]), at})
		at += 4 + n
	}
	return out
}

// rowAt reads the row of an entry; it points into data.
func rowAt(data []byte, e entry) (database.Row, error) {
	n := int(binary.BigEndian.Uint32(data[e.at:]))
	parts, ok := database.KeyValues(data[e.at+4+hashRecord : e.at+4+n])
	if !ok || len(parts) == 0 {
		return database.Row{}, fault.Newf(fault.Lost, "a spilled row cannot be read back; the spill folder was written by somebody else")
	}
	return database.Row{Key: parts[0], Values: parts[1:]}, nil
}

func sortEntries(e []entry) {
	slices.SortFunc(e, func(a, b entry) int {
		switch {
		case a.key.less(b.key):
			return -1
		case b.key.less(a.key):
			return 1
		case a.row.less(b.row):
			return -1
		case b.row.less(a.row):
			return 1
		}
		return a.at - b.at
	})
}

// group is what both sides hold under one key. Rest is what is left of each side when equal rows are taken away in pairs.
type group struct {
	key    Hash
	copies [2]int
	rest   [2][]entry
}

// walk goes through two sorted lists key by key and calls each with the groups that differ.
func walk(source, target []entry, without Part, each func(*group) error) error {
	var g group
	for len(source) > 0 || len(target) > 0 {
		g.key = nextKey(source, target)
		var s, t []entry
		s, source = cutKey(source, g.key)
		t, target = cutKey(target, g.key)
		if without == PartMultiset {
			s, t = s[:min(1, len(s))], t[:min(1, len(t))]
		}
		g.copies = [2]int{len(s), len(t)}
		g.rest[Source], g.rest[Target] = withoutEqual(s, t, g.rest[Source][:0], g.rest[Target][:0])
		if len(g.rest[Source])+len(g.rest[Target]) == 0 {
			continue
		}
		if err := each(&g); err != nil {
			return err
		}
	}
	return nil
}

func nextKey(source, target []entry) Hash {
	switch {
	case len(source) == 0:
		return target[0].key
	case len(target) == 0 || source[0].key.less(target[0].key):
		return source[0].key
	}
	return target[0].key
}

func cutKey(e []entry, key Hash) (head, rest []entry) {
	n := 0
	for n < len(e) && e[n].key == key {
		n++
	}
	return e[:n], e[n:]
}

// withoutEqual appends what is left of two sorted multisets when equal rows are taken away in pairs.
func withoutEqual(s, t, left, right []entry) ([]entry, []entry) {
	for len(s) > 0 && len(t) > 0 {
		switch {
		case s[0].row == t[0].row:
			s, t = s[1:], t[1:]
		case s[0].row.less(t[0].row):
			left, s = append(left, s[0]), s[1:]
		default:
			right, t = append(right, t[0]), t[1:]
		}
	}
	return append(left, s...), append(right, t...)
}

// tally is how many rows of a table differ, by what became of the row.
type tally struct {
	missing, extra, changed, duplicate int64
}

// count takes a group in. Without a key nothing is changed: a row is its own identity.
func (c *tally) count(g *group, keyless bool) {
	s, t := len(g.rest[Source]), len(g.rest[Target])
	pairs := 0
	if !keyless {
		pairs = min(s, t)
	}
	c.changed += int64(pairs)
	if g.copies[Target] == 0 {
		c.missing += int64(s - pairs)
	} else {
		c.duplicate += int64(s - pairs)
	}
	if g.copies[Source] == 0 {
		c.extra += int64(t - pairs)
	} else {
		c.duplicate += int64(t - pairs)
	}
}

func (c tally) sum() int64 { return c.missing + c.extra + c.changed + c.duplicate }

// keyFilter is a set of key hashes that may hold a few too many: rows that it lets through although they are equal
// cancel when the sides are merged. So its memory is bounded however many rows differ.
type keyFilter struct {
	bits []uint64
	mask uint64
}

func newKeyFilter(keys, memory int64) *keyFilter {
	bits := int64(1 << 16)
	for bits < 16*keys && bits/8 < memory/2 {
		bits <<= 1
	}
	return &keyFilter{make([]uint64, bits/64), uint64(bits - 1)}
}

func (f *keyFilter) add(key Hash) {
	i := key.Hi & f.mask
	f.bits[i/64] |= 1 << (i % 64)
}

func (f *keyFilter) has(key Hash) bool {
	i := key.Hi & f.mask
	return f.bits[i/64]&(1<<(i%64)) != 0
}
