package local

import (
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// validate refuses what the node cannot run, before anything is kept: nothing is accepted and then left out.
func validate(o manifest.Object) error {
	switch o.GetKind() {
	case "Deployment":
		return o.Into(&appsv1.Deployment{})
	case "StatefulSet":
		return o.Into(&appsv1.StatefulSet{})
	case "Job":
		return validateJob(o)
	case "Service":
		return validateService(o)
	case "PersistentVolumeClaim", "ConfigMap", "Secret", "Namespace":
		return nil
	}
	return fault.WithRemedy(fault.Newf(fault.Invalid, "%s: the local platform cannot run a %s (%s)", o.Origin, o.GetKind(), o.GetName()),
		"it runs Deployment, StatefulSet, Job, Service, PersistentVolumeClaim, ConfigMap, Secret")
}

func refused(o manifest.Object, remedy, format string, args ...any) error {
	err := fault.Newf(fault.Invalid, "%s: %s %s on the local platform", o.Origin, o.Ref(), fmt.Sprintf(format, args...))
	if remedy == "" {
		return err
	}
	return fault.WithRemedy(err, "%s", remedy)
}

func validateJob(o manifest.Object) error {
	var j batchv1.Job
	if err := o.Into(&j); err != nil {
		return err
	}
	for what, n := range map[string]*int32{"parallelism": j.Spec.Parallelism, "completions": j.Spec.Completions} {
		if n != nil && *n != 1 {
			return refused(o, "make it one Job per run", "cannot have %s %d: a Job is one process", what, *n)
		}
	}
	return nil
}

func validateService(o manifest.Object) error {
	var s corev1.Service
	if err := o.Into(&s); err != nil {
		return err
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return refused(o, "", "cannot be an ExternalName")
	}
	for _, p := range s.Spec.Ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			return refused(o, "", "cannot listen on %s port %d", p.Protocol, p.Port)
		}
	}
	return nil
}

// supported refuses pods that are more than processes can be.
func supported(o manifest.Object, t corev1.PodTemplateSpec) error {
	spec := t.Spec
	if len(spec.Containers) == 0 {
		return fault.Newf(fault.Invalid, "%s: %s has no container", o.Origin, o.Ref())
	}
	if len(spec.Containers) > 1 {
		var names []string
		for _, c := range spec.Containers {
			names = append(names, c.Name)
		}
		return refused(o, "give each container a workload of its own", "cannot have %d containers in a pod (%s)", len(names), strings.Join(names, ", "))
	}
	for _, v := range spec.Volumes {
		if v.PersistentVolumeClaim == nil && v.ConfigMap == nil && v.Secret == nil && v.EmptyDir == nil {
			return refused(o, "volumes of pods are claims, ConfigMaps, Secrets and emptyDir", "cannot have volume %s of its kind", v.Name)
		}
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if err := supportedContainer(o, c); err != nil {
			return err
		}
	}
	for _, c := range spec.InitContainers {
		if c.RestartPolicy != nil {
			return refused(o, "give it a workload of its own", "cannot have the sidecar %s", c.Name)
		}
	}
	return nil
}

func supportedContainer(o manifest.Object, c corev1.Container) error {
	for what, p := range map[string]*corev1.Probe{"readiness": c.ReadinessProbe, "liveness": c.LivenessProbe, "startup": c.StartupProbe} {
		if p != nil && p.HTTPGet == nil && p.TCPSocket == nil && (p.Exec == nil || len(p.Exec.Command) == 0) {
			return refused(o, "probes are httpGet, tcpSocket and exec", "cannot have the %s probe of container %s", what, c.Name)
		}
	}
	if l := c.Lifecycle; l != nil {
		if l.PostStart != nil {
			return refused(o, "", "cannot have a postStart hook (container %s)", c.Name)
		}
		if h := l.PreStop; h != nil && (h.Exec == nil || len(h.Exec.Command) == 0) && h.HTTPGet == nil && h.Sleep == nil {
			return refused(o, "preStop hooks are exec, httpGet and sleep", "cannot have the preStop hook of container %s", c.Name)
		}
	}
	for _, e := range c.Env {
		f := e.ValueFrom
		if f == nil || f.ConfigMapKeyRef != nil || f.SecretKeyRef != nil {
			continue
		}
		if f.FieldRef == nil || field(f.FieldRef.FieldPath) == "" {
			return refused(o, "status.podIP, metadata.name, metadata.namespace, keys of ConfigMaps and of Secrets are known", "cannot know the value of env %s", e.Name)
		}
	}
	return nil
}

// field names what a downward field is here, "" for an unknown one.
func field(path string) string {
	switch path {
	case "status.podIP", "status.hostIP", "metadata.name", "metadata.namespace":
		return path
	}
	return ""
}
