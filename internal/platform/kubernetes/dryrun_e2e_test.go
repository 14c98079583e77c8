//go:build e2e

package kubernetes

import (
	"context"
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/internal/platform"
)

// TestDryRun tells what Apply makes of objects, and changes nothing: not in a namespace that is not there, and not in what
// kubectl has made, where the cluster refuses a Service's new port beside the old one until the old one's fields are ours.
func TestDryRun(t *testing.T) {
	const ns = "dryrun"
	p := theLab(t).connect(t)
	ctx := context.Background()
	empty(t, p, ns)
	t.Cleanup(func() { empty(t, p, ns) })
	all := objectsOf(t, website+others)
	in := platform.Options{Namespace: ns, Delivery: "d1"}

	differences, err := p.DryRun(ctx, all, in)
	if err != nil || len(differences) != len(all) {
		t.Fatalf("%d differences, %v", len(differences), err)
	}
	for _, d := range differences {
		if d.Live != nil || d.Applied.GetNamespace() != ns {
			t.Errorf("%s: live %v", d.Applied.Ref(), d.Live)
		}
	}
	if _, err := p.dynamic.Resource(namespaces()).Get(ctx, ns, metav1.GetOptions{}); err == nil {
		t.Error("a dry run has made the namespace")
	}

	if _, err := p.Apply(ctx, "d1/apply", all, in); err != nil {
		t.Fatal(err)
	}
	changed := objectsOf(t, strings.NewReplacer("shop:1", "shop:2", "port: 80", "port: 81").Replace(website+others))
	before, err := p.DryRun(ctx, changed, in)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Apply(ctx, "d1/again", changed, in); err != nil {
		t.Fatal(err)
	}
	for _, d := range before {
		live, err := p.Get(ctx, d.Applied.Ref())
		if err != nil {
			t.Fatal(err)
		}
		want, got := own(d.Applied.Object), own(live.Object)
		if !reflect.DeepEqual(want, got) {
			t.Errorf("%s was to become\n%v\nand became\n%v", d.Applied.Ref(), want, got)
		}
		if d.Applied.GetKind() != "ConfigMap" && d.Applied.GetKind() != "Secret" && reflect.DeepEqual(own(d.Live.Object), want) {
			t.Errorf("%s: no difference is told", d.Applied.Ref())
		}
	}
}

// TestDryRunOfAnothers takes a Service that kubectl has made for what it becomes: its port is replaced, not joined.
func TestDryRunOfAnothers(t *testing.T) {
	const ns = "dryrun-kubectl"
	p := theLab(t).connect(t)
	ctx := context.Background()
	empty(t, p, ns)
	t.Cleanup(func() { empty(t, p, ns) })
	if err := p.makeNamespaces(ctx, nil, ns, ""); err != nil {
		t.Fatal(err)
	}
	service := "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: dryrun-kubectl}, spec: {selector: {app: web}, ports: [{port: 80}]}}"
	_, err := p.dynamic.Resource(services()).Namespace(ns).Create(ctx, objectOf(t, service), metav1.CreateOptions{FieldManager: "kubectl-client-side-apply"})
	if err != nil {
		t.Fatal(err)
	}
	all := objectsOf(t, strings.Replace(service, "port: 80", "port: 81", 1))
	differences, err := p.DryRun(ctx, all, platform.Options{Namespace: ns})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Apply(ctx, "d1/apply", all, platform.Options{Namespace: ns}); err != nil {
		t.Fatal(err)
	}
	ports, _ := differences[0].Applied.Object["spec"].(map[string]any)["ports"].([]any)
	if len(ports) != 1 || ports[0].(map[string]any)["port"] != int64(81) {
		t.Errorf("the ports are to be %v", ports)
	}
}
