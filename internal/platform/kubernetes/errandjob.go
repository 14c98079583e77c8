package kubernetes

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes/errand"
)

const (
	inputDir = "/run/sluice"     // where what the command is told is mounted
	scratch  = "/var/tmp/sluice" // for what does not fit into memory
)

// job is the Job, suspended. What happened to its node or its pod is no answer, and it begins again; that its memory did not
// suffice is one, because it would not suffice again.
func (w *work) job() *batchv1.Job {
	retries, keep, yes := int32(1), int32(3600), true
	within := max(1, int64(w.e.Within/time.Second))
	rules := []batchv1.PodFailurePolicyRule{{Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{
		{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}}}}
	if w.e.Resumes {
		retries = manyKills
	} else {
		rules = append(rules, batchv1.PodFailurePolicyRule{Action: batchv1.PodFailurePolicyActionFailJob, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
			Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{killed}}})
	}
	job := &batchv1.Job{TypeMeta: metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"}, ObjectMeta: w.meta(w.name),
		Spec: batchv1.JobSpec{BackoffLimit: &retries, ActiveDeadlineSeconds: &within, TTLSecondsAfterFinished: &keep, Suspend: &yes,
			PodFailurePolicy: &batchv1.PodFailurePolicy{Rules: rules},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{managedBy: manager, deliveryLabel: labelValue(w.e.Delivery), headLabel: w.name}},
				Spec: w.pod()}}}
	job.Annotations[givenAnnotation] = w.given
	if w.e.Shares > 0 {
		w.share(&job.Spec)
	}
	return job
}

// share has the pods of a Job do one share each. They are tried again as an errand of one pod is, without a limit for each index: with
// one, the Job keeps a pod that has failed until there is another, so that a namespace in which none may be made is never gone.
func (w *work) share(s *batchv1.JobSpec) {
	shares, most, indexed := int32(w.e.Shares), int32(min(w.e.Shares, w.p.Pods())), batchv1.IndexedCompletion
	s.CompletionMode, s.Completions, s.Parallelism = &indexed, &shares, &most
}

// killed is how a container ends that is out of memory.
const killed = 137

// manyKills is how often a pod is made again whose command resumes: what ends it is its deadline.
const manyKills = 100

// pod is the pod of the Job. Files of volumes belong to the pod that the claims are of, so it runs as that pod's user, and where
// that one may.
func (w *work) pod() corev1.PodSpec {
	grace, yes := int64(5), true
	c := corev1.Container{Name: "sluice", Image: w.p.c.Jobs.Image, Args: append([]string{"errand"}, w.e.Args...),
		Resources: corev1.ResourceRequirements{Limits: w.p.c.Jobs.Limits}, SecurityContext: userOf(w.e.Like),
		Env: []corev1.EnvVar{{Name: errand.SecretEnv, Value: w.name}, {Name: errand.NamespaceEnv, Value: w.e.Namespace}, {Name: errand.PartsEnv, Value: strconv.Itoa(w.e.Parts)},
			{Name: errand.KeyEnv, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
				LocalObjectReference: corev1.LocalObjectReference{Name: w.given}, Key: "key"}}}}}
	pod := corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, ServiceAccountName: w.name, AutomountServiceAccountToken: &yes, TerminationGracePeriodSeconds: &grace,
		SecurityContext: w.e.Like.SecurityContext, NodeSelector: w.e.Like.NodeSelector, Affinity: w.e.Like.Affinity,
		Tolerations: slices.Concat(w.e.Like.Tolerations, w.p.c.Jobs.Tolerations)}
	mount := func(m corev1.VolumeMount, from corev1.VolumeSource) {
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: m.Name, VolumeSource: from})
		c.VolumeMounts = append(c.VolumeMounts, m)
	}
	for i, m := range w.e.Mounts {
		mount(corev1.VolumeMount{Name: fmt.Sprintf("volume-%d", i), MountPath: m.Path, SubPath: m.SubPath, ReadOnly: m.ReadOnly}, corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: m.Claim}})
	}
	if w.e.Input != nil {
		mount(corev1.VolumeMount{Name: "input", MountPath: inputDir, ReadOnly: true}, corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: w.given,
			Items: []corev1.KeyToPath{{Key: "input", Path: "input"}}}})
		c.Env = append(c.Env, corev1.EnvVar{Name: errand.InputEnv, Value: inputDir + "/input"})
	}
	if len(w.e.Services) > 0 {
		mount(corev1.VolumeMount{Name: "scratch", MountPath: scratch}, corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
		c.Env = append(c.Env, corev1.EnvVar{Name: "TMPDIR", Value: scratch})
		c.SecurityContext = nobody()
	}
	// The program would rather collect garbage than be killed.
	if limit, ok := w.p.c.Jobs.Limits[corev1.ResourceMemory]; ok {
		c.Env = append(c.Env, corev1.EnvVar{Name: "GOMEMLIMIT", Value: strconv.FormatInt(limit.Value()/10*9, 10)})
	}
	if w.e.Image != "" {
		w.among(&pod, &c)
	}
	pod.Containers = []corev1.Container{c}
	return pod
}

// Where Sluice's program is put in another image.
const programVolume, programPath = "sluice-program", "/sluice-program"

