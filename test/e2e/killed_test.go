//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sluice-cd/sluice/internal/controller"
	deliveries "github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/kube"
	"github.com/sluice-cd/sluice/internal/lease"
	"github.com/sluice-cd/sluice/internal/store"
	remotes "github.com/sluice-cd/sluice/internal/store/kubernetes"
)

// killedStory is the story in Sluice's own dialect, carried out by controllers that are killed.
type killedStory struct {
	*story
	reaper           *reaper
	cluster          *rest.Config // production's
	namespace        string       // of the deliveries
	remote           *remotes.Remote
	since            time.Time
	copier, restorer string
}

func newKilled(t *testing.T, every int) *killedStory {
	t.Helper()
	k := &killedStory{since: time.Now(), story: openShop(t, "killed")}
	ns := k.name + "-controllers"
	k.namespace = ns
	k.prod.define(ns)
	for _, c := range []*shopCluster{k.prod, k.staging} {
		k.kubectl(c, "", "create", "namespace", ns)
		k.identities(c)
		k.rights(c)
	}
	k.write("sluice.yaml", k.configuration(k.prod.file, k.staging.file))
	k.env = append(k.env, "TEAM="+k.hooks.URL)
	// Its database is upgraded by one more controller after each other, so it takes longer than the fence may stand.
	k.write("deploy.yaml", strings.NewReplacer("application: shop", "application: "+k.name, "namespace: staging", "namespace: "+k.name, "namespace: production", "namespace: "+k.name,
		"$(STAGING)", "staging", "$(PRODUCTION)", "production", "$(DIR)", k.dir, "$(REQUESTS)", "shop_requests_total",
		"upgrade: {contract: release-2}", "upgrade: {contract: release-2, deadline: {duration: 1, unit: hours}}",
		// Prometheus finds the canary in its own time.
		"numberOfJudgmentRuns: 7", "numberOfJudgmentRuns: 25",
		"            - runJob: {name: integration-tests}", "            - runJob: {name: integration-tests}\n            - runWebhook: {name: tell}",
		"\nmanifests:", "\nwebhooks: [{name: tell, method: POST, uriTemplate: \"{{secrets.team}}/tell\", disableCallback: true}]\nmanifests:").
		Replace(k.file("../../internal/demo/files/deploy.yaml")))
	k.write("jobs/integration-tests.yaml", k.shipped("integration-tests.yaml", ""))
	var err error
	if k.cluster, err = clientcmd.BuildConfigFromFlags("", k.prod.file); err == nil {
		k.remote, err = remotes.NewRemote(remotes.Config{Credentials: k.cluster, Namespace: ns})
	}
	if err != nil {
		t.Fatal(err)
	}
	k.reaper = newReaper(t, every)
	return k
}

// configuration is a sluice.yaml with kubeconfigs of production and staging.
func (k *killedStory) configuration(production, staging string) string {
	return fmt.Sprintf(`
accounts:
  production: {kind: kubernetes, kubeconfig: %s, jobs: {image: "sluice:dev"}, copyAs: %q, restoreAs: %q}
  staging: {kind: kubernetes, kubeconfig: %s, jobs: {image: "sluice:dev"}, copyAs: %q}
controller: {account: production, namespace: %s}
metricProviders:
  prometheus: {url: "http://%s"}
secrets:
  team: {env: TEAM}
`, production, k.copier, k.restorer, staging, k.copier, k.namespace, k.prod.address("prometheus"))
}

// kubectl runs it on a cluster and returns what it prints.
func (k *killedStory) kubectl(c *shopCluster, in string, args ...string) string {
	k.t.Helper()
	return kubectl(k.t, c.file, in, args...)
}

// install applies objects until the test ends.
func (k *killedStory) install(c *shopCluster, objects string) {
	k.t.Helper()
	k.t.Cleanup(func() { k.kubectl(c, objects, "delete", "--ignore-not-found", "-f", "-") })
	k.kubectl(c, objects, "apply", "-f", "-")
}

