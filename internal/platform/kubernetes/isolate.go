package kubernetes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/kube"
	"github.com/sluice-cd/sluice/internal/platform"
)

// probeWithin is how long a probe may take, with the start of its pod.
const probeWithin = 3 * time.Minute

// policyPrefix begins the names of the policies that keep copies apart.
const policyPrefix = "sluice-quarantine-"

// Isolate implements platform.Isolator: a NetworkPolicy lets the pods reach their own namespace and the cluster's name service,
// and a pod with the same labels tries to reach the others. Not every cluster enforces NetworkPolicies, so that only the
// attempt tells.
func (p *Platform) Isolate(ctx context.Context, key string, i platform.Isolation) ([]string, error) {
	// Production's pods bear the delivery that brought them; those of the copy will bear the one that makes it.
	i.Labels = maps.Clone(i.Labels)
	delete(i.Labels, deliveryLabel)
	if i.Own {
		if err := kube.OwnNamespace(ctx, p.dynamic, p.c.Account, i.Namespace, i.Delivery); err != nil {
			return nil, err
		}
	}
	if err := p.restrict(ctx, i); err != nil {
		return nil, err
	}
	others, err := p.distinct(ctx, i.Others)
	if err != nil || len(others) == 0 {
		return nil, err
	}
	if err := p.ownImage(); err != nil {
		return nil, err
	}
	return p.probe(ctx, key, i, others)
}

// selected are the pods that the policy is for. Errands have policies of their own.
func selected(i platform.Isolation) metav1.LabelSelector {
	if i.Whole {
		return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: headLabel, Operator: metav1.LabelSelectorOpDoesNotExist}}}
	}
	return metav1.LabelSelector{MatchLabels: i.Labels}
}

// restrict applies the policy.
func (p *Platform) restrict(ctx context.Context, i platform.Isolation) error {
	udp, tcp, dns := corev1.ProtocolUDP, corev1.ProtocolTCP, intstr.FromInt32(53)
	pods := selected(i)
	sum := sha256.Sum256([]byte(metav1.FormatLabelSelector(&pods)))
	policy := &networkingv1.NetworkPolicy{
		TypeMeta: metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: i.Namespace, Name: policyPrefix + hex.EncodeToString(sum[:4]),
			Labels: map[string]string{managedBy: manager, deliveryLabel: labelValue(i.Delivery)}},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: pods,
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
			Egress: []networkingv1.NetworkPolicyEgressRule{
				{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}},
				// Where nodes cache names, or a cloud serves them, their address is link-local.
				{To: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: metav1.NamespaceSystem}}},
					{IPBlock: &networkingv1.IPBlock{CIDR: "169.254.0.0/16"}}},
					Ports: []networkingv1.NetworkPolicyPort{{Protocol: &udp, Port: &dns}, {Protocol: &tcp, Port: &dns}}},
			},
		}}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(policy)
	if err != nil {
		return err
	}
	_, err = p.dynamic.Resource(networkPolicies()).Namespace(i.Namespace).Apply(ctx, policy.Name, &unstructured.Unstructured{Object: content},
		metav1.ApplyOptions{FieldManager: manager, Force: true})
	return failed(err, "apply NetworkPolicy %s/%s", i.Namespace, policy.Name)
}

// Release implements platform.Isolator.
func (p *Platform) Release(ctx context.Context, namespace, delivery string) error {
	in := p.dynamic.Resource(networkPolicies()).Namespace(namespace)
	all, err := in.List(ctx, metav1.ListOptions{LabelSelector: labels.Set{managedBy: manager, deliveryLabel: labelValue(delivery)}.String()})
	if err != nil {
		return failed(err, "list the NetworkPolicies of namespace %s", namespace)
	}
	for _, o := range all.Items {
		if !strings.HasPrefix(o.GetName(), policyPrefix) {
			continue // the delivery's own manifests may have some
		}
		uid := o.GetUID()
		if err := in.Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}); err != nil && !apierrors.IsNotFound(err) {
			return failed(err, "delete NetworkPolicy %s/%s", namespace, o.GetName())
		}
	}
	return nil
}

// distinct leaves out addresses that mean something else in this cluster: two clusters often number their pods and Services
// alike.
func (p *Platform) distinct(ctx context.Context, others []platform.Endpoint) ([]platform.Endpoint, error) {
	here := map[string]string{} // address → UID
	note := func(u *unstructured.Unstructured, path ...string) {
		if ip, _, _ := unstructured.NestedString(u.Object, path...); ip != "" {
			here[ip] = string(u.GetUID())
		}
	}
	svcs, err := p.dynamic.Resource(services()).List(ctx, metav1.ListOptions{})
	if err != nil && !apierrors.IsForbidden(err) {
		return nil, failed(err, "list the Services of the cluster")
	}
	if err == nil {
		for _, s := range svcs.Items {
			note(&s, "spec", "clusterIP")
		}
	}
	all, err := p.dynamic.Resource(pods()).List(ctx, metav1.ListOptions{FieldSelector: "status.phase=Running"})
	if err != nil && !apierrors.IsForbidden(err) {
		return nil, failed(err, "list the pods of the cluster")
	}
	if err == nil {
		for _, o := range all.Items {
			note(&o, "status", "podIP")
		}
	}
	return slices.DeleteFunc(slices.Clone(others), func(e platform.Endpoint) bool {
		ip, _, err := net.SplitHostPort(e.Address)
		uid, known := here[ip]
		return err == nil && known && uid != e.UID
	}), nil
}

