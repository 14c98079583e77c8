package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/fault"
)

// endEnv makes the test binary one end of a transfer, as which it can be killed.
const endEnv = "SLUICE_TEST_STREAM_END"

func TestMain(m *testing.M) {
	if role := os.Getenv(endEnv); role != "" {
		if err := beEnd(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func quiet(string, ...any) {}

// folderOf makes a folder in memory, where there is such a file system: on a disk that others use, each sync writes for them, too.
func folderOf(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "stream")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// fill makes a folder hold what volumes have: it is the same for the same seed.
func fill(t *testing.T, dir string, seed uint64) string {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, n int) string {
		body := make([]byte, n)
		for i := range body {
			body[i] = byte(r.Uint32())
		}
		p := filepath.Join(dir, name)
		must(os.MkdirAll(filepath.Dir(p), 0o755))
		must(os.WriteFile(p, body, 0o640))
		return p
	}
	write("empty", 0)
	write("one", 1)
	write("exactly", pieceSize)
	write("base/1/large", 3*pieceSize+17)
	for i := range 300 { // more than a batch
		write(fmt.Sprintf("many/%03d", i), r.IntN(5000))
	}
	write("odd/a name\twith\nwhite", 10)
	write("odd/\xff\xfe not text", 10)
	must(os.Mkdir(filepath.Join(dir, "lost+found"), 0o700))
	write("lost+found/#1", 5)
	must(os.Mkdir(filepath.Join(dir, "nothing"), 0o711))
	must(os.Symlink("../one", filepath.Join(dir, "odd/link")))
	must(os.Symlink("/etc/passwd", filepath.Join(dir, "outside")))
	must(os.Symlink("nowhere", filepath.Join(dir, "dangling")))
	must(os.Link(filepath.Join(dir, "base/1/large"), filepath.Join(dir, "same")))
	must(os.Link(filepath.Join(dir, "one"), filepath.Join(dir, "base/uno")))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o622))
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	must(err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	must(l.Close())
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	must(err)
	for _, at := range []int64{8 << 20, 64<<20 + 4096} {
		_, err = sparse.WriteAt(bytes.Repeat([]byte("data"), 2048), at)
		must(err)
	}
	must(sparse.Truncate(100 << 20))
	must(sparse.Close())
	must(os.WriteFile(filepath.Join(dir, "zeros"), make([]byte, 3*pieceSize+5), 0o600))
	must(os.Chmod(filepath.Join(dir, "one"), 0o400))
	must(unix.Chmod(filepath.Join(dir, "exactly"), 0o2755))
	must(unix.Chmod(filepath.Join(dir, "nothing"), 0o1777))
	if os.Getuid() == 0 {
		must(os.Chown(filepath.Join(dir, "many/000"), 999, 998))
		must(os.Lchown(filepath.Join(dir, "outside"), 70, 70))
		must(os.Chown(filepath.Join(dir, "base"), 999, 998))
	}
	if err := unix.Setxattr(filepath.Join(dir, "one"), "user.comment", []byte("\x00 bytes"), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		t.Fatal(err)
	}
	then := []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 1_000_000_000, Nsec: 123_456_789}}
	for _, name := range []string{"many/001", "many", "outside", "fifo", "base/1", "."} {
		must(unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, name), then, unix.AT_SYMLINK_NOFOLLOW))
	}
	return dir
}

// stated says all that must be equal of everything in a folder, by other means than the walker's.
func stated(t *testing.T, dir string) map[string]string {
	t.Helper()
	out, first := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if name == "lost+found" {
			return filepath.SkipDir
		}
		var s unix.Stat_t
		if err := unix.Lstat(path, &s); err != nil {
			return err
		}
		text := fmt.Sprintf("%o %d:%d %d.%09d", s.Mode, s.Uid, s.Gid, s.Mtim.Sec, s.Mtim.Nsec)
		switch s.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " to " + to
		case unix.S_IFREG:
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if _, known := first[s.Ino]; !known {
				first[s.Ino] = name
			}
			text += fmt.Sprintf(" %d bytes %x, first of its names is %s, sparse: %t", s.Size, sha256.Sum256(body), first[s.Ino], s.Blocks*512 < s.Size/2)
			value := make([]byte, 100)
			if n, err := unix.Getxattr(path, "user.comment", value); err == nil {
				text += fmt.Sprintf(" comment %q", value[:n])
			}
		}
		out[name] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func equal(t *testing.T, from, to string) {
	t.Helper()
	want, got := stated(t, from), stated(t, to)
	for name, s := range want {
		if got[name] != s {
			t.Errorf("%q is %q, want %q", name, got[name], s)
		}
	}
	for name := range got {
		if want[name] == "" {
			t.Errorf("%q was not sent", name)
		}
	}
}

