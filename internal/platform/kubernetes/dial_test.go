package kubernetes

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream" //nolint:staticcheck // client-go dials with the type of this package

	"github.com/sluice-cd/sluice/internal/fault"
)

// pod is what a tunnel leads to: it is told what is written, and never answers.
type pod struct {
	got    chan string
	closed chan bool
}

func (p pod) Dial(...string) (httpstream.Connection, string, error) { return p, "", nil }

func (p pod) CreateStream(h http.Header) (httpstream.Stream, error) {
	if h.Get(corev1.StreamType) == corev1.StreamTypeError {
		return stream{Reader: strings.NewReader(""), pod: p}, nil
	}
	silence, _ := io.Pipe()
	return stream{Reader: silence, pod: p}, nil
}

func (p pod) Close() error                       { close(p.closed); return nil }
func (p pod) CloseChan() <-chan bool             { return p.closed }
func (p pod) SetIdleTimeout(time.Duration)       {}
func (p pod) RemoveStreams(...httpstream.Stream) {}

type stream struct {
	io.Reader
	pod pod
}

func (s stream) Write(b []byte) (int, error) { s.pod.got <- string(b); return len(b), nil }
func (s stream) Close() error                { return nil }
func (s stream) Reset() error                { return nil }
func (s stream) Headers() http.Header        { return nil }
func (s stream) Identifier() uint32          { return 0 }

// leading is a guard as a leader's.
type leading struct {
	net.Conn
	lost *atomic.Bool
}

var errLost = errors.New("this process no longer leads")

func (l leading) Write(b []byte) (int, error) {
	if l.lost.Load() {
		return 0, fault.Newf(fault.Lost, "nothing is sent to %s: %w", l.RemoteAddr(), errLost)
	}
	return l.Conn.Write(b)
}

// TestTunnelIsGuarded holds that a process which may no longer act sends nothing more to a pod, and that the connection ends.
func TestTunnelIsGuarded(t *testing.T) {
	p := pod{got: make(chan string, 1), closed: make(chan bool)}
	var lost atomic.Bool
	c, err := tunnel(p, 5432, func(c net.Conn) net.Conn { return leading{c, &lost} })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "BEGIN"); err != nil {
		t.Fatal(err)
	}
	if got := <-p.got; got != "BEGIN" {
		t.Errorf("the pod got %q", got)
	}
	lost.Store(true)
	if _, err := io.WriteString(c, "COMMIT"); err != nil && !errors.Is(err, errLost) {
		t.Errorf("a write ends with %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, errLost) {
		t.Errorf("the connection ends with %v", err)
	}
	<-p.closed
	select {
	case got := <-p.got:
		t.Errorf("the pod got %q all the same", got)
	default:
	}
}
