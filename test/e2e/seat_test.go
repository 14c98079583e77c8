//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// seat is where one controller runs after the other. It has credentials and a folder of its own: the audit logs tell what its
// controllers have done, and what another one has kept on its disk is out of their reach.
type seat struct {
	k      *killedStory
	name   string
	user   string // in the audit logs of both clusters
	env    []string
	within string // kubeconfig of the way through the reaper
	log    *os.File

	// These are of the reaper's lock.
	controller *exec.Cmd
	stopped    bool
	resumed    time.Time
	overdue    *time.Timer // ends one that does not end by itself
}

// silence is from when a controller went on that had been stopped for too long, to its end.
type silence struct {
	user     string
	from, to time.Time
}

// sit runs controllers on one more seat until what it returns is called, at the latest until the test ends.
func (k *killedStory) sit() (end func()) {
	k.t.Helper()
	s := &seat{k: k, name: fmt.Sprintf("controller-%d", len(k.reaper.seats)+1)}
	s.user = "system:serviceaccount:" + k.namespace + ":" + s.name
	prod := s.credentials(k.prod)
	s.env = slices.Concat(k.env, []string{"SLUICE_DATA=" + k.path(s.name), "SLUICE_CONFIG=" + k.write(s.name+".yaml", k.configuration(prod, s.credentials(k.staging)))})
	s.within = s.through(prod)
	var err error
	if s.log, err = os.Create(k.path(s.name + ".log")); err != nil {
		k.t.Fatal(err)
	}
	k.reaper.mu.Lock()
	k.reaper.seats = append(k.reaper.seats, s)
	k.reaper.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { s.run(ctx) })
	end = sync.OnceFunc(func() {
		cancel()
		done.Wait()
		k.reaper.left(s)
	})
	k.t.Cleanup(func() {
		end()
		s.log.Close()
		if k.t.Failed() {
			body, _ := os.ReadFile(s.log.Name())
			k.t.Logf("the controllers of seat %s:\n%s", s.name, body)
		}
	})
	return end
}

// credentials makes an account of the seat in a cluster and writes a kubeconfig of it.
func (s *seat) credentials(c *shopCluster) string {
	s.k.t.Helper()
	s.k.kubectl(c, "", "-n", s.k.namespace, "create", "serviceaccount", s.name)
	token := s.k.kubectl(c, "", "-n", s.k.namespace, "create", "token", s.name, "--duration=6h")
	config, err := clientcmd.LoadFromFile(c.file)
	if err != nil {
		s.k.t.Fatal(err)
	}
	for user := range config.AuthInfos {
		config.AuthInfos[user] = &clientcmdapi.AuthInfo{Token: strings.TrimSpace(token)}
	}
	path := s.k.path(s.name + "." + c.name + ".kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		s.k.t.Fatal(err)
	}
	return path
}

// through makes the way to a cluster that the reaper watches.
func (s *seat) through(kubeconfig string) string {
	s.k.t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		s.k.t.Fatal(err)
	}
	to, err := url.Parse(config.Host)
	if err != nil {
		s.k.t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{FlushInterval: -1, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
		w.WriteHeader(http.StatusBadGateway) // whoever asked is dead
	}, Rewrite: func(q *httputil.ProxyRequest) { q.SetURL(to) }, ModifyResponse: func(a *http.Response) error { return s.k.reaper.answered(s, a) }}
	if proxy.Transport, err = rest.TransportFor(config); err != nil {
		s.k.t.Fatal(err)
	}
	srv := httptest.NewServer(proxy)
	s.k.t.Cleanup(srv.Close)
	return s.k.write(s.name+".through.kubeconfig", fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q}}],
contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}]}`, srv.URL))
}

// run runs one controller after the other until ctx ends.
func (s *seat) run(ctx context.Context) {
	r := s.k.reaper
	for n := 1; ctx.Err() == nil; n++ {
		cmd := s.k.command(ctx, "controller", "--namespace", s.k.namespace, "--kubeconfig", s.within, "--listen", "127.0.0.1:0",
			"--lease-duration", leaseOf.String(), "--renew-deadline", "2s", "--retry-period", "500ms")
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.Env, cmd.Stdout, cmd.Stderr = s.env, s.log, s.log
		r.mu.Lock()
		s.controller = cmd
		err := cmd.Start()
		r.mu.Unlock()
		if err != nil {
			r.t.Error(err)
			return
		}
		err = cmd.Wait()
		ended := time.Now()
		r.mu.Lock()
		if s.overdue != nil {
			s.overdue.Stop()
		}
		if s.stopped && ctx.Err() == nil {
			if cmd.ProcessState.ExitCode() != 1 {
				r.t.Errorf("a leader that was stopped for too long does not end by itself: %v", err)
			}
			r.silences = append(r.silences, silence{s.user, s.resumed, ended})
		}
		s.stopped = false
		r.mu.Unlock()
		if e, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
			fmt.Fprintf(s.log, "controller %d: %v\n", n, err)
		}
	}
}

// stop stops its controller, and has it go on when it no longer leads. The reaper's lock is held.
func (s *seat) stop() error {
	p := s.controller.Process
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	s.stopped = true
	time.AfterFunc(2*leaseOf+time.Second, func() {
		s.k.reaper.mu.Lock()
		defer s.k.reaper.mu.Unlock()
		s.resumed = time.Now()
		if err := p.Signal(syscall.SIGCONT); err != nil {
			s.k.reaper.t.Errorf("signal %s: %v", syscall.SIGCONT, err)
		}
		s.overdue = time.AfterFunc(time.Minute, func() { _ = p.Kill() })
	})
	return nil
}
