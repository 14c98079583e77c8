//go:build e2e

package controller_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/store"
)

// These tests do what docs/controller.md tells people to do, by the commands that it shows.

// home is the namespace that these commands install the controller into, under the name sluice.
const home = "sluice"

// documented is the command of docs/controller.md that contains these words.
func documented(t *testing.T, words string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/controller.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "$ "); ok && strings.Contains(command, words) {
			return command
		}
	}
	t.Fatalf("docs/controller.md shows no command with %s", words)
	return ""
}

// does runs a command in the folder that people have cloned, and returns what it prints.
func does(t *testing.T, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Dir, cmd.WaitDelay = "../..", 10*time.Second
	cmd.Env = append(os.Environ(), "KUBECONFIG="+os.Getenv("LAB_KUBECONFIG"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// install has the controller installed until the end of the test, when it is taken away.
func install(t *testing.T, command string, away func()) lab {
	t.Helper()
	if _, err := kubectl("get", "namespace", home); err == nil {
		t.Fatalf("there is a namespace %s, which this test would take away: give it a cluster without one", home)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := kubectl("-n", home, "logs", "-l", "app.kubernetes.io/name=sluice", "--prefix", "--tail=40")
			t.Log(out)
			letGo(home)
		}
		away()
	})
	does(t, command)
	does(t, "kubectl -n sluice rollout status deployment/sluice --timeout=2m")
	if out := does(t, "kubectl label namespace sluice --dry-run=server pod-security.kubernetes.io/enforce=restricted"); strings.Contains(out, "violate") {
		t.Errorf("the pods do not keep to the Pod Security Standard restricted: %s", out)
	}
	return lab{deliveries: home, account: "in-cluster", remote: remote(t, home)}
}

// plain applies one of the files of plain YAML, and deletes it in the end, which leaves nothing of it.
func plain(t *testing.T, command string) lab {
	t.Helper()
	does(t, documented(t, "-f config/crd"))
	const apply = "apply --server-side"
	return install(t, command, func() {
		does(t, strings.Replace(command, apply, "delete", 1))
		if left := does(t, strings.Replace(command, apply, "get --ignore-not-found -o name", 1)); left != "" {
			t.Errorf("after it was deleted there is still\n%s", left)
		}
	})
}

// delivers delivers a version and, by a canary, another one, and finds the application alone in its namespace.
func (l lab) delivers(t *testing.T) {
	t.Helper()
	l.begin(t, "first", "1")
	l.ends(t, "first")
	l.begin(t, "second", "2")
	l.ends(t, "second")
	l.alone(t, "second")
}

// alone finds nothing in an application's namespace but what was delivered and what every namespace has.
func (l lab) alone(t *testing.T, last string) {
	t.Helper()
	l.gone(t, last)
	pods, rights := "app!=web", "app.kubernetes.io/name!=sluice"
	holds(t, l.app, pods+","+rights, "deployment.apps/web")
}

// holds finds nothing in a namespace, of what is selected, but this and what every namespace has.
func holds(t *testing.T, namespace, selector string, want ...string) {
	t.Helper()
	const kinds = "configmaps,secrets,services,serviceaccounts,deployments,statefulsets,jobs,pods,roles,rolebindings,leases,networkpolicies,persistentvolumeclaims"
	got := strings.Fields(does(t, "kubectl -n "+namespace+" get -o name -l '"+selector+"' "+kinds))
	want = append(want, "configmap/kube-root-ca.crt", "serviceaccount/default")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("in namespace %s there is %s, want %s", namespace, got, want)
	}
}