// probe runs the pod and returns what it has reached. It is never ready, so that no Service leads to it.
func (p *Platform) probe(ctx context.Context, key string, i platform.Isolation, others []platform.Endpoint) ([]string, error) {
	in := p.dynamic.Resource(pods()).Namespace(i.Namespace)
	podName := "sluice-probe-" + strings.TrimPrefix(name(key), "sluice-")[:12]
	no, yes, user, within := false, true, int64(65534), int64(probeWithin/time.Second)
	args := []string{"errand", "probe"}
	for _, e := range others {
		args = append(args, e.Address)
	}
	podLabels := map[string]string{}
	for k, v := range i.Labels {
		podLabels[k] = v
	}
	podLabels[deliveryLabel] = labelValue(i.Delivery)
	pod := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: i.Namespace, Name: podName, Labels: podLabels, Annotations: map[string]string{keyAnnotation: key}},
		Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, AutomountServiceAccountToken: &no, EnableServiceLinks: &no, ActiveDeadlineSeconds: &within,
			Tolerations: p.c.Jobs.Tolerations, ReadinessGates: []corev1.PodReadinessGate{{ConditionType: "sluice.dev/never"}},
			Containers: []corev1.Container{{Name: "probe", Image: p.c.Jobs.Image, Args: args, Resources: corev1.ResourceRequirements{Limits: p.c.Jobs.Limits},
				SecurityContext: &corev1.SecurityContext{RunAsUser: &user, RunAsNonRoot: &yes, AllowPrivilegeEscalation: &no,
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}}}}}
	if err := p.make(ctx, pods(), pod); err != nil {
		return nil, err
	}
	said, err := p.ended(ctx, i.Namespace, podName)
	now := int64(0)
	// Nobody may wait any more, and still the pod has to go.
	clearing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if gone := in.Delete(clearing, podName, metav1.DeleteOptions{GracePeriodSeconds: &now}); gone != nil && !apierrors.IsNotFound(gone) && err == nil {
		err = failed(gone, "delete pod %s/%s", i.Namespace, podName)
	}
	if err != nil {
		return nil, err
	}
	var reached []string
	for _, address := range strings.Fields(said) {
		for _, e := range others {
			if e.Address == address {
				reached = append(reached, e.What+" at "+address)
			}
		}
	}
	return reached, nil
}

// ended waits for the end of a pod of one container and returns its last words.
func (p *Platform) ended(ctx context.Context, namespace, podName string) (string, error) {
	within, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	for {
		w, err := p.dynamic.Resource(pods()).Namespace(namespace).Watch(within, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", podName).String()})
		if err != nil {
			return "", failed(err, "watch pod %s/%s", namespace, podName)
		}
		said, done, err := lastWords(w, namespace, podName, p.c.Grace)
		w.Stop()
		if done || err != nil {
			return said, err
		}
		if within.Err() != nil {
			return "", fault.Newf(fault.Transient, "the probe %s/%s has not ended after %s", namespace, podName, probeWithin)
		}
	}
}

func lastWords(w watch.Interface, namespace, podName string, grace time.Duration) (said string, done bool, err error) {
	for e := range w.ResultChan() {
		u, ok := e.Object.(*unstructured.Unstructured)
		if !ok {
			return "", false, nil
		}
		var pod corev1.Pod
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &pod); err != nil {
			return "", false, err
		}
		if e.Type == watch.Deleted {
			return "", false, fault.Newf(fault.Transient, "somebody deleted the probe %s/%s", namespace, podName)
		}
		for _, s := range pod.Status.ContainerStatuses {
			if t := s.State.Terminated; t != nil && t.ExitCode == 0 {
				return t.Message, true, nil
			}
		}
		if pod.Status.Phase == corev1.PodFailed {
			return "", false, fault.Newf(fault.Transient, "the probe %s/%s failed: %s %s", namespace, podName, pod.Status.Reason, pod.Status.Message)
		}
		if d := diagnose(&pod, time.Now(), grace); d.failed {
			return "", false, fmt.Errorf("the probe of the quarantine: %w", fault.Newf(fault.Invalid, "%s: %s", d.reason, d.message))
		}
	}
	return "", false, nil
}
