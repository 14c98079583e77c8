package manifest

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/sluice-cd/sluice/internal/fault"
)

// Into reads the object as a type of the Kubernetes API.
func (o Object) Into(v any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, v); err != nil {
		return fault.Newf(fault.Invalid, "%s: %s cannot be read: %w", o.Origin, o.Ref(), err)
	}
	return nil
}

// PodTemplate returns the pods that a workload makes. Other kinds have none.
func (o Object) PodTemplate() (corev1.PodTemplateSpec, bool, error) {
	switch o.GetKind() {
	case "StatefulSet":
		var s appsv1.StatefulSet
		err := o.Into(&s)
		return s.Spec.Template, true, err
	case "Deployment":
		var d appsv1.Deployment
		err := o.Into(&d)
		return d.Spec.Template, true, err
	case "Job":
		var j batchv1.Job
		err := o.Into(&j)
		return j.Spec.Template, true, err
	}
	return corev1.PodTemplateSpec{}, false, nil
}

// Selects reports whether a Service's selector matches the labels of a pod. One without a selector matches nothing.
func (o Object) Selects(podLabels map[string]string) bool {
	var s corev1.Service
	if o.GetKind() != "Service" || o.Into(&s) != nil || len(s.Spec.Selector) == 0 {
		return false
	}
	return labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(podLabels))
}

// rootCA is the ConfigMap that a cluster puts into each of its namespaces.
const rootCA = "kube-root-ca.crt"

// Mounts returns the claims, ConfigMaps and Secrets that a pod names, in the order in which they first appear; without the
// cluster's own certificate, which is nobody's to apply or to copy.
func Mounts(pod corev1.PodSpec) []Ref {
	var refs []Ref
	add := func(kind, name string) {
		if r := (Ref{Kind: kind, Name: name}); name != "" && r != (Ref{Kind: "ConfigMap", Name: rootCA}) && !slices.Contains(refs, r) {
			refs = append(refs, r)
		}
	}
	for _, v := range pod.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil:
			add("PersistentVolumeClaim", v.PersistentVolumeClaim.ClaimName)
		case v.ConfigMap != nil:
			add("ConfigMap", v.ConfigMap.Name)
		case v.Secret != nil:
			add("Secret", v.Secret.SecretName)
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil {
					add("ConfigMap", s.ConfigMap.Name)
				}
				if s.Secret != nil {
					add("Secret", s.Secret.Name)
				}
			}
		}
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, e := range c.EnvFrom {
			if e.ConfigMapRef != nil {
				add("ConfigMap", e.ConfigMapRef.Name)
			}
			if e.SecretRef != nil {
				add("Secret", e.SecretRef.Name)
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom == nil {
				continue
			}
			if k := e.ValueFrom.ConfigMapKeyRef; k != nil {
				add("ConfigMap", k.Name)
			}
			if k := e.ValueFrom.SecretKeyRef; k != nil {
				add("Secret", k.Name)
			}
		}
	}
	return refs
}
