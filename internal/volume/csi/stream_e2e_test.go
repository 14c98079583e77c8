//go:build e2e

package csi

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
	"github.com/sluice-cd/sluice/internal/volume"
	"github.com/sluice-cd/sluice/internal/volume/stream"
	"github.com/sluice-cd/sluice/internal/volume/volumetest"
)

// streaming is a driver of production that streams every clone, as if no storage had its snapshots: both ends are in one cluster,
// where the node is reached without more ado.
func (l *lab) streaming(t *testing.T, limits corev1.ResourceList) *Driver {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv(variables()[prod]))
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	p, err := kubernetes.Connect(kubernetes.Config{Account: prod, Kubeconfig: os.Getenv(variables()[prod]), Stream: u.Hostname(), Jobs: kubernetes.Jobs{Image: "sluice:dev", Limits: limits}})
	if err != nil {
		t.Fatal(err)
	}
	m := stream.NewMover(func(string) (platform.Streamer, error) { return p, nil }, func(string, string) string { return "the test says so" })
	return New(prod, l.client, m, Deadlines{}).Telling(func(line string) { t.Log(line) }).(*Driver)
}

func TestStreamedConformance(t *testing.T) {
	t.Parallel()
	volumetest.Run(t, func(t *testing.T) volumetest.Env {
		l := theLab(t)
		e := l.env(t, l.streaming(t, nil), class)
		l.clean(t, prod, e.Live.Namespace+"-stream")
		return e
	})
}

// TestStreamIsKilled deletes the pods of both ends in the middle, one after the other, and then has the mover itself die and come
// again. The volume is full to its last block. What was written before is not sent again, and in the end nothing of the transfer is left.
func TestStreamIsKilled(t *testing.T) {
	t.Parallel()
	l := theLab(t)
	from := l.namespace(t, prod, "prod")
	l.clean(t, prod, from+"-stream")
	l.apply(t, prod, claims(), fmt.Sprintf(`{metadata: {name: data, namespace: %s}, spec: {storageClassName: %s, accessModes: [ReadWriteOnce], resources: {requests: {storage: 512Mi}}}}`, from, class))
	live := volume.Place{Account: prod, Namespace: from, Claim: "data"}
	l.write(t, live, "rows", "rows of production")
	if said, ok := l.pod(t, live, "fill", "/data/large"); !ok {
		t.Fatal(said)
	}
	cut := l.cut(t, live, "cut")
	to := volume.Place{Account: prod, Namespace: l.namespace(t, prod, "target"), Claim: "data", Class: late}
	var mu sync.Mutex
	var lines []string
	far := make(chan string, 1000)
	d := l.streaming(t, corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}).Telling(func(line string) {
		t.Log(line)
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, line)
		if strings.HasPrefix(line, "streamed ") && strings.Contains(line, "%") {
			select {
			case far <- line:
			default:
			}
		}
	})
	clone := func(ctx context.Context) error {
		_, err := d.Clone(ctx, l.name+"/streamed", l.name, cut, []volume.Place{to})
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- clone(ctx) }()
	gets := func() {
		t.Helper()
		select {
		case err := <-ended:
			t.Fatalf("it was over before it could be disturbed: %v", err)
		case <-far:
		case <-time.After(3 * time.Minute):
			t.Fatal("the stream does not get anywhere")
		}
	}
	for _, namespace := range []string{from + "-stream", to.Namespace} {
		gets()
		l.killPods(t, namespace)
		for len(far) > 0 {
			<-far
		}
	}
	gets()
	cancel()
	if err := <-ended; err == nil {
		t.Fatal("it was over before the mover died")
	}
	listed, err := d.List(t.Context(), l.name)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range listed {
		if c.ID() == l.name+"/streamed" && !c.Info().CutAt.IsZero() {
			t.Error("half a copy counts as one")
		}
	}
	if err := clone(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rows, _ := l.read(t, to, "rows"); rows != "rows of production" {
		t.Errorf("the copy holds %q", rows)
	}
	mu.Lock()
	if all := strings.Join(lines, "\n"); !strings.Contains(all, "were there already") {
		t.Error("nothing was taken from what was there already")
	}
	mu.Unlock()
	l.nothingOf(t, from+"-stream", to.Namespace)
}

