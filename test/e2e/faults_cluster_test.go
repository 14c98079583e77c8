//go:build e2e

package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/sluice-cd/sluice/internal/kube/kubetest"
)

// faulty is an application in a namespace of its own, delivered by an account of its own to a cluster where something goes
// wrong.
type faulty struct {
	*site
	cluster cluster
	name    string // of the application, the namespace and the account
	config  string // the account's kubeconfig
}

// TestClusterFaults lets a cluster fail in the middle of deliveries, as people see them. Every time the reason is told, the version
// before serves everything that asks for it, and once the cause is mended the delivery goes on, or the next one does.
func TestClusterFaults(t *testing.T) {
	prefix := fmt.Sprintf("faults-%d", os.Getpid())
	s := newSite(t, "accounts: {local: {kind: local}}\n")
	// Whether a connection is dead is asked after 30 seconds, and waited for 15; here it is sooner.
	s.env = append(s.env, "HTTP2_READ_IDLE_TIMEOUT_SECONDS=2", "HTTP2_PING_TIMEOUT_SECONDS=2")
	s.wait = 8 * time.Minute // eight at a time
	c := openCluster(t, "prod", "LAB_KUBECONFIG")
	t.Cleanup(func() { c.remove(prefix) })
	cases := []struct {
		name string
		play func(*faulty)
	}{
		{"conflict", (*faulty).conflict}, {"denied", (*faulty).denied}, {"denied-midway", (*faulty).deniedMidway}, {"refused", (*faulty).unreachable},
		{"silent", (*faulty).silent}, {"no-namespace", (*faulty).noNamespace}, {"expired", (*faulty).expired}, {"no-image", (*faulty).noImage},
	}
	config := "accounts:\n"
	for _, f := range cases {
		path := s.path(f.name + ".kubeconfig")
		config += fmt.Sprintf("  %s-%s: {kind: kubernetes, kubeconfig: %s}\n", prefix, f.name, path)
	}
	s.write("sluice.yaml", config)
	t.Run("in", func(t *testing.T) {
		for _, f := range cases {
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				k := &faulty{site: s.with(t), cluster: c, name: prefix + "-" + f.name, config: f.name + ".kubeconfig"}
				k.cluster.t = t
				k.as(k.admin())
				f.play(k)
			})
		}
	})
}

func (k *faulty) admin() []byte {
	k.t.Helper()
	body, err := os.ReadFile(k.cluster.file)
	if err != nil {
		k.t.Fatal(err)
	}
	return body
}

// as has the account use credentials from now on.
func (k *faulty) as(kubeconfig []byte) { k.write(k.config, string(kubeconfig)) }

// kubectl runs it as the cluster's administrator.
func (k *faulty) kubectl(in string, args ...string) string {
	k.t.Helper()
	return kubectl(k.t, k.cluster.file, in, append([]string{"-n", k.name}, args...)...)
}

// deliver starts a delivery of a version: half of it, a person is asked, and then all of it.
func (k *faulty) deliver(version, image string, args ...string) string {
	k.t.Helper()
	return k.start(k.write(k.name+".yaml", fmt.Sprintf(`
application: %[1]s
targets: {prod: {account: %[1]s, namespace: %[1]s, strategy: asking}}
strategies: {asking: {canary: {steps: [{setWeight: {weight: 50}}, {pause: {untilApproved: true}}]}}}
manifests:
  - inline: |%[2]s`, k.name, strings.ReplaceAll(manifests(2, version, image), "\n", "\n      "))), args...)
}

// ended waits until a delivery has ended and is cleaned up, and holds how.
func (k *faulty) ended(id, status string) delivery {
	k.t.Helper()
	d := k.site.ended(id, status)
	k.sluice("deploy", "watch", id)
	return d
}

// first delivers version 1.
func (k *faulty) first() {
	k.t.Helper()
	id := k.deliver("one", tool)
	if d := k.asked(id); d.Status == "AWAITING_APPROVAL" {
		k.must("deploy", "approve", id)
	}
	k.ended(id, "SUCCEEDED")
}

// asked waits until a delivery asks a person, or has ended.
func (k *faulty) asked(id string) delivery {
	k.t.Helper()
	return k.until(id, "asking", func(d delivery) bool { return d.final() || d.Status == "AWAITING_APPROVAL" })
}

// half delivers version 2 as far as its canary.
func (k *faulty) half() string {
	k.t.Helper()
	k.first()
	id := k.deliver("two", tool)
	if d := k.asked(id); d.Status != "AWAITING_APPROVAL" {
		k.t.Fatalf("the canary does not run\n%s", d)
	}
	return id
}

