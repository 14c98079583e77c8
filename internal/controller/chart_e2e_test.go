//go:build e2e

package controller_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/store"
)

// helm builds the program helm in the version that tools pins.
func helm(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "helm")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "helm.sh/helm/v4/cmd/helm")
	build.Dir = "../../tools/helm"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("helm cannot be built: %v\n%s", err, out)
	}
	return path
}

// TestPlainYAML holds the plain YAML to the chart: make generate writes it anew.
func TestPlainYAML(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("../../charts/generate", dir, helm(t)).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"cluster-wide.yaml", "cluster-wide-data.yaml", "namespaced.yaml"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("../../config", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("config/%s is not what the chart gives (%v): make generate", name, err)
		}
	}
}

// TestChart installs the chart for one namespace, delivers a canary with it while the leader's pod is killed, and finds the
// controller's privileges enough for that and too small for another namespace. The node must have the image sluice:dev.
func TestChart(t *testing.T) {
	l := newLab(t)
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], append(args[1:], "--kubeconfig", os.Getenv("LAB_KUBECONFIG"), "--namespace", l.deliveries)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	program := helm(t)
	run(program, "install", "ctl", "../../charts/sluice", "--wait", "--timeout", "2m", "--set", "clusterWide=false", "--set", "targetNamespaces={"+l.app+"}",
		"--set", "config.accounts.lab.kind=kubernetes", "--set", "lease.duration=10s", "--set", "lease.renewDeadline=8s", "--set", "lease.retryPeriod=1s")
	t.Cleanup(func() { run(program, "uninstall", "ctl", "--wait") })
	for _, bad := range []string{"replicas=0", "lease.duration=soon", "image.tga=x", "clusterWide=false", "data=true,clusterWide=false,targetNamespaces={x}"} {
		out, err := exec.Command(program, "template", "../../charts/sluice", "--set", bad).CombinedOutput()
		if err == nil {
			t.Errorf("the chart takes %s:\n%.300s", bad, out)
		}
	}
	l.begin(t, "first", "1")
	l.ends(t, "first")
	l.begin(t, "second", "2")
	l.until(t, "second", func(d store.Delivery) bool {
		return d.Status.Nodes["prod/deploy/half"].Phase == delivery.StepRunning || d.Status.Nodes["prod/deploy/approval"].Phase == delivery.StepWaiting
	})
	killed := l.leader(t)
	if out, err := kubectl("-n", l.deliveries, "delete", "pod", killed, "--force", "--grace-period=0"); err != nil {
		t.Fatal(out)
	}
	l.ends(t, "second")
	after := l.leader(t)
	if after == killed {
		t.Errorf("the leader is still %s", after)
	}
	l.tells(t, after)
	reasons, err := kubectl("-n", l.deliveries, "get", "events", "-o", "jsonpath={.items[*].reason}")
	if err != nil || !strings.Contains(reasons, "Succeeded") {
		t.Errorf("the Events tell %s (%v)", reasons, err)
	}
	l.forbidden(t)
	// What fails without a word where it may not be done: to say at an object why it was left alone, and the better of two ways to a pod.
	may(t, l.deliveries+":ctl", l.app, true, "create events", "get pods --subresource=portforward")
	l.deleted(t)
	// Another namespace is not one of its targets.
	elsewhere := l
	elsewhere.app = "default"
	elsewhere.begin(t, "elsewhere", "1")
	last := elsewhere.last(t, "elsewhere")
	if last.Status.State != delivery.Failed || !strings.Contains(last.Status.Reason, "forbidden") {
		t.Errorf("a delivery to another namespace ended %s: %s", last.Status.State, last.Status.Reason)
	}
}

// leader is the pod that leads.
func (l lab) leader(t *testing.T) string {
	t.Helper()
	holder, err := kubectl("-n", l.deliveries, "get", "lease", "sluice-controller", "-o", "jsonpath={.spec.holderIdentity}")
	if err != nil || holder == "" {
		t.Fatalf("nobody leads: %s (%v)", holder, err)
	}
	return holder[:strings.LastIndex(holder, "-")]
}

