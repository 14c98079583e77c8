package kubernetes

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/dynamic"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/kube"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes/traffic"
)

// journal keeps what was there before a change, in immutable Secrets beside the objects: a Secret's pre-image never leaves
// Secrets, and who may read them may read it.
type journal struct {
	secrets dynamic.NamespaceableResourceInterface
}

const (
	journalLabel   = "sluice.dev/journal"
	keyAnnotation  = "sluice.dev/key"
	partAnnotation = "sluice.dev/parts"
	doneAnnotation = "sluice.dev/done"
	chunk          = 512 << 10
)

// entry is one object of a change.
type entry struct {
	Ref        manifest.Ref   `json:"ref"`
	APIVersion string         `json:"apiVersion,omitempty"`
	Created    bool           `json:"created,omitempty"`
	Before     map[string]any `json:"before,omitempty"` // as it was read before the first write
	After      map[string]any `json:"after,omitempty"`  // as the cluster answered the write
	Next       map[string]any `json:"next,omitempty"`   // what a promotion makes of it
	Replicas   *int64         `json:"replicas,omitempty"`

	Routes   []map[string]any  `json:"routes,omitempty"`   // what shares its traffic out, as it was; what is labelled as the canary's is to be made
	Subsets  []traffic.Subsets `json:"subsets,omitempty"`  // of its Services that Istio shares out
	Canaries map[string]string `json:"canaries,omitempty"` // Service → the Service of its canary
}

// record is all that a key did.
type record struct {
	Namespace string  `json:"-"`
	Key       string  `json:"key"`
	Entries   []entry `json:"entries"`
	Force     bool    `json:"force,omitempty"`   // what others hold is taken over
	Address   string  `json:"address,omitempty"` // that a Service is exposed at
	done      bool
}

// name is what the Secret of a key is called.
func name(key string) string {
	sum := sha256.Sum256([]byte(key))
	return "sluice-" + hex.EncodeToString(sum[:12])
}

// load returns what a key has recorded, nil where it has nothing.
func (j journal) load(ctx context.Context, namespace, key string) (*record, error) {
	return j.read(ctx, namespace, name(key))
}

// read returns the record of a Secret, with what was noted after the writes.
func (j journal) read(ctx context.Context, namespace, name string) (*record, error) {
	r := &record{Namespace: namespace}
	head, err := j.get(ctx, namespace, name, r)
	if head == nil || err != nil {
		return nil, err
	}
	r.done = head.GetAnnotations()[doneAnnotation] != ""
	var after record
	if head, err = j.get(ctx, namespace, name+"-after", &after); err != nil {
		return nil, err
	}
	if head != nil {
		for i := range min(len(r.Entries), len(after.Entries)) {
			r.Entries[i].After = after.Entries[i].After
		}
	}
	return r, nil
}

// begin records what a key is going to change, before it does. A record that is there already stands.
func (j journal) begin(ctx context.Context, r *record) (*record, error) {
	made, err := j.put(ctx, r.Namespace, name(r.Key), *r)
	if err != nil {
		return nil, err
	}
	if made {
		return r, nil
	}
	return j.load(ctx, r.Namespace, r.Key)
}

// note records how the objects are after the writes. An earlier note of the same key is replaced.
func (j journal) note(ctx context.Context, r *record) error {
	n := name(r.Key) + "-after"
	var after record
	after.Key = r.Key
	for _, e := range r.Entries {
		after.Entries = append(after.Entries, entry{Ref: e.Ref, After: e.After})
	}
	made, err := j.put(ctx, r.Namespace, n, after)
	if err != nil || made {
		return err
	}
	if err := j.secrets.Namespace(r.Namespace).Delete(ctx, n, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return failed(err, "replace Secret %s/%s", r.Namespace, n)
	}
	_, err = j.put(ctx, r.Namespace, n, after)
	return err
}

// finish notes that everything of a key is done.
func (j journal) finish(ctx context.Context, r *record) error {
	patch := []byte(`{"metadata":{"annotations":{"` + doneAnnotation + `":"true"}}}`)
	_, err := j.secrets.Namespace(r.Namespace).Patch(ctx, name(r.Key), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: manager})
	return failed(err, "note in Secret %s/%s that it is done", r.Namespace, name(r.Key))
}

