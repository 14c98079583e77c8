package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	deliveries "github.com/sluice-cd/sluice/internal/store/kubernetes"
)

// The steps of a delivery: it rests until it is approved, and then for a day.
const (
	approvalStep = "prod/deploy/approval"
	nextStep     = "prod/deploy/wait"
)

// sluice is Sluice's controller and its deliveries.
type sluice struct {
	o options
	cluster
	follows *stages
}

func kindOf(name string) schema.GroupVersionResource { return resource("sluice.dev", "v1alpha1", name) }

func (s *sluice) install(ctx context.Context) (*program, error) {
	if err := s.define(ctx, "config/crd/*.yaml"); err != nil {
		return nil, err
	}
	kubeconfig, err := s.account(ctx, "sluice", s.o.dir)
	if err != nil {
		return nil, err
	}
	if _, err := s.make(ctx, resource("", "v1", "namespaces"), "", "{apiVersion: v1, kind: Namespace, metadata: {name: "+namespace("target")+"}}"); err != nil {
		return nil, err
	}
	config := filepath.Join(s.o.dir, "sluice.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "accounts:\n  lab: {kind: kubernetes, kubeconfig: %q}\n", kubeconfig), 0o600); err != nil {
		return nil, err
	}
	s.follows = s.follow(ctx, kindOf("deliveries"), namespace("sluice"), stageOf)
	return start(s.o.dir, "sluice", s.o.sluice, "controller", "--kubeconfig", kubeconfig, "--namespace", namespace("sluice"), "--listen", "127.0.0.1:0",
		"--config", config, "--data", filepath.Join(s.o.dir, "data"))
}

// stageOf says where a delivery is.
func stageOf(o *unstructured.Unstructured) []string {
	step, _, _ := unstructured.NestedString(o.Object, "status", "step")
	if step != approvalStep {
		return []string{step}
	}
	// It rests once it waits, which only the state says.
	packed, _, _ := unstructured.NestedString(o.Object, "status", "state")
	raw, err := base64.StdEncoding.DecodeString(packed)
	if err != nil {
		return nil
	}
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil
	}
	var st delivery.Status
	if json.NewDecoder(z).Decode(&st) != nil || st.Nodes[approvalStep].Phase != delivery.StepWaiting {
		return nil
	}
	return []string{approvalStep}
}

func name(i int) string { return fmt.Sprintf("d%04d", i) }

func (s *sluice) fill(ctx context.Context) error {
	remote, err := deliveries.NewRemote(deliveries.Config{Credentials: s.config, Namespace: namespace("sluice")})
	if err != nil {
		return err
	}
	err = each(ctx, s.o.count, 64, func(ctx context.Context, i int) error {
		spec, err := spec(name(i))
		if err != nil {
			return err
		}
		return remote.Start(ctx, spec)
	})
	if err != nil {
		return err
	}
	_, err = s.follows.all(ctx, approvalStep, s.o.count)
	return err
}

// spec is a delivery of an application of its own, with manifests of a usual size, which it never comes to apply.
func spec(id string) (delivery.Spec, error) {
	objects, err := manifest.Parse("web.yaml", []byte(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "lab/tool:1", args: [pause]}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {`+id+`: "`+strings.Repeat("0123456789abcdef", 1024)+`"}
`))
	if err != nil {
		return delivery.Spec{}, err
	}
	apply, err := json.Marshal(plan.ApplyArgs{Account: "lab", Namespace: namespace("target"), Objects: objects, Timeout: time.Minute})
	if err != nil {
		return delivery.Spec{}, err
	}
	wait, err := json.Marshal(plan.PauseArgs{For: 24 * time.Hour})
	if err != nil {
		return delivery.Spec{}, err
	}
	node := func(path, kind string, args json.RawMessage, after ...string) plan.Node {
		return plan.Node{Path: path, Target: "prod", Phase: plan.Deploy, Kind: kind, Args: args, After: after}
	}
	return delivery.Spec{ID: id, Application: id, CreatedAt: time.Now().UTC(), Graph: plan.Graph{Application: id,
		Targets: []plan.Target{{Name: "prod", Account: "lab", Namespace: namespace("target")}},
		Nodes: []plan.Node{node(approvalStep, plan.KindApproval, json.RawMessage(`{}`)), node(nextStep, plan.KindPause, wait, approvalStep),
			node("prod/deploy/apply", plan.KindApply, apply, nextStep)}}}, nil
}

// proceed creates all approvals at once. Each counts from the moment that the API server has acknowledged it.
func (s *sluice) proceed(ctx context.Context) ([]time.Duration, error) {
	in := s.Resource(kindOf("deliveryactions")).Namespace(namespace("sluice"))
	return together(ctx, s.o.count, func(ctx context.Context, i int) error {
		_, err := in.Create(ctx, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "sluice.dev/v1alpha1", "kind": "DeliveryAction",
			"metadata": map[string]any{"name": name(i)},
			"spec":     map[string]any{"delivery": name(i), "type": delivery.Approve, "path": approvalStep, "by": "kubernetes-admin"}}}, metav1.CreateOptions{})
		return err
	}, s.follows, nextStep)
}

// together does something for all at once and returns for each how long after it was done a stage was reached.
func together(ctx context.Context, count int, do func(context.Context, int) error, of *stages, stage string) ([]time.Duration, error) {
	done := make([]time.Time, count)
	var mu sync.Mutex
	err := each(ctx, count, count, func(ctx context.Context, i int) error {
		err := do(ctx, i)
		mu.Lock()
		done[i] = time.Now()
		mu.Unlock()
		return err
	})
	if err != nil {
		return nil, err
	}
	at, err := of.all(ctx, stage, count)
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	for i, since := range done {
		// The watch may tell before the answer is here.
		took = append(took, max(0, at[name(i)].Sub(since)))
	}
	return took, nil
}

// remove takes all deliveries away, also those that nobody would cancel any more: their finalizers go first.
func (s *sluice) remove(ctx context.Context) error {
	in := s.Resource(kindOf("deliveries")).Namespace(namespace("sluice"))
	all, err := in.List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil // not even defined
	}
	if err != nil {
		return err
	}
	err = each(ctx, len(all.Items), 32, func(ctx context.Context, i int) error {
		if len(all.Items[i].GetFinalizers()) == 0 {
			return nil
		}
		_, err := in.Patch(ctx, all.Items[i].GetName(), types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return err
	}
	for _, side := range []string{"target", "sluice"} {
		if err := s.cluster.remove(ctx, side); err != nil {
			return err
		}
	}
	return nil
}
