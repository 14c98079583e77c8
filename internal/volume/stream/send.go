package stream

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
)

// greeting is how a sender begins.
type greeting struct {
	Version int
	ID      string // of the transfer
	Size    sized
}

const (
	batchEntries = 256       // of a batch, at most
	batchBytes   = 256 << 20 // of the files of a batch; the file with which they are reached belongs to it
)

// sending is one connection of the sender's.
type sending struct {
	w     *wire
	dir   string
	sum   *tally
	moved func(sent, kept int64) // is told what of the data was sent, and what the receiver had

	entries []entry
	bytes   int64
}

// send sends what is in dir. What the receiver has already is compared and left out.
func send(w *wire, id, dir string, size sized, moved func(sent, kept int64)) (Summary, error) {
	s := &sending{w: w, dir: dir, sum: newTally(), moved: moved}
	if err := w.say(hello, greeting{version, id, size}); err != nil {
		return Summary{}, err
	}
	if err := w.expect(welcome, nil); err != nil {
		return Summary{}, err
	}
	err := walk(dir, func(e entry) error {
		s.entries = append(s.entries, e)
		s.bytes += e.Size
		if len(s.entries) < batchEntries && s.bytes < batchBytes {
			return nil
		}
		return s.flush()
	})
	if err == nil {
		err = s.flush()
	}
	if err != nil {
		return Summary{}, err
	}
	sum := s.sum.summary()
	if err := w.say(end, sum); err != nil {
		return sum, err
	}
	return sum, w.expect(done, nil)
}

// flush sends the entries that were gathered, and returns when the receiver has them.
func (s *sending) flush() error {
	if len(s.entries) == 0 {
		return nil
	}
	if err := s.w.say(batch, s.entries); err != nil {
		return err
	}
	var has [][]digest
	if err := s.w.expect(have, &has); err != nil {
		return err
	}
	var digests []digest
	n := 0
	for i, e := range s.entries {
		var d digest
		if e.Sort == regular {
			if n >= len(has) {
				return fault.Newf(fault.Invalid, "the receiver left files of a batch out")
			}
			var err error
			if d, err = s.file(i, e, has[n]); err != nil {
				return err
			}
			digests = append(digests, d)
			n++
		}
		s.sum.add(e, d)
	}
	if err := s.w.say(sealed, digests); err != nil {
		return err
	}
	s.entries, s.bytes = nil, 0
	return s.w.expect(stored, nil)
}

// file sends the pieces of a file that the receiver does not have, and returns its digest.
func (s *sending) file(index int, e entry, has []digest) (digest, error) {
	f, err := open(filepath.Join(s.dir, e.Path))
	if err != nil {
		return digest{}, err
	}
	defer f.Close()
	whole, buffer := sha256.New(), make([]byte, pieceSize)
	for n, x := range e.pieces() {
		body := buffer[:x.Len]
		if _, err := f.ReadAt(body, x.At); err == io.EOF {
			return digest{}, fault.Newf(fault.Conflict, "%s became shorter while it was read: somebody writes to the volume that is sent", e.Path)
		} else if err != nil {
			return digest{}, err
		}
		d := digest(sha256.Sum256(body))
		whole.Write(d[:])
		if n < len(has) && has[n] == d {
			s.moved(0, x.Len)
			continue
		}
		head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(index)), uint32(n))
		if err := s.w.frame(piece, head, d[:], body); err != nil {
			return digest{}, err
		}
		s.moved(x.Len, 0)
	}
	return digest(whole.Sum(nil)), nil
}

// meter tells people how far a transfer is.
type meter struct {
	say        func(format string, args ...any)
	total      int64
	began      time.Time // this connection
	sent, kept int64     // of it
}

func (m *meter) moved(sent, kept int64) {
	m.sent, m.kept = m.sent+sent, m.kept+kept
	m.say("%s", m)
}

// again is called when another connection begins at the first file.
func (m *meter) again() { m.began, m.sent, m.kept = time.Now(), 0, 0 }

func (m *meter) String() string {
	share := int64(100)
	if m.total > 0 {
		share = min(100, (m.sent+m.kept)*100/m.total)
	}
	rate := float64(m.sent+m.kept) / max(0.001, time.Since(m.began).Seconds())
	text := fmt.Sprintf("streamed %s of %s (%d %%), %s/s", bytesText(m.sent+m.kept), bytesText(m.total), share, bytesText(int64(rate)))
	if m.kept > 0 {
		text += fmt.Sprintf("; %s were there already and were compared", bytesText(m.kept))
	}
	return text
}

func bytesText(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	default:
		return fmt.Sprintf("%d KiB", n>>10)
	}
}
