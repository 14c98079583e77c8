// Package ferretdb is what the two versions of FerretDB have in common as programs: flags, messages, a listener of
// their own and a stop that loses no write. FerretDB itself is passed in, because two versions of it cannot be in one
// program.
package ferretdb

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Start makes a server that answers the wire protocol on a Unix socket and keeps its SQLite files below the URL. Run
// returns when its context is cancelled, after it closed the files.
type Start func(socket, sqliteURL string) (run func(context.Context) error, err error)

// Main is the whole program. It returns the exit code.
func Main(name string, start Start) int {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:27017", "address to answer on; port 0 lets the kernel choose")
	dir := flags.String("dir", "", "directory of the data; made if it is not there")
	switch err := flags.Parse(os.Args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal stops cleanly; a second one, while that lasts, ends the program at once.
	context.AfterFunc(ctx, stop)
	if err := Run(ctx, *listen, *dir, start, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// Run serves until the context is cancelled. It writes "listening on ADDR" when clients can connect.
func Run(ctx context.Context, listen, dir string, start Start, out io.Writer) error {
	url, unlock, err := claim(dir)
	if err != nil {
		return err
	}
	defer unlock()
	l, err := net.Listen("tcp", listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("the address %s is taken by another program: stop that one, or choose another with --listen", listen)
	}
	if err != nil {
		return fmt.Errorf("cannot listen on %q: %w; give an address of this machine with --listen", listen, err)
	}
	defer l.Close()
	// The name is abstract: no file is left behind, whatever ends this process.
	socket := "@sluice-ferretdb-" + rand.Text()
	run, err := start(socket, url)
	if err != nil {
		return fmt.Errorf("FerretDB cannot open %s: %w", dir, err)
	}
	// FerretDB must outlive the last exchange, so the signal does not reach it directly.
	inner, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- run(inner) }()
	if err := reachable(ctx, socket, ended); err != nil {
		return err
	}
	fmt.Fprintln(out, "listening on", l.Addr())
	drained := make(chan struct{})
	serving, giveUp := context.WithCancel(ctx)
	defer giveUp()
	go func() {
		defer close(drained)
		serve(serving, l, socket)
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("FerretDB ended by itself: %v", err)
	case <-drained:
	}
	stop()
	return <-ended
}

// reachable waits until FerretDB answers on its socket, which it opens some time after it was started.
func reachable(ctx context.Context, socket string, ended <-chan error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			return c.Close()
		}
		select {
		case err := <-ended:
			return fmt.Errorf("FerretDB ended by itself: %v", err)
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// claim makes the directory, holds it against a second server and returns its SQLite URL.
func claim(dir string) (url string, unlock func(), err error) {
	if dir == "" {
		return "", nil, errors.New("give the directory of the data with --dir")
	}
	if strings.ContainsAny(dir, "?#%") {
		return "", nil, fmt.Errorf("the directory %q holds one of ? # %%, which SQLite URLs cannot: choose another with --dir", dir)
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(path, 0o750); err != nil {
		return "", nil, fmt.Errorf("cannot make the directory of the data: %w; choose another with --dir", err)
	}
	probe, err := os.CreateTemp(path, ".writable-*")
	if err != nil {
		return "", nil, fmt.Errorf("the directory of the data is not writable: %w; give it to user %d, or choose another with --dir", err, os.Getuid())
	}
	if err := errors.Join(probe.Close(), os.Remove(probe.Name())); err != nil {
		return "", nil, err
	}
	// FerretDB keeps the list of collections in memory: two servers on one directory would not see each other's.
	d, err := os.Open(path)
	if err != nil {
		return "", nil, err
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		d.Close()
		return "", nil, fmt.Errorf("another server is running on %s: stop that one, or choose another directory with --dir", path)
	}
	return "file:" + path + "/", func() { d.Close() }, nil
}
