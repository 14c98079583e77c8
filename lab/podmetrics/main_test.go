package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

func pod(name, ip string, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "u-1", Labels: map[string]string{"app": "web"},
			Annotations: map[string]string{"deploy.armory.io/replica-set-name": "web-1"}},
		Spec:   corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 8080}}}}},
		Status: corev1.PodStatus{Phase: phase, PodIP: ip},
	}
}

func TestTargets(t *testing.T) {
	got := targets([]*corev1.Pod{pod("a", "10.0.0.1", corev1.PodRunning), pod("b", "", corev1.PodPending), pod("c", "10.0.0.3", corev1.PodSucceeded)})
	if len(got) != 1 || !slices.Equal(got[0].Targets, []string{"10.0.0.1:8080"}) {
		t.Fatalf("%+v", got)
	}
	for name, want := range map[string]string{
		"__meta_kubernetes_namespace":                                        "shop",
		"__meta_kubernetes_pod_name":                                         "a",
		"__meta_kubernetes_pod_label_app":                                    "web",
		"__meta_kubernetes_pod_annotation_deploy_armory_io_replica_set_name": "web-1",
	} {
		if got[0].Labels[name] != want {
			t.Errorf("%s is %q, and should be %q", name, got[0].Labels[name], want)
		}
	}
}

func TestMetrics(t *testing.T) {
	store := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	if err := store.Add(pod("a", "10.0.0.1", corev1.PodRunning)); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector{listers.NewPodLister(store)})
	const want = `
# HELP kube_pod_annotations Annotations of the pod.
# TYPE kube_pod_annotations gauge
kube_pod_annotations{annotation_deploy_armory_io_replica_set_name="web-1",namespace="shop",pod="a",uid="u-1"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "kube_pod_annotations"); err != nil {
		t.Error(err)
	}
}
