package local

import (
	"context"
	"net"
	"strconv"
	"sync"
	"time"
)

// pondering is how long a connection must be silent after its server has spoken until nothing is taken to be under way: an
// answer may come in pieces.
const pondering = 20 * time.Millisecond

// reached is how long a pod that is ready may take to accept a connection.
const reached = 5 * time.Second

// link carries one connection of a protocol that the node does not know. What it can tell is who spoke last: after the
// client, an answer is due; after the server, nothing is under way. While the Service is closed a link on which nothing is
// under way takes nothing more from its client, so that no request is cut in two when the pod ends.
type link struct {
	s      *service
	pod    *pod
	client net.Conn
	server net.Conn

	mu     sync.Mutex
	spoken int  // how often the client has spoken
	heard  int  // how often it had when the server spoke last
	lively bool // something is under way
	ended  bool // the server's side is over
	calm   *time.Timer
}

// forward carries one connection.
func (s *service) forward(c net.Conn, p servicePort) {
	defer c.Close()
	s.track(c, true)
	defer s.track(c, false)
	ctx, failed := context.Background(), tried{}
	for {
		pd, err := s.choose(ctx, failed)
		if err != nil {
			return
		}
		run := pd.now().runs
		to, err := (&net.Dialer{Timeout: reached}).DialContext(ctx, "tcp", net.JoinHostPort(pd.address, strconv.Itoa(portOf(pd.container, p.target))))
		if err != nil {
			pd.release()
			failed[pd] = run
			continue
		}
		s.counters.connection(s.ref, pd)
		l := &link{s: s, pod: pd, client: c, server: to}
		l.carry()
		return
	}
}

func (s *service) track(c net.Conn, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if open {
		s.conns[c] = true
	} else {
		delete(s.conns, c)
	}
}

// carry copies both ways until both are over.
func (l *link) carry() {
	l.pod.connection()
	l.pod.hush(1, 0)
	l.calm = time.AfterFunc(time.Hour, l.silent)
	l.calm.Stop()
	var wg sync.WaitGroup
	wg.Go(func() { l.pump(l.server, l.client, l.clientSpeaks) })
	wg.Go(func() {
		l.pump(l.client, l.server, l.serverSpeaks)
		l.over()
	})
	wg.Wait()
	_ = l.server.Close()
	l.calm.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lively {
		l.pod.hush(0, 1)
	} else {
		l.pod.hush(-1, 1)
	}
}

// pump copies from one side to the other, as far as may says, and passes the end on.
func (l *link) pump(to, from net.Conn, may func() bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !may() {
				_ = l.client.Close()
				break
			}
			if _, err := to.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	if c, ok := to.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
	if c, ok := from.(*net.TCPConn); ok {
		_ = c.CloseRead()
	}
}

// clientSpeaks reports whether the client's words may pass: where the Service is closed they wait, unless they belong to
// what is under way.
func (l *link) clientSpeaks() bool {
	l.mu.Lock()
	lively := l.lively
	l.mu.Unlock()
	if !lively && !l.s.passable(l.isOver) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calm.Stop()
	l.spoken++
	if !l.lively {
		l.lively = true
		l.pod.hush(-1, 0)
	}
	return true
}

func (l *link) serverSpeaks() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = l.spoken
	l.calm.Reset(pondering)
	return true
}

// silent is called when the server has said nothing more for a while.
func (l *link) silent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lively && l.heard == l.spoken {
		l.lively = false
		l.pod.hush(1, 0)
	}
}

func (l *link) over() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.s.change.Broadcast()
}

func (l *link) isOver() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

// passable waits while the Service is closed. It reports false where the link is over first.
func (s *service) passable(over func() bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.closed && !s.gone {
		if over() {
			return false
		}
		s.change.Wait()
	}
	return true
}
