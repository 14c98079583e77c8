package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestANewSenderIsHeardWhileTheOldOneIsLetGo connects to a receiver that has no time for it.
func TestANewSenderIsHeardWhileTheOldOneIsLetGo(t *testing.T) {
	x := newPair(t, "", "")
	server, err := x.receiver.Identity.config()
	if err != nil {
		t.Fatal(err)
	}
	client, err := x.sender.Identity.config()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer x.listener.Close()
	wg.Go(func() { _ = accept(ctx, x.listener, server, make(chan *wire), quiet) })
	conn, err := tls.Dial("tcp", x.sender.Address, client)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var head [5]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil || kind(head[0]) != alive {
		t.Errorf("frame %d, %v", head[0], err)
	}
}

// TestAReceiverDoesNotCompareForASenderThatIsGone closes the wire before the files are looked at.
func TestAReceiverDoesNotCompareForASenderThatIsGone(t *testing.T) {
	dir := folderOf(t)
	if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, 2*pieceSize), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	f, err := os.OpenFile(filepath.Join(dir, "large"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a, b := net.Pipe()
	defer b.Close()
	w := newWire(a)
	w.close()
	full := entry{Sort: regular, Path: "large", Size: 2 * pieceSize, Data: []extent{{0, 2 * pieceSize}}}
	empty := entry{Sort: regular, Path: "large", Size: 2 * pieceSize}
	r := &receiving{w: w, root: root, sum: newTally(), entries: []entry{full}}
	if err := r.look(); !isBroken(err) {
		t.Errorf("look: %v", err)
	}
	if known, err := r.present(f, full, full.Size); !isBroken(err) {
		t.Errorf("present: %d pieces, %v", len(known), err)
	}
	if clean, err := r.hollow(f, empty, empty.Size); !isBroken(err) {
		t.Errorf("hollow: %t, %v", clean, err)
	}
}

// fakeListener has connections without end on which nobody says anything. The first attempts fail.
type fakeListener struct {
	net.Listener
	fail     int
	accepted atomic.Int64
	closed   chan struct{}
}

func (l *fakeListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	if l.fail > 0 {
		l.fail--
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	l.accepted.Add(1)
	a, _ := net.Pipe()
	return a, nil
}

func TestStrangersDoNotExhaustTheReceiver(t *testing.T) {
	x := newPair(t, "", "")
	config, err := x.receiver.Identity.config()
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		l := &fakeListener{fail: 3, closed: make(chan struct{})}
		ended := make(chan error, 1)
		go func() { ended <- accept(t.Context(), l, config, nil, quiet) }()
		time.Sleep(4 * againAfter) // of the test's own time, which passes only while everybody waits
		synctest.Wait()
		if n := l.accepted.Load(); n != handshakesMost+1 {
			t.Errorf("%d connections are open, want %d and the one that waits", n, handshakesMost)
		}
		close(l.closed)
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}
