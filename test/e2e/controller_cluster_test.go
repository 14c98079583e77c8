//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// controlled is a site whose sluice.yaml names a controller in production's cluster. Its controllers are processes of this machine.
type controlled struct {
	clusters
	at string // namespace of the controllers and of their deliveries
}

func newControlled(t *testing.T) controlled {
	t.Helper()
	k := controlled{clusters: newClusters(t)}
	k.at = k.prefix + "-controllers"
	k.prod.define(k.at)
	k.kubectl("create", "namespace", k.at)
	k.write("sluice.yaml", fmt.Sprintf("accounts: {prod: {kind: kubernetes, kubeconfig: %s}}\ncontroller: {account: prod, namespace: %s}\n", k.prod.file, k.at))
	return k
}

func (k controlled) deliveries() []string {
	return k.prod.names(k.at, deliveryKind)
}

// kubectl runs it on production's cluster and returns what it prints.
func (k controlled) kubectl(args ...string) string {
	k.t.Helper()
	return kubectl(k.t, k.prod.file, "", args...)
}

// control runs a controller until the test ends. Addresses that it hands out begin with url.
func (k controlled) control(listen, url string) {
	k.t.Helper()
	var said bytes.Buffer
	cmd := k.command(context.Background(), "controller", "--namespace", k.at, "--kubeconfig", k.prod.file, "--listen", listen, "--external-url", url,
		"--lease-duration", "15s", "--renew-deadline", "10s", "--retry-period", "1s")
	cmd.Env, cmd.Stdout, cmd.Stderr = append(cmd.Env, "SLUICE_DATA="+k.path("controller-"+listen)), &said, &said
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			k.t.Errorf("a controller ends: %v", err)
		}
		if k.t.Failed() {
			k.t.Logf("the controller at %s:\n%s", listen, &said)
		}
	})
	k.eventually("the controller answers", func() error {
		resp, err := http.Get("http://" + listen + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("it answers %s", resp.Status)
		}
		return nil
	})
}

// free is an address of this machine that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestWhoCarriesADelivery: where no controller is alive this machine does it, and says so; where one is, that does, and kubectl tells the
// story, while what it hands out to webhooks is answered by one that stands by; unless --local-engine leaves it aside.
func TestWhoCarriesADelivery(t *testing.T) {
	k := newControlled(t)
	hooks := newReceiver(t)
	r := k.must("deploy", "start", "--watch", "-f", k.preview(hooks, "1", "        []"))
	if want := fmt.Sprintf("warning: no controller is alive in namespace %s of account prod; this machine carries deliveries out\n", k.at); !strings.Contains(r.errs, want) {
		t.Errorf("without a controller it says %q, and not %q", r.errs, want)
	}
	if left := k.deliveries(); len(left) > 0 {
		t.Errorf("without a controller there are deliveries %v in the cluster", left)
	}

	standby := free(t)
	k.control(free(t), "http://"+standby)
	k.eventually("somebody leads", func() error {
		if k.kubectl("-n", k.at, "get", "leases", "-o", "jsonpath={.items[?(@.metadata.name=='sluice-controller')].spec.holderIdentity}") == "" {
			return fmt.Errorf("nobody holds the Lease")
		}
		return nil
	})
	k.control(standby, "http://"+standby)
	told := k.watched()
	hooks.callsBack("/call", `{"success": true, "mdMessage": "seen"}`, func(h hook) string { return h.header.Get("X-Callback") })
	id := k.start(k.preview(hooks, "2", `        - sequence:
            - exposeServices: {services: [next], ttl: {duration: 5, unit: minutes}}
            - runWebhook: {name: look}
            - runWebhook: {name: call}
            - pause: {untilApproved: true}`))
	d := k.until(id, "waiting for a person", anyWaits)
	says(t, d.step(stepOf(d, "3-webhook")).Message, `webhook "call" succeeded: seen`)
	at, called := hooks.one("/look").body, hooks.one("/call").header.Get("X-Callback")
	if !strings.HasPrefix(at, "http://"+standby+"/exposed/") || !strings.HasPrefix(called, "http://"+standby+"/callbacks/") {
		t.Errorf("webhooks were told %s and %s, which are not of %s", at, called, standby)
	}
	if code, text := work(at); code != http.StatusOK || !strings.HasPrefix(text, "2 ") {
		t.Errorf("%s answers %d %q", at, code, text)
	}
	k.must("deploy", "approve", id)
	k.ended(id, "SUCCEEDED")
	k.tells(told, id, "Running prod prod/deploy/", "3-webhook", "4-approval", "Succeeded prod prod/")
	if got := k.deliveries(); len(got) != 1 || got[0] != id {
		t.Errorf("the cluster has deliveries %v, not %s alone", got, id)
	}

	next := k.preview(hooks, "3", "        []")
	k.eventually("the controller has cleaned up", func() error {
		// Until then it holds the application's Lease, for engines elsewhere, too.
		if r = k.sluice("deploy", "start", "--local-engine", "--watch", "-f", next); r.code != 0 && !strings.Contains(r.errs, "delivery "+id+` of application "web" is still running`) {
			t.Fatalf("with --local-engine it ends with %d: %s", r.code, r.errs)
		}
		if r.code != 0 {
			return fmt.Errorf("it is refused: %s", r.errs)
		}
		return nil
	})
	if got := k.deliveries(); len(got) != 1 {
		t.Errorf("in spite of --local-engine there are deliveries %v in the cluster; it says %s%s", got, r.out, r.errs)
	}
}

// watched has kubectl watch the deliveries until the test ends, and returns the file that what it prints is in.
func (k controlled) watched() string {
	k.t.Helper()
	out, err := os.Create(k.path("watched"))
	if err != nil {
		k.t.Fatal(err)
	}
	watch := exec.Command("kubectl", "--kubeconfig", k.prod.file, "-n", k.at, "get", "deliveries", "--watch", "--no-headers")
	watch.Stdout = out
	if err := watch.Start(); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() {
		_ = watch.Process.Kill()
		_ = watch.Wait()
		out.Close()
	})
	return out.Name()
}

// tells holds what kubectl has shown of a delivery: these words in this order, each in a line of its own.
func (k controlled) tells(file, id string, words ...string) {
	k.t.Helper()
	k.eventually("kubectl get deliveries -w tells the story", func() error {
		told, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		missing := words
		for line := range strings.Lines(string(told)) {
			if cells := strings.Join(strings.Fields(line), " "); len(missing) > 0 && strings.HasPrefix(cells, id+" web ") && strings.Contains(cells, missing[0]) {
				missing = missing[1:]
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("no %q in its turn:\n%s", missing[0], told)
		}
		return nil
	})
}
