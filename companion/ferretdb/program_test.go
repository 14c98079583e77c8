package ferretdb

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fake stands where FerretDB is: it answers every message with its own body, those that begin with 's' only when it is
// let.
type fake struct {
	let     chan struct{}
	asked   chan string // the bodies, as they come
	stopped chan struct{}
}

func (f *fake) start(socket, url string) (func(context.Context) error, error) {
	if !strings.HasPrefix(url, "file:/") || !strings.HasSuffix(url, "/") {
		return nil, errors.New("a URL that FerretDB refuses: " + url)
	}
	return func(ctx context.Context) error {
		defer close(f.stopped)
		l, err := net.Listen("unix", socket)
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { l.Close() })
		for {
			c, err := l.Accept()
			if err != nil {
				return nil
			}
			go f.serve(c)
		}
	}, nil
}

func (f *fake) serve(c net.Conn) {
	defer c.Close()
	for {
		m, err := readMessage(c)
		if err != nil {
			return
		}
		f.asked <- string(m[headerSize+4:])
		if m[headerSize+4] == 's' {
			<-f.let
		}
		if _, err := c.Write(m); err != nil {
			return
		}
	}
}

// pack makes an OP_MSG whose body is text.
func pack(flags uint32, text string) []byte {
	m := binary.LittleEndian.AppendUint32(nil, uint32(headerSize+4+len(text)))
	m = append(m, 1, 0, 0, 0, 0, 0, 0, 0)
	m = binary.LittleEndian.AppendUint32(m, opMsg)
	return append(binary.LittleEndian.AppendUint32(m, flags), text...)
}

// running is a program that a test started.
type running struct {
	*fake
	address string
	stop    context.CancelFunc
	ended   chan error
}

func run(t *testing.T) *running {
	t.Helper()
	r := &running{fake: &fake{let: make(chan struct{}), asked: make(chan string, 10), stopped: make(chan struct{})}, ended: make(chan error, 1)}
	ctx, stop := context.WithCancel(t.Context())
	r.stop = stop
	out, in := io.Pipe()
	go func() {
		r.ended <- Run(ctx, "127.0.0.1:0", t.TempDir(), r.start, in)
		in.Close()
	}()
	line := make([]byte, 100)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err, <-r.ended)
	}
	r.address = strings.TrimSpace(strings.TrimPrefix(string(line[:n]), "listening on "))
	return r
}

func (r *running) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func ask(t *testing.T, c net.Conn, flags uint32, text string) {
	t.Helper()
	if _, err := c.Write(pack(flags, text)); err != nil {
		t.Fatal(err)
	}
}

func answered(t *testing.T, c net.Conn, text string) {
	t.Helper()
	m, err := readMessage(c)
	if err != nil || string(m[headerSize+4:]) != text {
		t.Fatalf("the answer is %q, %v, want %q", m, err, text)
	}
}

// TestStop holds that a request under way is answered although the program is told to stop, that nobody else is waited
// for, and that FerretDB ends last.
func TestStop(t *testing.T) {
	r := run(t)
	idle, busy := r.dial(t), r.dial(t)
	ask(t, idle, 0, "hello")
	answered(t, idle, "hello")
	ask(t, busy, 0, "slow")
	<-r.asked // hello
	<-r.asked // slow
	r.stop()
	if _, err := readMessage(idle); !errors.Is(err, io.EOF) {
		t.Errorf("an idle connection: %v", err)
	}
	select {
	case <-r.stopped:
		t.Fatal("FerretDB ended before its last exchange")
	case err := <-r.ended:
		t.Fatal("the program ended before its last exchange: ", err)
	default:
	}
	close(r.let)
	answered(t, busy, "slow")
	if _, err := readMessage(busy); !errors.Is(err, io.EOF) {
		t.Errorf("the busy connection, after its answer: %v", err)
	}
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	<-r.stopped
	if c, err := net.Dial("tcp", r.address); err == nil {
		c.Close()
		t.Error("the program still listens")
	}
}

// TestNoAnswerWanted holds that the answer which FerretDB gives to a request that wants none is kept back: a driver would
// take it for its next request's.
func TestNoAnswerWanted(t *testing.T) {
	r := run(t)
	c := r.dial(t)
	ask(t, c, moreToCome, "one")
	ask(t, c, 0, "two")
	answered(t, c, "two")
	r.stop()
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
}

// TestNoMessage sends what is no message.
func TestNoMessage(t *testing.T) {
	r := run(t)
	c := r.dial(t)
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); len(b) > 0 {
		t.Errorf("the answer to HTTP is %q, %v", b, err)
	}
	r.stop()
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
}

// TestRefusals is what a person gets wrong.
func TestRefusals(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	held := t.TempDir()
	_, unlock, err := claim(held)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	never := func(string, string) (func(context.Context) error, error) { return nil, errors.New("bad file") }
	for _, c := range []struct{ listen, dir, want string }{
		{"127.0.0.1:0", "", "--dir"}, {"127.0.0.1:0", "/tmp/a%20b", "--dir"}, {"127.0.0.1:0", filepath.Join(file, "x"), "cannot make the directory"},
		{"127.0.0.1:0", held, "another server is running"}, {taken.Addr().String(), t.TempDir(), "is taken"}, {"nowhere", t.TempDir(), "--listen"},
		{"127.0.0.1:0", t.TempDir(), "cannot open"},
	} {
		if err := Run(t.Context(), c.listen, c.dir, never, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("listen %q, dir %q: %v, want %q", c.listen, c.dir, err, c.want)
		}
	}
	ends := func(string, string) (func(context.Context) error, error) {
		return func(context.Context) error { return errors.New("by itself") }, nil
	}
	if err := Run(t.Context(), "127.0.0.1:0", t.TempDir(), ends, io.Discard); err == nil || !strings.Contains(err.Error(), "by itself") {
		t.Errorf("a FerretDB that ends: %v", err)
	}
}

// TestUnwritable needs a user whom modes keep out.
func TestUnwritable(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Log("root may write everywhere: a read-only file system would be needed, /proc is one")
		if _, _, err := claim("/proc/sys"); err == nil || !strings.Contains(err.Error(), "not writable") {
			t.Errorf("/proc/sys: %v", err)
		}
		return
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if _, _, err := claim(dir); err == nil || !strings.Contains(err.Error(), "not writable") {
		t.Errorf("a directory without rights: %v", err)
	}
}

func TestPack(t *testing.T) {
	m, err := readMessage(bytes.NewReader(pack(moreToCome, "x")))
	if err != nil || !wantsNone(m) || wantsNone(pack(0, "x")) {
		t.Errorf("%x, %v", m, err)
	}
}
