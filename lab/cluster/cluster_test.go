package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/sluice-cd/sluice/lab/kube"
)

func TestSlotsDoNotOverlap(t *testing.T) {
	var ranges []netip.Prefix
	for n := range slots {
		s := slot{Number: n}
		for _, text := range []string{s.pods(), s.services(), s.hostIP() + "/24"} {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				t.Fatal(err)
			}
			for _, other := range ranges {
				if p.Masked().Overlaps(other) {
					t.Errorf("slot %d: %s overlaps %s", n, p, other)
				}
			}
			ranges = append(ranges, p.Masked())
		}
		services := netip.MustParsePrefix(s.services())
		for _, ip := range []string{s.apiService(), s.dns()} {
			if !services.Contains(netip.MustParseAddr(ip)) {
				t.Errorf("slot %d: %s is not in %s", n, ip, services)
			}
		}
		// Names of links have at most 15 characters.
		if len(s.hostLink()) > 15 || len(s.nodeLink()) > 15 {
			t.Errorf("slot %d: the link's name %s is too long", n, s.hostLink())
		}
	}
}

// sleeper starts a process that carries a mark.
func sleeper(t *testing.T, mark string) (*exec.Cmd, process) {
	t.Helper()
	command := exec.Command("sleep", "600")
	command.Env = append(os.Environ(), mark)
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { command.Process.Kill(); command.Wait() })
	start, _, err := stat(command.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return command, process{PID: command.Process.Pid, Start: start}
}

func TestOnlyTheSameProcessIsKilled(t *testing.T) {
	command, p := sleeper(t, "X=1")
	// The pid belongs to another process now, as far as the file says.
	if err := (process{PID: p.PID, Start: p.Start - 1}).kill(); err != nil {
		t.Fatal(err)
	}
	if !p.alive() {
		t.Fatal("a process with the same pid and another start was killed")
	}
	if err := p.kill(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := gone(ctx, []process{p}); err != nil {
		t.Fatal(err)
	}
	command.Wait()
	// What is gone is no error.
	if err := p.kill(); err != nil {
		t.Error(err)
	}
}

func TestGoneEndsWithItsContext(t *testing.T) {
	_, p := sleeper(t, "X=1")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := gone(ctx, []process{p}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a process that lives: %v", err)
	}
}

func TestProcessesAreFoundByTheirMark(t *testing.T) {
	l := &Lab{Dir: t.TempDir()}
	c := &Cluster{Name: "one", lab: l}
	_, mine := sleeper(t, c.mark())
	// One whose cluster's name begins with ours, and one whose variable only ends like the mark.
	_, other := sleeper(t, c.mark()+"more")
	_, third := sleeper(t, "NOT_"+c.mark())
	found := map[int]bool{}
	// Between fork and exec a process has the environment of this test.
	deadline := time.Now().Add(10 * time.Second)
	for !found[mine.PID] && time.Now().Before(deadline) {
		all, err := c.processes()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range all {
			found[p.PID] = true
		}
	}
	if !found[mine.PID] {
		t.Error("a marked process was not found")
	}
	if found[other.PID] || found[third.PID] {
		t.Error("a process of another cluster was found")
	}
}

func TestALockExcludesAndEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := lockFile(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a lock that is held: %v", err)
	}
	unlock()
	again, err := lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestCertificatesFitTogether(t *testing.T) {
	c := &Cluster{Name: "prod", lab: &Lab{Dir: t.TempDir()}, slot: slot{Number: 3, Name: "prod"}}
	if err := c.makePKI(); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(c.path("pki", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatal("ca.crt holds no certificate")
	}
	server, err := tls.LoadX509KeyPair(c.path("pki", "apiserver.crt"), c.path("pki", "apiserver.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{c.slot.nodeIP(), c.slot.apiService(), "kubernetes.default.svc"} {
		if _, err := server.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("the server as %s: %v", host, err)
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.path("pki", "kubelet.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	kubelet, err := tls.X509KeyPair(config.CertData, config.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kubelet.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if s := kubelet.Leaf.Subject; s.CommonName != "system:node:node-prod" || len(s.Organization) != 1 || s.Organization[0] != "system:nodes" {
		t.Errorf("the kubelet is %s", s)
	}
}

func TestManifestsParse(t *testing.T) {
	values := map[string]string{"Driver": "d", "Class": "c", "Late": "l", "Snapshots": "s", "IP": "10.0.0.10", "Image": "i:1"}
	for name, text := range map[string]string{"dns": dnsManifests, "storage": storageManifests} {
		filled, err := fillTemplate(text, values)
		if err != nil {
			t.Fatal(err)
		}
		objects, err := kube.Parse(filled)
		if err != nil || len(objects) == 0 {
			t.Errorf("%s: %d objects, %v", name, len(objects), err)
		}
	}
	if _, err := fillTemplate("{{.Missing}}", values); err == nil {
		t.Error("a value that is missing went into a configuration")
	}
}

func TestNamesAndPathsThatCannotWorkAreRefused(t *testing.T) {
	if _, err := New("/"+strings.Repeat("long/", 10), nil, nil); err == nil || !strings.Contains(err.Error(), "LAB_DIR") {
		t.Errorf("a long directory: %v", err)
	}
	l := &Lab{Dir: t.TempDir()}
	for _, name := range []string{"", "Prod", "../x", "9", strings.Repeat("x", 21)} {
		if _, err := l.Up(t.Context(), name, Options{}); err == nil || !strings.Contains(err.Error(), "no name of a cluster") {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := l.Cluster("prod"); err == nil || !strings.Contains(err.Error(), "lab up prod") {
		t.Errorf("a cluster that does not run: %v", err)
	}
}