// killPods kills the pods of Sluice's Jobs.
func (l *lab) killPods(t *testing.T, namespace string) {
	t.Helper()
	c, now := l.cluster(prod), int64(0)
	all, err := c.list(t.Context(), pods(), namespace, "")
	if err != nil || len(all) == 0 {
		t.Fatalf("pods of %s: %v, %v", namespace, all, err)
	}
	for _, p := range all {
		t.Logf("killing %s", p)
		if err := c.in(pods(), namespace).Delete(t.Context(), p.GetName(), metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Error(err)
		}
	}
}

// nothingOf wants the namespaces to have nothing more of a transfer: no Jobs, keys, ports, or clone that was lent.
func (l *lab) nothingOf(t *testing.T, lent, target string) {
	t.Helper()
	c := l.cluster(prod)
	jobs := coreKind("jobs", "Job")
	jobs.Group = "batch"
	for _, namespace := range []string{lent, target} {
		for _, k := range []kind{jobs, coreKind("secrets", "Secret"), coreKind("services", "Service"), pods()} {
			all, err := c.list(t.Context(), k, namespace, "")
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range all {
				t.Errorf("left: %s", o)
			}
		}
	}
	for _, k := range []kind{claims(), snapshots()} {
		all, err := c.list(t.Context(), k, lent, "")
		if err != nil || len(all) > 0 {
			t.Errorf("left: %v, %v", all, err)
		}
	}
}

// TestStreamRefusals: what cannot be streamed is told with its reason, and nothing is left.
func TestStreamRefusals(t *testing.T) {
	l := theLab(t)
	from, cut := l.source(t)
	l.clean(t, prod, from.Namespace+"-stream")
	d := l.streaming(t, nil)
	target := l.namespace(t, prod, "target")
	for name, c := range map[string]struct {
		to   volume.Place
		kind fault.Kind
		says string
	}{
		"too small":      {volume.Place{Bytes: 16 << 20}, fault.Invalid, "16777216"},
		"no such class":  {volume.Place{Class: "none"}, fault.NotFound, "StorageClass none"},
		"not Sluice's":   {volume.Place{Own: true}, fault.Denied, "somebody else made it"},
		"nobody listens": {volume.Place{}, fault.Invalid, "does not say how other clusters reach it"},
	} {
		t.Run(name, func(t *testing.T) {
			c.to.Account, c.to.Namespace, c.to.Claim = prod, target, "data"
			d := d
			if name == "nobody listens" {
				p, err := kubernetes.Connect(kubernetes.Config{Account: prod, Kubeconfig: os.Getenv(variables()[prod]), Jobs: kubernetes.Jobs{Image: "sluice:dev"}})
				if err != nil {
					t.Fatal(err)
				}
				d = New(prod, l.client, stream.NewMover(func(string) (platform.Streamer, error) { return p, nil }, func(string, string) string { return "so" }), Deadlines{})
			}
			before := len(l.mine(t, prod))
			_, err := d.Clone(t.Context(), l.name+"/"+name, l.name, cut, []volume.Place{c.to})
			if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v (%s)", err, fault.KindOf(err))
			}
			if left := l.mine(t, prod); len(left) != before {
				t.Errorf("left: %v", left)
			}
		})
	}
	if phase := corev1.PersistentVolumeClaimPhase(l.phase(t, from)); phase != corev1.ClaimBound {
		t.Errorf("production's claim is %s", phase)
	}
}

func (l *lab) phase(t *testing.T, p volume.Place) string {
	t.Helper()
	o, err := l.cluster(p.Account).get(t.Context(), claims(), p.Namespace, p.Claim)
	if err != nil {
		t.Fatal(err)
	}
	return o.text("status", "phase")
}
