package kubernetes

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/store"
)

// deletion stands among the taken actions for the deletion of the delivery itself.
const deletion = "(deletion)"

// mostWhy is how much of the reason why an action was refused stands in the status; the journal has all of it.
const mostWhy = 256

// verdicts says of each action that a delivery has looked at whether it had an effect.
func verdicts(d *v1alpha1.Delivery) map[string]bool {
	out := map[string]bool{}
	for _, n := range d.Status.Taken {
		out[n] = true
	}
	for _, r := range d.Status.Refused {
		out[r.Action] = false
	}
	return out
}

// decided returns the actions among all that had an effect, by their keys, which they have used up.
func decided(d *v1alpha1.Delivery, all []*v1alpha1.DeliveryAction) map[string]*v1alpha1.DeliveryAction {
	out := map[string]*v1alpha1.DeliveryAction{}
	known := verdicts(d)
	for _, a := range all {
		if known[a.Name] {
			out[key(a)] = a
		}
	}
	return out
}

// signals returns what a delivery has not taken in, numbered in the order in which it came: one of each key, and none of a key
// that is used up.
func (s *Store) signals(d *v1alpha1.Delivery, st delivery.Status) []store.Signal {
	all := s.mirror.actionsOf(d.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.order[d.Name]
	if o == nil {
		o = &order{seq: map[string]int64{}}
		s.order[d.Name] = o
	}
	slices.SortFunc(all, func(a, b *v1alpha1.DeliveryAction) int {
		// What was offered before is offered again, whatever else of its key has come to be known.
		if by := cmp.Compare(o.numbered(a.Name), o.numbered(b.Name)); by != 0 {
			return by
		}
		switch {
		case newer(a, b):
			return 1
		case newer(b, a):
			return -1
		}
		return strings.Compare(a.Name, b.Name)
	})
	o.last = max(o.last, st.Seen)
	known, used := verdicts(d), decided(d, all)
	var out []store.Signal
	for _, a := range all {
		if _, looked := known[a.Name]; looked || used[key(a)] != nil {
			continue
		}
		used[key(a)] = a
		out = append(out, store.Signal{Seq: o.number(a.Name), Signal: s.signal(a)})
	}
	if _, looked := known[deletion]; d.DeletionTimestamp != nil && !looked {
		out = append(out, store.Signal{Seq: o.number(deletion), Signal: delivery.Signal{Key: delivery.CancelAll + "/" + deletion, Kind: delivery.CancelAll,
			By: "whoever deleted it", At: d.DeletionTimestamp.UTC()}})
	}
	slices.SortFunc(out, func(a, b store.Signal) int { return cmp.Compare(a.Seq, b.Seq) })
	return out
}

// numbered returns the number of an action, the last of all where it has none yet.
func (o *order) numbered(name string) int64 {
	if n, ok := o.seq[name]; ok {
		return n
	}
	return math.MaxInt64
}

// number returns the number of an action, and gives it one.
func (o *order) number(name string) int64 {
	if _, ok := o.seq[name]; !ok {
		o.last++
		o.seq[name] = o.last
	}
	return o.seq[name]
}

func key(a *v1alpha1.DeliveryAction) string {
	return cmp.Or(a.Spec.Key, a.Spec.Type+"/"+a.Spec.Path+"/"+a.Name)
}

// signal is what an action says. Its roles are those of whoever made it.
func (s *Store) signal(a *v1alpha1.DeliveryAction) delivery.Signal {
	sig := signalOf(a)
	if s.o.Roles != nil {
		if sig.Data == nil {
			sig.Data = map[string]string{}
		}
		sig.Data["roles"] = strings.Join(s.o.Roles(sig.By), ",")
	}
	return sig
}

func signalOf(a *v1alpha1.DeliveryAction) delivery.Signal {
	sig := delivery.Signal{Key: key(a), Kind: a.Spec.Type, Path: a.Spec.Path, By: a.Spec.By, At: a.CreationTimestamp.UTC(), Data: maps.Clone(a.Spec.Data)}
	if a.Spec.At != nil {
		sig.At = a.Spec.At.UTC()
	}
	return sig
}

// takeIn notes in a delivery that is the caller's own which actions a status has taken in since the one before, and which of
// them were refused: those that the records name, and those whose key another one has used up. It returns the records with theirs.
func (s *Store) takeIn(d *v1alpha1.Delivery, st delivery.Status, records []store.Record) []store.Record {
	whys := refusalsOf(records)
	byName := map[string]*v1alpha1.DeliveryAction{}
	all := s.mirror.actionsOf(d.Name)
	for _, a := range all {
		byName[a.Name] = a
	}
	var out []store.Record
	take := func(name, why string) {
		d.Status.Taken = append(d.Status.Taken, name)
		if why != "" {
			d.Status.Refused = append(d.Status.Refused, v1alpha1.Refusal{Action: name, Why: cut(why, mostWhy)})
		}
		r := store.Record{Kind: "signal"}
		if a := byName[name]; a != nil {
			sig := s.signal(a)
			r.Path, r.At = sig.Path, sig.At
			r.Data, _ = json.Marshal(sig) // texts and an instant: it cannot fail
		}
		out = append(out, r)
	}
	for _, name := range s.offered(d, st.Seen) {
		why := ""
		if a := byName[name]; a != nil {
			why = whys[refusalOf(signalOf(a))]
		}
		take(name, why)
	}
	known, used := verdicts(d), decided(d, all)
	for _, a := range all {
		first := used[key(a)]
		if _, looked := known[a.Name]; looked || first == nil {
			continue
		}
		why := fmt.Sprintf("%s was decided before, by %s", key(a), cmp.Or(first.Spec.By, "nobody"))
		take(a.Name, why)
		r := store.Record{Kind: store.Refused, Path: a.Spec.Path, At: a.CreationTimestamp.UTC()}
		r.Data, _ = json.Marshal(store.Refusal{Signal: s.signal(a), Why: why}) // texts and an instant: it cannot fail
		out = append(out, r)
	}
	return append(out, records...)
}

// offered returns the names of the actions that an engine has seen up to a number, and that a delivery has not taken in, in their order.
func (s *Store) offered(d *v1alpha1.Delivery, seen int64) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.order[d.Name]
	if o == nil {
		return nil
	}
	var names []string
	for n, seq := range o.seq {
		if seq <= seen && !slices.Contains(d.Status.Taken, n) {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(o.seq[a], o.seq[b]) })
	return names
}