// among has the command run among the programs of another image: the pod of Sluice's own puts its program beside them first.
func (w *work) among(pod *corev1.PodSpec, c *corev1.Container) {
	pod.Volumes = append(pod.Volumes, corev1.Volume{Name: programVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	pod.ImagePullSecrets = w.e.Like.ImagePullSecrets
	there := corev1.VolumeMount{Name: programVolume, MountPath: programPath}
	pod.InitContainers = []corev1.Container{{Name: "program", Image: c.Image, Args: []string{"errand", "install", programPath},
		Resources: c.Resources, SecurityContext: c.SecurityContext, VolumeMounts: []corev1.VolumeMount{there}}}
	there.ReadOnly = true
	c.Image, c.Command, c.VolumeMounts = w.e.Image, []string{programPath + "/sluice"}, append(c.VolumeMounts, there)
}

// nobody is the user of a command that touches no files of others.
func nobody() *corev1.SecurityContext {
	no, yes, user := false, true, int64(65534)
	return &corev1.SecurityContext{RunAsUser: &user, RunAsGroup: &user, RunAsNonRoot: &yes, ReadOnlyRootFilesystem: &yes, AllowPrivilegeEscalation: &no,
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
}

// userOf returns as whom a container runs that shares a pod's files. A pod that does not say runs as its image says, which
// nobody here knows: then it is root, with what it needs to read and give away files of others.
func userOf(like corev1.PodSpec) *corev1.SecurityContext {
	for _, c := range like.Containers {
		if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
			return c.SecurityContext.DeepCopy()
		}
	}
	no := false
	s := &corev1.SecurityContext{AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
	if like.SecurityContext == nil || like.SecurityContext.RunAsUser == nil {
		s.Capabilities.Add = []corev1.Capability{"CHOWN", "DAC_OVERRIDE", "FOWNER"}
	}
	return s
}

// destination is where an errand may connect to.
type destination struct {
	namespace string
	pods      map[string]string // their labels
	addresses map[string]string // as errand.Input has them
}

// destinations finds the pods that the errand's Services lead to, or would if they were open: a fence does not hold Sluice back.
func (w *work) destinations(ctx context.Context) ([]destination, error) {
	var out []destination
	for _, ref := range w.e.Services {
		s, found, err := w.p.behind(ctx, ref)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, fault.Newf(fault.Transient, "no pod of Service %s is ready", ref)
		}
		d := destination{namespace: ref.Namespace, pods: s.Spec.Selector, addresses: map[string]string{}}
		for _, sp := range s.Spec.Ports {
			target, err := targetOf(s, strconv.Itoa(int(sp.Port)))
			if err != nil {
				return nil, err
			}
			if n := portOf(found[0], target); n != 0 {
				d.addresses[errand.Port(ref.Namespace, ref.Name, strconv.Itoa(int(sp.Port)))] = net.JoinHostPort(found[0].Status.PodIP, strconv.Itoa(n))
			}
		}
		out = append(out, d)
	}
	return out, nil
}

// policy lets the Job's pods reach the destinations, and the API server, to which the result is told. The server is meant by its
// ports, because networks do not agree on what its address is, and so are other clusters; they alone have to reach the pods, if
// anybody has.
func (w *work) policy(to []destination) *networkingv1.NetworkPolicy {
	tcp := corev1.ProtocolTCP
	api := networkingv1.NetworkPolicyEgressRule{}
	for _, n := range apiPorts(w.p.config.Host) {
		port := intstr.FromInt(n)
		api.Ports = append(api.Ports, networkingv1.NetworkPolicyPort{Protocol: &tcp, Port: &port})
	}
	p := &networkingv1.NetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "NetworkPolicy"}, ObjectMeta: w.meta(w.name),
		Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{batchv1.JobNameLabel: w.name}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress},
			Egress:      []networkingv1.NetworkPolicyEgressRule{api}}}
	if len(w.e.Dials) > 0 {
		udp := corev1.ProtocolUDP
		names := intstr.FromInt32(53)
		out := networkingv1.NetworkPolicyEgressRule{Ports: []networkingv1.NetworkPolicyPort{{Protocol: &udp, Port: &names}, {Protocol: &tcp, Port: &names}}}
		for _, n := range w.e.Dials {
			port := intstr.FromInt(n)
			out.Ports = append(out.Ports, networkingv1.NetworkPolicyPort{Protocol: &tcp, Port: &port})
		}
		p.Spec.Egress = append(p.Spec.Egress, out)
	}
	if w.e.Listens != 0 {
		port := intstr.FromInt(w.e.Listens)
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &port}}}}
	}
	for _, d := range to {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: []networkingv1.NetworkPolicyPeer{{
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: d.namespace}},
			PodSelector:       &metav1.LabelSelector{MatchLabels: d.pods}}}})
	}
	return p
}

// apiPorts are where API servers listen: those that are usual, and the one of the account.
func apiPorts(host string) []int {
	ports := []int{443, 6443}
	if u, err := url.Parse(host); err == nil {
		if n, err := strconv.Atoi(u.Port()); err == nil && !slices.Contains(ports, n) {
			ports = append(ports, n)
		}
	}
	return ports
}