// bounded holds what the controller may do to what it needs.
func (l lab) bounded(t *testing.T, data bool) {
	t.Helper()
	const account = home + ":sluice"
	// Manifests hold Secrets, and a namespace of a target is made where it is missing.
	may(t, account, l.app, true, "patch deployments", "get secrets", "delete configmaps", "create persistentvolumeclaims", "delete pods", "create namespaces")
	may(t, account, l.app, data, "create pods", "create roles", "delete rolebindings")
	may(t, account, l.app, false, "delete persistentvolumeclaims", "deletecollection persistentvolumeclaims", "create pods --subresource=exec",
		"create serviceaccounts --subresource=token", "escalate roles", "bind roles", "create volumesnapshots", "delete volumesnapshots")
	may(t, account, "", false, "delete namespaces", "get persistentvolumes", "patch persistentvolumes", "delete persistentvolumes", "get volumesnapshotcontents",
		"delete volumesnapshotcontents", "get nodes", "create clusterroles", "bind clusterroles", "create clusterrolebindings", "impersonate users", "impersonate serviceaccounts",
		"patch customresourcedefinitions", "delete validatingadmissionpolicies", "patch validatingadmissionpolicybindings")
	l.decides(t)
}

// decides holds that a controller carries out what people start and decide: it starts nothing, and changes and deletes no decision.
func (l lab) decides(t *testing.T) {
	t.Helper()
	may(t, home+":sluice", home, true, "patch deliveries", "update deliveries --subresource=status", "create deliveryactions")
	may(t, home+":sluice", home, false, "create deliveries", "delete deliveries", "patch deliveryactions", "update deliveryactions", "delete deliveryactions")
	may(t, home+":sluice", l.app, false, "get deliveries", "list deliveries", "create deliveryactions")
}

// TestPlainClusterWide delivers to a namespace that nobody has named when the controller was installed.
func TestPlainClusterWide(t *testing.T) {
	l := plain(t, documented(t, "-f config/cluster-wide.yaml"))
	l.app = unique(t)
	namespace(t, l.app)
	l.delivers(t)
	l.bounded(t, false)
}

// TestPlainData looks at what a controller may that delivers databases.
func TestPlainData(t *testing.T) {
	l := plain(t, strings.Replace(documented(t, "-f config/cluster-wide.yaml"), "cluster-wide", "cluster-wide-data", 1))
	l.app = unique(t)
	namespace(t, l.app)
	l.bounded(t, true)
}

// TestPlainNamespaced delivers to the namespace that is written into the file.
func TestPlainNamespaced(t *testing.T) {
	app, other := unique(t), unique(t)+"-other"
	namespace(t, app)
	namespace(t, other)
	l := plain(t, strings.Replace(documented(t, "config/namespaced.yaml"), "namespace: shop", "namespace: "+app, 1))
	l.app = app
	l.delivers(t)
	l.decides(t)
	may(t, home+":sluice", app, true, "patch deployments", "get secrets", "create events")
	may(t, home+":sluice", app, false, "delete persistentvolumeclaims", "create pods", "create roles")
	may(t, home+":sluice", other, false, "get deployments", "get secrets", "list secrets", "get pods", "create leases", "create events")
	may(t, home+":sluice", "", false, "get namespaces", "create namespaces", "get persistentvolumes", "get nodes")
}

