package local

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

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
	argv, env []string
	dir       string
	logFile   string
	cred      *syscall.Credential
	container corev1.Container
	grace     time.Duration
	once      bool // a Job's: it is not started again
	refused   string
}

// pod supervises one process.
type pod struct {
	podSpec
	changed func()

	mu       sync.Mutex
	ready    bool
	stopping bool
	ended    bool // no process, and none will be started
	code     int
	restarts int
	reason   string
	inflight int
	idle     *sync.Cond
	cancel   context.CancelFunc
	done     chan struct{}
}

// run supervises until it is told to stop, or for a Job's pod until the process ends.
func (p *pod) run(ctx context.Context, adopted *process) {
	defer close(p.done)
	defer p.set(func() { p.ready, p.ended = false, true })
	back := 250 * time.Millisecond
	for ctx.Err() == nil {
		proc, started := adopted, time.Now()
		adopted = nil
		if proc == nil {
			var err error
			if proc, err = spawn(p.argv, p.env, p.dir, p.logFile, p.cred); err != nil {
				p.set(func() { p.reason, p.code = "CommandNotFound: "+err.Error(), 127 })
				if p.once {
					return
				}
				<-ctx.Done()
				return
			}
		}
		p.attend(ctx, proc)
		if ctx.Err() != nil || p.once {
			p.set(func() { p.code = proc.code })
			return
		}
		if time.Since(started) > time.Minute {
			back = 250 * time.Millisecond
		}
		p.set(func() {
			p.ready, p.restarts = false, p.restarts+1
			p.reason = fmt.Sprintf("exit code %s", codeName(proc.code))
		})
		t := time.NewTimer(back)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		back = min(2*back, 30*time.Second)
	}
}

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
	wg.Go(func() { p.probeReady(probing) })
	wg.Go(func() { p.probeAlive(probing, sick) })
	defer wg.Wait()
	defer cancel()
	select {
	case <-proc.exit:
		// What it left behind in its group must not hold ports and files against its successor.
		_ = syscall.Kill(-proc.pid, syscall.SIGKILL)
	case <-sick:
		proc.stop(syscall.SIGTERM, p.grace)
	case <-ctx.Done():
		p.drain()
		proc.stop(p.stopSignal(), p.grace)
	}
}

func (p *pod) stopSignal() syscall.Signal {
	if l := p.container.Lifecycle; l != nil && l.StopSignal != nil && *l.StopSignal == "SIGINT" {
		return syscall.SIGINT
	}
	return syscall.SIGTERM
}

// drain waits until no request that was routed here is open, at most for the grace.
func (p *pod) drain() {
	p.set(func() { p.ready, p.stopping = false, true })
	over := time.AfterFunc(p.grace, func() {
		p.mu.Lock()
		p.inflight = 0
		p.mu.Unlock()
		p.idle.Broadcast()
	})
	defer over.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.inflight > 0 {
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
	p.inflight = max(0, p.inflight-1)
	p.mu.Unlock()
	p.idle.Broadcast()
}

// snapshot is what others may know of a pod.
type snapshot struct {
	ready, ended bool
	code         int
	restarts     int
	reason       string
}

func (p *pod) now() snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return snapshot{p.ready, p.ended, p.code, p.restarts, p.reason}
}

// probeReady makes the pod ready when its readiness probe says so; without one it is ready once it runs. Until the first
// success it asks often: a person waits.
func (p *pod) probeReady(ctx context.Context) {
	probe := p.container.ReadinessProbe
	if p.container.StartupProbe != nil && probe == nil {
		probe = p.container.StartupProbe
	}
	if probe == nil {
		p.set(func() { p.ready = true })
		return
	}
	failures := 0
	every := 50 * time.Millisecond
	for tick(ctx, every) {
		err := p.probe(ctx, probe)
		if err == nil {
			failures, every = 0, period(probe)
		} else {
			failures++
		}
		ok := err == nil || failures < int(max(1, probe.FailureThreshold)) && p.now().ready
		if ok != p.now().ready && ctx.Err() == nil {
			p.set(func() {
				p.ready = ok && !p.stopping
				if err != nil {
					p.reason = "readiness: " + err.Error()
				}
			})
		}
	}
}

func (p *pod) probeAlive(ctx context.Context, sick chan<- struct{}) {
	probe := p.container.LivenessProbe
	if probe == nil || !tick(ctx, time.Duration(probe.InitialDelaySeconds)*time.Second) {
		return
	}
	failures := 0
	for tick(ctx, period(probe)) {
		if err := p.probe(ctx, probe); err == nil {
			failures = 0
		} else if failures++; failures >= int(max(3, probe.FailureThreshold)) && ctx.Err() == nil {
			p.set(func() { p.reason = "liveness: " + err.Error() })
			close(sick)
			return
		}
	}
}

// tick waits and reports whether the context still stands.
func tick(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func period(p *corev1.Probe) time.Duration {
	if p.PeriodSeconds > 0 {
		return time.Duration(p.PeriodSeconds) * time.Second
	}
	return 10 * time.Second
}

func (p *pod) probe(ctx context.Context, probe *corev1.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(max(1, probe.TimeoutSeconds))*time.Second)
	defer cancel()
	switch {
	case probe.HTTPGet != nil:
		url := fmt.Sprintf("http://%s%s", net.JoinHostPort(p.address, strconv.Itoa(p.port(probe.HTTPGet.Port))), probe.HTTPGet.Path)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode < 200 || resp.StatusCode >= 400 {
			return fmt.Errorf("GET %s answers %d", probe.HTTPGet.Path, resp.StatusCode)
		}
		return nil
	case probe.TCPSocket != nil:
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(p.address, strconv.Itoa(p.port(probe.TCPSocket.Port))))
		if err != nil {
			return err
		}
		return c.Close()
	case probe.Exec != nil && len(probe.Exec.Command) > 0:
		cmd := exec.CommandContext(ctx, probe.Exec.Command[0], probe.Exec.Command[1:]...)
		cmd.Env, cmd.Dir, cmd.SysProcAttr = p.env, p.dir, &syscall.SysProcAttr{Credential: p.cred}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %.200s", err, out)
		}
	}
	return nil
}

// port resolves a port by number or by the container's name for it.
func (p *pod) port(v intstr.IntOrString) int { return portOf(p.container, v) }

func portOf(c corev1.Container, v intstr.IntOrString) int {
	if v.Type == intstr.Int {
		return int(v.IntVal)
	}
	for _, cp := range c.Ports {
		if cp.Name == v.StrVal {
			return int(cp.ContainerPort)
		}
	}
	n, _ := strconv.Atoi(v.StrVal)
	return n
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