// refused is what of a signal a refusal is found by. Of one key an engine is offered one signal at a time.
type refused struct{ key, by string }

func refusalOf(sig delivery.Signal) refused { return refused{sig.Key, sig.By} }

// refusalsOf returns why signals were refused, by the records that say so.
func refusalsOf(records []store.Record) map[refused]string {
	out := map[refused]string{}
	for _, r := range records {
		var not store.Refusal
		if r.Kind == store.Refused && json.Unmarshal(r.Data, &not) == nil {
			out[refusalOf(not.Signal)] = cmp.Or(not.Why, "it cannot be taken in")
		}
	}
	return out
}

// cut returns the beginning of a text, whole characters of it.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "")
}

// Signal implements store.Store. It keeps what this process itself has to say, the callbacks, of which the first of a key counts
// whoever it is from.
func (s *Store) Signal(ctx context.Context, id string, sig delivery.Signal) (bool, error) {
	d, err := s.present(id)
	if err != nil {
		return false, err
	}
	name := actionName(d, sig.Key, "", refusals(d, s.mirror.actionsOf(id), func(a *v1alpha1.DeliveryAction) bool { return key(a) == sig.Key }))
	a, first, err := s.any.act(ctx, d, name, sig)
	if first {
		s.mirror.acted(a)
	}
	return first, err
}

// actionName is what an action is called: it follows from its key, from who decides, and from how often that was refused
// before. So whoever repeats a request whose answer was lost decides once, nobody is kept from deciding by somebody who may
// not, and whoever was refused may try again.
func actionName(d *v1alpha1.Delivery, key, who string, before int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %d", key, who, before))
	return d.Name + "-" + hex.EncodeToString(sum[:8])
}

