package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// present tells how an object is, and after which time to look again although nothing has changed.
func (w *watcher) present(ctx context.Context, ref manifest.Ref) (platform.State, time.Duration) {
	r := w.kinds[ref]
	namespace := ref.Namespace
	if !r.namespaced {
		namespace = ""
	}
	o := w.object(source{r.GroupVersionResource, namespace, ref.Name, ""})
	if o == nil {
		return platform.State{Ref: ref, Stopped: true}, 0
	}
	s, wait := w.one(ctx, ref, o)
	if ref.Kind != "Deployment" {
		return s, wait
	}
	// A canary belongs to the Deployment that it stands beside: both serve, and both must be ready.
	for _, c := range w.list(source{deployments(), namespace, "", canaryOf + "=" + labelValue(ref.Name)}) {
		t, soon := w.one(ctx, manifest.Ref{Kind: "Deployment", Namespace: namespace, Name: c.GetName()}, c)
		s.Ready = s.Ready && t.Ready && c.GetDeletionTimestamp() == nil
		s.Stopped = s.Stopped && t.Stopped
		s.Replicas += t.Replicas
		s.Images = append(s.Images, t.Images...)
		if t.Failed && !s.Failed || s.Reason == "" {
			s.Failed, s.Reason, s.Message = s.Failed || t.Failed, t.Reason, t.Message
		}
		if s.Ready {
			if why := w.misled(ref, c); why != "" {
				s.Ready, s.Reason, s.Message = false, "Progressing", why
			}
		}
		if soon > 0 && (wait == 0 || soon < wait) {
			wait = soon
		}
	}
	return s, wait
}

// one tells how one object is by itself.
func (w *watcher) one(ctx context.Context, ref manifest.Ref, o *unstructured.Unstructured) (platform.State, time.Duration) {
	s := computed(ref, o)
	if templateOf(ref.Kind) == nil {
		return s, 0
	}
	if s.Failed && ref.Kind == "Deployment" && w.outdated(o) {
		s.Failed, s.Reason, s.Message = false, "Progressing", "its controller has not told yet how the present version is"
	}
	s.Images = images(o)
	all := w.podsOf(ref, o)
	s.Stopped = true
	for _, p := range all {
		// One that has ended and is being deleted still has its volumes.
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed || p.DeletionTimestamp != nil {
			s.Stopped = false
		}
		if ready(p) && p.DeletionTimestamp == nil {
			s.Replicas++
		}
	}
	if o.GetDeletionTimestamp() != nil {
		return s, 0
	}
	if n, ok := replicasOf(o); s.Ready && ok && n == 0 && !s.Stopped {
		s.Ready, s.Reason, s.Message = false, "Progressing", "pods are still ending"
	}
	if ref.Kind == "Job" && s.Failed {
		w.jobFailed(ctx, &s, all)
	}
	if s.Ready || s.Failed {
		return s, 0
	}
	var wait time.Duration
	for _, p := range w.current(ref, o, all) {
		t := diagnose(p, time.Now(), w.p.c.Grace)
		if t.after > 0 && (wait == 0 || t.after < wait) {
			wait = t.after
		}
		if t.reason == "" || short(o) != "" && !t.failed {
			continue // that others cannot be made says more
		}
		s.Reason, s.Message = t.reason, t.message
		if t.failed {
			s.Failed = true
			s.Message = w.explain(ctx, p, t)
			return s, 0
		}
	}
	return s, wait
}

// computed is the library's opinion of an object.
func computed(ref manifest.Ref, o *unstructured.Unstructured) platform.State {
	s := platform.State{Ref: ref, Exists: true}
	if o.GetDeletionTimestamp() != nil {
		s.Reason, s.Message = "Terminating", "it is being deleted"
		return s
	}
	r, err := status.Compute(o)
	if err != nil {
		s.Reason, s.Message = "Unknown", err.Error()
		return s
	}
	switch r.Status {
	case status.CurrentStatus:
		s.Ready = true
		if ref.Kind == "Job" {
			s.Ready = condition(o, "Complete") // the library calls a Job current once it has started
		}
	case status.FailedStatus:
		s.Failed = true
	default:
	}
	if ref.Kind == "PersistentVolumeClaim" {
		// A claim may wait for its first consumer, and nobody who waits for it would ever be one.
		s.Ready = true
		return s
	}
	if ref.Kind == "Job" && condition(o, "Failed") {
		s.Ready, s.Failed = false, true
	}
	if !s.Ready {
		s.Reason, s.Message = "Progressing", r.Message
		for _, c := range r.Conditions {
			s.Reason = c.Reason
		}
		if why := short(o); why != "" {
			s.Reason, s.Message = "FailedCreate", why
		}
	}
	return s
}