// identities installs those that are shipped, under names of the test's own. Only production is restored.
func (k *killedStory) identities(c *shopCluster) {
	k.t.Helper()
	system := k.name + "-system"
	k.kubectl(c, "", "create", "namespace", system)
	names := strings.NewReplacer("sluice-system", system, "sluice-copier", k.name+"-copier", "sluice-restorer", k.name+"-restorer", "sluice-as-", k.name+"-as-",
		`"production-"`, `"`+k.name+`-"`, `"production"`, `"`+k.name+`"`, "namespace: production", "namespace: "+k.name)
	files := []string{"copier"}
	if c == k.prod {
		files = append(files, "restorer")
	}
	for _, file := range files {
		k.install(c, names.Replace(k.file("../../config/identities/"+file+".yaml")))
		k.install(c, fmt.Sprintf(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: %[1]s},
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %[1]s}, subjects: [%s]}`, k.name+"-as-"+file, k.controllers()))
	}
	k.copier, k.restorer = "system:serviceaccount:"+system+":"+k.name+"-copier", "system:serviceaccount:"+system+":"+k.name+"-restorer"
}

// controllers are the users of all seats, as the subject of a binding.
func (k *killedStory) controllers() string {
	return "{apiGroup: rbac.authorization.k8s.io, kind: Group, name: 'system:serviceaccounts:" + k.namespace + "'}"
}

// rights gives the controllers what the chart gives them, and no more.
func (k *killedStory) rights(c *shopCluster) {
	k.t.Helper()
	names := strings.NewReplacer("{kind: ServiceAccount, name: sluice, namespace: sluice}", k.controllers(), "sluice-sluice-", k.name+"-", "namespace: sluice", "namespace: "+k.namespace)
	var rules []string
	for object := range strings.SplitSeq(k.file("../../config/cluster-wide-data.yaml"), "\n---\n") {
		if strings.Contains(object, "\nkind: Role") || strings.Contains(object, "\nkind: ClusterRole") {
			rules = append(rules, names.Replace(object))
		}
	}
	k.install(c, strings.Join(rules, "\n---\n"))
}

// outcome is what a delivery has come to.
type outcome struct {
	state, reason string
	steps         []string // each with how it ended
	objects       []string // what there is of the story in both clusters
	changes       []int64  // how often what is wanted of production's workloads was changed
	made          []string // what was made in production
}

// delivers carries a release out to its end.
func (k *killedStory) delivers(shop string) outcome {
	k.t.Helper()
	k.keepLedger()
	before, since := k.generations(), time.Now()
	k.checkOut(shop, k.shipped("migration.yaml", "shop-migration:2"))
	k.eventually("a controller leads", func() error {
		fresh, err := lease.Fresh(k.t.Context(), k.cluster, k.namespace, controller.LeaseName)
		if err == nil && !fresh {
			err = errors.New("its Lease is not renewed")
		}
		return err
	})
	id := k.start(k.path("deploy.yaml"))
	ctx, cancel := context.WithTimeout(k.t.Context(), 40*time.Minute)
	defer cancel()
	var last deliveries.Status
	if err := k.remote.Watch(ctx, id, func(d store.Delivery) { last = d.Status }); err != nil {
		k.t.Fatalf("%v; the delivery is %s: %s", err, last.State, last.Reason)
	}
	k.eventually("a shell is told the delivery of the controller", func() error {
		if r := k.must("__complete", "deploy", "status", ""); !strings.Contains(r.out, id+"\t") {
			return errors.New(r.out)
		}
		return nil
	})
	out := outcome{state: string(last.State), reason: last.Reason, objects: k.objects(id)}
	k.forgotten(id)
	for path, n := range last.Nodes {
		out.steps = append(out.steps, strings.TrimSpace(fmt.Sprintf("%s %s %s", path, n.Phase, n.Verdict)))
	}
	slices.Sort(out.steps)
	for n, g := range k.generations() {
		out.changes = append(out.changes, g-before[n])
	}
	out.made = k.made(k.prod, since)
	k.made(k.staging, since)
	return out
}

// made lists by the audit log what Sluice has made since an instant where it delivers to in a cluster, and holds that it has made
// everything once. What only reads is left out: after a kill it reads once more.
func (k *killedStory) made(c *shopCluster, since time.Time) (all []string) {
	k.t.Helper()
	times := map[string]int{}
	for _, call := range c.calls(k.t, since) {
		o := call.On
		reads := strings.HasPrefix(o.Name, "sluice-errand-") || strings.HasPrefix(o.Name, "sluice-probe-")
		if call.did() && call.sluices() && call.Said.Code == http.StatusCreated && o.Namespace == k.name && o.Subresource == "" && o.Resource != "secrets" && !reads {
			times[o.Resource+" "+o.Name]++
		}
	}
	for name, n := range times {
		all = append(all, byChance.ReplaceAllString(name, "*"))
		if n > 1 {
			k.t.Errorf("%s: %s was made %d times in one delivery", c.name, name, n)
		}
	}
	if len(all) == 0 {
		k.t.Errorf("%s: the audit log tells of nothing that was made", c.name)
	}
	slices.Sort(all)
	return all
}

// generations count how often what is wanted of production's workloads was changed.
func (k *killedStory) generations() (all []int64) {
	k.t.Helper()
	for _, w := range []struct{ resource, name string }{{"statefulsets.apps", "mongo"}, {"deployments.apps", "web"}} {
		o, err := k.prod.of(k.name, w.resource).Get(context.Background(), w.name, metav1.GetOptions{})
		if err != nil {
			k.t.Fatal(err)
		}
		all = append(all, o.GetGeneration())
	}
	return all
}

// byChance is the part of a name that no two deliveries share.
var byChance = regexp.MustCompile(`[0-9a-f]{8,}`)

// objects lists what there is of the story in both clusters after a delivery, but not what earlier ones have kept.
func (k *killedStory) objects(id string) (all []string) {
	k.t.Helper()
	for _, c := range []*shopCluster{k.prod, k.staging} {
		for _, ns := range c.names("", "namespaces") {
			if !strings.HasPrefix(ns, k.name) || ns == k.namespace {
				continue
			}
			for _, kind := range []string{"statefulsets.apps", "deployments.apps", "services", "jobs.batch", claims, snapshots, "networkpolicies.networking.k8s.io", "leases.coordination.k8s.io"} {
				list, err := c.of(ns, kind).List(context.Background(), metav1.ListOptions{})
				if err != nil {
					k.t.Fatal(err)
				}
				for _, o := range list.Items {
					if of := o.GetLabels()[kube.DeliveryLabel]; of == "" || of == id {
						all = append(all, fmt.Sprintf("%s: %s %s/%s", c.name, kind, ns, byChance.ReplaceAllString(o.GetName(), "*")))
					}
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

// forgotten holds that nothing is kept any more of how things were before an ended delivery.
func (k *killedStory) forgotten(id string) {
	k.t.Helper()
	for _, c := range []*shopCluster{k.prod, k.staging} {
		list, err := c.of("", "secrets").List(context.Background(), metav1.ListOptions{LabelSelector: "sluice.dev/journal=true," + kube.DeliveryLabel + "=" + id})
		if err != nil {
			k.t.Fatal(err)
		}
		for _, s := range list.Items {
			k.t.Errorf("%s: what was there before is still kept in Secret %s/%s", c.name, s.GetNamespace(), s.GetName())
		}
	}
}

// volume is what production's database runs on.
func (k *killedStory) volume() string {
	k.t.Helper()
	return k.prod.text(k.name, claims, "data-mongo-0", "spec", "volumeName")
}

// holds opens a volume that a delivery took out of service, with the version that ran on it, and holds that it has all that
// was acknowledged before the delivery began.
func (k *killedStory) holds(volume string) {
	k.t.Helper()
	ctx := k.t.Context()
	v, err := k.prod.of("", "persistentvolumes").Get(ctx, volume, metav1.GetOptions{})
	if err != nil {
		k.t.Errorf("the old volume: %v", err)
		return
	}
	if phase, _, _ := unstructured.NestedString(v.Object, "status", "phase"); phase != "Released" {
		k.t.Errorf("the old volume is %s", phase)
		return // whatever runs on it is not to be disturbed
	}
	old := *k.prod
	old.namespace = k.name + "-old"
	csi, _, _ := unstructured.NestedMap(v.Object, "spec", "csi")
	// The same storage under another name: what Sluice keeps is not touched.
	for _, o := range []struct {
		resource, namespace string
		fields              map[string]any
	}{
		{"namespaces", "", map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": old.namespace}}},
		{"persistentvolumes", "", map[string]any{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": map[string]any{"name": old.namespace},
			"spec": map[string]any{"accessModes": []any{"ReadWriteOnce"}, "capacity": map[string]any{"storage": "1Gi"}, "persistentVolumeReclaimPolicy": "Retain", "csi": csi,
				"claimRef": map[string]any{"namespace": old.namespace, "name": "data-mongo-0"}}}},
		{claims, old.namespace, map[string]any{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": map[string]any{"name": "data-mongo-0"},
			"spec": map[string]any{"accessModes": []any{"ReadWriteOnce"}, "resources": map[string]any{"requests": map[string]any{"storage": "1Gi"}}, "volumeName": old.namespace, "storageClassName": ""}}},
	} {
		if _, err := k.prod.of(o.namespace, o.resource).Create(ctx, &unstructured.Unstructured{Object: o.fields}, metav1.CreateOptions{}); err != nil {
			k.t.Fatal(err)
		}
	}
	old.apply("old", k.shipped("database.yaml", "ferretdb:1.17"))
	r, err := k.check(&old, "ledger-of-the-cut")
	if err != nil || r.Acknowledged < orders || len(r.Missing)+len(r.Differing) > 0 {
		k.t.Errorf("the old volume: %s (%v)", r, err)
	}
	k.t.Logf("on the old volume %s", r)
	for _, o := range []struct{ resource, name string }{{"namespaces", old.namespace}, {"persistentvolumes", old.namespace}} {
		if err := k.prod.without(ctx, "", o.resource, o.name); err != nil {
			k.t.Error(err)
		}
	}
}

// once holds by the audit logs that Sluice made nothing that was there, and that of production's data it deleted nothing but
// the claim, as the restorer and once for each upgrade.
func (k *killedStory) once(upgrades int) {
	k.t.Helper()
	swapped := 0
	for _, c := range []*shopCluster{k.prod, k.staging} {
		there := map[string]bool{}
		for _, call := range c.calls(k.t, k.since) {
			o, who := call.On, call.as()
			ours := strings.HasPrefix(o.Namespace, k.name) || o.Namespace == "" && strings.HasPrefix(o.Name, k.name) || who == k.copier || who == k.restorer
			if !ours || !call.did() && !call.may() || o.Subresource != "" || strings.HasSuffix(o.Name+o.Namespace, "-old") {
				continue
			}
			name := fmt.Sprintf("%s %s/%s", o.Resource, o.Namespace, o.Name)
			switch {
			case call.Verb == "delete":
				delete(there, name)
			case call.Verb == "deletecollection":
				maps.DeleteFunc(there, func(n string, _ bool) bool { return strings.HasPrefix(n, o.Resource+" "+o.Namespace+"/") })
			case call.Said.Code == http.StatusCreated && o.Name != "" && call.sluices():
				if there[name] {
					k.t.Errorf("%s: %s was made twice", c.name, name)
				}
				there[name] = true
			}
			source := []string{claims, "persistentvolumes", "volumesnapshots", "volumesnapshotcontents"}
			if c != k.prod || !call.sluices() || !strings.HasPrefix(call.Verb, "delete") || !slices.Contains(source, o.Resource) {
				continue
			}
			switch {
			case who == k.restorer && o.Resource == claims && o.Namespace == k.name && o.Name == "data-mongo-0":
				if call.did() {
					swapped++
				}
			case who == k.copier && o.Resource != "persistentvolumes" && (o.Namespace != k.name || byChance.MatchString(o.Name)):
				// It made that itself: the policy of the copier lets it delete nothing else.
			default:
				k.t.Errorf("%s deleted %s", who, name)
			}
		}
	}
	if swapped != upgrades {
		k.t.Errorf("production's claim was deleted %d times for %d upgrades", swapped, upgrades)
	}
}

// told holds that a webhook was sent under one key for each delivery, however often.
func (k *killedStory) told(deliveries int) {
	k.t.Helper()
	sent := map[string]int{}
	for _, h := range k.hooks.got("/tell") {
		sent[h.header.Get("Idempotency-Key")]++
	}
	k.t.Logf("the webhook was sent %v", sent)
	if len(sent) != deliveries {
		k.t.Errorf("the webhook was sent under %d keys for %d deliveries", len(sent), deliveries)
	}
}

// quiet holds by the audit logs that leaders which were stopped for longer than two periods of their Lease have asked for no
// change when they went on.
func (k *killedStory) quiet() {
	k.t.Helper()
	k.reaper.mu.Lock()
	defer k.reaper.mu.Unlock()
	for _, c := range []*shopCluster{k.prod, k.staging} {
		told := map[string]bool{}
		for _, call := range c.calls(k.t, k.since) {
			told[call.User.Username] = true
			for _, s := range k.reaper.silences {
				if call.User.Username == s.user && call.At.After(s.from) && call.At.Before(s.to) {
					k.t.Errorf("%s: %s, which no longer leads, asked for %s %s", c.name, s.user, call.Verb, call.RequestURI)
				}
			}
		}
		for _, s := range k.reaper.silences {
			if !told[s.user] {
				k.t.Errorf("%s: the audit log tells nothing of %s", c.name, s.user)
			}
		}
	}
}

// harmed holds that controllers were killed and stopped at least so often since the reaper was armed.
func (k *killedStory) harmed(kills, stops int) {
	k.t.Helper()
	r := k.reaper
	r.mu.Lock()
	defer r.mu.Unlock()
	k.t.Logf("%d controllers were killed and %d stopped in %d status writes, of which %d said again what was known", r.kills, r.stops, r.written, r.again)
	if r.kills < kills || r.stops < stops {
		k.t.Errorf("only %d controllers were killed and %d stopped, not %d and %d", r.kills, r.stops, kills, stops)
	}
}

// goesBack delivers the release that fails customers while controllers are harmed. It ends as the undisturbed delivery did.
func (k *killedStory) goesBack(h harm, calm outcome) {
	k.t.Helper()
	k.reaper.arm(h)
	old := k.volume()
	back := k.delivers("shop:2-rc1")
	if !slices.Equal(back.steps, calm.steps) || back.state != calm.state {
		k.t.Errorf("the delivery whose controllers were harmed is %s: %s\n%s\nand the undisturbed one %s\n%s", back.state, back.reason, strings.Join(back.steps, "\n"),
			calm.state, strings.Join(calm.steps, "\n"))
	}
	if !slices.Equal(back.objects, calm.objects) {
		k.t.Errorf("it leaves\n%s\nand the undisturbed one\n%s", strings.Join(back.objects, "\n"), strings.Join(calm.objects, "\n"))
	}
	if !slices.Equal(back.changes, calm.changes) {
		k.t.Errorf("the workloads of production were changed %v times, %v times by the undisturbed delivery", back.changes, calm.changes)
	}
	if !slices.Equal(back.made, calm.made) {
		k.t.Errorf("it has made in production\n%s\nand the undisturbed one\n%s", strings.Join(back.made, "\n"), strings.Join(calm.made, "\n"))
	}
	k.runs(k.prod, "ferretdb:1.17", "shop:1")
	k.kept()
	k.holds(old)
}

// stays delivers the good release while controllers are harmed.
func (k *killedStory) stays(h harm) {
	k.t.Helper()
	k.reaper.arm(h)
	old := k.volume()
	good := k.delivers("shop:2")
	if good.state != string(deliveries.Succeeded) || slices.ContainsFunc(good.steps, func(s string) bool { return !strings.HasSuffix(s, " passed pass") }) {
		k.t.Errorf("the good release is %s: %s\n%s", good.state, good.reason, strings.Join(good.steps, "\n"))
	}
	// The database is stopped, and started as the new version; the application makes room for the canary, and is promoted.
	if !slices.Equal(good.changes, []int64{2, 2}) {
		k.t.Errorf("database and application were changed %v times, not twice each", good.changes)
	}
	k.runs(k.prod, "ferretdb:1.24", "shop:2")
	k.kept()
	k.holds(old)
}

// TestClusterLeaderHarmed kills and stops leaders, in turn, all through the delivery of the good release on two clusters: copy,
// verification, rehearsal, upgrade behind the fence, canary and analysis. Another controller stands by.
func TestClusterLeaderHarmed(t *testing.T) {
	k := newKilled(t, 8)
	k.sit()
	k.sit()
	k.stays(both)
	k.harmed(3, 3)
	k.once(1)
	k.told(1)
	k.quiet()
}

// TestClusterControllerKilled kills the controller of a whole story on two clusters, with the way back, after each of its status
// writes: at every place that a delivery comes to, once. A write that only counts another try of what a kill has interrupted is
// no new place, else nothing would ever advance. Then the same with another controller that stands by, and with leaders that
// are stopped and go on. What is then carried out ends as an undisturbed delivery does.
//
// That takes as many takeovers as there are places, so SLUICE_LONG=1 does harm at every seventh place only, and
// SLUICE_LONG=all, as in make test-killed, spares none. The controllers' Leases must be renewed within two seconds: that needs a machine with time.
func TestClusterControllerKilled(t *testing.T) {
	long(t)
	every := 7
	if os.Getenv("SLUICE_LONG") == "all" {
		every = 1
	}
	k := newKilled(t, every)
	k.sit()
	calm := k.delivers("shop:2-rc1")
	t.Logf("undisturbed: %s: %s", calm.state, calm.reason)
	if calm.state != string(deliveries.Failed) || !strings.Contains(calm.reason, "the canary is worse") {
		t.Fatalf("the release that fails customers: %+v", calm)
	}
	k.runs(k.prod, "ferretdb:1.17", "shop:1")
	k.kept()
	k.goesBack(kill, calm)
	k.harmed(60/every, 0)

	end := k.sit()
	k.goesBack(kill, calm)
	k.harmed(60/every, 0)
	k.goesBack(stop, calm)
	k.harmed(0, 5)
	end()

	k.stays(kill)
	k.harmed(60/every, 0)
	k.once(5)
	k.told(5)
	k.quiet()
}
