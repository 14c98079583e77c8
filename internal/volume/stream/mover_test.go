package stream

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/volume"
)

// fakeCluster runs what the test says instead of Jobs.
type fakeCluster struct {
	platform.Streamer
	run     func(ctx context.Context, e platform.Errand) error
	abandon func() error
}

func (c *fakeCluster) Run(ctx context.Context, _ string, e platform.Errand) ([]json.RawMessage, error) {
	if err := c.run(ctx, e); err != nil {
		return nil, err
	}
	b, err := json.Marshal(Summary{Entries: 1, Bytes: 7, SHA256: "x"})
	return []json.RawMessage{b}, err
}

func (c *fakeCluster) Address(context.Context, string, string) (string, error) { return "a:1", nil }

func (c *fakeCluster) Abandon(context.Context, string, platform.Errand) error { return c.abandon() }

func at(account string) volume.Place {
	return volume.Place{Account: account, Namespace: "ns", Claim: "data"}
}

// moved moves between two fake clusters, and returns what was said, too.
func moved(ctx context.Context, source, target *fakeCluster) (bytes int64, said string, err error) {
	m := NewMover(func(account string) (platform.Streamer, error) {
		return map[string]platform.Streamer{"source": source, "target": target}[account], nil
	}, nil)
	lines := make(chan string, 100)
	bytes, err = m.Move(ctx, "id", "owner", at("source"), at("target"), func(line string) { lines <- line })
	close(lines)
	for l := range lines {
		said += l + "\n"
	}
	return bytes, said, err
}

func TestTheReceiverRunsWhereTheWorkloadWill(t *testing.T) {
	to := at("target")
	to.Like = &corev1.PodSpec{NodeSelector: map[string]string{"zone": "b"}, Tolerations: []corev1.Toleration{{Key: "databases"}}, Affinity: &corev1.Affinity{},
		SecurityContext: &corev1.PodSecurityContext{}}
	x, err := NewMover(func(string) (platform.Streamer, error) { return &fakeCluster{}, nil }, nil).transfer("id", "owner", at("source"), to)
	if err != nil {
		t.Fatal(err)
	}
	like := x.receive.Like
	if like.NodeSelector["zone"] != "b" || len(like.Tolerations) != 1 || like.Affinity == nil {
		t.Errorf("the receiver's pod is %+v", like)
	}
	if like.SecurityContext != nil || *like.Containers[0].SecurityContext.RunAsUser != 0 {
		t.Error("the receiver runs as the workload's user, and cannot write the files of others")
	}
	if x.send.Like.NodeSelector != nil {
		t.Error("the sender is kept from the nodes of its own cluster")
	}
}

func TestTheSenderDialsOnlyTheReceiver(t *testing.T) {
	for address, want := range map[string][]int{"203.0.113.7:31000": {31000, Port}, "lb.example.org:8443": {Port}, "[2001:db8::1]:31000": {31000, Port}} {
		if got, err := dialed(address); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", address, got, err)
		}
	}
	if got, err := dialed("host"); err == nil {
		t.Errorf("an address without a port: %v", got)
	}
}

func well() error { return nil }

// hangs is a cluster's answer to the second time that the Jobs are abandoned: first nothing is there.
func hangs() func() error {
	n := 0
	return func() error {
		if n++; n == 1 {
			return nil
		}
		return fault.Newf(fault.Transient, "a pod hangs")
	}
}

func TestAVerifiedCopyCountsAlthoughItsSenderHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		idle := func(ctx context.Context, _ platform.Errand) error { <-ctx.Done(); return ctx.Err() }
		done := func(context.Context, platform.Errand) error { return nil }
		bytes, said, err := moved(t.Context(), &fakeCluster{run: idle, abandon: hangs()}, &fakeCluster{run: done, abandon: well})
		if err != nil || bytes != 7 || !strings.Contains(said, "the sender in account source has not ended yet: a pod hangs") {
			t.Errorf("%d bytes, %v; said: %s", bytes, err, said)
		}
		if _, _, err = moved(t.Context(), &fakeCluster{run: idle, abandon: well}, &fakeCluster{run: done, abandon: hangs()}); !fault.Is(err, fault.Transient) {
			t.Errorf("the claim is mounted still, and the error is %v", err)
		}
	})
}

func TestNeitherEndIsAtWorkWhenTheJobsAreAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var working atomic.Int32
		slow := func(ctx context.Context, _ platform.Errand) error {
			working.Add(1)
			<-ctx.Done()
			time.Sleep(time.Second) // of the test's own time: its last requests
			working.Add(-1)
			return ctx.Err()
		}
		seen := func() error {
			if n := working.Load(); n != 0 {
				t.Errorf("%d ends are at work", n)
			}
			return nil
		}
		broken := func(context.Context, platform.Errand) error { return fault.Newf(fault.Lost, "the disk is broken") }
		_, _, err := moved(t.Context(), &fakeCluster{run: slow, abandon: seen}, &fakeCluster{run: broken, abandon: seen})
		if !fault.Is(err, fault.Lost) || !strings.Contains(err.Error(), "the receiver in account target: the disk is broken") {
			t.Error(err)
		}
		_, _, err = moved(t.Context(), &fakeCluster{run: broken, abandon: seen}, &fakeCluster{run: slow, abandon: seen})
		if !fault.Is(err, fault.Lost) || !strings.Contains(err.Error(), "the sender in account source: the disk is broken") {
			t.Error(err)
		}
	})
}

// TestAReceiverThatWasKilledBeforeItToldGetsTheSenderAgain has the receiver tell only what the second sender has it compare.
func TestAReceiverThatWasKilledBeforeItToldGetsTheSenderAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		senders := make(chan struct{}, 10)
		send := func(context.Context, platform.Errand) error { senders <- struct{}{}; return nil }
		receive := func(ctx context.Context, _ platform.Errand) error {
			for range 2 {
				select {
				case <-senders:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, _, err := moved(ctx, &fakeCluster{run: send, abandon: well}, &fakeCluster{run: receive, abandon: well}); err != nil {
			t.Error(err)
		}
	})
}

// TestBothEndsTell has what the Jobs of both ends say come to whoever waits.
func TestBothEndsTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tells := func(line string) func(context.Context, platform.Errand) error {
			return func(_ context.Context, e platform.Errand) error { e.Progress(line); return nil }
		}
		first := func(ctx context.Context, e platform.Errand) error {
			e.Progress("a node is missing")
			time.Sleep(time.Minute) // of the test's own time
			return nil
		}
		_, said, err := moved(t.Context(), &fakeCluster{run: tells("sending"), abandon: well}, &fakeCluster{run: first, abandon: well})
		if err != nil || !strings.Contains(said, "sending") || !strings.Contains(said, "a node is missing") {
			t.Errorf("%v; said: %s", err, said)
		}
	})
}
