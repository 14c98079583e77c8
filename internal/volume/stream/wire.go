package stream

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
)

// version is of the protocol: both ends must be of the same.
const version = 1

// kind is the kind of a frame. Both ends speak in turns; alive and failed may come at any time.
type kind byte

const (
	alive   kind = iota + 1 // the end is at work
	failed                  // the end gives up for good: a failure
	hello                   // from the sender: greeting
	welcome                 // from the receiver
	batch                   // from the sender: []entry
	have                    // from the receiver: for each file of the batch the digests of the pieces that it has
	piece                   // from the sender: a piece that the receiver does not have
	sealed                  // from the sender: for each file of the batch its digest
	stored                  // from the receiver: the batch is durable and was read back
	end                     // from the sender: the Summary
	done                    // from the receiver: it has the same
)

const (
	beat      = 5 * time.Second  // how often an end says that it is alive
	silence   = 60 * time.Second // how long an end may say nothing
	frameMost = 256 << 20        // the digests of the pieces of 8 TiB
)

// broken is an error of the connection: another one may do better.
type broken struct{ err error }

func (b broken) Error() string { return b.err.Error() }
func (b broken) Unwrap() error { return b.err }

// failure is an error on its way to the other end.
type failure struct {
	Kind            fault.Kind
	Message, Remedy string
}

func failureOf(err error) failure {
	f := failure{Kind: fault.KindOf(err), Message: err.Error()}
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Remedy != "" {
		f.Remedy, f.Message = e.Remedy, strings.TrimSuffix(f.Message, " ("+e.Remedy+")")
	}
	return f
}

func (f failure) err() error {
	return &fault.Error{Kind: f.Kind, Remedy: f.Remedy, Err: errors.New(f.Message)}
}

// wire is one connection between the two ends.
type wire struct {
	conn   net.Conn
	mu     sync.Mutex // of writes
	heard  bool       // the other end has said something: it is the one that is meant, and takes part
	closed chan struct{}
	end    func()
}

// newWire says that this end is alive until it is closed.
func newWire(conn net.Conn) *wire {
	w := &wire{conn: conn, closed: make(chan struct{})}
	w.end = sync.OnceFunc(func() { close(w.closed) })
	go func() {
		t := time.NewTicker(beat)
		defer t.Stop()
		for w.frame(alive, nil) == nil { // else whoever writes next is told
			select {
			case <-w.closed:
				return
			case <-t.C:
			}
		}
	}()
	return w
}

// ended is an error once this end has closed the wire: what is done for it is in vain.
func (w *wire) ended() error {
	select {
	case <-w.closed:
		return broken{net.ErrClosed}
	default:
		return nil
	}
}

func (w *wire) close() {
	w.end()
	w.conn.Close()
}

// frame writes one frame of several parts.
func (w *wire) frame(k kind, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n > frameMost {
		return fault.Newf(fault.Invalid, "a directory or file is too large for the stream: a frame would have %d bytes", n)
	}
	head := binary.BigEndian.AppendUint32([]byte{byte(k)}, uint32(n))
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.conn.SetWriteDeadline(time.Now().Add(silence)); err != nil {
		return broken{err}
	}
	all := net.Buffers(append([][]byte{head}, parts...))
	if _, err := all.WriteTo(w.conn); err != nil {
		return broken{err}
	}
	return nil
}

// say writes a frame that holds a value.
func (w *wire) say(k kind, v any) error {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(v); err != nil {
		return err
	}
	return w.frame(k, b.Bytes())
}

// next reads the next frame that is not only a sign of life. That the other end has given up is its error.
func (w *wire) next() (kind, []byte, error) {
	for {
		if err := w.conn.SetReadDeadline(time.Now().Add(silence)); err != nil {
			return 0, nil, broken{err}
		}
		var head [5]byte
		if _, err := io.ReadFull(w.conn, head[:]); err != nil {
			return 0, nil, broken{inWords(err)}
		}
		w.heard = true
		n := binary.BigEndian.Uint32(head[1:])
		if n > frameMost {
			return 0, nil, fault.Newf(fault.Invalid, "a frame of %d bytes arrived: the other end does not speak this protocol", n)
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(w.conn, body); err != nil {
			return 0, nil, broken{inWords(err)}
		}
		switch kind(head[0]) {
		case alive:
		case failed:
			var f failure
			if err := decode(body, &f); err != nil {
				return 0, nil, err
			}
			return 0, nil, f.err()
		default:
			return kind(head[0]), body, nil
		}
	}
}

// inWords says what the end of a connection is.
func inWords(err error) error {
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the other end closed the connection")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the other end has said nothing for %s", silence)
	}
	return err
}

// expect reads the frame that is due and its value.
func (w *wire) expect(k kind, v any) error {
	got, body, err := w.next()
	if err != nil {
		return err
	}
	if got != k {
		return fault.Newf(fault.Invalid, "a frame of kind %d arrived where one of kind %d was due", got, k)
	}
	return decode(body, v)
}

func decode(body []byte, v any) error {
	if v == nil {
		return nil
	}
	if err := gob.NewDecoder(bytes.NewReader(body)).Decode(v); err != nil {
		return fault.Newf(fault.Invalid, "a frame cannot be read: %w", err)
	}
	return nil
}

// isBroken tells whether another connection may do better.
func isBroken(err error) bool {
	_, ok := errors.AsType[broken](err)
	return ok
}

// giveUp tells the other end an error that no other connection cures.
func (w *wire) giveUp(err error) {
	_ = w.say(failed, failureOf(err)) // it may be gone, too
}
