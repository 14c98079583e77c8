package server

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/unixsocket"
)

// The files of a data directory that are the server's own.
const (
	lockFile   = "server.lock"  // locked by the process that owns the directory; holds its pid
	socketFile = "server.sock"  // for the command line
	portFile   = "server.port"  // kept, so that callback URLs handed out before a restart work after it
	logFile    = "server.log"   // of a server that was started detached
	keyFile    = "callback.key" // what capabilities are signed with
	tokenFile  = "api.token"    // opens the API on TCP
)

// directory makes a data directory. Where pods can run as other users they must be able to pass through to their volumes;
// what else lies here is closed to them by itself.
func directory(dir string) error {
	mode := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return fault.WithRemedy(fmt.Errorf("make the data directory: %w", err), "choose another one with --data DIR")
	}
	return nil
}

// share lets the members of a group reach the socket: they may pass through the directory, and connect. What else lies there
// is closed to them by itself. Which of them may do what is decided by their roles.
func share(dir, group string) error {
	if group == "" {
		return nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "server.socketGroup is %q: %w", group, err), "make the group, or name one that there is")
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("group %s has the id %q: %w", group, g.Gid, err)
	}
	i, err := os.Stat(dir)
	if err == nil {
		err = os.Chown(dir, -1, gid)
	}
	if err == nil {
		err = os.Chmod(dir, i.Mode().Perm()|0o010)
	}
	if err == nil {
		err = unixsocket.Share(filepath.Join(dir, socketFile), gid)
	}
	if err != nil {
		return fault.WithRemedy(fault.Newf(fault.Denied, "let group %s connect to the server: %w", group, err), "run the server as a member of the group, or as root")
	}
	return nil
}

// lock takes possession of a data directory. The lock ends with the process, however that ends.
func lock(dir string) (*os.File, error) {
	if err := directory(dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fault.WithRemedy(fmt.Errorf("lock the data directory: %w", err), "the directory must belong to the user who runs the server")
	}
	if err := flock(f, dir); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the data directory %s: %w", dir, err)
		}
		return nil, fault.WithRemedy(fault.Newf(fault.Conflict, "a server (pid %s) already carries the deliveries of %s", holder(dir), dir),
			"use it, or end it with sluice server stop --data %s", dir)
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// dying is how long the process that holds the lock has to be gone, if nobody answers in its place: one that was killed
// keeps its locks until the kernel has taken it apart.
const dying = 2 * time.Second

func flock(f *os.File, dir string) error {
	over := time.Now().Add(dying)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(over) {
			return err
		}
		if c, e := unixsocket.Dial(context.Background(), filepath.Join(dir, socketFile)); e == nil {
			c.Close()
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// holder is the pid in the lock file, for messages.
func holder(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, lockFile))
	if pid := strings.TrimSpace(string(b)); err == nil && pid != "" {
		return pid
	}
	return "unknown"
}

// secret returns the kept secret of a data directory, made at its first use. Only the owner may read it.
func secret(dir, name string) ([]byte, error) {
	path := filepath.Join(dir, name)
	body, err := os.ReadFile(path)
	if err == nil {
		s, err := base64.RawURLEncoding.DecodeString(strings.TrimSpace(string(body)))
		if err != nil || len(s) != sha256.Size {
			return nil, fault.WithRemedy(fault.Newf(fault.Lost, "the secret in %s is damaged", path),
				"remove the file: what was handed out under the old one stops working")
		}
		return s, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read a secret of the data directory: %w", err)
	}
	s := make([]byte, sha256.Size)
	// rand.Read never returns an error and always fills the slice.
	_, _ = rand.Read(s)
	return s, write(path, base64.RawURLEncoding.EncodeToString(s)+"\n")
}

// write writes a small file in one piece: after a crash it is there whole or not at all.
func write(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // its mode is 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}

// listen listens on an address. Port 0 means the port of this directory: it is chosen once and kept.
func listen(dir, address string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "the address %q to listen on: %w", address, err), "write HOST:PORT, such as 127.0.0.1:8080")
	}
	kept := ""
	if port == "0" {
		b, err := os.ReadFile(filepath.Join(dir, portFile))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read the kept port: %w", err)
		}
		kept = strings.TrimSpace(string(b))
	}
	var l net.Listener
	switch {
	case kept != "":
		if l, err = insist(net.JoinHostPort(host, kept)); err != nil {
			return nil, fault.WithRemedy(fault.Newf(fault.Conflict, "callback URLs that were handed out name port %s, which cannot be had: %w", kept, err),
				"end the program that holds it, or remove %s to move to another port, which those URLs will not reach", filepath.Join(dir, portFile))
		}
	case port == "0":
		if l, err = choose(host); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
	default:
		if l, err = insist(address); err != nil {
			return nil, fault.WithRemedy(fault.Newf(fault.Conflict, "listen on %s: %w", address, err), "end the program that holds the port, or choose another with --listen")
		}
	}
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err == nil {
		err = write(filepath.Join(dir, portFile), port+"\n")
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func tcp(address string) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
}

// insist listens on a port that somebody may be about to give up: a server that has just ended, or an outgoing connection
// to which the kernel has lent it.
func insist(address string) (net.Listener, error) {
	over := time.Now().Add(2 * time.Second)
	for {
		l, err := tcp(address)
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(over) {
			return l, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// The ports among which one is chosen lie below those that Linux lends to outgoing connections, so that a kept one is
// still free after a restart.
const (
	lowestPort  = 20000
	highestPort = 32000
)

// choose listens on a free port, any of the kernel's where a number of tries has found none.
func choose(host string) (net.Listener, error) {
	for range 50 {
		n, err := rand.Int(rand.Reader, big.NewInt(highestPort-lowestPort))
		if err != nil {
			return nil, err
		}
		if l, err := tcp(net.JoinHostPort(host, strconv.FormatInt(lowestPort+n.Int64(), 10))); err == nil {
			return l, nil
		}
	}
	return tcp(net.JoinHostPort(host, "0"))
}

// capability signs a key. The result is safe in a URL, and the same for the same key.
func capability(secret []byte, key string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(key)) + "." + base64.RawURLEncoding.EncodeToString(signature(secret, key))
}

func signature(secret []byte, key string) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(key))
	return h.Sum(nil)
}

// signed returns the key of a capability that was handed out here.
func signed(secret []byte, capability string) (key string, ok bool) {
	k, sig, _ := strings.Cut(capability, ".")
	name, err := base64.RawURLEncoding.DecodeString(k)
	if err != nil {
		return "", false
	}
	got, err := base64.RawURLEncoding.DecodeString(sig)
	if err != nil {
		return "", false
	}
	return string(name), hmac.Equal(got, signature(secret, string(name)))
}
