package csi

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/util/json"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/kube"
	"github.com/sluice-cd/sluice/internal/volume"
)

// What is known about copies is kept on the objects that they consist of, so that data and knowledge live and die together:
// a cut is its snapshot, a clone its claim, and a volume that a swap has taken out of service or brought in keeps it itself.
const (
	copyLabel = "sluice.dev/copy" // on what was made for a copy: the hash of its id; whoever copies may delete what has it, and nothing else
	copyNote  = "sluice.dev/copy" // the record, as JSON

	volumeLabel = "sluice.dev/copies" // on volumes that are copies; several copies may be one volume
	volumeNote  = "sluice.dev/copies" // their records, as JSON

	handedNote = "sluice.dev/handed-to" // on what a copy consists of: other accounts that have clones of it, as JSON
)

// record is what is known about one volume of a copy.
type record struct {
	Copy    volume.CopyInfo `json:"copy"`
	Part    int             `json:"part,omitempty"`
	Helper  bool            `json:"helper,omitempty"` // a snapshot that a clone is made from
	Shape   shape           `json:"shape"`
	From    string          `json:"from,omitempty"`    // the account where what a clone is made from lies
	Filling bool            `json:"filling,omitempty"` // the claim does not hold yet what it is made from: that is streamed to it
	Lent    bool            `json:"lent,omitempty"`    // a clone that is made for being streamed
	Kept    bool            `json:"kept,omitempty"`    // a source once
	Policy  string          `json:"policy,omitempty"`  // what would have become of the volume without its claim
}

