package main

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// rollouts is the controller of Argo Rollouts and its Rollouts.
type rollouts struct {
	o options
	cluster
	follows, pods *stages
}

func podKind() schema.GroupVersionResource { return resource("", "v1", "pods") }

func rolloutKind() schema.GroupVersionResource {
	return resource("argoproj.io", "v1alpha1", "rollouts")
}

func (r *rollouts) install(ctx context.Context) (*program, error) {
	// The definitions are those of the module that the program is built from.
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/argoproj/argo-rollouts")
	cmd.Dir = "bench/rollouts"
	dir, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("find the module argo-rollouts: %w", err)
	}
	if err := r.define(ctx, filepath.Join(strings.TrimSpace(string(dir)), "manifests", "crds", "*.yaml")); err != nil {
		return nil, err
	}
	kubeconfig, err := r.account(ctx, "rollouts", r.o.dir)
	if err != nil {
		return nil, err
	}
	r.follows = r.follow(ctx, rolloutKind(), namespace("rollouts"), rolloutStage)
	r.pods = r.cluster.follow(ctx, podKind(), namespace("rollouts"), func(*unstructured.Unstructured) []string { return []string{"made"} })
	return start(r.o.dir, "rollouts", r.o.rollouts, "--kubeconfig", kubeconfig, "--namespace", namespace("rollouts"), "--namespaced",
		"--metricsport", "18090", "--healthzPort", "18091", "--loglevel", "warn")
}

// rolloutStage says where a Rollout is.
func rolloutStage(o *unstructured.Unstructured) []string {
	var out []string
	// Its status lags behind its specification.
	observed, _, _ := unstructured.NestedString(o.Object, "status", "observedGeneration")
	if observed != fmt.Sprint(o.GetGeneration()) {
		return nil
	}
	phase, _, _ := unstructured.NestedString(o.Object, "status", "phase")
	step, known, _ := unstructured.NestedInt64(o.Object, "status", "currentStepIndex")
	version, _, _ := unstructured.NestedString(o.Object, "spec", "template", "metadata", "annotations", "version")
	if phase == "Healthy" {
		out = append(out, "healthy "+version)
	}
	if version == "2" && known {
		if phase == "Paused" {
			out = append(out, fmt.Sprintf("paused at %d", step))
		}
		if step > 0 {
			out = append(out, fmt.Sprintf("step %d", step))
		}
	}
	return out
}

// fill makes Rollouts with one pod each, and gives each a second version, whose canary is paused by its first step. No node
// here has room for so many pods, and without any the steps of a canary are skipped: so no scheduler sees the pods, and their
// status is written here as a kubelet would write it.
func (r *rollouts) fill(ctx context.Context) error {
	err := each(ctx, r.o.count, 64, func(ctx context.Context, i int) error {
		_, err := r.make(ctx, rolloutKind(), namespace("rollouts"), `
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: `+name(i)+`}
spec:
  replicas: 1
  selector: {matchLabels: {app: `+name(i)+`}}
  strategy: {canary: {steps: [{pause: {}}, {pause: {}}, {pause: {}}]}}
  template:
    metadata: {labels: {app: `+name(i)+`}, annotations: {version: "1"}}
    spec: {schedulerName: nobody, containers: [{name: web, image: "lab/tool:1", args: [pause]}]}
`)
		return err
	})
	if err != nil {
		return err
	}
	if err := r.ready(ctx); err != nil {
		return err
	}
	if _, err := r.follows.all(ctx, "healthy 1", r.o.count); err != nil {
		return err
	}
	in := r.Resource(rolloutKind()).Namespace(namespace("rollouts"))
	err = each(ctx, r.o.count, 64, func(ctx context.Context, i int) error {
		_, err := in.Patch(ctx, name(i), types.MergePatchType, []byte(`{"spec":{"template":{"metadata":{"annotations":{"version":"2"}}}}}`), metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return err
	}
	_, err = r.follows.all(ctx, "paused at 0", r.o.count)
	return err
}

// ready says of every pod that it is.
func (r *rollouts) ready(ctx context.Context) error {
	made, err := r.pods.all(ctx, "made", r.o.count)
	if err != nil {
		return err
	}
	names := slices.Collect(maps.Keys(made))
	in := r.Resource(podKind()).Namespace(namespace("rollouts"))
	return each(ctx, len(names), 64, func(ctx context.Context, i int) error {
		_, err := in.Patch(ctx, names[i], types.StrategicMergePatchType, []byte(`{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`),
			metav1.PatchOptions{}, "status")
		return err
	})
}

// proceed promotes all Rollouts at once, as kubectl argo rollouts promote does.
func (r *rollouts) proceed(ctx context.Context) ([]time.Duration, error) {
	in := r.Resource(rolloutKind()).Namespace(namespace("rollouts"))
	return together(ctx, r.o.count, func(ctx context.Context, i int) error {
		_, err := in.Patch(ctx, name(i), types.MergePatchType, []byte(`{"status":{"pauseConditions":null}}`), metav1.PatchOptions{}, "status")
		return err
	}, r.follows, "step 1")
}

func (r *rollouts) remove(ctx context.Context) error { return r.cluster.remove(ctx, "rollouts") }
