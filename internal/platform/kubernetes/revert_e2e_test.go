//go:build e2e

package kubernetes

import (
	"context"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

const members = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: queue}
spec:
  replicas: 3
  serviceName: queue
  selector: {matchLabels: {app: queue}}
  template:
    metadata: {labels: {app: queue}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: queue
        image: program
        env: [{name: SLUICE_TEST_PROGRAM, value: http}, {name: VERSION, value: one}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`

var queue = manifest.Ref{Kind: "StatefulSet", Namespace: ns, Name: "queue"}

// is waits for a state of an object.
func (s *shop) is(ref manifest.Ref, within time.Duration, until func(platform.State) bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, within)
	defer cancel()
	s.must(s.await(ctx, ref, until))
}

// TestAStatefulSetComesBack: its new version cannot start, so its controller waits for the first pod of it for ever, also when
// the old version is put back. The pods that serve all the while are not touched.
func TestAStatefulSetComesBack(t *testing.T) {
	p, ctx := fresh(t)
	s, l := &shop{Platform: p, t: t, ctx: ctx}, theLab(t)
	_, err := p.Apply(ctx, "d1/a", []manifest.Object{l.adapt(objectsOf(t, members)[0])}, inNS)
	s.must(err)
	s.is(queue, 2*time.Minute, isReady)
	before, err := p.Members(ctx, queue)
	s.must(err)

	opts := inNS
	opts.Delivery = "d2"
	broken := strings.Replace(members, "image: program", "image: nobody/knows:1", 1)
	changes, err := p.Apply(ctx, "d2/a", []manifest.Object{l.adapt(objectsOf(t, broken)[0])}, opts)
	s.must(err)
	s.is(queue, 3*time.Minute, func(s platform.State) bool { return s.Failed })
	s.must(p.Revert(ctx, "d2/r", changes))
	s.is(queue, 3*time.Minute, isReady)
	after, err := p.Members(ctx, queue)
	s.must(err)
	for i, m := range after {
		if !m.Present || !m.Ready || i < 2 && m.ID != before[i].ID {
			t.Errorf("member %d is %+v, and was %+v", i, m, before[i])
		}
	}
}

// TestOthersKeepWhatTheyApply: what a delivery made and another one has applied since is not deleted with the first.
func TestOthersKeepWhatTheyApply(t *testing.T) {
	p, ctx := fresh(t)
	s := &shop{Platform: p, t: t, ctx: ctx}
	const shared = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shared}\ndata: {a: b}\n---\n"
	changes, err := p.Apply(ctx, "d1/a", objectsOf(t, shared+strings.ReplaceAll(shared, "shared", "own")), inNS)
	s.must(err)
	opts := inNS
	opts.Delivery = "d2"
	_, err = p.Apply(ctx, "d2/a", objectsOf(t, shared), opts)
	s.must(err)
	s.must(p.Revert(ctx, "d1/r", changes))
	got := snapshotOf(t, p)
	if got[ns+"/ConfigMap/shared"] == "" || got[ns+"/ConfigMap/own"] != "" {
		t.Errorf("left are %v", got)
	}
	list, err := p.dynamic.Resource(events()).Namespace(ns).List(ctx, metav1.ListOptions{FieldSelector: "reason=LeftAlone"})
	s.must(err)
	if len(list.Items) != 1 {
		t.Errorf("%d events tell that an object was left alone", len(list.Items))
	}
}
