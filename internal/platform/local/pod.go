package local

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/internal/platform"
)

// podSpec is one pod as it is wanted.
type podSpec struct {
	name      string // namespace/name
	owner     string // key of the workload
	hash      string
	address   string
	track     platform.Track
	revision  string // the label replica_set of its metrics
	labels    map[string]string
	launch    launch
	inits     []launch
	container corev1.Container
	grace     time.Duration
	once      bool // a Job's: it is not started again
	refused   string
}

// pod supervises one process.
type pod struct {
	podSpec
	changed  func()
	register func(pid int) // keeps which process it is, for a successor of the node
	sweep    func()        // ends what a process has left behind outside of its group

	mu       sync.Mutex
	ready    bool
	stopping bool
	ended    bool // no process, and none will be started
	code     int
	restarts int
	runs     int // processes that have ended
	reason   string
	inflight int // requests of HTTP
	quiet    int // open connections of other protocols on which nothing is under way
	conns    int // open connections of other protocols
	idle     *sync.Cond
	cancel   context.CancelFunc
	done     chan struct{}
}

const (
	firstBackoff = 250 * time.Millisecond
	lastBackoff  = 30 * time.Second
	healthy      = time.Minute            // after which a pod's earlier crashes no longer count
	settled      = 500 * time.Millisecond // after which a process without a probe is taken to serve
	finishing    = time.Second            // how long connections of unknown protocols may go on once their pod is to end
)

// run supervises until it is told to stop, or for a Job's pod until the process ends.
func (p *pod) run(ctx context.Context, adopted *process) {
	defer close(p.done)
	defer p.set(func() { p.ready, p.ended = false, true })
	back := firstBackoff
	if adopted == nil && !p.initialise(ctx) {
		return
	}
	for ctx.Err() == nil {
		proc, started := adopted, time.Now()
		adopted = nil
		if proc == nil {
			var err error
			if proc, err = spawn(p.launch); err != nil {
				p.cannotStart(ctx, err)
				return
			}
			p.register(proc.pid)
		}
		p.attend(ctx, proc)
		if ctx.Err() != nil || p.once {
			p.set(func() { p.code, p.reason = proc.code, "exit code "+codeName(proc.code) })
			return
		}
		well := time.Since(started) > healthy
		if well {
			back = firstBackoff
		}
		p.set(func() {
			p.runs++
			if p.ready, p.restarts = false, p.restarts+1; well {
				p.restarts = 1
			}
			p.reason = "exit code " + codeName(proc.code)
		})
		pauseFor(ctx, back)
		back = min(2*back, lastBackoff)
	}
}

// initialise runs the init containers, each until it succeeds, and reports whether the pod may start.
func (p *pod) initialise(ctx context.Context) bool {
	for i, l := range p.inits {
		for back := firstBackoff; ; back = min(2*back, lastBackoff) {
			proc, err := spawn(l)
			if err != nil {
				p.cannotStart(ctx, err)
				return false
			}
			select {
			case <-proc.exit:
			case <-ctx.Done():
				proc.stop(syscall.SIGTERM, time.Now().Add(p.grace))
				return false
			}
			if proc.code == 0 {
				break
			}
			p.set(func() {
				p.restarts++
				p.code, p.reason = proc.code, fmt.Sprintf("init container %d: exit code %s", i, codeName(proc.code))
			})
			if p.once {
				return false
			}
			if !pauseFor(ctx, back) {
				return false
			}
		}
	}
	p.set(func() { p.restarts = 0 })
	return ctx.Err() == nil
}

// cannotStart lets a pod stand that has no program, until it is told to stop; a Job's ends.
func (p *pod) cannotStart(ctx context.Context, err error) {
	p.set(func() { p.reason, p.code = commandNotFound+": "+err.Error(), 127 })
	if !p.once {
		<-ctx.Done()
	}
}

const commandNotFound = "CommandNotFound"

func codeName(code int) string {
	if code == unknown {
		return "unknown"
	}
	return strconv.Itoa(code)
}

