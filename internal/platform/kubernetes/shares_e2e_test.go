//go:build e2e

package kubernetes

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/database/postgres"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
	"github.com/sluice-cd/sluice/internal/verification"
)

// TestPodsShareAComparison holds that the pods of an Indexed Job, each with its share, find together what one comparison from here
// finds; that their lines tell how far all of them are; that a Job that nobody waits for any more is found again; and that one share
// that fails fails all, with its own reason.
func TestPodsShareAComparison(t *testing.T) {
	tw := compared(t)
	x, err := verification.Open(t.Context(), [2]verification.Database(tw.task.Bound(postgres.New(), tw.dial)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	seed, err := fingerprint.ParseSeed(tw.task.Seed)
	if err != nil {
		t.Fatal(err)
	}
	here, err := x.Compare(t.Context(), seed, tw.task.Checks, verification.Options{Spill: t.TempDir(), Progress: t.Logf})
	if err != nil {
		t.Fatal(err)
	}

	// The tables orders and wide, and the checks.
	tw.task.Division, tw.errand.Shares = &verification.Division{Plan: x.Plan().Digest(), Shares: 3, Tables: []int{0, 1}}, 3
	tw.errand.Input = tw.input()
	var mu sync.Mutex
	var lines []string
	start := time.Now()
	key := abandoned(t, "d1/shared", func(ctx context.Context, giveUp func(), key string) error {
		tw.errand.Progress = verification.Gather(2*manyRows, func(line string) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, line)
			t.Log("the Job: " + line)
			giveUp()
		})
		_, err := tw.Run(ctx, key, tw.errand)
		return err
	})
	jobs, err := tw.List(t.Context(), "Job", "verify-old")
	if err != nil || len(jobs) != 1 {
		t.Fatalf("%d Jobs, %v", len(jobs), err)
	}
	mode, _, _ := unstructured.NestedString(jobs[0].Object, "spec", "completionMode")
	pods, _, _ := unstructured.NestedInt64(jobs[0].Object, "spec", "parallelism")
	if mode != "Indexed" || pods != 3 {
		t.Errorf("the Job is %s and has %d pods at a time", mode, pods)
	}
	results, err := tw.Run(t.Context(), key, tw.errand)
	if err != nil || len(results) != 3 {
		t.Fatalf("%d results, %v", len(results), err)
	}
	t.Logf("by three pods, with their start: %s", time.Since(start).Round(time.Millisecond))
	answers := make([]verification.Answer, 3)
	for i, r := range results {
		if err := json.Unmarshal(r, &answers[i]); err != nil {
			t.Fatal(err)
		}
	}
	if answers[0].Report.Tables[0].Name.Relation != "orders" || answers[1].Report.Tables[0].Name.Relation != "wide" || answers[2].Report != nil {
		t.Error("the results are not in the order of the shares")
	}
	shared, err := verification.Merge(x.Plan(), answers)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := found(t, here), found(t, shared); a != b {
		t.Errorf("from here: %.2000s\nshared: %.2000s", a, b)
	}
	mu.Lock()
	if !slices.ContainsFunc(lines, func(l string) bool {
		return strings.HasPrefix(l, "share 1 of 3, ") && strings.Contains(l, "postgres.public.orders, ") && strings.Contains(l, "; all shares: ")
	}) {
		t.Errorf("the Job said %q", lines)
	}
	mu.Unlock()
	nothingLeft(t, tw.Platform, "verify-old")

	// One share is one too many.
	tw.errand.Shares, tw.errand.Progress = 4, nil
	_, err = tw.Run(t.Context(), "d1/one-too-many", tw.errand)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "share 4 of 4: there are 3 shares, and none of number 3") {
		t.Errorf("a share that fails: %v", err)
	}
	nothingLeft(t, tw.Platform, "verify-old")
	tw.errand.Shares = 3
	tw.c.Jobs.Limits = corev1.ResourceList{"memory": quantity.MustParse("20Mi")}
	_, err = tw.Run(t.Context(), "d1/killed", tw.errand)
	if !fault.Is(err, fault.Lost) || !strings.Contains(err.Error(), "OOMKilled") || !strings.Contains(err.Error(), "index ") {
		t.Errorf("shares that lack memory: %v", err)
	}
	t.Logf("shares that lack memory: %v", err)
	nothingLeft(t, tw.Platform, "verify-old")
	tw.c.Jobs.Limits = nil

	tw.task.Sites, tw.errand.Services, tw.errand.Args = tw.task.Sites[:1], tw.errand.Services[:1], []string{verification.FingerprintCommand}
	tw.task.Division.Shares, tw.errand.Shares = 2, 2
	tw.errand.Input = tw.input()
	if results, err = tw.Run(t.Context(), "d1/fingerprint", tw.errand); err != nil {
		t.Fatal(err)
	}
	digests := make([]*fingerprint.Digest, len(results))
	for i, r := range results {
		if err := json.Unmarshal(r, &digests[i]); err != nil {
			t.Fatal(err)
		}
	}
	d, err := x.Plan().MergeDigests(digests)
	if err != nil || d.Tables[0].Root != here.Report.Tables[0].SourceRoot || d.Tables[1].Root != here.Report.Tables[1].SourceRoot {
		t.Errorf("the fingerprint: %+v, %v", d, err)
	}
	nothingLeft(t, tw.Platform, "verify-old")
}
