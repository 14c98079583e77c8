package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/unixsocket"
	"github.com/sluice-cd/sluice/internal/volume"
)

// Config says where a node lives and how one is started.
type Config struct {
	Dir         string
	Account     string
	Images      map[string][]string // image → command
	NodeCommand []string            // run detached when no node answers
}

// Platform is the local platform of one account. It starts a node when none answers, also later.
type Platform struct {
	c    Config
	http *http.Client
	mu   sync.Mutex // one start at a time
}

// Connect reaches the account's node, started if need be, and tells it the images.
func Connect(ctx context.Context, c Config) (*Platform, error) {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	c.Dir = dir
	p := &Platform{c: c, http: &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return unixsocket.Dial(ctx, socket(dir))
	}}}}
	_, err = p.call(ctx, "images", call{Images: c.Images})
	return p, err
}

// call asks the node. Where it breaks off or none answers, one is started and asked again: every call is idempotent.
func (p *Platform) call(ctx context.Context, method string, c call) (answer, error) {
	for try := 1; ; try++ {
		a, err := p.ask(ctx, method, c)
		if err == nil && a.Error != "" {
			return a, fault.Newf(a.Kind, "%s", a.Error)
		}
		if err == nil || ctx.Err() != nil || try == tries {
			return a, err
		}
	}
}

// shutDown is the reason of the last state that a watch tells when the node ends because it was told to.
const shutDown = "NodeShutDown"

// tries is how often a call is made while the node is being replaced.
const tries = 3

func (p *Platform) ask(ctx context.Context, method string, c call) (answer, error) {
	var a answer
	resp, err := p.post(ctx, method, c)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return a, fault.WithRemedy(fault.Newf(fault.Invalid, "the node of account %s is of an older version and does not know %q", p.c.Account, method),
			"end its process with SIGTERM: its successor takes over what it runs")
	}
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return a, fault.Newf(fault.Transient, "the node of account %s broke off: %w", p.c.Account, err)
	}
	return a, nil
}

// post sends one request to the node, which is started if none answers.
func (p *Platform) post(ctx context.Context, method string, c call) (*http.Response, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node/v1/"+method, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		resp, err := p.http.Do(req)
		if err == nil {
			return resp, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if len(p.c.NodeCommand) == 0 || try == tries {
			return nil, fault.Newf(fault.Transient, "the node of account %s does not answer: %w", p.c.Account, err)
		}
		p.http.CloseIdleConnections()
		if err := p.startNode(ctx); err != nil {
			return nil, err
		}
	}
}