// held approves a canary and waits until the step after it says why it cannot go on; what it says, people read.
func (k *faulty) held(id string, reason ...string) {
	k.t.Helper()
	k.must("deploy", "approve", id)
	k.until(id, "held by an error", func(d delivery) bool {
		return d.Status == "AWAITING_APPROVAL" && d.step("prod/deploy/promote").Verdict == "error"
	})
	says(k.t, k.must("deploy", "status", id).out, reason...)
	k.serve("one", "two")
}

// resumes tries again, and holds that the delivery comes to its end.
func (k *faulty) resumes(id string) {
	k.t.Helper()
	k.must("deploy", "retry", id)
	k.ended(id, "SUCCEEDED")
	k.serve("two")
}

// serve holds that the application comes to answer every request, by versions among these. A node learns of pods that are gone a
// moment after everybody else, and what it still sends there is not answered.
func (k *faulty) serve(versions ...string) {
	k.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	at := net.JoinHostPort(k.cluster.text(k.name, "services", "web", "spec", "clusterIP"), "80")
	k.eventually("20 requests in a row are answered", func() error {
		for range 20 {
			resp, err := client.Get("http://" + at)
			if err != nil {
				return err
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			_, version, _ := strings.Cut(strings.TrimSpace(string(body)), " ")
			if err == nil && !slices.Contains(versions, version) {
				err = fmt.Errorf("a request is answered by %q and should be by %v", body, versions)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// conflict has another manager own what the delivery changes.
func (k *faulty) conflict() {
	k.kubectl("", "create", "namespace", k.name)
	k.kubectl(manifests(2, "one", tool), "apply", "--server-side", "--field-manager=argocd-controller", "-f", "-")
	k.kubectl("", "rollout", "status", "deployment/web", "--timeout=2m")
	d := k.ended(k.deliver("two", tool), "FAILED")
	says(k.t, d.Reason, "argocd-controller", "args", "one", "two")
	k.serve("one")
	id := k.deliver("two", tool, "--force-conflicts")
	k.asked(id)
	k.must("deploy", "approve", id)
	k.ended(id, "SUCCEEDED")
	k.serve("two")
}

// someone makes a user of the cluster with rules in the namespace, and returns its kubeconfig.
func (k *faulty) someone(rules string) []byte {
	k.t.Helper()
	k.kubectl(fmt.Sprintf(`---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: poor}}
---
{apiVersion: v1, kind: Secret, metadata: {name: poor, annotations: {kubernetes.io/service-account.name: poor}}, type: kubernetes.io/service-account-token}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: poor}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: poor}, subjects: [{kind: ServiceAccount, name: poor}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: poor}, rules: %s}
`, rules), "apply", "-f", "-")
	token := ""
	k.eventually("the user has a token", func() error {
		token = k.cluster.text(k.name, "secrets", "poor", "data", "token")
		if token == "" {
			return fmt.Errorf("Secret poor has none")
		}
		return nil
	})
	plain, err := base64.StdEncoding.DecodeString(token)
	if err != nil {
		k.t.Fatal(err)
	}
	c, err := clientcmd.LoadFromFile(k.cluster.file)
	if err != nil {
		k.t.Fatal(err)
	}
	for name := range c.AuthInfos {
		c.AuthInfos[name] = &api.AuthInfo{Token: string(plain)}
	}
	body, err := clientcmd.Write(*c)
	if err != nil {
		k.t.Fatal(err)
	}
	k.may(rules)
	return body
}

// grant gives that user rules.
func (k *faulty) grant(rules string) {
	k.kubectl(fmt.Sprintf("---\n{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: poor}, rules: %s}", rules), "apply", "-f", "-")
	k.may(rules)
}

// may waits until the API server knows what that user may do.
func (k *faulty) may(rules string) {
	want := map[string]string{everything: "yes", reading: "no"}[rules]
	k.eventually("the role is known", func() error {
		out, _ := exec.Command("kubectl", "--kubeconfig", k.cluster.file, "-n", k.name, "auth", "can-i", "patch", "services", // no is an error as well
			"--as", "system:serviceaccount:"+k.name+":poor").Output()
		if got := strings.TrimSpace(string(out)); got != want {
			return fmt.Errorf("may it change Services? %s, want %s", got, want)
		}
		return nil
	})
}

const (
	everything = `[{apiGroups: ["*"], resources: ["*"], verbs: ["*"]}]`
	reading    = `[{apiGroups: ["*"], resources: ["*"], verbs: [get, list, watch]}, {apiGroups: [coordination.k8s.io], resources: [leases], verbs: ["*"]}]`
)

// denied delivers with the right to read only.
func (k *faulty) denied() {
	k.first()
	k.as(k.someone(reading))
	d := k.ended(k.deliver("two", tool), "FAILED")
	says(k.t, d.Reason, "system:serviceaccount:"+k.name+":poor", "cannot patch", "services", `in the namespace "`+k.name+`"`, "give the account's user a role that allows it")
	k.serve("one")
	k.grant(everything)
	id := k.deliver("two", tool)
	k.asked(id)
	k.must("deploy", "approve", id)
	k.ended(id, "SUCCEEDED")
	k.serve("two")
}

// deniedMidway takes the rights away while a canary runs.
func (k *faulty) deniedMidway() {
	k.kubectl("", "create", "namespace", k.name)
	k.as(k.someone(everything))
	id := k.half()
	k.grant(reading)
	k.held(id, "system:serviceaccount:"+k.name+":poor", "cannot", `in the namespace "`+k.name+`"`, "give the account's user a role that allows it", "retry")
	k.grant(everything)
	k.resumes(id)
}

// unreachable refuses connections while a canary runs, for longer than is tried.
func (k *faulty) unreachable() {
	w := k.wire()
	id := k.half()
	w.Cut()
	k.held(id, "connection refused", "the cluster cannot be reached", "retry")
	w.Mend()
	k.resumes(id)
}

func (k *faulty) wire() *kubetest.Wire {
	k.t.Helper()
	c, err := clientcmd.BuildConfigFromFlags("", k.cluster.file)
	if err != nil {
		k.t.Fatal(err)
	}
	w := kubetest.NewWire(k.t, c.Host)
	k.as(w.Kubeconfig(k.cluster.file))
	return w
}

// silent loses every packet while a canary runs, and has them through again when that has been noticed: the delivery goes on
// by itself.
func (k *faulty) silent() {
	w := k.wire()
	id := k.half()
	w.Block()
	k.must("deploy", "approve", id)
	d := k.until(id, "noticing it", func(d delivery) bool {
		return strings.Contains(d.step("prod/deploy/promote").Message, "cannot be reached")
	})
	if d.final() {
		k.t.Fatalf("it ended\n%s", d)
	}
	k.serve("one", "two")
	w.Mend()
	if d := k.until(id, "at its end", func(d delivery) bool { return d.final() || d.Status == "AWAITING_APPROVAL" }); d.Status != "SUCCEEDED" {
		k.t.Fatalf("it does not go on\n%s", d)
	}
	k.serve("two")
}

// noNamespace deletes the namespace while a canary runs.
func (k *faulty) noNamespace() {
	id := k.half()
	k.kubectl("", "delete", "namespace", k.name, "--wait=true", "--timeout=2m")
	k.must("deploy", "approve", id)
	// Nobody can say what was in it, so a person does.
	d := k.site.ended(id, "FAILED")
	says(k.t, d.Reason, `namespaces "`+k.name+`" not found`, "retry tries again, acknowledge leaves it as it is")
	if _, err := k.cluster.of("", "namespaces").Get(context.Background(), k.name, metav1.GetOptions{}); err == nil {
		k.t.Error("the namespace was made again")
	}
	k.must("deploy", "acknowledge", id)
	k.sluice("deploy", "watch", id)
	k.first()
	k.serve("one")
}

// expired revokes the account's token while a canary runs, and renews it.
func (k *faulty) expired() {
	k.kubectl("", "create", "namespace", k.name)
	token := k.someone(everything)
	k.as(token)
	id := k.half()
	k.kubectl("", "delete", "secret", "poor")
	file := k.path(k.config)
	k.eventually("the token is no longer accepted", func() error {
		if out, err := exec.Command("kubectl", "--kubeconfig", file, "-n", k.name, "get", "pods").CombinedOutput(); err == nil {
			return fmt.Errorf("it is: %s", out)
		}
		return nil
	})
	k.held(id, "credentials", "renew them", "retry")
	k.as(k.someone(everything))
	k.resumes(id)
}

// noImage delivers an image that cannot be pulled.
func (k *faulty) noImage() {
	k.first()
	began := time.Now()
	d := k.ended(k.deliver("two", "127.0.0.1:1/nowhere:1"), "FAILED")
	says(k.t, d.Reason, "ImagePullBackOff", "127.0.0.1:1/nowhere:1")
	if took := time.Since(began); took > 5*time.Minute {
		k.t.Errorf("it took %s", took)
	}
	k.serve("one")
	id := k.deliver("two", tool)
	k.asked(id)
	k.must("deploy", "approve", id)
	k.ended(id, "SUCCEEDED")
	k.serve("two")
}