// short tells why a Deployment's pods cannot be made, "" where they can. It is no failure yet: room may be made for them.
func short(o *unstructured.Unstructured) string {
	c := conditionOf(o, "ReplicaFailure")
	if c["status"] != "True" {
		return ""
	}
	why, _ := c["message"].(string)
	if strings.Contains(why, "exceeded quota") {
		why += " (raise the namespace's ResourceQuota or ask for less)"
	}
	return why
}

// outdated reports whether what a Deployment says of its progress is about another version than its newest: when it goes back
// to a ReplicaSet that it had, its controller repeats that of the failed one until there is some progress.
func (w *watcher) outdated(d *unstructured.Unstructured) bool {
	said, _ := conditionOf(d, "Progressing")["message"].(string)
	if !strings.HasPrefix(said, "ReplicaSet ") {
		return false
	}
	rs := newest(d, w.list(source{replicaSets(), d.GetNamespace(), "", ""}))
	return rs == nil || !strings.HasPrefix(said, fmt.Sprintf("ReplicaSet %q ", rs.GetName()))
}

func condition(o *unstructured.Unstructured, kind string) bool {
	return conditionOf(o, kind)["status"] == "True"
}

// conditionOf returns what an object says of a kind, nil where it says nothing.
func conditionOf(o *unstructured.Unstructured, kind string) map[string]any {
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, v := range list {
		if c, ok := v.(map[string]any); ok && c["type"] == kind {
			return c
		}
	}
	return nil
}

func images(o *unstructured.Unstructured) []string {
	list, _, _ := unstructured.NestedSlice(o.Object, append(templateOf(o.GetKind()), "spec", "containers")...)
	var out []string
	for _, v := range list {
		if c, ok := v.(map[string]any); ok {
			if image, ok := c["image"].(string); ok {
				out = append(out, image)
			}
		}
	}
	return out
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// selectorOf returns which pods a workload may have.
func selectorOf(o *unstructured.Unstructured) labels.Selector {
	raw, ok, _ := unstructured.NestedMap(o.Object, "spec", "selector")
	if !ok {
		return labels.Nothing()
	}
	var s metav1.LabelSelector
	if runtime.DefaultUnstructuredConverter.FromUnstructured(raw, &s) != nil {
		return labels.Nothing()
	}
	selector, err := metav1.LabelSelectorAsSelector(&s)
	if err != nil {
		return labels.Nothing()
	}
	return selector
}

// podsOf returns the pods that a workload owns, by itself or through its ReplicaSets, in the order of their names.
func (w *watcher) podsOf(ref manifest.Ref, o *unstructured.Unstructured) []*corev1.Pod {
	owners := map[types.UID]bool{o.GetUID(): true}
	if ref.Kind == "Deployment" {
		for _, rs := range w.list(source{replicaSets(), o.GetNamespace(), "", ""}) {
			if owned(rs.GetOwnerReferences(), owners) {
				owners[rs.GetUID()] = true
			}
		}
	}
	selector := selectorOf(o)
	var out []*corev1.Pod
	for _, u := range w.list(source{pods(), o.GetNamespace(), "", ""}) {
		if !selector.Matches(labels.Set(u.GetLabels())) || !owned(u.GetOwnerReferences(), owners) {
			continue
		}
		p := &corev1.Pod{}
		if runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, p) == nil {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func owned(refs []metav1.OwnerReference, by map[types.UID]bool) bool {
	return slices.ContainsFunc(refs, func(r metav1.OwnerReference) bool { return r.Controller != nil && *r.Controller && by[r.UID] })
}

// current leaves out the pods of versions that are on their way out: what is wrong with them is no reason to fail the new one.
func (w *watcher) current(ref manifest.Ref, o *unstructured.Unstructured, all []*corev1.Pod) []*corev1.Pod {
	label, value := "", ""
	switch ref.Kind {
	case "Deployment":
		if rs := newest(o, w.list(source{replicaSets(), o.GetNamespace(), "", ""})); rs != nil {
			label, value = templateHash, rs.GetLabels()[templateHash]
		}
	case "StatefulSet":
		label = "controller-revision-hash"
		value, _, _ = unstructured.NestedString(o.Object, "status", "updateRevision")
	}
	generation, _, _ := unstructured.NestedInt64(o.Object, "status", "observedGeneration")
	if label != "" && generation != o.GetGeneration() {
		return nil // which version is the new one is not decided yet
	}
	return slices.DeleteFunc(slices.Clone(all), func(p *corev1.Pod) bool {
		return p.DeletionTimestamp != nil || label != "" && p.Labels[label] != value
	})
}

// newest returns the ReplicaSet of a Deployment's present template, nil where there is none yet.
func newest(d *unstructured.Unstructured, sets []*unstructured.Unstructured) *unstructured.Unstructured {
	const revision = "deployment.kubernetes.io/revision"
	for _, rs := range sets {
		if owned(rs.GetOwnerReferences(), map[types.UID]bool{d.GetUID(): true}) && rs.GetAnnotations()[revision] == d.GetAnnotations()[revision] {
			return rs
		}
	}
	return nil
}