// TestChartClusterWide installs the chart as it is. A release that is upgraded in the middle of a canary changes nothing of it, and
// uninstalled it leaves what docs/controller.md says.
func TestChartClusterWide(t *testing.T) {
	t.Setenv("PATH", filepath.Dir(helm(t))+":"+os.Getenv("PATH"))
	objects := filepath.Join(t.TempDir(), "objects.yaml")
	t.Cleanup(func() { does(t, "kubectl delete namespace sluice --ignore-not-found") })
	l := install(t, documented(t, "helm install"), func() {
		does(t, documented(t, "helm uninstall")+" --wait")
		if left := does(t, "kubectl get --ignore-not-found -o name -f "+objects); left != "" {
			t.Errorf("after it was uninstalled there is still\n%s", left)
		}
		does(t, "kubectl -n sluice wait --for=delete pods -l app.kubernetes.io/name=sluice --timeout=1m")
		application := strings.TrimSpace(does(t, "kubectl -n sluice get leases -o name | grep sluice-application-"))
		holds(t, home, "!sluice.dev/delivery", "secret/sluice-callback-key", "lease.coordination.k8s.io/sluice-controller", application)
		if kept := does(t, "kubectl -n sluice get deliveries -o name"); len(strings.Fields(kept)) != 2 {
			t.Errorf("of two deliveries there are still\n%s", kept)
		}
	})
	does(t, "helm get manifest sluice --namespace sluice > "+objects)
	l.app = unique(t)
	namespace(t, l.app)
	l.bounded(t, false)
	l.begin(t, "first", "1")
	l.ends(t, "first")
	l.begin(t, "second", "2")
	l.until(t, "second", waits)
	before, leader := l.seen(t), l.leader(t)
	does(t, documented(t, "helm upgrade")+" --wait --set replicas=3 --set lease.duration=10s --set lease.renewDeadline=8s")
	l.replaced(t, leader)
	l.until(t, "second", waits)
	if after := l.seen(t); after != before {
		t.Errorf("before the upgrade there was\n%sand after it\n%s", before, after)
	}
	l.ends(t, "second")
	l.alone(t, "second")
}

// TestChartDefinitions brings definitions that Helm has made to what they are now. They are of a group of their own, because other tests
// have deliveries.
func TestChartDefinitions(t *testing.T) {
	t.Setenv("PATH", filepath.Dir(helm(t))+":"+os.Getenv("PATH"))
	dir, app := t.TempDir(), unique(t)
	namespace(t, app)
	does(t, fmt.Sprintf(`set -e; mkdir %[1]s/chart %[1]s/now; cp charts/sluice/Chart.yaml %[1]s/chart
cp config/crd/* %[1]s/now; sed -i 's/sluice[.]dev/%[2]s.example.com/' %[1]s/now/*
cp -r %[1]s/now %[1]s/chart/crds; sed -i 's/name: Since/name: Age/' %[1]s/chart/crds/*`, dir, app))
	t.Cleanup(func() { does(t, "kubectl delete --ignore-not-found -f "+dir+"/now") })
	does(t, "helm install old "+dir+"/chart --namespace "+app)
	column := func() string {
		return does(t, "kubectl get crd deliveries."+app+".example.com -o jsonpath='{.spec.versions[0].additionalPrinterColumns[4].name}'")
	}
	if got := column(); got != "Age" {
		t.Fatalf("Helm has made the column %s, want Age", got)
	}
	does(t, strings.Replace(documented(t, "--force-conflicts -f config/crd"), "config/crd", dir+"/now", 1))
	if got := column(); got != "Since" {
		t.Errorf("after the upgrade there is the column %s, want Since", got)
	}
}

// waits tells whether a delivery waits for its approval.
func waits(d store.Delivery) bool {
	return d.Status.State == delivery.Running && d.Status.Nodes["prod/deploy/approval"].Phase == delivery.StepWaiting
}

// seen is what there is of the application, and how often what is wanted of it has changed.
func (l lab) seen(t *testing.T) string {
	t.Helper()
	const each = `{{range .items}}{{if not .metadata.deletionTimestamp}}{{.kind}} {{.metadata.name}} {{.metadata.uid}} {{.metadata.generation}}{{"\n"}}{{end}}{{end}}`
	return does(t, "kubectl -n "+l.app+" get deployments,replicasets,pods -o go-template='"+each+"'")
}

// replaced waits until a pod leads that is of another revision of the controller than that one.
func (l lab) replaced(t *testing.T, leader string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "kubectl", "--kubeconfig", os.Getenv("LAB_KUBECONFIG"), "-n", l.deliveries, "get", "lease", "sluice-controller", "--watch",
		"-o", `jsonpath={.spec.holderIdentity}{"\n"}`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()
	revision := leader[:strings.LastIndex(leader, "-")+1]
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() != "" && !strings.HasPrefix(lines.Text(), revision) {
			return
		}
	}
	t.Fatalf("%s or another pod of its revision leads", leader)
}
