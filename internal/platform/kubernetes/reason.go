package kubernetes

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/sluice-cd/sluice/internal/platform"
)

// hopeless are the reasons for which a container waits that waiting does not cure.
func hopeless() []string {
	return []string{"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CrashLoopBackOff"}
}

// diagnosis is what is wrong with a pod.
type diagnosis struct {
	reason, message string
	failed          bool
	container       string        // whose output tells more, "" for none
	previous        bool          // its output before the last restart
	after           time.Duration // when it may be worse although nothing has changed
}

// diagnose tells what keeps a pod from being ready.
func diagnose(p *corev1.Pod, now time.Time, grace time.Duration) diagnosis {
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if s.State.Waiting == nil || s.State.Waiting.Reason == "" || s.State.Waiting.Reason == "PodInitializing" || s.State.Waiting.Reason == "ContainerCreating" {
			continue
		}
		d := diagnosis{reason: s.State.Waiting.Reason, message: fmt.Sprintf("pod %s: container %s: %s", p.Name, s.Name, s.State.Waiting.Message)}
		d.failed = slices.Contains(hopeless(), d.reason)
		if d.reason == "CrashLoopBackOff" {
			d.container, d.previous = s.Name, true
			if t := s.LastTerminationState.Terminated; t != nil {
				d.message = fmt.Sprintf("pod %s: container %s ended with exit code %d (%s) and was restarted %d times", p.Name, s.Name, t.ExitCode, t.Reason, s.RestartCount)
			}
		}
		return d
	}
	for _, c := range p.Status.Conditions {
		if c.Type != corev1.PodScheduled || c.Status == corev1.ConditionTrue {
			continue
		}
		d := diagnosis{reason: c.Reason, message: fmt.Sprintf("pod %s finds no node: %s", p.Name, c.Message)}
		since := now.Sub(c.LastTransitionTime.Time)
		if c.Reason == corev1.PodReasonUnschedulable && since >= grace {
			d.failed = true
		} else if c.Reason == corev1.PodReasonUnschedulable {
			d.after = grace - since
		}
		return d
	}
	if !ready(p) && p.Status.Phase == corev1.PodRunning {
		return diagnosis{reason: "Progressing", message: fmt.Sprintf("pod %s is not ready yet", p.Name)}
	}
	return diagnosis{}
}

// evidence is what was found out about a failure, so that it is asked for once.
type evidence struct{ id, text string }

// explain adds to a failure what the cluster has written down about the pod.
func (w *watcher) explain(ctx context.Context, p *corev1.Pod, d diagnosis) string {
	id := fmt.Sprintf("%s/%s/%d", p.UID, d.reason, restarts(p))
	if e, ok := w.seen[p.Name]; ok && e.id == id {
		return e.text
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	text := d.message
	if d.container != "" {
		if lines := w.p.lastLines(ctx, p.Namespace, p.Name, d.container, d.previous); lines != "" {
			text += "\n" + lines
		}
	}
	for _, e := range w.p.eventsOf(ctx, p) {
		text += "\n" + e
	}
	w.seen[p.Name] = evidence{id, text}
	return text
}

func restarts(p *corev1.Pod) (n int32) {
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		n += s.RestartCount
	}
	return n
}

// jobFailed tells of a Job how its last pod ended, one that ended by itself where there is one: others are ended with the Job.
func (w *watcher) jobFailed(ctx context.Context, s *platform.State, all []*corev1.Pod) {
	slices.SortStableFunc(all, func(a, b *corev1.Pod) int {
		switch x, y := a.DeletionTimestamp != nil, b.DeletionTimestamp != nil; {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
	for _, p := range slices.Backward(all) {
		for _, c := range p.Status.ContainerStatuses {
			t := c.State.Terminated
			if t == nil || t.ExitCode == 0 {
				continue
			}
			d := diagnosis{reason: "JobFailed", container: c.Name,
				message: fmt.Sprintf("%s: pod %s: container %s ended with exit code %d (%s)", s.Message, p.Name, c.Name, t.ExitCode, t.Reason)}
			if i, ok := p.Labels[batchv1.JobCompletionIndexAnnotation]; ok {
				d.message = "index " + i + ": " + d.message
			}
			s.Message = w.explain(ctx, p, d)
			return
		}
	}
}

// eventsOf returns the warnings that the cluster has written about a pod, the last ones last.
func (p *Platform) eventsOf(ctx context.Context, pod *corev1.Pod) []string {
	list, err := p.dynamic.Resource(events()).Namespace(pod.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"involvedObject.uid": string(pod.UID), "type": "Warning"}.String(), Limit: 20})
	if err != nil {
		return nil // an explanation that cannot be had does not hide the failure
	}
	var out []string
	for _, e := range list.Items {
		reason, _, _ := unstructured.NestedString(e.Object, "reason")
		message, _, _ := unstructured.NestedString(e.Object, "message")
		if line := reason + ": " + message; !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	return out[max(0, len(out)-5):]
}

// lastLines returns the end of a container's output, "" where it cannot be had.
func (p *Platform) lastLines(ctx context.Context, namespace, pod, container string, previous bool) string {
	var b bytes.Buffer
	if p.logTo(ctx, namespace, pod, container, previous, 10, &b) != nil && previous {
		b.Reset()
		_ = p.logTo(ctx, namespace, pod, container, false, 10, &b)
	}
	return strings.TrimSpace(b.String())
}

// event writes down at an object what Sluice did or did not. An event that cannot be written is no reason to fail.
func (p *Platform) event(ctx context.Context, o *unstructured.Unstructured, reason, message string) {
	namespace := o.GetNamespace()
	if namespace == "" {
		namespace = "default"
	}
	now := time.Now().UTC().Format(time.RFC3339)
	e := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": reason, "message": message[:min(len(message), 1000)],
		"metadata": map[string]any{"namespace": namespace, "generateName": "sluice-"},
		"involvedObject": map[string]any{"apiVersion": o.GetAPIVersion(), "kind": o.GetKind(), "namespace": o.GetNamespace(), "name": o.GetName(),
			"uid": string(o.GetUID())},
		"source": map[string]any{"component": manager}, "firstTimestamp": now, "lastTimestamp": now, "count": int64(1),
	}}
	if _, err := p.dynamic.Resource(events()).Namespace(namespace).Create(ctx, e, metav1.CreateOptions{FieldManager: manager}); err != nil {
		p.log.Debug("an event cannot be written", "error", err)
	}
}