// may holds what an account may do, or may not, in a namespace or to what belongs to none.
func may(t *testing.T, account, namespace string, want bool, what ...string) {
	t.Helper()
	for _, w := range what {
		cmd := exec.Command("kubectl", append(strings.Fields("auth can-i "+w), "--kubeconfig", os.Getenv("LAB_KUBECONFIG"), "--namespace", namespace,
			"--as", "system:serviceaccount:"+account)...)
		var warnings strings.Builder
		cmd.Stderr = &warnings
		answer, _ := cmd.Output() // no is an error as well
		yes, no := strings.HasPrefix(string(answer), "yes"), strings.HasPrefix(string(answer), "no")
		if yes == no || strings.Contains(warnings.String(), "doesn't have a resource") {
			t.Errorf("whether %s may %s in %s cannot be told: %s%s", account, w, namespace, answer, &warnings)
		} else if yes != want {
			t.Errorf("may %s %s in %s? %s, want %t", account, w, namespace, answer, want)
		}
	}
}

// until waits until a delivery is as it should be.
func (l lab) until(t *testing.T, id string, holds func(store.Delivery) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	within, enough := context.WithCancelCause(ctx)
	held := errors.New("it is as it should be")
	_ = l.remote.Watch(within, id, func(d store.Delivery) {
		if holds(d) {
			enough(held)
		}
	})
	if !errors.Is(context.Cause(within), held) {
		t.Fatalf("delivery %s does not come so far: %v", id, context.Cause(within))
	}
}

// tells holds what people and Prometheus see of two deliveries that have ended.
func (l lab) tells(t *testing.T, leader string) {
	t.Helper()
	table, err := kubectl("-n", l.deliveries, "get", "deliveries")
	if columns := "NAME APPLICATION PHASE TARGET STEP SINCE"; err != nil || !strings.HasPrefix(strings.Join(strings.Fields(table), " "), columns) {
		t.Errorf("kubectl shows\n%s and not the columns %s", table, columns)
	}
	if !regexp.MustCompile(`(?m)^second +web +Succeeded `).MatchString(table) {
		t.Errorf("kubectl shows\n%s and no second delivery of web that has succeeded", table)
	}
	metrics, err := kubectl("get", "--raw", "/api/v1/namespaces/"+l.deliveries+"/pods/"+leader+":8080/proxy/metrics")
	if err != nil || !strings.Contains(metrics, `sluice_deliveries_ended_total{state="succeeded"} 1`) {
		t.Errorf("the leader, which has ended one delivery, measures (%v)\n%s", err, metrics)
	}
}

// deleted deletes a delivery in the middle of its canary, which takes it back.
func (l lab) deleted(t *testing.T) {
	t.Helper()
	l.begin(t, "third", "3")
	l.until(t, "third", func(d store.Delivery) bool {
		return d.Status.Nodes["prod/deploy/approval"].Phase == delivery.StepWaiting
	})
	if out, err := kubectl("-n", l.deliveries, "delete", "delivery", "third", "--timeout=2m"); err != nil {
		t.Fatal(out)
	}
	const shown = `-o=jsonpath={range .items[*]}{.metadata.name} {.spec.replicas} {.spec.template.spec.containers[0].env[0].value};{end}`
	if out, err := kubectl("-n", l.app, "get", "deployments", shown); err != nil || out != "web 2 2;" {
		t.Errorf("after its canary was deleted the application is %q (%v)", out, err)
	}
}

// last waits until a delivery has ended, however that is.
func (l lab) last(t *testing.T, id string) store.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var last store.Delivery
	if err := l.remote.Watch(ctx, id, func(d store.Delivery) { last = d }); err != nil {
		t.Fatalf("%v; %+v", err, last.Status)
	}
	return last
}

// forbidden tries what the admission policy keeps from everybody: to decide in the name of another, and to call back.
func (l lab) forbidden(t *testing.T) {
	t.Helper()
	for _, spec := range []string{`{delivery: second, type: approve, by: somebody}`, `{delivery: second, type: callback, by: admin}`, `{delivery: second, type: approve}`} {
		cmd := exec.Command("kubectl", "--kubeconfig", os.Getenv("LAB_KUBECONFIG"), "create", "-f", "-")
		cmd.Stdin = strings.NewReader("apiVersion: sluice.dev/v1alpha1\nkind: DeliveryAction\nmetadata: {name: forged, namespace: " + l.deliveries + "}\nspec: " + spec)
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "ValidatingAdmissionPolicy") {
			t.Errorf("%s: %s", spec, out)
		}
	}
	out, err := kubectl("-n", l.deliveries, "patch", "delivery", "second", "--type=merge", "-p", `{"spec":{"by":"somebody"}}`)
	if err == nil || !strings.Contains(out, "never changes") {
		t.Errorf("the specification of a delivery can be changed: %s", out)
	}
}
