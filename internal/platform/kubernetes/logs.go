package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

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
