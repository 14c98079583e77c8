package kubernetes

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/retry"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes/errand"
)

var (
	_ platform.Streamer = (*Platform)(nil)
	_ platform.Isolator = (*Platform)(nil)
)

// Jobs say how Sluice's own pods run in a cluster.
type Jobs struct {
	Image       string // of Sluice; its entrypoint is the program
	Limits      corev1.ResourceList
	Tolerations []corev1.Toleration
	Parallelism int // how many of them share an errand at most; 0: parallelism
}

// parallelism is how many pods share an errand where the account does not say: as many scans of a database as do not crowd out
// each other.
const parallelism = 4

// Pods implements platform.Runner.
func (p *Platform) Pods() int { return cmp.Or(p.c.Jobs.Parallelism, parallelism) }

const (
	// errandPrefix is how the names of errands begin.
	errandPrefix = "sluice-errand-"
	// givenAnnotation names, at the Job of an errand, the Secret of what it is told.
	givenAnnotation = "sluice.dev/given"
	// headLabel names the errand for whose result a Secret is waited, and that a pod is of.
	headLabel = "sluice.dev/errand"
)

// errandName is the name of all that is made for the errand of a key.
func errandName(key string) string {
	return errandPrefix + strings.TrimPrefix(name(key), "sluice-")[:12]
}

// errandWithin is how long an errand may take that does not say it, with all that its pod waits for.
const errandWithin = 10 * time.Minute

// Run implements platform.Runner. The Job runs as an account of its own, which may change the Secrets of its result and nothing
// else; all of it is deleted when the result is there, or the failure.
func (p *Platform) Run(ctx context.Context, key string, e platform.Errand) ([]json.RawMessage, error) {
	if err := p.ownImage(); err != nil {
		return nil, err
	}
	if e.Listens != 0 && p.c.Stream == "" {
		return nil, fault.Newf(fault.Invalid, "account %s does not say how other clusters reach it", p.c.Account)
	}
	if e.Parts == 0 {
		e.Parts = 1
	}
	if e.Within == 0 {
		e.Within = errandWithin
	}
	w := &work{p: p, e: e, name: errandName(key), id: key}
	if err := w.prepare(ctx); err != nil {
		return nil, err
	}
	w.results = make([]json.RawMessage, len(w.heads()))
	told, err := w.await(ctx)
	switch {
	case told && err == nil:
		// What a pod tells is the last that it does, so nobody has to wait for its end.
		return w.results, w.delete(ctx)
	case !told && (ctx.Err() != nil || fault.Is(err, fault.Transient)):
		return nil, err // it goes on without us, and is found by its name
	}
	return nil, errors.Join(err, w.clear(ctx))
}

// End implements platform.Runner. What belongs to the Jobs goes with them.
func (p *Platform) End(ctx context.Context, namespace, delivery string) error {
	all, err := p.dynamic.Resource(jobs()).Namespace(namespace).List(ctx, metav1.ListOptions{LabelSelector: madeFor(delivery)})
	if err != nil {
		return failed(err, "list the Jobs of namespace %s", namespace)
	}
	for _, j := range all.Items {
		if !strings.HasPrefix(j.GetName(), errandPrefix) {
			continue
		}
		w := &work{p: p, e: platform.Errand{Namespace: namespace, Delivery: delivery}, name: j.GetName()}
		if err := w.clear(ctx); err != nil {
			return err
		}
	}
	return nil
}

// madeFor selects what Sluice made for a delivery.
func madeFor(delivery string) string {
	return labels.Set{managedBy: manager, deliveryLabel: labelValue(delivery)}.String()
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

	// given is the Secret of what the command is told, which the Job names. Each Job has one of its own: a kubelet that still has a
	// pod of an earlier one may keep what an immutable Secret of the name said.
	given string

	results []json.RawMessage // of the shares, nil where one has not told yet
}

// heads are the names of the Secrets that are waited for, one for each share.
func (w *work) heads() []string {
	if w.e.Shares == 0 {
		return []string{w.name}
	}
	var out []string
	for i := range w.e.Shares {
		out = append(out, errand.Head(w.name, i))
	}
	return out
}

