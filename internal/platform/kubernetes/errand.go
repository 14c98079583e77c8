package kubernetes

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes/errand"
)

var (
	_ platform.Runner   = (*Platform)(nil)
	_ platform.Isolator = (*Platform)(nil)
)

// Jobs say how Sluice's own pods run in a cluster.
type Jobs struct {
	Image       string // of Sluice; its entrypoint is the program
	Limits      corev1.ResourceList
	Tolerations []corev1.Toleration
}

// keyType is the type of the Secret that holds an errand's key.
const keyType = "sluice.dev/key"

// errandWithin is how long an errand may take, with all that its pod waits for.
const errandWithin = 10 * time.Minute

// Run implements platform.Runner. The Job runs as an account of its own, which may change one Secret and nothing else; all of
// it is deleted when the result is there.
func (p *Platform) Run(ctx context.Context, key string, e platform.Errand) (json.RawMessage, error) {
	if err := p.ownImage(); err != nil {
		return nil, err
	}
	w := &work{p: p, e: e, name: "sluice-errand-" + strings.TrimPrefix(name(key), "sluice-")[:12], id: key}
	if err := w.prepare(ctx); err != nil {
		return nil, err
	}
	result, err := w.await(ctx)
	if ctx.Err() != nil || fault.Is(err, fault.Transient) {
		return nil, err // it goes on without us, and is found by its name
	}
	return result, errors.Join(err, w.clear(ctx))
}

// End implements platform.Runner. The key is what of an errand is deleted last.
func (p *Platform) End(ctx context.Context, namespace, delivery string) error {
	all, err := p.dynamic.Resource(secrets()).Namespace(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: labels.Set{managedBy: manager, deliveryLabel: labelValue(delivery)}.String(), FieldSelector: "type=" + keyType})
	if err != nil {
		return failed(err, "list the Secrets of namespace %s", namespace)
	}
	for _, s := range all.Items {
		w := &work{p: p, e: platform.Errand{Namespace: namespace, Delivery: delivery}, name: strings.TrimSuffix(s.GetName(), "-key")}
		if err := w.clear(ctx); err != nil {
			return err
		}
	}
	return nil
}

// ownImage refuses an account that does not say which image Sluice has.
func (p *Platform) ownImage() error {
	if p.c.Jobs.Image != "" {
		return nil
	}
	return fault.WithRemedy(fault.Newf(fault.Invalid, "account %s names no image of Sluice, so Sluice can run nothing beside volumes", p.c.Account),
		"set jobs: {image: …} of the account in sluice.yaml to an image whose entrypoint is sluice")
}

// work is one errand.
type work struct {
	p    *Platform
	e    platform.Errand
	name string
	id   string
	key  string
}

func (w *work) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: w.e.Namespace, Name: name, Labels: map[string]string{managedBy: manager, deliveryLabel: labelValue(w.e.Delivery)},
		Annotations: map[string]string{keyAnnotation: w.id}}
}

// prepare makes everything that the errand needs, the Job last. What is there already is of an earlier call with this key.
func (w *work) prepare(ctx context.Context) error {
	if err := w.ownKey(ctx); err != nil {
		return err
	}
	no := false
	for _, o := range []struct {
		resource schema.GroupVersionResource
		object   runtime.Object
	}{
		{secrets(), &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: w.meta(w.name), Type: "sluice.dev/result"}},
		{serviceAccounts(), &corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: w.meta(w.name), AutomountServiceAccountToken: &no}},
		{roles(), &rbacv1.Role{TypeMeta: metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "Role"}, ObjectMeta: w.meta(w.name),
			Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{w.name}, Verbs: []string{"patch"}}}}},
		{roleBindings(), &rbacv1.RoleBinding{TypeMeta: metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "RoleBinding"}, ObjectMeta: w.meta(w.name),
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: w.name},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: w.e.Namespace, Name: w.name}}}},
		{jobs(), w.job()},
	} {
		if err := w.p.make(ctx, o.resource, o.object); err != nil {
			return err
		}
	}
	return nil
}

// ownKey makes the key with which the result is sealed, or finds the one that an earlier call made.
func (w *work) ownKey(ctx context.Context) error {
	yes := true
	s := &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: w.meta(w.name + "-key"), Type: keyType, Immutable: &yes,
		Data: map[string][]byte{"key": []byte(errand.NewKey())}}
	if err := w.p.make(ctx, secrets(), s); err != nil {
		return err
	}
	live, err := w.p.dynamic.Resource(secrets()).Namespace(w.e.Namespace).Get(ctx, s.Name, metav1.GetOptions{})
	if err != nil {
		return failed(err, "read Secret %s/%s", w.e.Namespace, s.Name)
	}
	w.key = string(contentOf(live)["key"])
	return nil
}

// make creates an object; one that is there stays as it is.
func (p *Platform) make(ctx context.Context, r schema.GroupVersionResource, o runtime.Object) error {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return err
	}
	u := &unstructured.Unstructured{Object: content}
	if _, err := p.dynamic.Resource(r).Namespace(u.GetNamespace()).Create(ctx, u, metav1.CreateOptions{FieldManager: manager}); !apierrors.IsAlreadyExists(err) {
		return failed(err, "make %s %s/%s", u.GetKind(), u.GetNamespace(), u.GetName())
	}
	return nil
}

// contentOf returns a Secret's data.
func contentOf(secret *unstructured.Unstructured) map[string][]byte {
	data, _, _ := unstructured.NestedStringMap(secret.Object, "data")
	out := map[string][]byte{}
	for k, v := range data {
		if b, err := base64.StdEncoding.DecodeString(v); err == nil {
			out[k] = b
		}
	}
	return out
}