// startNode starts the node in a session of its own and waits until it answers.
func (p *Platform) startNode(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, err := unixsocket.Dial(ctx, socket(p.c.Dir)); err == nil {
		return c.Close()
	}
	if err := enter(p.c.Dir); err != nil {
		return err
	}
	logName := filepath.Join(p.c.Dir, "node.log")
	out, err := os.OpenFile(logName, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), p.c.NodeCommand[0], p.c.NodeCommand[1:]...) // it outlives whoever starts it
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = out, out, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the node of account %s: %w", p.c.Account, err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		if c, err := unixsocket.Dial(ctx, socket(p.c.Dir)); err == nil {
			return c.Close()
		}
		select {
		case <-ended:
			// Another one may have been faster: then its socket answers.
			if c, err := unixsocket.Dial(ctx, socket(p.c.Dir)); err == nil {
				return c.Close()
			}
			return fault.Newf(fault.Transient, "the node of account %s ended at once: %s", p.c.Account, tail(logName, 5))
		case <-ctx.Done():
			return fault.Newf(fault.Transient, "the node of account %s does not answer: %s", p.c.Account, tail(logName, 5))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Shutdown ends the node and every process that it owns, and returns when they are gone. Files stay.
func (p *Platform) Shutdown(ctx context.Context) error {
	a, err := p.call(ctx, "shutdown", call{})
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(a.Text)
	if err != nil {
		return fault.Newf(fault.Lost, "the node of account %s does not say which process it is: %q", p.c.Account, a.Text)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // it was faster
	}
	if err != nil {
		return fmt.Errorf("wait for the end of the node, process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return ctx.Err()
}

// MetricsURL is where the Services' counters are scraped.
func (p *Platform) MetricsURL(ctx context.Context) (string, error) {
	a, err := p.call(ctx, "metrics", call{})
	return a.Text, err
}

// Apply implements platform.Platform.
func (p *Platform) Apply(ctx context.Context, key string, objects []manifest.Object, o platform.Options) ([]platform.Change, error) {
	a, err := p.call(ctx, "apply", call{Key: key, Objects: objects, Options: o})
	return a.Changes, err
}

// Revert implements platform.Platform.
func (p *Platform) Revert(ctx context.Context, key string, changes []platform.Change) error {
	_, err := p.call(ctx, "revert", call{Key: key, Changes: changes})
	return err
}

// Watch implements platform.Platform. It goes on with the successor of a node that died.
func (p *Platform) Watch(ctx context.Context, refs []manifest.Ref) (<-chan platform.State, error) {
	first, err := p.post(ctx, "watch", call{Refs: refs}) //nolint:bodyclose // the goroutine below closes it
	if err != nil {
		return nil, err
	}
	ch := make(chan platform.State)
	go func() {
		defer close(ch)
		for resp := first; resp != nil; {
			dec := json.NewDecoder(resp.Body)
			for {
				var s platform.State
				if dec.Decode(&s) != nil {
					break
				}
				select {
				case ch <- s:
				case <-ctx.Done():
				}
				if s.Reason == shutDown {
					resp.Body.Close()
					return
				}
			}
			resp.Body.Close()
			resp = nil
			if ctx.Err() == nil {
				// Without a node the watch ends, and whoever waits says so.
				resp, _ = p.post(ctx, "watch", call{Refs: refs})
			}
		}
	}()
	return ch, nil
}

// Dial implements platform.Platform: to a ready pod, past a closed switch.
func (p *Platform) Dial(ctx context.Context, service manifest.Ref, port string) (net.Conn, error) {
	a, err := p.call(ctx, "endpoint", call{Refs: []manifest.Ref{service}, Port: port})
	if err != nil {
		return nil, err
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", a.Text)
	if err != nil {
		return nil, fault.Newf(fault.Transient, "connect to %s: %w", service, err)
	}
	return c, nil
}

// Address is where clients reach a port of a Service, by way of its switch: a closed one holds them.
func (p *Platform) Address(ctx context.Context, service manifest.Ref, port string) (string, error) {
	a, err := p.call(ctx, "address", call{Refs: []manifest.Ref{service}, Port: port})
	return a.Text, err
}

// PID is the process id of the node.
func (p *Platform) PID(ctx context.Context) (int, error) {
	a, err := p.call(ctx, "pid", call{})
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(a.Text)
}

// Keep has the node started again whenever it dies, until ctx ends or somebody shuts the node down.
func (p *Platform) Keep(ctx context.Context) error {
	const pause = 5 * time.Second
	for ctx.Err() == nil {
		states, err := p.Watch(ctx, nil)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(pause): // what hinders its start may pass: a full disk, an exhausted table of processes
			}
			continue
		}
		for s := range states {
			if s.Reason == shutDown {
				return nil
			}
		}
	}
	return ctx.Err()
}

// StartCanary implements platform.Shifter.
func (p *Platform) StartCanary(ctx context.Context, key string, objects []manifest.Object, o platform.Options) ([]platform.Change, error) {
	if len(o.Meshes) > 0 {
		return nil, fault.Newf(fault.Invalid, "there is no mesh on this machine")
	}
	a, err := p.call(ctx, "canary", call{Key: key, Objects: objects, Options: o})
	return a.Changes, err
}

// SetWeight implements platform.Shifter.
func (p *Platform) SetWeight(ctx context.Context, key string, refs []manifest.Ref, percent int) error {
	if percent < 0 || percent > 100 {
		return fault.Newf(fault.Invalid, "weight %d is not between 0 and 100", percent)
	}
	_, err := p.call(ctx, "weight", call{Key: key, Refs: refs, N: percent})
	return err
}

// Promote implements platform.Shifter.
func (p *Platform) Promote(ctx context.Context, key string, refs []manifest.Ref) error {
	_, err := p.call(ctx, "promote", call{Key: key, Refs: refs})
	return err
}

// Abort implements platform.Shifter.
func (p *Platform) Abort(ctx context.Context, key string, refs []manifest.Ref) error {
	_, err := p.call(ctx, "abort", call{Key: key, Refs: refs})
	return err
}

// Close implements platform.Fencer.
func (p *Platform) Close(ctx context.Context, key string, services []manifest.Ref) error {
	_, err := p.call(ctx, "close", call{Key: key, Refs: services})
	return err
}

// Open implements platform.Fencer.
func (p *Platform) Open(ctx context.Context, key string, services []manifest.Ref) error {
	_, err := p.call(ctx, "open", call{Key: key, Refs: services})
	return err
}

// Scale implements platform.Fencer.
func (p *Platform) Scale(ctx context.Context, key string, workload manifest.Ref, replicas int) error {
	_, err := p.call(ctx, "scale", call{Key: key, Refs: []manifest.Ref{workload}, N: replicas})
	return err
}

// Logs implements platform.Logger.
func (p *Platform) Logs(ctx context.Context, workload manifest.Ref, lines int, w io.Writer) error {
	a, err := p.call(ctx, "logs", call{Refs: []manifest.Ref{workload}, N: lines})
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, a.Text)
	return err
}

// Delete implements platform.Deleter.
func (p *Platform) Delete(ctx context.Context, key, delivery string, refs []manifest.Ref) error {
	_, err := p.call(ctx, "delete", call{Key: key, Delivery: delivery, Refs: refs})
	return err
}

// Get implements platform.Getter.
func (p *Platform) Get(ctx context.Context, ref manifest.Ref) (manifest.Object, error) {
	a, err := p.call(ctx, "get", call{Refs: []manifest.Ref{ref}})
	if err != nil {
		return manifest.Object{}, err
	}
	return a.Objects[0], nil
}

// List implements platform.Getter. With no namespace it lists those of all.
func (p *Platform) List(ctx context.Context, kind, namespace string) ([]manifest.Object, error) {
	a, err := p.call(ctx, "list", call{Kind: kind, Refs: []manifest.Ref{{Namespace: namespace}}})
	return a.Objects, err
}

// Expose implements platform.Exposer.
func (p *Platform) Expose(ctx context.Context, key string, service manifest.Ref, ttl time.Duration) (string, error) {
	a, err := p.call(ctx, "expose", call{Key: key, Refs: []manifest.Ref{service}, TTL: ttl})
	return a.Text, err
}

// Bind implements volume.Binder.
func (p *Platform) Bind(ctx context.Context, pl volume.Place, dir string) error {
	_, err := p.call(ctx, "bind", call{Place: pl, Dir: dir})
	return err
}

// Bound implements volume.Binder.
func (p *Platform) Bound(ctx context.Context, pl volume.Place) (string, error) {
	a, err := p.call(ctx, "bound", call{Place: pl})
	return a.Text, err
}

// Unbind implements volume.Binder.
func (p *Platform) Unbind(ctx context.Context, pl volume.Place) error {
	_, err := p.call(ctx, "unbind", call{Place: pl})
	return err
}

// VolumesDir implements volume.Binder.
func (p *Platform) VolumesDir(context.Context) (string, error) { return volumesDir(p.c.Dir) }