// refusals counts those among some actions that a delivery has refused.
func refusals(d *v1alpha1.Delivery, all []*v1alpha1.DeliveryAction, of func(*v1alpha1.DeliveryAction) bool) int {
	n := 0
	known := verdicts(d)
	for _, a := range all {
		if took, looked := known[a.Name]; looked && !took && of(a) {
			n++
		}
	}
	return n
}

// act keeps a signal as an action. It reports false where there is one of the name.
func (c *client) act(ctx context.Context, d *v1alpha1.Delivery, name string, sig delivery.Signal) (*v1alpha1.DeliveryAction, bool, error) {
	a := &v1alpha1.DeliveryAction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: c.namespace,
		Labels: map[string]string{deliveryLabel: d.Name}, OwnerReferences: []metav1.OwnerReference{ownedBy(d)}},
		Spec: v1alpha1.DeliveryActionSpec{Delivery: d.Name, Type: sig.Kind, Path: sig.Path, By: sig.By, Key: sig.Key, Data: sig.Data}}
	if !sig.At.IsZero() {
		a.Spec.At = &metav1.MicroTime{Time: sig.At.Truncate(time.Microsecond)}
	}
	made, err := create(ctx, c, actions, a)
	if apierrors.IsAlreadyExists(err) {
		return nil, false, nil
	}
	return made, err == nil, err
}

// answerWait is how long whoever decides waits for the controller to say whether it has taken the decision in.
const answerWait = 5 * time.Second

// Signal checks and keeps a decision of whoever the credentials are, and waits a while for the controller to say whether it
// takes it in: what roles they give is the controller's to say. It reports false where an earlier decision of the key stands.
func (r *Remote) Signal(ctx context.Context, id string, sig delivery.Signal) (bool, error) {
	owner, d, whole, err := r.read(ctx, id)
	if err != nil {
		return false, err
	}
	asked := sig
	asked.Data = map[string]string{"roles": "owner"}
	// Who does not see all of the state lets the controller check.
	if err := delivery.Check(d.Spec, d.Status, asked); whole && err != nil {
		return false, err
	}
	if sig.By, err = r.me(ctx); err != nil {
		return false, err
	}
	all, err := r.actionsOf(ctx, id)
	if err != nil || decided(owner, all)[sig.Key] != nil {
		return false, err
	}
	before := refusals(owner, all, func(a *v1alpha1.DeliveryAction) bool { return key(a) == sig.Key && a.Spec.By == sig.By })
	name := actionName(owner, sig.Key, sig.By, before)
	if _, _, err := r.c.act(ctx, owner, name, sig); err != nil {
		return false, err
	}
	return r.answered(ctx, id, name, sig)
}

// answered waits until the controller has looked at an action, or for answerWait: the action is kept, and counts when a
// controller comes to it.
func (r *Remote) answered(ctx context.Context, id, name string, sig delivery.Signal) (bool, error) {
	within, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	stands := true
	err := r.follow(within, id, func(d *v1alpha1.Delivery, m *mirror) (bool, error) {
		if other := decided(d, m.actionsOf(id))[sig.Key]; other != nil {
			stands = other.Name == name
			return true, nil
		}
		for _, not := range d.Status.Refused {
			if not.Action == name {
				return true, fault.Newf(fault.Denied, "delivery %s does not take in %s of %s: %s", id, sig.Key, sig.By, not.Why)
			}
		}
		took := slices.Contains(d.Status.Taken, name)
		if d.Status.Done && !took {
			return true, fault.Newf(fault.Conflict, "delivery %s has ended before it took in %s: %s", id, sig.Key, d.Status.Reason)
		}
		return took, nil
	})
	if within.Err() != nil && ctx.Err() == nil {
		return true, nil
	}
	return stands, err
}

// actionsOf returns the actions of a delivery as they are now.
func (r *Remote) actionsOf(ctx context.Context, id string) ([]*v1alpha1.DeliveryAction, error) {
	all, err := list[v1alpha1.DeliveryActionList](ctx, r.c, actions, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.delivery", id).String()})
	if err != nil {
		return nil, err
	}
	var out []*v1alpha1.DeliveryAction
	for i := range all.Items {
		out = append(out, &all.Items[i])
	}
	return out, nil
}