// job is the Job: the files belong to the pod that the claims are of, so it runs as that pod's user, and where that one may.
func (w *work) job() *batchv1.Job {
	retries, within, keep, grace, yes := int32(1), int64(errandWithin/time.Second), int32(3600), int64(5), true
	c := corev1.Container{Name: "sluice", Image: w.p.c.Jobs.Image, Args: append([]string{"errand"}, w.e.Args...),
		Resources: corev1.ResourceRequirements{Limits: w.p.c.Jobs.Limits}, SecurityContext: userOf(w.e.Like),
		Env: []corev1.EnvVar{{Name: errand.SecretEnv, Value: w.name}, {Name: errand.NamespaceEnv, Value: w.e.Namespace},
			{Name: errand.KeyEnv, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
				LocalObjectReference: corev1.LocalObjectReference{Name: w.name + "-key"}, Key: "key"}}}}}
	pod := corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, ServiceAccountName: w.name, AutomountServiceAccountToken: &yes, TerminationGracePeriodSeconds: &grace,
		SecurityContext: w.e.Like.SecurityContext, NodeSelector: w.e.Like.NodeSelector, Affinity: w.e.Like.Affinity,
		Tolerations: slices.Concat(w.e.Like.Tolerations, w.p.c.Jobs.Tolerations), ImagePullSecrets: nil}
	for i, m := range w.e.Mounts {
		v := fmt.Sprintf("volume-%d", i)
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: v, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: m.Claim}}})
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: v, MountPath: m.Path, SubPath: m.SubPath, ReadOnly: m.ReadOnly})
	}
	if w.e.Image != "" {
		w.among(&pod, &c)
	}
	pod.Containers = []corev1.Container{c}
	return &batchv1.Job{TypeMeta: metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"}, ObjectMeta: w.meta(w.name),
		Spec: batchv1.JobSpec{BackoffLimit: &retries, ActiveDeadlineSeconds: &within, TTLSecondsAfterFinished: &keep,
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{managedBy: manager, deliveryLabel: labelValue(w.e.Delivery)}}, Spec: pod}}}
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

// await waits for the result, or for the Job's end without one.
func (w *work) await(ctx context.Context) (json.RawMessage, error) {
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	job := manifest.Ref{Kind: "Job", Namespace: w.e.Namespace, Name: w.name}
	states, err := w.p.watch(within, []manifest.Ref{job}, false)
	if err != nil {
		return nil, err
	}
	var told <-chan watch.Event
	for {
		if told == nil {
			// A watch from no version begins with what is there.
			in, err := w.p.dynamic.Resource(secrets()).Namespace(w.e.Namespace).Watch(within,
				metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", w.name).String()})
			if err != nil {
				return nil, failed(err, "watch Secret %s/%s", w.e.Namespace, w.name)
			}
			defer in.Stop()
			told = in.ResultChan()
		}
		select {
		case e, more := <-told:
			if !more {
				told = nil
				continue
			}
			if s, ok := e.Object.(*unstructured.Unstructured); ok {
				if result, told, err := errand.Read(w.key, w.name, contentOf(s)); told {
					return result, err
				}
			}
		case s, more := <-states:
			if !more {
				return nil, errors.Join(ctx.Err(), fault.Newf(fault.Transient, "the cluster no longer tells how %s is", job))
			}
			if !s.Failed && !s.Ready {
				continue
			}
			return w.last(ctx, s)
		}
	}
}

// last looks for the result of a Job that has ended.
func (w *work) last(ctx context.Context, s platform.State) (json.RawMessage, error) {
	live, err := w.p.dynamic.Resource(secrets()).Namespace(w.e.Namespace).Get(ctx, w.name, metav1.GetOptions{})
	if err != nil {
		return nil, failed(err, "read Secret %s/%s", w.e.Namespace, w.name)
	}
	if result, told, err := errand.Read(w.key, w.name, contentOf(live)); told {
		return result, err
	}
	return nil, fault.Newf(fault.Lost, "sluice errand %s, in %s: it ended without a result: %s: %s", w.e.Args[0], s.Ref, s.Reason, s.Message)
}

// clear deletes what prepare made, and waits until no pod of it is left: a claim that a pod mounts can be neither copied nor
// given to another.
func (w *work) clear(ctx context.Context) error {
	policy := metav1.DeletePropagationForeground
	err := w.p.dynamic.Resource(jobs()).Namespace(w.e.Namespace).Delete(ctx, w.name, metav1.DeleteOptions{PropagationPolicy: &policy})
	if err != nil && !apierrors.IsNotFound(err) {
		return failed(err, "delete Job %s/%s", w.e.Namespace, w.name)
	}
	job := manifest.Ref{Kind: "Job", Namespace: w.e.Namespace, Name: w.name}
	if err := w.p.await(ctx, job, func(s platform.State) bool { return !s.Exists }); err != nil {
		return err
	}
	for _, o := range []struct {
		resource schema.GroupVersionResource
		name     string
	}{{roleBindings(), w.name}, {roles(), w.name}, {serviceAccounts(), w.name}, {secrets(), w.name}, {secrets(), w.name + "-key"}} {
		err := w.p.dynamic.Resource(o.resource).Namespace(w.e.Namespace).Delete(ctx, o.name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return failed(err, "delete %s %s/%s", o.resource.Resource, w.e.Namespace, o.name)
		}
	}
	return nil
}
