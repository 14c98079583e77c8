package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/fault"
)

// Task is what one end of a transfer is told.
type Task struct {
	ID       string   `json:"id"`
	Identity Identity `json:"identity"`
	Address  string   `json:"address,omitempty"` // of the receiver, for the sender
	Dir      string   `json:"dir"`
}

// Port is where the receiver listens.
const Port = 8443

const (
	handshakeWithin = 10 * time.Second
	againAfter      = time.Second // between two attempts to connect; a network has no event for it
	handshakesMost  = 16          // at once: anybody may connect

	// alone is how long an end waits for the other one. That may need a node, its volume and its image first, also when it was killed.
	alone = 30 * time.Minute
)

// Say is told how far a transfer is; it may leave lines out.
type Say func(format string, args ...any)

// Send sends what is in the task's folder. A connection that breaks is made anew, and what the receiver has by then is not sent
// again.
func Send(ctx context.Context, t Task, say Say) (Summary, error) {
	config, err := t.Identity.config()
	if err != nil {
		return Summary{}, err
	}
	m := &meter{say: say, began: time.Now()}
	size := sync.OnceValues(func() (sized, error) { return sizeOf(t.Dir) })
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: handshakeWithin}, Config: config}
	last := time.Now()
	for {
		s, met, err := once(ctx, d, t, size, m)
		if met {
			last = time.Now()
		}
		if !isBroken(err) || ctx.Err() != nil {
			return s, errors.Join(err, ctx.Err())
		}
		if time.Since(last) > alone {
			return s, fault.WithRemedy(fault.Newf(fault.Transient, "the receiver at %s was not reached for %s: %w", t.Address, alone, err),
				"see that the address which `stream` of its account names is reached from the pods of this cluster")
		}
		say("the receiver at %s: %v; trying again", t.Address, err)
		m.again()
		select {
		case <-ctx.Done():
		case <-time.After(againAfter):
		}
	}
}

// once is one connection of the sender's. It tells whether the receiver was met. What is to be sent is counted while the receiver
// hears that somebody is there.
func once(ctx context.Context, d tls.Dialer, t Task, size func() (sized, error), m *meter) (s Summary, met bool, err error) {
	within, cancel := context.WithTimeout(ctx, 2*handshakeWithin)
	defer cancel()
	conn, err := d.DialContext(within, "tcp", t.Address)
	if err != nil {
		return s, false, broken{err}
	}
	w := newWire(conn)
	defer w.close()
	defer context.AfterFunc(ctx, w.close)()
	total, err := size()
	if err == nil {
		m.total = total.Bytes
		s, err = send(w, t.ID, t.Dir, total, m.moved)
	}
	if err != nil && !isBroken(err) {
		err = ofStorage("source", err)
		w.giveUp(err)
		w.drain()
	}
	return s, w.heard, err
}

// Receive makes the task's folder hold what the sender has. The sender may be killed and come again: its newest connection
// counts.
func Receive(ctx context.Context, t Task, l net.Listener, say Say) (Summary, error) {
	config, err := t.Identity.config()
	if err != nil {
		return Summary{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	senders := make(chan *wire)
	ended := make(chan error, 1)
	go func() { ended <- accept(ctx, l, config, senders, say) }()
	type result struct {
		Summary
		err error
	}
	var current *wire
	var results chan result
	lonely := time.NewTimer(alone)
	defer lonely.Stop()
	for {
		select {
		case <-ctx.Done():
			if current != nil {
				current.close()
				<-results
			}
			return Summary{}, ctx.Err()
		case err := <-ended:
			return Summary{}, fault.Newf(fault.Transient, "the receiver no longer listens: %w", err)
		case <-lonely.C:
			return Summary{}, fault.WithRemedy(fault.Newf(fault.Transient, "no sender came for %s", alone),
				"see that the address which `stream` of this account names leads to the receiver's Service, and is reached from the other cluster")
		case w := <-senders:
			if current != nil {
				current.close() // of a sender that is no more
				if r := <-results; !isBroken(r.err) {
					w.close()
					return r.Summary, r.err
				}
			}
			lonely.Stop()
			current, results = w, make(chan result, 1)
			to := results
			go func() {
				s, err := receive(w, t.ID, t.Dir)
				if err != nil && !isBroken(err) {
					err = ofStorage("target", err)
					w.giveUp(err)
				}
				w.drain()
				to <- result{s, err}
			}()
		case r := <-results:
			current.close()
			current, results = nil, nil
			if !isBroken(r.err) {
				return r.Summary, r.err
			}
			say("the sender: %v; waiting for it", r.err)
			lonely.Reset(alone)
		}
	}
}

// accept hands on the connections that the sender makes, and refuses those of others. A sender hears that the receiver is alive
// also while that has not yet let go of the sender before it.
func accept(ctx context.Context, l net.Listener, config *tls.Config, senders chan<- *wire, say Say) error {
	room := make(chan struct{}, handshakesMost)
	for {
		raw, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed) || ctx.Err() != nil:
			return err
		case err != nil:
			say("a connection could not be accepted: %v", err) // as where there are too many
			select {
			case <-ctx.Done():
			case <-time.After(againAfter):
			}
			continue
		}
		room <- struct{}{}
		go func() {
			free := sync.OnceFunc(func() { <-room })
			defer free()
			within, cancel := context.WithTimeout(ctx, handshakeWithin)
			defer cancel()
			conn := tls.Server(raw, config)
			if err := conn.HandshakeContext(within); err != nil {
				if !errors.Is(err, io.EOF) {
					say("a connection from %s was refused: %v", raw.RemoteAddr(), err)
				}
				raw.Close()
				return
			}
			free()
			w := newWire(conn)
			select {
			case senders <- w:
			case <-ctx.Done():
				w.close()
			}
		}()
	}
}

// ofStorage says what may be done about what a volume does not do.
func ofStorage(which string, err error) error {
	is := func(all ...error) bool {
		return slices.ContainsFunc(all, func(e error) bool { return errors.Is(err, e) })
	}
	switch {
	case fault.KindOf(err) != "":
		return err
	case is(unix.ENOSPC, unix.EDQUOT):
		return fault.WithRemedy(fault.Newf(fault.Invalid, "the %s volume is full: %w", which, err), "have the claim ask for more storage")
	case is(unix.EIO, unix.EROFS, unix.ESTALE, unix.ETIMEDOUT, unix.ENODEV, unix.ENXIO):
		return fault.WithRemedy(fault.Newf(fault.Transient, "the storage of the %s volume fails: %w", which, err), "see how the storage and its driver on the node are; what was copied stays")
	}
	return err
}

// drain waits for the other end to close: what was written to it last must not be lost with the connection.
func (w *wire) drain() {
	if w.conn.SetReadDeadline(time.Now().Add(handshakeWithin/2)) == nil {
		_, _ = io.Copy(io.Discard, w.conn) // whatever comes is too late
	}
}