// pair is two ends in this process.
type pair struct {
	from, to         string
	sender, receiver Task
	listener         net.Listener
}

func newPair(t *testing.T, from, to string) *pair {
	t.Helper()
	s, r, err := NewIdentities(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &pair{from: from, to: to, listener: l, sender: Task{ID: "x", Identity: s, Address: l.Addr().String(), Dir: from}, receiver: Task{ID: "x", Identity: r, Dir: to}}
}

// run runs both ends to their end.
func (x *pair) run(t *testing.T) (sent, received Summary, sendErr, receiveErr error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { received, receiveErr = Receive(ctx, x.receiver, x.listener, t.Logf) })
	wg.Go(func() { sent, sendErr = Send(ctx, x.sender, quiet) })
	wg.Wait()
	return sent, received, sendErr, receiveErr
}

func TestAVolumeArrivesAsItIs(t *testing.T) {
	x := newPair(t, fill(t, t.TempDir(), 1), t.TempDir())
	if err := os.Mkdir(filepath.Join(x.to, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	sent, received, a, b := x.run(t)
	if a != nil || b != nil {
		t.Fatal(a, b)
	}
	equal(t, x.from, x.to)
	if sent != received || sent.Entries < 300 || len(sent.SHA256) != 64 {
		t.Errorf("sent %+v, received %+v", sent, received)
	}
}

// session runs the protocol once over a connection that is made by pipe, without certificates, so that a test can sit in between.
func session(t *testing.T, from, to string, pipe func() (net.Conn, net.Conn)) (sent, kept int64, sendErr, receiveErr error) {
	t.Helper()
	size, err := sizeOf(from)
	if err != nil {
		t.Fatal(err)
	}
	a, b := pipe()
	sw, rw := newWire(a), newWire(b)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, receiveErr = receive(rw, "x", to)
		if receiveErr != nil && !isBroken(receiveErr) {
			rw.giveUp(receiveErr)
			rw.drain()
		}
		rw.close()
	})
	wg.Go(func() {
		_, sendErr = send(sw, "x", from, size, func(s, k int64) { sent += s; kept += k })
		if sendErr != nil && !isBroken(sendErr) {
			sw.giveUp(sendErr)
		}
		sw.close()
	})
	wg.Wait()
	return sent, kept, sendErr, receiveErr
}

// tcp is a connection with the buffers that real ones have; what is written to the first passes through change.
func tcp(t *testing.T, change func(*tapped, []byte) ([]byte, bool)) func() (net.Conn, net.Conn) {
	return func() (net.Conn, net.Conn) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		a, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return &tapped{Conn: a, change: change}, b
	}
}

// tapped is a connection whose writes a test sees.
type tapped struct {
	net.Conn
	at     int64
	change func(*tapped, []byte) (body []byte, cut bool)
}