// shape is how the claim of a volume is made.
type shape struct {
	Driver      string            `json:"driver"`
	Class       string            `json:"class,omitempty"`
	Modes       []string          `json:"modes"`
	Block       bool              `json:"block,omitempty"`
	Bytes       int64             `json:"bytes"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func (s shape) mode() string {
	if s.Block {
		return "Block"
	}
	return "Filesystem"
}

func hashOf(id string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(id)))[:20] }

// nameOf is the name of what is made for a volume of a copy, where nobody else gives it one.
func nameOf(id string, part int) string { return fmt.Sprintf("sluice-%s-%d", hashOf(id), part) }

// metadata is that of an object which is made for a copy.
func (r record) metadata(namespace, name string) (map[string]any, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	m := map[string]any{"name": name, "annotations": map[string]any{copyNote: string(body)}, "labels": map[string]any{
		kube.DeliveryLabel: kube.LabelValue(r.Copy.Owner), kube.ManagedByLabel: kube.Manager, copyLabel: hashOf(r.Copy.ID)}}
	if namespace != "" {
		m["namespace"] = namespace
	}
	return m, nil
}

// recordOf reads what is written on an object that was made for a copy. What bears the label alone was not made by Sluice.
func recordOf(o object) (record, bool) {
	var r record
	note := o.GetAnnotations()[copyNote]
	if note == "" || o.GetLabels()[kube.DeliveryLabel] == "" || json.Unmarshal([]byte(note), &r) != nil {
		return record{}, false
	}
	return r, o.GetLabels()[copyLabel] == hashOf(r.Copy.ID)
}

// recordsOf reads what is written on a volume.
func recordsOf(o object) ([]record, error) {
	note := o.GetAnnotations()[volumeNote]
	if note == "" {
		return nil, nil
	}
	var all []record
	if err := json.Unmarshal([]byte(note), &all); err != nil {
		return nil, fault.Newf(fault.Lost, "annotation %s of %s cannot be read: %w", volumeNote, o, err)
	}
	return all, nil
}

// noted returns the changes that write records on a volume.
func noted(all []record) (map[string]any, error) {
	if len(all) == 0 {
		return map[string]any{"metadata": map[string]any{"labels": map[string]any{volumeLabel: nil}, "annotations": map[string]any{volumeNote: nil}}}, nil
	}
	body, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	return map[string]any{"metadata": map[string]any{"labels": map[string]any{volumeLabel: "true"}, "annotations": map[string]any{volumeNote: string(body)}}}, nil
}

// part is what one volume of a copy is in a cluster: a snapshot, a claim or a volume.
type part struct {
	c cluster
	k kind
	object
	record
}

// part finds a volume of a copy. One that is not there is an error of kind NotFound.
func (d *Driver) part(ctx context.Context, i volume.CopyInfo, n int) (part, error) {
	account, k, namespace, name := i.Sources[n].Account, snapshots(), i.Sources[n].Namespace, nameOf(i.ID, n)
	if n < len(i.Places) {
		account, k, namespace, name = i.Places[n].Account, claims(), i.Places[n].Namespace, i.Places[n].Claim
	}
	c, err := d.cluster(account)
	if err != nil {
		return part{}, err
	}
	o, err := c.get(ctx, k, namespace, name)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return part{}, err
	}
	if err == nil {
		if r, ok := recordOf(o); ok && r.Copy.ID == i.ID && !r.Helper {
			return part{c, k, o, r}, nil
		}
	}
	all, err := c.list(ctx, volumes(), "", volumeLabel)
	if err != nil {
		return part{}, err
	}
	for _, o := range all {
		records, err := recordsOf(o)
		if err != nil {
			return part{}, err
		}
		for _, r := range records {
			if r.Copy.ID == i.ID && r.Part == n {
				return part{c, volumes(), o, r}, nil
			}
		}
	}
	return part{}, fault.Newf(fault.NotFound, "there is no copy %s in account %s, or no longer", i.ID, account)
}

// List implements volume.Driver.
func (d *Driver) List(ctx context.Context, owner string) ([]volume.Copy, error) {
	c, err := d.cluster(d.account)
	if err != nil {
		return nil, err
	}
	found := map[string]*listed{}
	labels := copyLabel
	if owner != "" {
		labels += "," + kube.DeliveryLabel + "=" + kube.LabelValue(owner)
	}
	for _, k := range []kind{snapshots(), contents(), claims()} {
		all, err := c.list(ctx, k, "", labels)
		if err != nil {
			return nil, err
		}
		for _, o := range all {
			if r, ok := recordOf(o); ok && (owner == "" || r.Copy.Owner == owner) {
				if err := d.collect(ctx, c, found, k, o, r); err != nil {
					return nil, err
				}
			}
		}
	}
	all, err := c.list(ctx, volumes(), "", volumeLabel)
	if err != nil {
		return nil, err
	}
	for _, o := range all {
		records, err := recordsOf(o)
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			if owner == "" || r.Copy.Owner == owner {
				entry(found, r).whole(r.Part, r.Copy)
			}
		}
	}
	var out []volume.Copy
	for _, l := range found {
		if !l.elsewhere {
			out = append(out, volume.NewCopy(l.info()))
		}
	}
	slices.SortFunc(out, func(a, b volume.Copy) int { return a.Info().CutAt.Compare(b.Info().CutAt) })
	return out, nil
}

// listed gathers a copy from the objects that it consists of.
type listed struct {
	copy      volume.CopyInfo
	parts     map[int]bool
	elsewhere bool // only what it was made from lies in this account
}

func entry(found map[string]*listed, r record) *listed {
	l, ok := found[r.Copy.ID]
	if !ok {
		l = &listed{copy: r.Copy, parts: map[int]bool{}}
		found[r.Copy.ID] = l
	}
	return l
}

func (l *listed) whole(n int, i volume.CopyInfo) {
	l.parts[n] = true
	l.copy = i
}

// info is the copy, with no time where it is not whole.
func (l *listed) info() volume.CopyInfo {
	for n := range l.copy.Sources {
		if !l.parts[n] {
			l.copy.CutAt = volume.CopyInfo{}.CutAt
		}
	}
	return l.copy
}

// collect counts an object in that was made for a copy.
func (d *Driver) collect(ctx context.Context, c cluster, found map[string]*listed, k kind, o object, r record) error {
	l := entry(found, r)
	switch {
	case k == claims() && r.Filling: // half a copy
	case k == claims():
		l.whole(r.Part, r.Copy)
	case r.Helper || k == contents():
		l.elsewhere = len(l.parts) == 0 && r.Part < len(r.Copy.Places) && r.Copy.Places[r.Part].Account != d.account
	default:
		content, err := c.contentOf(ctx, o)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if at, ok := cutAt(content); ok && err == nil {
			r.Copy.CutAt = at
			l.whole(r.Part, r.Copy)
		}
	}
	return nil
}

// handedTo returns the other accounts that have, or had, clones of a copy.
func handedTo(o object) []string {
	var accounts []string
	if json.Unmarshal([]byte(o.GetAnnotations()[handedNote]), &accounts) != nil {
		return nil
	}
	return accounts
}

// hand writes on a copy that another account gets a clone of it, before it does: who deletes the copy asks there.
func (d *Driver) hand(ctx context.Context, from part, account string) error {
	if account == from.c.account {
		return nil
	}
	c := from.c
	if from.k == volumes() {
		c = c.restorer()
	}
	_, err := c.change(ctx, from.k, from.GetNamespace(), from.GetName(), func(o object) (map[string]any, error) {
		accounts := handedTo(o)
		if slices.Contains(accounts, account) {
			return nil, nil
		}
		body, err := json.Marshal(append(accounts, account))
		return map[string]any{"metadata": map[string]any{"annotations": map[string]any{handedNote: string(body)}}}, err
	})
	return err
}

// foreign returns the labels and annotations that are not Sluice's or the cluster's own on a claim.
func foreign(m map[string]string, own ...string) map[string]string {
	out := maps.Clone(m)
	for _, k := range own {
		delete(out, k)
	}
	return out
}
