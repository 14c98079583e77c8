// Package kubetest is what tests do to the way to a cluster.
package kubetest

import (
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Wire is a way to an API server that a test can cut, block and mend.
type Wire struct {
	t  *testing.T
	to string
	at string

	blocked  atomic.Bool
	mu       sync.Mutex
	listener net.Listener
	open     map[net.Conn]bool
}

// NewWire makes one to the host and port of a URL. It is cut when the test ends.
func NewWire(t *testing.T, server string) *Wire {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{t: t, to: u.Host, at: "127.0.0.1:0", open: map[net.Conn]bool{}}
	w.Mend()
	t.Cleanup(w.Cut)
	return w
}

// At is where it begins: host and port.
func (w *Wire) At() string { return w.at }

// Mend lets connections through, at the address that they went to before.
func (w *Wire) Mend() {
	w.t.Helper()
	if w.blocked.Swap(false) {
		w.Cut() // what was sent meanwhile is lost, and no connection survives that
	}
	l, err := net.Listen("tcp", w.at)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.listener, w.at = l, l.Addr().String()
	w.mu.Unlock()
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", w.to)
			if err != nil {
				near.Close()
				continue
			}
			w.mu.Lock()
			w.open[near], w.open[far] = true, true
			w.mu.Unlock()
			go w.carry(far, near)
			go w.carry(near, far)
		}
	}()
}

// carry copies what comes from one side to the other.
func (w *Wire) carry(to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 && !w.blocked.Load() {
			if _, e := to.Write(buffer[:n]); e != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	if !w.blocked.Load() {
		to.Close()
		from.Close()
	}
}

// Cut ends every connection and refuses new ones.
func (w *Wire) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listener.Close()
	for c := range w.open {
		c.Close()
	}
	clear(w.open)
}

// Block has everything vanish that is sent, and no end of a connection be told: a network that drops packets.
func (w *Wire) Block() { w.blocked.Store(true) }

// Kubeconfig returns a copy of a kubeconfig that goes this way to the server of its current context. Servers are known by the
// names that they had.
func (w *Wire) Kubeconfig(file string) []byte {
	w.t.Helper()
	c, err := clientcmd.LoadFromFile(file)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, cluster := range c.Clusters {
		w.redirect(cluster)
	}
	body, err := clientcmd.Write(*c)
	if err != nil {
		w.t.Fatal(err)
	}
	return body
}

func (w *Wire) redirect(c *api.Cluster) {
	u, err := url.Parse(c.Server)
	if err != nil {
		w.t.Fatal(err)
	}
	if u.Host == w.to {
		c.Server, c.TLSServerName = "https://"+w.at, u.Hostname()
	}
}
