package local

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// eager is how often a pod is asked that has not been ready yet, whatever its probe says: a person waits.
const eager = 50 * time.Millisecond

// probeAll asks after the pod until the context ends. First the startup probe must succeed; then readiness and liveness
// are watched. sick is closed when the process is to be ended.
func (p *pod) probeAll(ctx context.Context, sick chan<- struct{}) {
	if s := p.container.StartupProbe; s != nil && !p.started(ctx, s) {
		if ctx.Err() == nil {
			close(sick)
		}
		return
	}
	alive := make(chan struct{})
	go func() {
		defer close(alive)
		if p.fatal(ctx) {
			close(sick)
		}
	}()
	p.probeReady(ctx)
	<-alive
}

// started reports whether the startup probe has succeeded before its threshold.
func (p *pod) started(ctx context.Context, probe *corev1.Probe) bool {
	limit := time.Now().Add(time.Duration(probe.InitialDelaySeconds)*time.Second + period(probe)*time.Duration(threshold(probe.FailureThreshold)))
	for {
		err := p.probe(ctx, probe)
		if err == nil {
			return true
		}
		if ctx.Err() == nil {
			p.set(func() { p.reason = "startup: " + err.Error() })
		}
		if time.Now().After(limit) || !pauseFor(ctx, eager) {
			return false
		}
	}
}

// probeReady makes the pod ready when its readiness probe says so; without one when its startup probe has, or once it has
// run for a moment.
func (p *pod) probeReady(ctx context.Context) {
	probe := p.container.ReadinessProbe
	if probe == nil {
		if p.container.StartupProbe != nil || pauseFor(ctx, settled) {
			p.set(func() { p.ready = ctx.Err() == nil && !p.stopping })
		}
		return
	}
	every := eager
	for good, bad := 0, 0; pauseFor(ctx, every); {
		err := p.probe(ctx, probe)
		if err == nil {
			good, bad = good+1, 0
		} else {
			good, bad = 0, bad+1
		}
		was := p.now().ready
		is := was && bad < threshold(probe.FailureThreshold) || !was && good >= int(max(1, probe.SuccessThreshold))
		if is {
			every = period(probe)
		}
		reason := p.now().reason
		if err != nil {
			reason = "readiness: " + err.Error()
		}
		if ctx.Err() == nil && (is != was || reason != p.now().reason) {
			p.set(func() { p.ready, p.reason = is && !p.stopping, reason })
		}
	}
}

// fatal reports whether the liveness probe has failed as often as it may; false when the context ends.
func (p *pod) fatal(ctx context.Context) bool {
	probe := p.container.LivenessProbe
	if probe == nil || !pauseFor(ctx, time.Duration(probe.InitialDelaySeconds)*time.Second) {
		return false
	}
	for bad := 0; pauseFor(ctx, period(probe)); {
		err := p.probe(ctx, probe)
		if err == nil {
			bad = 0
			continue
		}
		if bad++; bad >= threshold(probe.FailureThreshold) && ctx.Err() == nil {
			p.set(func() { p.ready, p.reason = false, "liveness: "+err.Error() })
			return true
		}
	}
	return false
}

// threshold is how many failures in a row count. Kubernetes takes 3 where nothing is said.
func threshold(n int32) int {
	if n <= 0 {
		return 3
	}
	return int(n)
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
		return p.get(ctx, probe.HTTPGet)
	case probe.TCPSocket != nil:
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(p.address, strconv.Itoa(portOf(p.container, probe.TCPSocket.Port))))
		if err != nil {
			return err
		}
		return c.Close()
	case probe.Exec != nil:
		return p.exec(ctx, probe.Exec.Command)
	}
	return nil
}

// get asks the pod by HTTP. As in Kubernetes, certificates are not checked and what is below 400 is well.
func (p *pod) get(ctx context.Context, a *corev1.HTTPGetAction) error {
	scheme := strings.ToLower(string(a.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	at := p.address
	if a.Host != "" {
		at = a.Host
	}
	path := "/" + strings.TrimPrefix(a.Path, "/")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(at, strconv.Itoa(portOf(p.container, a.Port)))+path, http.NoBody)
	if err != nil {
		return err
	}
	for _, h := range a.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
		} else {
			req.Header.Add(h.Name, h.Value)
		}
	}
	unchecked := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // a probe of a pod on this machine
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: unchecked}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("GET %s answers %d", path, resp.StatusCode)
	}
	return nil
}

// exec runs a command as the pod would. All of it ends with the context.
func (p *pod) exec(ctx context.Context, command []string) error {
	argv := make([]string, len(command))
	for i, a := range command {
		argv[i] = p.launch.inside(a)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Dir, cmd.SysProcAttr = p.launch.env, p.launch.dir, &syscall.SysProcAttr{Setpgid: true, Credential: p.launch.cred}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a child that left the group may hold the output open
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %.200s", argv[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

// portOf resolves a port by number or by the container's name for it.
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
