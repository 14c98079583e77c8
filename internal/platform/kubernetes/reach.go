package kubernetes

import (
	"cmp"
	"context"
	"net"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform"
)

// LoadBalancer says that the cluster itself finds an address for what other clusters reach.
const LoadBalancer = "loadBalancer"

// service leads other clusters to an errand's pod.
func (w *work) service() *corev1.Service {
	s := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: w.meta(w.name), Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Selector: map[string]string{batchv1.JobNameLabel: w.name}, Ports: []corev1.ServicePort{{Name: "stream", Port: int32(w.e.Listens)}}}}
	if w.p.c.Stream == LoadBalancer {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
	}
	return s
}

// Address implements platform.Streamer.
func (p *Platform) Address(ctx context.Context, key, namespace string) (string, error) {
	name := errandName(key)
	for {
		// A watch from no version begins with what is there.
		in, err := p.dynamic.Resource(services()).Namespace(namespace).Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
		if err != nil {
			return "", failed(err, "watch Service %s/%s", namespace, name)
		}
		for e := range in.ResultChan() {
			if u, ok := e.Object.(*unstructured.Unstructured); ok {
				if address := p.addressOf(u); address != "" {
					in.Stop()
					return address, nil
				}
			}
		}
		if ctx.Err() != nil {
			return "", fault.WithRemedy(fault.Newf(fault.Transient, "Service %s/%s of account %s got no address: %w", namespace, name, p.c.Account, ctx.Err()),
				"see why the cluster gives none to a Service of type LoadBalancer, or name a host of its nodes as `stream` of the account")
		}
	}
}

// addressOf is the address of a Service from outside, "" as long as it has none.
func (p *Platform) addressOf(u *unstructured.Unstructured) string {
	var s corev1.Service
	if runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &s) != nil || len(s.Spec.Ports) == 0 {
		return ""
	}
	port := s.Spec.Ports[0]
	if p.c.Stream != LoadBalancer {
		if port.NodePort == 0 {
			return ""
		}
		return net.JoinHostPort(p.c.Stream, strconv.Itoa(int(port.NodePort)))
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		if host := cmp.Or(i.IP, i.Hostname); host != "" {
			return net.JoinHostPort(host, strconv.Itoa(int(port.Port)))
		}
	}
	return ""
}

// Abandon implements platform.Streamer.
func (p *Platform) Abandon(ctx context.Context, key string, e platform.Errand) error {
	return (&work{p: p, e: e, name: errandName(key), id: key}).clear(ctx)
}