// attend probes a process until it ends, or ends it when the pod is to stop.
func (p *pod) attend(ctx context.Context, proc *process) {
	probing, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	sick := make(chan struct{})
	wg.Go(func() { p.probeAll(probing, sick) })
	defer p.sweep()
	defer wg.Wait()
	defer cancel()
	select {
	case <-proc.exit:
		// What it left behind in its group must not hold ports and files against its successor.
		_ = syscall.Kill(-proc.pid, syscall.SIGKILL)
	case <-sick:
		proc.stop(syscall.SIGTERM, time.Now().Add(p.grace))
	case <-ctx.Done():
		deadline := time.Now().Add(p.grace)
		p.drain(deadline)
		p.preStop(deadline)
		proc.stop(p.stopSignal(), deadline)
	}
}

func (p *pod) stopSignal() syscall.Signal {
	if l := p.container.Lifecycle; l != nil && l.StopSignal != nil {
		if s := unix.SignalNum(string(*l.StopSignal)); s != 0 {
			return s
		}
	}
	return syscall.SIGTERM
}

// preStop runs the hook of a pod that is to end. It may take what is left of the grace.
func (p *pod) preStop(deadline time.Time) {
	l := p.container.Lifecycle
	if l == nil || l.PreStop == nil {
		return
	}
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	h := l.PreStop
	var err error
	switch {
	case h.Exec != nil:
		err = p.exec(ctx, h.Exec.Command)
	case h.HTTPGet != nil:
		err = p.get(ctx, h.HTTPGet)
	case h.Sleep != nil:
		pauseFor(ctx, time.Duration(h.Sleep.Seconds)*time.Second)
	}
	if err != nil {
		p.set(func() { p.reason = "preStop: " + err.Error() })
	}
}

// drain lets nothing new in and waits until what is under way has ended: requests of HTTP until the deadline, connections
// of other protocols, of which nobody knows when they end, only until nothing goes to and fro on them.
func (p *pod) drain(deadline time.Time) {
	p.set(func() { p.ready, p.stopping = false, true })
	brief := time.Now().Add(finishing)
	for _, t := range []time.Time{brief, deadline} {
		defer time.AfterFunc(time.Until(t), func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.idle.Broadcast()
		}).Stop()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.inflight > 0 && time.Now().Before(deadline) || p.conns > p.quiet && time.Now().Before(brief) && time.Now().Before(deadline) {
		p.idle.Wait()
	}
}

func (p *pod) set(f func()) {
	p.mu.Lock()
	f()
	p.mu.Unlock()
	p.changed()
}

// take counts a request in, unless the pod is not to get one.
func (p *pod) take() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ready || p.stopping {
		return false
	}
	p.inflight++
	return true
}

func (p *pod) release() {
	p.mu.Lock()
	p.inflight--
	p.mu.Unlock()
	p.idle.Broadcast()
}

// connection turns a request that was counted in into a connection that may last.
func (p *pod) connection() {
	p.mu.Lock()
	p.inflight--
	p.conns++
	p.mu.Unlock()
	p.idle.Broadcast()
}

// hush counts connections that became quiet (1) or lively (-1), and with them those that ended.
func (p *pod) hush(quiet, ended int) {
	p.mu.Lock()
	p.quiet += quiet
	p.conns -= ended
	p.mu.Unlock()
	p.idle.Broadcast()
}

// snapshot is what others may know of a pod.
type snapshot struct {
	ready, ended bool
	code         int
	restarts     int
	runs         int
	reason       string
}

func (p *pod) now() snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return snapshot{p.ready, p.ended, p.code, p.restarts, p.runs, p.reason}
}

// where returns the pod's track.
func (p *pod) where() platform.Track {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.track
}

// place moves the pod to a track; a promoted canary's pods go on as they are.
func (p *pod) place(t platform.Track) {
	p.mu.Lock()
	p.track = t
	p.mu.Unlock()
}

// pauseFor waits and reports whether the context still stands.
func pauseFor(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
