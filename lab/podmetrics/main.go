// Command podmetrics tells Prometheus about the pods of its namespace, for Prometheus of Debian, which is built without
// Kubernetes: as targets (GET /targets, for http_sd_configs, with the labels that kubernetes_sd_configs would give them)
// and as kube_pod_annotations and kube_pod_labels (GET /metrics), which queries join on as they do with kube-state-metrics.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/lab/serve"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "podmetrics:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("use: podmetrics LISTEN NAMESPACE")
	}
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	watch := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(args[1]))
	pods := watch.Core().V1().Pods().Lister()
	watch.Start(ctx.Done())
	for kind, ok := range watch.WaitForCacheSync(ctx.Done()) {
		if !ok {
			return fmt.Errorf("%s cannot be watched", kind)
		}
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector{pods})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /targets", func(w http.ResponseWriter, _ *http.Request) { serveTargets(w, pods) })
	return serve.HTTP(ctx, args[0], mux)
}

// targetGroup is one entry of the answer that http_sd_configs reads.
type targetGroup struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

func serveTargets(w http.ResponseWriter, pods listers.PodLister) {
	all, err := pods.List(labels.Everything())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(targets(all))
}

// targets are the ports of the pods that run.
func targets(pods []*corev1.Pod) []targetGroup {
	groups := []targetGroup{}
	for _, p := range pods {
		if p.Status.Phase != corev1.PodRunning || p.Status.PodIP == "" {
			continue
		}
		g := targetGroup{Labels: map[string]string{
			"__meta_kubernetes_namespace": p.Namespace,
			"__meta_kubernetes_pod_name":  p.Name,
		}}
		for name, v := range keyed("__meta_kubernetes_pod_label_", p.Labels) {
			g.Labels[name] = v
		}
		for name, v := range keyed("__meta_kubernetes_pod_annotation_", p.Annotations) {
			g.Labels[name] = v
		}
		for _, c := range p.Spec.Containers {
			for _, port := range c.Ports {
				g.Targets = append(g.Targets, net.JoinHostPort(p.Status.PodIP, fmt.Sprint(port.ContainerPort)))
			}
		}
		if len(g.Targets) > 0 {
			groups = append(groups, g)
		}
	}
	return groups
}

// keyed gives labels or annotations names that Prometheus takes, as it does itself.
func keyed(prefix string, all map[string]string) map[string]string {
	named := make(map[string]string, len(all))
	for k, v := range all {
		named[prefix+strings.Map(fit, k)] = v
	}
	return named
}

func fit(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
		return r
	}
	return '_'
}

// collector makes kube_pod_annotations and kube_pod_labels. Their labels differ from pod to pod, so it is unchecked.
type collector struct{ pods listers.PodLister }

func (collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(out chan<- prometheus.Metric) {
	all, err := c.pods.List(labels.Everything())
	if err != nil {
		out <- prometheus.NewInvalidMetric(prometheus.NewDesc("kube_pod_annotations", "", nil, nil), err)
		return
	}
	for _, p := range all {
		out <- one(p, "kube_pod_annotations", "Annotations of the pod.", keyed("annotation_", p.Annotations))
		out <- one(p, "kube_pod_labels", "Labels of the pod.", keyed("label_", p.Labels))
	}
}

func one(p *corev1.Pod, name, help string, labels map[string]string) prometheus.Metric {
	names, values := []string{"namespace", "pod", "uid"}, []string{p.Namespace, p.Name, string(p.UID)}
	for k, v := range labels {
		names, values = append(names, k), append(values, strings.ToValidUTF8(v, "�"))
	}
	m, err := prometheus.NewConstMetric(prometheus.NewDesc(name, help, names, nil), prometheus.GaugeValue, 1, values...)
	if err != nil {
		return prometheus.NewInvalidMetric(prometheus.NewDesc(name, help, nil, nil), err)
	}
	return m
}
