package kubernetes

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-cd/sluice/internal/manifest"
)

// Logs implements platform.Logger.
func (p *Platform) Logs(ctx context.Context, workload manifest.Ref, lines int, w io.Writer) error {
	o, err := p.read(ctx, workload)
	if err != nil {
		return err
	}
	list, err := p.dynamic.Resource(pods()).Namespace(workload.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selectorOf(o).String()})
	if err != nil {
		return failed(err, "list the pods of %s", workload)
	}
	slices.SortFunc(list.Items, func(a, b unstructured.Unstructured) int { return cmp.Compare(a.GetName(), b.GetName()) })
	for _, pod := range list.Items {
		containers, _, _ := unstructured.NestedSlice(pod.Object, "spec", "containers")
		for _, v := range containers {
			c, _ := v.(map[string]any)
			name, _ := c["name"].(string)
			title := pod.GetName()
			if len(containers) > 1 {
				title += "/" + name
			}
			if _, err := fmt.Fprintf(w, "== %s ==\n", title); err != nil {
				return err
			}
			if err := p.logTo(ctx, pod.GetNamespace(), pod.GetName(), name, false, lines, w); err != nil {
				// One that has not started has said nothing; the others may have.
				if _, err := fmt.Fprintf(w, "(%v)\n", err); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// logTo copies the end of a container's output.
func (p *Platform) logTo(ctx context.Context, namespace, pod, container string, previous bool, lines int, w io.Writer) error {
	r := p.pods.Get().Namespace(namespace).Resource("pods").Name(pod).SubResource("log").
		Param("container", container).Param("tailLines", strconv.Itoa(lines))
	if previous {
		r = r.Param("previous", "true")
	}
	body, err := r.Stream(ctx)
	if err != nil {
		return failed(err, "read the output of pod %s/%s", namespace, pod)
	}
	defer body.Close()
	_, err = io.Copy(w, body)
	return failed(err, "read the output of pod %s/%s", namespace, pod)
}

// outputOf shows what the pods of a Job say, line by line from the begin of each, until ctx ends. It is told to people who wait,
// so that what cannot be had is left out.
func (p *Platform) outputOf(ctx context.Context, namespace, job string, show func(line string)) {
	var reading sync.WaitGroup
	defer reading.Wait()
	following := map[types.UID]bool{}
	for ctx.Err() == nil {
		w, err := p.dynamic.Resource(pods()).Namespace(namespace).Watch(ctx, metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=" + job})
		if err != nil {
			p.log.Debug("the output of a Job cannot be followed", "job", job, "error", err)
			return
		}
		for e := range w.ResultChan() {
			u, ok := e.Object.(*unstructured.Unstructured)
			if !ok {
				break
			}
			if phase, _, _ := unstructured.NestedString(u.Object, "status", "phase"); phase == string(corev1.PodPending) || following[u.GetUID()] {
				continue
			}
			following[u.GetUID()] = true
			reading.Go(func() { p.follow(ctx, namespace, u.GetName(), show) })
		}
		w.Stop()
	}
}

// follow shows the output of a pod of one container until it ends.
func (p *Platform) follow(ctx context.Context, namespace, pod string, show func(line string)) {
	body, err := p.pods.Get().Namespace(namespace).Resource("pods").Name(pod).SubResource("log").Param("follow", "true").Stream(ctx)
	if err != nil {
		p.log.Debug("the output of a pod cannot be followed", "pod", pod, "error", err)
		return
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		show(lines.Text())
	}
}