// forget deletes the record of a key that changed nothing.
func (j journal) forget(ctx context.Context, r *record) error {
	err := j.secrets.Namespace(r.Namespace).Delete(ctx, name(r.Key), metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return failed(err, "delete Secret %s/%s", r.Namespace, name(r.Key))
}

// Forget implements platform.Forgetter.
func (p *Platform) Forget(ctx context.Context, namespace, delivery string) error {
	return p.journal.forgetAll(ctx, namespace, delivery)
}

// forgetAll deletes every record of a delivery in a namespace.
func (j journal) forgetAll(ctx context.Context, namespace, delivery string) error {
	in := j.secrets.Namespace(namespace)
	all, err := in.List(ctx, metav1.ListOptions{LabelSelector: labels.Set{journalLabel: "true", deliveryLabel: labelValue(delivery)}.String()})
	if err != nil {
		return failed(err, "look for what delivery %s has kept among the Secrets of namespace %s", delivery, namespace)
	}
	for _, s := range all.Items {
		// A label may be too short to tell two deliveries apart.
		if deliveryOf(s.GetAnnotations()[keyAnnotation]) != delivery {
			continue
		}
		if err := in.Delete(ctx, s.GetName(), metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return failed(err, "delete Secret %s/%s", namespace, s.GetName())
		}
	}
	return nil
}

// put writes a record, its first part last, so that a record is there as a whole or not at all. It reports whether it was
// written; otherwise one of the name was there.
func (j journal) put(ctx context.Context, namespace, name string, r record) (bool, error) {
	parts, err := pack(r)
	if err != nil {
		return false, err
	}
	in := j.secrets.Namespace(namespace)
	if _, err := in.Get(ctx, name, metav1.GetOptions{}); err == nil {
		return false, nil
	} else if !apierrors.IsNotFound(err) {
		return false, failed(err, "read Secret %s/%s", namespace, name)
	}
	for i := len(parts) - 1; i >= 0; i-- {
		s := secret(namespace, part(name, i), r.Key, len(parts), parts[i])
		_, err := in.Create(ctx, s, metav1.CreateOptions{FieldManager: manager})
		if i > 0 && apierrors.IsAlreadyExists(err) {
			// Of an attempt that died before its first part was there: nothing was changed then.
			if err = in.Delete(ctx, s.GetName(), metav1.DeleteOptions{}); err == nil {
				_, err = in.Create(ctx, s, metav1.CreateOptions{FieldManager: manager})
			}
		}
		if i == 0 && apierrors.IsAlreadyExists(err) {
			return false, nil
		}
		if err != nil {
			return false, failed(err, "keep what was there before, in Secret %s/%s", namespace, s.GetName())
		}
	}
	return true, nil
}

// get reads a record into r and returns its first Secret, nil where there is none.
func (j journal) get(ctx context.Context, namespace, name string, r *record) (*unstructured.Unstructured, error) {
	in := j.secrets.Namespace(namespace)
	head, err := in.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, failed(err, "read Secret %s/%s", namespace, name)
	}
	n, err := strconv.Atoi(head.GetAnnotations()[partAnnotation])
	if err != nil {
		return nil, fault.WithRemedy(fault.Newf(fault.Conflict, "Secret %s/%s is not one of Sluice's", namespace, name), "give it another name")
	}
	parts := make([][]byte, n)
	for i := range n {
		s := head
		if i > 0 {
			if s, err = in.Get(ctx, part(name, i), metav1.GetOptions{}); err != nil {
				return nil, fault.Newf(fault.Lost, "part %d of what was there before is gone: Secret %s/%s: %w", i, namespace, part(name, i), err)
			}
		}
		text, _, _ := unstructured.NestedString(s.Object, "data", "record")
		if parts[i], err = base64.StdEncoding.DecodeString(text); err != nil {
			return nil, fault.Newf(fault.Lost, "Secret %s/%s is damaged: %w", namespace, s.GetName(), err)
		}
	}
	if err := unpack(parts, r); err != nil {
		return nil, fault.Newf(fault.Lost, "Secret %s/%s is damaged: %w", namespace, name, err)
	}
	return head, nil
}

func part(name string, i int) string {
	if i == 0 {
		return name
	}
	return fmt.Sprintf("%s-%d", name, i)
}

func secret(namespace, name, key string, parts int, body []byte) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "sluice.dev/journal", "immutable": true,
		"metadata": map[string]any{"namespace": namespace, "name": name,
			"labels":      map[string]any{journalLabel: "true", deliveryLabel: labelValue(deliveryOf(key)), managedBy: manager},
			"annotations": map[string]any{keyAnnotation: key, partAnnotation: strconv.Itoa(parts)}},
		"data": map[string]any{"record": base64.StdEncoding.EncodeToString(body)},
	}}
}

// labelValue makes a label of an identifier.
func labelValue(id string) string { return kube.LabelValue(id) }

// pack compresses a record and cuts it into parts that Secrets hold.
func pack(r record) ([][]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("keep what was there before: %w", err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(body); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	var parts [][]byte
	for b.Len() > 0 {
		parts = append(parts, bytes.Clone(b.Next(chunk)))
	}
	return parts, nil
}

func unpack(parts [][]byte, r *record) error {
	z, err := gzip.NewReader(bytes.NewReader(bytes.Join(parts, nil)))
	if err != nil {
		return err
	}
	body, err := io.ReadAll(z)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, r)
}