func (c *tapped) Write(p []byte) (int, error) {
	body, cut := p, false
	if c.change != nil {
		body, cut = c.change(c, bytes.Clone(p))
	}
	c.at += int64(len(p))
	_, err := c.Conn.Write(body)
	if cut {
		c.Conn.Close()
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// TestCutAnywhere breaks the connection after a number of bytes that grows each time, until the volume has come through: each time
// what has arrived is not sent again.
func TestCutAnywhere(t *testing.T) {
	from, to := fill(t, folderOf(t), 2), folderOf(t)
	size, err := sizeOf(from)
	if err != nil {
		t.Fatal(err)
	}
	var all, kept, lastKept int64
	cuts := 0
	for limit := int64(1000); ; limit += 600_000 {
		sent, k, sendErr, receiveErr := session(t, from, to, tcp(t, func(c *tapped, p []byte) ([]byte, bool) {
			if over := c.at + int64(len(p)) - limit; over > 0 {
				return p[:max(0, int64(len(p))-over)], true
			}
			return p, false
		}))
		all, kept = all+sent, k
		if kept < lastKept {
			t.Errorf("%d bytes were there, and at the next connection %d", lastKept, kept)
		}
		lastKept = kept
		if sendErr == nil && receiveErr == nil {
			break
		}
		if !isBroken(sendErr) && !isBroken(receiveErr) {
			t.Fatal(sendErr, receiveErr)
		}
		cuts++
	}
	equal(t, from, to)
	if cuts < 4 || kept == 0 {
		t.Errorf("%d cuts, %d bytes were there at the end", cuts, kept)
	}
	// Each connection loses at most the piece that it was in and what the buffers held.
	if most := size.Bytes + int64(cuts)*2*pieceSize; all > most {
		t.Errorf("%d bytes were sent for %d in spite of %d cuts, want at most %d", all, size.Bytes, cuts, most)
	}
}

func TestAFlippedByteOnTheWayIsFound(t *testing.T) {
	from, to := fill(t, folderOf(t), 3), folderOf(t)
	flipped := false
	_, _, sendErr, receiveErr := session(t, from, to, tcp(t, func(_ *tapped, p []byte) ([]byte, bool) {
		if len(p) == pieceSize && !flipped {
			flipped = true
			p[12345] ^= 4
		}
		return p, false
	}))
	for _, err := range []error{sendErr, receiveErr} {
		if !fault.Is(err, fault.Lost) || !strings.Contains(err.Error(), "base/1/large from 0 on arrived changed") {
			t.Errorf("%v", err)
		}
	}
	if !flipped {
		t.Fatal("nothing was flipped")
	}
	if _, _, a, b := session(t, from, to, tcp(t, nil)); a != nil || b != nil {
		t.Fatal(a, b)
	}
	equal(t, from, to)
}

// TestWhatIsThereIsComparedNotBelieved damages in every way what an earlier connection has written.
func TestWhatIsThereIsComparedNotBelieved(t *testing.T) {
	from, to := fill(t, folderOf(t), 4), folderOf(t)
	if _, _, a, b := session(t, from, to, tcp(t, nil)); a != nil || b != nil {
		t.Fatal(a, b)
	}
	edit := func(name string, do func(f *os.File) error) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(to, name), os.O_RDWR, 0)
		if err == nil {
			err = errors.Join(do(f), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(text string, at int64) func(*os.File) error {
		return func(f *os.File) error { _, err := f.WriteAt([]byte(text), at); return err }
	}
	edit("base/1/large", at("X", 2*pieceSize+5))
	edit("sparse", at("X", 50<<20)) // in a hole
	edit("many/001", func(f *os.File) error { return f.Truncate(3) })
	edit("many/002", at("longer", 100_000))
	edit("zeros", func(f *os.File) error { return errors.Join(f.Truncate(0), f.Truncate(3*pieceSize+5)) }) // reads the same, and has no room
	edit("exactly", func(f *os.File) error { return f.Chmod(0o777) })
	for _, name := range []string{"same", "fifo", "many/003"} {
		if err := os.Remove(filepath.Join(to, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("elsewhere", filepath.Join(to, "many/003")); err != nil {
		t.Fatal(err)
	}
	sent, kept, a, b := session(t, from, to, tcp(t, nil))
	if a != nil || b != nil {
		t.Fatal(a, b)
	}
	equal(t, from, to)
	if sent == 0 || sent > 4*pieceSize+64<<10 || kept < 3*pieceSize {
		t.Errorf("%d bytes were sent again and %d were compared", sent, kept)
	}
}

func TestAStrangerOnTheTargetIsNotKeptSilently(t *testing.T) {
	from, to := fill(t, folderOf(t), 5), folderOf(t)
	if err := os.Mkdir(filepath.Join(to, "many"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, "many/stranger"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, a, b := session(t, from, to, tcp(t, nil))
	if !fault.Is(b, fault.Conflict) || !strings.Contains(b.Error(), "the folder many of the target volume has 301 names") || a == nil {
		t.Error(a, b)
	}
}

func TestWhoHasNoCertificateOfTheTransferIsRefused(t *testing.T) {
	for name, with := range map[string]func(own, others, receiver Identity) Identity{
		"of another transfer":            func(_, others, _ Identity) Identity { return others },
		"of another transfer, in hiding": func(own, others, _ Identity) Identity { others.Authority = own.Authority; return others },
		"of the receiver":                func(_, _, receiver Identity) Identity { return receiver },
	} {
		t.Run(name, func(t *testing.T) {
			x := newPair(t, fill(t, folderOf(t), 6), folderOf(t))
			others, _, err := NewIdentities(time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			x.sender.Identity = with(x.sender.Identity, others, x.receiver.Identity)
			ctx, cancel := context.WithCancel(t.Context())
			said := make(chan string, 100)
			var wg sync.WaitGroup
			wg.Go(func() {
				_, err := Receive(ctx, x.receiver, x.listener, func(f string, args ...any) { said <- fmt.Sprintf(f, args...) })
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
			var refused string
			wg.Go(func() {
				_, err := Send(ctx, x.sender, func(f string, args ...any) {
					if s := fmt.Sprintf(f, args...); refused == "" && strings.Contains(s, "trying again") {
						refused = s
					}
				})
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
			line := <-said
			if !strings.Contains(line, "was refused") {
				t.Errorf("the receiver says %q", line)
			}
			<-said // the sender has come again
			cancel()
			wg.Wait()
			if refused == "" {
				t.Error("the sender does not say that it was refused")
			}
			if left, err := os.ReadDir(x.to); err != nil || len(left) != 0 {
				t.Errorf("%v arrived, %v", left, err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	from, to := fill(t, folderOf(t), 7), folderOf(t)
	size, err := sizeOf(from)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		g    greeting
		says string
	}{
		"too large":        {greeting{version, "x", sized{Files: 1, Bytes: 1, Space: 1 << 60}}, "the target volume has room for"},
		"too many":         {greeting{version, "x", sized{Files: 1 << 60}}, "files, and 1152921504606846976 are to be copied"},
		"another version":  {greeting{version + 1, "x", size}, "speaks version 2"},
		"another transfer": {greeting{version, "y", size}, `sends "y"`},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := tcp(t, nil)()
			sw, rw := newWire(a), newWire(b)
			defer sw.close()
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				_, err := receive(rw, "x", to)
				if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v", err)
				}
				rw.giveUp(err)
				rw.close()
			})
			if err := sw.say(hello, c.g); err != nil {
				t.Fatal(err)
			}
			if err := sw.expect(welcome, nil); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the sender is told: %v", err)
			}
		})
	}
	if err := os.Symlink("/", filepath.Join(to, "up")); err != nil {
		t.Fatal(err)
	}
	for _, e := range []entry{{Sort: regular, Path: "../x"}, {Sort: regular, Path: "/x"}, {Sort: folder, Path: "a/../b"}, {Sort: regular, Path: "up/tmp/stream-was-here"},
		{Sort: link, Path: "x", Target: "up/etc/hostname"}, {Sort: regular, Path: "x", Size: 4, Data: []extent{{2, 3}}}, {Sort: regular, Path: "x", Size: 4, Data: []extent{{2, 1}, {1, 1}}}} {
		a, b := tcp(t, nil)()
		sw, rw := newWire(a), newWire(b)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := receive(rw, "x", to); err == nil || isBroken(err) {
				t.Errorf("%+v was taken: %v", e, err)
			}
			rw.close()
		})
		if err := errors.Join(sw.say(hello, greeting{version, "x", size}), sw.expect(welcome, nil), sw.say(batch, []entry{{Sort: folder, Path: "."}, e})); err != nil {
			t.Fatal(err)
		}
		_, _, _ = sw.next()
		sw.close()
		wg.Wait()
	}
	if _, err := os.Lstat("/tmp/stream-was-here"); err == nil {
		t.Error("a path led out of the volume")
	}
}

// beEnd is one end as a process.
func beEnd(role string) error {
	var t Task
	if err := json.NewDecoder(os.Stdin).Decode(&t); err != nil {
		return err
	}
	say := func(f string, args ...any) { fmt.Printf(f+"\n", args...) }
	if role == "sender" {
		_, err := Send(context.Background(), t, say)
		return err
	}
	l, err := net.Listen("tcp", t.Address)
	if err != nil {
		return err
	}
	_, err = Receive(context.Background(), t, l, say)
	return err
}

// TestKilledEnds kills the processes of both ends in turns while files come through, and starts each again.
func TestKilledEnds(t *testing.T) {
	from, to := fill(t, t.TempDir(), 8), t.TempDir()
	large := make([]byte, 96<<20)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(large)
	if err := os.WriteFile(filepath.Join(from, "base/2"), large, 0o600); err != nil {
		t.Fatal(err)
	}
	x := newPair(t, from, to)
	x.receiver.Address = x.sender.Address
	x.listener.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start := func(role string, task Task) *exec.Cmd {
		t.Helper()
		body, err := json.Marshal(task)
		if err != nil {
			t.Fatal(err)
		}
		c := exec.CommandContext(t.Context(), self)
		c.Env, c.Stdin, c.Stderr = append(os.Environ(), endEnv+"="+role), bytes.NewReader(body), os.Stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	written := func() int64 {
		s, err := os.Stat(filepath.Join(to, "base/2"))
		if err != nil {
			return 0
		}
		return s.Sys().(*syscall.Stat_t).Blocks * 512
	}
	sender, receiver := start("sender", x.sender), start("receiver", x.receiver)
	for kill, more := range []int64{4 << 20, 12 << 20, 20 << 20, 28 << 20} {
		deadline := time.Now().Add(30 * time.Second)
		for written() < more {
			if time.Now().After(deadline) {
				t.Fatalf("%d bytes were written until the kill %d was due", written(), kill)
			}
			time.Sleep(time.Millisecond) // nobody else tells how much another process has written
		}
		victim, again := &sender, func() *exec.Cmd { return start("sender", x.sender) }
		if kill%2 == 1 {
			victim, again = &receiver, func() *exec.Cmd { return start("receiver", x.receiver) }
		}
		if err := (*victim).Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := (*victim).Wait(); err == nil {
			t.Fatalf("kill %d came too late: the end was done", kill)
		}
		*victim = again()
	}
	if err := receiver.Wait(); err != nil {
		t.Error("the receiver:", err)
	}
	if err := sender.Wait(); err != nil {
		t.Error("the sender:", err)
	}
	equal(t, from, to)
}
