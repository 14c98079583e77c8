package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
)

// tailLimit is how long the end of a journal in the status may become, unpacked, before it moves to a Secret.
const tailLimit = 48 << 10

// journal appends records to the journal of a delivery that is the caller's own. What no longer fits into the status is
// written to Secrets first: they count from the moment that the status names them.
func (c *client) journal(ctx context.Context, d *v1alpha1.Delivery, records []store.Record) error {
	j := &d.Status.Journal
	var lines []byte
	var err error
	if len(j.Records) > 0 {
		if lines, err = unpack(j.Records); err != nil {
			return fault.Newf(fault.Lost, "the journal of delivery %s cannot be read: %w", d.Name, err)
		}
	}
	for _, r := range records {
		r.Seq, r.Prev = j.Seq+1, j.Hash
		r.At = r.At.UTC()
		if _, r.Hash, err = store.Seal(r); err != nil {
			return err
		}
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		j.Seq, j.Hash = r.Seq, r.Hash
		lines = append(append(lines, line...), '\n')
		if len(lines) > tailLimit {
			if err := c.flush(ctx, d, lines); err != nil {
				return err
			}
			lines = nil
		}
	}
	j.Records = nil
	if len(lines) > 0 {
		j.Records, err = pack(lines)
	}
	return err
}

func (c *client) flush(ctx context.Context, d *v1alpha1.Delivery, lines []byte) error {
	packed, err := pack(lines)
	if err != nil {
		return err
	}
	j := &d.Status.Journal
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: partName(d.Name+"-journal", len(j.Secrets)+1, packed), Labels: map[string]string{deliveryLabel: d.Name},
		OwnerReferences: []metav1.OwnerReference{ownedBy(d)}}, Data: map[string][]byte{partKey: packed}}
	if err := c.put(ctx, s); err != nil {
		return fmt.Errorf("keep the journal of delivery %s: %w", d.Name, err)
	}
	j.Secrets = append(j.Secrets, s.Name)
	return nil
}

// records reads a whole journal and verifies its chain.
func (c *client) records(ctx context.Context, d *v1alpha1.Delivery) ([]store.Record, error) {
	var lines []byte
	for _, n := range d.Status.Journal.Secrets {
		part, err := c.parts(ctx, []string{n})
		if err != nil {
			return nil, fmt.Errorf("read the journal of delivery %s: %w", d.Name, err)
		}
		lines = append(lines, part...)
	}
	if tail := d.Status.Journal.Records; len(tail) > 0 {
		part, err := unpack(tail)
		if err != nil {
			return nil, fault.Newf(fault.Lost, "the journal of delivery %s cannot be read: %w", d.Name, err)
		}
		lines = append(lines, part...)
	}
	var all []store.Record
	prev := ""
	for line := range bytes.Lines(lines) {
		var r store.Record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fault.Newf(fault.Lost, "the journal of delivery %s cannot be read: %w", d.Name, err)
		}
		_, hash, err := store.Seal(r)
		if err != nil {
			return nil, err
		}
		if r.Prev != prev || r.Hash != hash || r.Seq != int64(len(all)+1) {
			return nil, fault.Newf(fault.Lost, "the journal of delivery %s was changed at or before record %d", d.Name, r.Seq)
		}
		prev, all = hash, append(all, r)
	}
	if prev != d.Status.Journal.Hash {
		return nil, fault.Newf(fault.Lost, "the end of the journal of delivery %s is missing", d.Name)
	}
	return all, nil
}