func (w *work) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: w.e.Namespace, Name: name, Labels: map[string]string{managedBy: manager, deliveryLabel: labelValue(w.e.Delivery)},
		Annotations: map[string]string{keyAnnotation: w.id}}
}

// prepare makes everything that the errand needs. The Job is made first, suspended, and owns the rest, so that nothing outlives
// it, whoever else does not; it starts when all is there. What is there already is of an earlier call with this key.
func (w *work) prepare(ctx context.Context) error {
	owner, err := w.own(ctx)
	if err != nil {
		return err
	}
	all, err := w.objects(ctx)
	if err != nil {
		return err
	}
	g, within := errgroup.WithContext(ctx)
	for _, o := range all {
		g.Go(func() error {
			o.object.SetOwnerReferences([]metav1.OwnerReference{owner})
			if o.resource == roleBindings() {
				return w.bind(within, o.object)
			}
			return w.p.make(within, o.resource, o.object)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	live, err := w.p.dynamic.Resource(secrets()).Namespace(w.e.Namespace).Get(ctx, w.given, metav1.GetOptions{})
	if err != nil {
		return failed(err, "read Secret %s/%s", w.e.Namespace, w.given)
	}
	w.key = string(contentOf(live)["key"])
	_, err = w.p.dynamic.Resource(jobs()).Namespace(w.e.Namespace).Patch(ctx, w.name, types.MergePatchType, []byte(`{"spec":{"suspend":false}}`),
		metav1.PatchOptions{FieldManager: manager})
	return failed(err, "start Job %s/%s", w.e.Namespace, w.name)
}

// bind makes a binding. Whoever may not bind every role binds one that the API server knows of: it looks whether that gives no
// more than he has himself. It hears of the Role a moment after that was made, and until then says that there is none.
func (w *work) bind(ctx context.Context, o runtime.Object) error {
	return retry.OnError(wait.Backoff{Duration: 20 * time.Millisecond, Factor: 2, Steps: 10}, apierrors.IsNotFound, func() error {
		return w.p.make(ctx, roleBindings(), o)
	})
}

// own makes the Job, or finds it, and returns it as an owner. One that is being deleted is waited for. What the command is told is
// in the Secret that the Job names.
func (w *work) own(ctx context.Context) (metav1.OwnerReference, error) {
	in := w.p.dynamic.Resource(jobs()).Namespace(w.e.Namespace)
	for {
		w.given = w.name + "-key-" + strings.ToLower(rand.Text()[:8])
		if err := w.p.make(ctx, jobs(), w.job()); err != nil {
			return metav1.OwnerReference{}, err
		}
		live, err := in.Get(ctx, w.name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return metav1.OwnerReference{}, failed(err, "read Job %s/%s", w.e.Namespace, w.name)
		case live.GetDeletionTimestamp() == nil:
			w.given = live.GetAnnotations()[givenAnnotation]
			return metav1.OwnerReference{APIVersion: "batch/v1", Kind: "Job", Name: w.name, UID: live.GetUID()}, nil
		}
		if err := w.gone(ctx, goneWithin); err != nil {
			return metav1.OwnerReference{}, err
		}
	}
}

// need is one object that the Job needs.
type need struct {
	resource schema.GroupVersionResource
	object   interface {
		runtime.Object
		metav1.Object
	}
}

// objects are what the Job needs: what it is told, the empty Secrets for its result, and the account that may change them.
func (w *work) objects(ctx context.Context) ([]need, error) {
	yes, no := true, false
	var results []string
	for _, head := range w.heads() {
		results = append(results, errand.Names(head, w.e.Parts)...)
	}
	given := &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: w.meta(w.given), Type: "sluice.dev/key", Immutable: &yes,
		Data: map[string][]byte{"key": []byte(errand.NewKey())}}
	all := []need{
		{secrets(), given},
		{serviceAccounts(), &corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: w.meta(w.name), AutomountServiceAccountToken: &no}},
		{roles(), &rbacv1.Role{TypeMeta: metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "Role"}, ObjectMeta: w.meta(w.name),
			Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: results, Verbs: []string{"patch"}}}}},
		{roleBindings(), &rbacv1.RoleBinding{TypeMeta: metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "RoleBinding"}, ObjectMeta: w.meta(w.name),
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: w.name},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: w.e.Namespace, Name: w.name}}}},
	}
	for i, name := range results {
		s := &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: w.meta(name), Type: "sluice.dev/result"}
		if i%w.e.Parts == 0 {
			s.Labels[headLabel] = w.name
		}
		all = append(all, need{secrets(), s})
	}
	if w.e.Listens != 0 {
		all = append(all, need{services(), w.service()})
	}
	to, err := w.destinations(ctx)
	if err != nil {
		return nil, err
	}
	if len(to) > 0 || w.e.Listens != 0 || len(w.e.Dials) > 0 {
		all = append(all, need{networkPolicies(), w.policy(to)})
	}
	if w.e.Input != nil {
		input := errand.Input{Task: w.e.Input, Addresses: map[string]string{}}
		for _, d := range to {
			maps.Copy(input.Addresses, d.addresses)
		}
		body, err := json.Marshal(input)
		if err != nil {
			return nil, err
		}
		given.Data["input"] = body
	}
	return all, nil
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

