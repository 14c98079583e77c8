package kubernetes

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
)

// partSize is how much one Secret holds. A Secret may hold 1 MiB, and the request that makes it is a third larger.
const partSize = 512 << 10

func pack(body []byte) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(body); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func unpack(packed []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// put writes one immutable Secret, whose name says what it holds. One of the name is that of an earlier try, and stays: a
// status whose answer was lost may go by it.
func (c *client) put(ctx context.Context, s *corev1.Secret) error {
	fixed := true
	s.Namespace, s.Type, s.Immutable = c.namespace, secretType, &fixed
	for {
		_, err := create(ctx, c, secrets, s)
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		old, err := get[corev1.Secret](ctx, c, secrets, s.Name)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if !bytes.Equal(old.Data[partKey], s.Data[partKey]) {
			return fault.WithRemedy(fault.Newf(fault.Conflict, "Secret %s/%s does not hold what its name says", c.namespace, s.Name), "somebody else has made it: delete it")
		}
		return nil
	}
}

// partName is what a part is called: its name follows from what it holds.
func partName(prefix string, n int, body []byte) string {
	sum := sha256.Sum256(body)
	return fmt.Sprintf("%s-%d-%s", prefix, n, hex.EncodeToString(sum[:8]))
}

// putParts cuts a packed text into Secrets, owned by a delivery where there is one, and returns their names.
func (c *client) putParts(ctx context.Context, id, prefix string, packed []byte, owner *v1alpha1.Delivery) ([]string, error) {
	var names []string
	for i := 0; len(packed) > 0; i++ {
		n := min(len(packed), partSize)
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: partName(prefix, i+1, packed[:n]), Labels: map[string]string{deliveryLabel: id}},
			Data: map[string][]byte{partKey: packed[:n]}}
		if owner != nil {
			s.OwnerReferences = []metav1.OwnerReference{ownedBy(owner)}
		} else {
			s.Labels[uploadLabel] = "true"
		}
		if err := c.put(ctx, s); err != nil {
			return nil, err
		}
		names, packed = append(names, s.Name), packed[n:]
	}
	return names, nil
}

func (c *client) parts(ctx context.Context, names []string) ([]byte, error) {
	var all []byte
	for _, n := range names {
		s, err := get[corev1.Secret](ctx, c, secrets, n)
		if fault.Is(err, fault.NotFound) {
			return nil, fault.Newf(fault.Lost, "Secret %s/%s, which holds a part of a delivery, is gone", c.namespace, n)
		}
		if err != nil {
			return nil, err
		}
		if s.Type != secretType {
			return nil, fault.Newf(fault.Denied, "Secret %s/%s is not a part of a delivery: its type is %q", c.namespace, n, s.Type)
		}
		all = append(all, s.Data[partKey]...)
	}
	body, err := unpack(all)
	if err != nil {
		return nil, fault.Newf(fault.Lost, "the Secrets %v of namespace %s do not hold what a delivery has kept in them: %w", names, c.namespace, err)
	}
	return body, nil
}

// submit uploads a plan and then makes the Delivery that owns it. Nothing carries it out before it is admitted.
func (c *client) submit(ctx context.Context, spec delivery.Spec) (*v1alpha1.Delivery, error) {
	if _, err := get[v1alpha1.Delivery](ctx, c, deliveries, spec.ID); err == nil {
		return nil, fault.Newf(fault.Conflict, "delivery %s exists already", spec.ID)
	} else if !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	body, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	packed, err := pack(body)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	digest := hex.EncodeToString(sum[:])
	names, err := c.putParts(ctx, spec.ID, spec.ID+"-plan", packed, nil)
	if err != nil {
		return nil, fmt.Errorf("upload the plan of delivery %s: %w", spec.ID, err)
	}
	d := &v1alpha1.Delivery{ObjectMeta: metav1.ObjectMeta{Name: spec.ID, Namespace: c.namespace, Labels: map[string]string{deliveryLabel: spec.ID}},
		Spec: v1alpha1.DeliverySpec{Application: spec.Application, Plan: v1alpha1.PlanRef{Secrets: names, SHA256: digest}, By: spec.By, EnqueueOne: spec.EnqueueOne}}
	for _, n := range spec.Graph.Nodes {
		d.Spec.Steps = append(d.Spec.Steps, v1alpha1.Step{Path: n.Path, Title: n.Title, Target: n.Target, Phase: string(n.Phase), Type: n.Kind, After: n.After})
	}
	made, err := create(ctx, c, deliveries, d)
	if apierrors.IsAlreadyExists(err) {
		return nil, fault.Newf(fault.Conflict, "delivery %s exists already", spec.ID)
	}
	return made, err
}

// plan reads what a delivery is to do.
func (c *client) plan(ctx context.Context, d *v1alpha1.Delivery) (delivery.Spec, error) {
	var spec delivery.Spec
	body, err := c.parts(ctx, d.Spec.Plan.Secrets)
	if err != nil {
		return spec, fmt.Errorf("read the plan of delivery %s: %w", d.Name, err)
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != d.Spec.Plan.SHA256 {
		return spec, fault.Newf(fault.Lost, "the plan of delivery %s is not the one that was given: its digest differs", d.Name)
	}
	if err := json.Unmarshal(body, &spec); err != nil {
		return spec, fault.Newf(fault.Invalid, "the plan of delivery %s cannot be read: %w", d.Name, err)
	}
	// What people and admission policies see is what holds.
	spec.ID, spec.Application, spec.By, spec.EnqueueOne = d.Name, d.Spec.Application, d.Spec.By, d.Spec.EnqueueOne
	return spec, nil
}

// own has the Delivery own the parts of its plan.
func (c *client) own(ctx context.Context, d *v1alpha1.Delivery) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{uploadLabel: nil}, "ownerReferences": []metav1.OwnerReference{ownedBy(d)}}})
	if err != nil {
		return err
	}
	for _, n := range d.Spec.Plan.Secrets {
		s, err := get[corev1.Secret](ctx, c, secrets, n)
		if err != nil {
			return err
		}
		// Whoever may create a Delivery must not have other Secrets be deleted with it.
		if s.Type != secretType || s.Labels[deliveryLabel] != d.Name {
			return fault.Newf(fault.Denied, "Secret %s/%s is not a part of the plan of delivery %s", c.namespace, n, d.Name)
		}
		if _, err := merge[corev1.Secret](ctx, c, secrets, n, patch); err != nil {
			return err
		}
	}
	return nil
}