// await waits for the results, or for the Job's end without one. It shows what the command says. Told means that there is
// nothing more to wait for: all is told, or a failure.
func (w *work) await(ctx context.Context) (told bool, err error) {
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	if w.e.Progress != nil {
		var output sync.WaitGroup
		output.Go(func() { w.p.outputOf(within, w.e.Namespace, w.name, w.e.Progress) })
		defer output.Wait()
		defer cancel()
	}
	job := manifest.Ref{Kind: "Job", Namespace: w.e.Namespace, Name: w.name}
	states, err := w.p.watch(within, []manifest.Ref{job}, false)
	if err != nil {
		return false, err
	}
	var changes <-chan watch.Event
	for {
		if changes == nil {
			// A watch from no version begins with what is there.
			in, err := w.p.dynamic.Resource(secrets()).Namespace(w.e.Namespace).Watch(within,
				metav1.ListOptions{LabelSelector: labels.Set{headLabel: w.name}.String()})
			if err != nil {
				return false, failed(err, "watch the Secrets of %s/%s", w.e.Namespace, w.name)
			}
			defer in.Stop()
			changes = in.ResultChan()
		}
		select {
		case e, more := <-changes:
			if !more {
				changes = nil
				continue
			}
			if s, ok := e.Object.(*unstructured.Unstructured); ok {
				if told, err := w.take(ctx, s); told || err != nil {
					return told, err
				}
			}
		case s, more := <-states:
			switch {
			case !more:
				return false, errors.Join(ctx.Err(), fault.Newf(fault.Transient, "the cluster no longer tells how %s is", job))
			case !s.Exists:
				return false, fault.Newf(fault.Transient, "sluice errand %s: somebody deleted %s", w.e.Args[0], job)
			case s.Failed && w.e.Resumes && !w.over(ctx):
				if w.e.Progress != nil {
					w.e.Progress(s.Reason + ": " + s.Message)
				}
			case s.Failed || s.Ready:
				return w.last(ctx, s)
			}
		}
	}
}

// over tells whether the Job itself has failed. That a pod of it finds no node or no image now is no end where pods are made again:
// a node may come, and the Job has a deadline.
func (w *work) over(ctx context.Context) bool {
	live, err := w.p.dynamic.Resource(jobs()).Namespace(w.e.Namespace).Get(ctx, w.name, metav1.GetOptions{})
	return err == nil && condition(live, "Failed")
}

// take reads the result of the share whose head this is, if there is one. All may be told by it, or a failure.
func (w *work) take(ctx context.Context, head *unstructured.Unstructured) (told bool, err error) {
	share := slices.Index(w.heads(), head.GetName())
	if share < 0 || w.results[share] != nil {
		return false, nil
	}
	result, told, err := errand.Read(w.key, head.GetName(), contentOf(head), func(name string) (map[string][]byte, error) {
		live, err := w.p.dynamic.Resource(secrets()).Namespace(w.e.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, failed(err, "read Secret %s/%s", w.e.Namespace, name)
		}
		return contentOf(live), nil
	})
	if err != nil && w.e.Shares > 0 {
		err = fmt.Errorf("share %d of %d: %w", share+1, w.e.Shares, err)
	}
	if !told || err != nil {
		return told, err
	}
	w.results[share] = result
	return !slices.ContainsFunc(w.results, func(r json.RawMessage) bool { return r == nil }), nil
}

// last looks for the results of a Job that has ended.
func (w *work) last(ctx context.Context, s platform.State) (told bool, err error) {
	for _, name := range w.heads() {
		live, err := w.p.dynamic.Resource(secrets()).Namespace(w.e.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, failed(err, "read Secret %s/%s", w.e.Namespace, name)
		}
		if told, err := w.take(ctx, live); told || err != nil {
			return told, err
		}
	}
	err = fault.Newf(fault.Lost, "sluice errand %s, in %s: it ended without a result: %s: %s", w.e.Args[0], s.Ref, s.Reason, s.Message)
	if strings.Contains(s.Message, "OOMKilled") {
		err = fault.WithRemedy(err, "raise jobs: {limits: {memory: …}} of account %s", w.p.c.Account)
	}
	return true, err
}

// clear deletes what prepare made, and waits until no pod of it is left.
func (w *work) clear(ctx context.Context) error {
	if err := w.delete(ctx); err != nil {
		return err
	}
	return w.gone(ctx, goneWithin)
}

// delete deletes what prepare made, the pods too: who is about to take a claim away sees that they are going.
func (w *work) delete(ctx context.Context) error {
	policy := metav1.DeletePropagationForeground
	err := w.p.dynamic.Resource(jobs()).Namespace(w.e.Namespace).Delete(ctx, w.name, metav1.DeleteOptions{PropagationPolicy: &policy})
	if err != nil && !apierrors.IsNotFound(err) {
		return failed(err, "delete Job %s/%s", w.e.Namespace, w.name)
	}
	g, within := errgroup.WithContext(ctx)
	remove := func(r schema.GroupVersionResource, name string) {
		g.Go(func() error {
			err := w.p.dynamic.Resource(r).Namespace(w.e.Namespace).Delete(within, name, metav1.DeleteOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return failed(err, "delete %s %s/%s", r.Resource, w.e.Namespace, name)
			}
			return nil
		})
	}
	for _, r := range []schema.GroupVersionResource{roleBindings(), roles(), serviceAccounts(), networkPolicies()} {
		remove(r, w.name)
	}
	if w.e.Listens != 0 {
		remove(services(), w.name)
	}
	for _, r := range []schema.GroupVersionResource{secrets(), pods()} {
		g.Go(func() error {
			all, err := w.p.dynamic.Resource(r).Namespace(w.e.Namespace).List(within, metav1.ListOptions{LabelSelector: madeFor(w.e.Delivery)})
			if err != nil {
				return failed(err, "list the %s of namespace %s", r.Resource, w.e.Namespace)
			}
			for _, o := range all.Items {
				if strings.HasPrefix(o.GetName(), w.name) {
					remove(r, o.GetName())
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// goneWithin is how long a cluster may take to remove a Job with its pods.
const goneWithin = 2 * time.Minute

// gone waits until the Job is no more, nor a pod of it. A node that is away would have it wait for ever.
func (w *work) gone(ctx context.Context, within time.Duration) error {
	job := manifest.Ref{Kind: "Job", Namespace: w.e.Namespace, Name: w.name}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := w.p.await(ctx, job, func(s platform.State) bool { return !s.Exists })
	if errors.Is(err, context.DeadlineExceeded) {
		return fault.WithRemedy(fault.Newf(fault.Transient, "%s of account %s was deleted, and it or a pod of it was not gone in time: %w", job, w.p.c.Account, err),
			"see what holds its pod: a node that is away lets none go; asked again, the deletion goes on")
	}
	return err
}
