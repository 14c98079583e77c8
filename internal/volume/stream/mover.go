// Package stream copies what is on a volume to a volume of another cluster that does not share the storage.
//
// A Job in the cluster of the source mounts a clone of a snapshot, read-only, and a Job in the other one the claim that is to
// hold the copy. They speak mutual TLS with certificates that are made for this one transfer. The receiver says by SHA-256 what
// it has already, so that an end that was killed goes on where it was; it reads everything back from the disk before the copy
// counts.
package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/volume"
)

// The commands of both ends.
const (
	SendCommand    = "stream-send"
	ReceiveCommand = "stream-receive"
)

const (
	mountedAt   = "/volume"
	streamsMost = 24 * time.Hour // how long a transfer may take, where the caller does not say
)

// Mover moves by Jobs of both clusters.
type Mover struct {
	platform func(account string) (platform.Streamer, error)
	apart    func(from, to string) string
}

// NewMover returns a mover. Apart says why the storage of one account has no snapshots of another one's, "" where it has them.
func NewMover(platform func(account string) (platform.Streamer, error), apart func(from, to string) string) *Mover {
	return &Mover{platform, apart}
}

// Apart tells why what is on a volume of an account must be streamed to another one, "" where it need not be.
func (m *Mover) Apart(from, to string) string { return m.apart(from, to) }

// Move makes the claim to hold what the claim from holds. Nothing mounts the claim to when it returns. What an earlier call
// with this id has begun is ended, because the keys of its ends died with it; what it has written counts.
func (m *Mover) Move(ctx context.Context, id, owner string, from, to volume.Place, say func(line string)) (bytes int64, err error) {
	t, err := m.transfer(id, owner, from, to)
	if err != nil {
		return 0, err
	}
	if end, ok := ctx.Deadline(); ok {
		t.within(min(streamsMost, max(time.Second, time.Until(end))))
	}
	if err := t.abandon(ctx); err != nil {
		return 0, err
	}
	sender, receiver, err := NewIdentities(t.receive.Within + time.Hour)
	if err != nil {
		return 0, err
	}
	moved, err := t.run(ctx, sender, receiver, say)
	// Also where the caller has given up: a Job that nobody waits for keeps both claims mounted.
	rest, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err != nil {
		return moved.Bytes, errors.Join(err, t.abandon(rest))
	}
	if err := t.target.Abandon(rest, t.getKey, t.receive); err != nil {
		return moved.Bytes, err
	}
	// The copy is verified, and counts whatever becomes of the sender.
	if err := t.source.Abandon(rest, t.sendKey, t.send); err != nil {
		say(fmt.Sprintf("the sender in account %s has not ended yet: %v", from.Account, err))
	}
	return moved.Bytes, nil
}

// End ends what Move has left of a call that was cut short.
func (m *Mover) End(ctx context.Context, id, owner string, from, to volume.Place) error {
	t, err := m.transfer(id, owner, from, to)
	if err != nil {
		return err
	}
	return t.abandon(ctx)
}

// transfer is both Jobs of one Move.
type transfer struct {
	id              string
	source, target  platform.Streamer
	send, receive   platform.Errand
	from, to        volume.Place
	sendKey, getKey string
}

func (m *Mover) transfer(id, owner string, from, to volume.Place) (transfer, error) {
	t := transfer{id: id, from: from, to: to, sendKey: id + "/send", getKey: id + "/receive"}
	var err error
	if t.source, err = m.platform(from.Account); err != nil {
		return t, err
	}
	if t.target, err = m.platform(to.Account); err != nil {
		return t, err
	}
	t.send = job(from, owner, SendCommand)
	t.send.Mounts[0].ReadOnly = true
	t.receive = job(to, owner, ReceiveCommand)
	t.receive.Listens = Port
	if to.Like != nil {
		// Its pod is the first that mounts the claim, so that the volume may be made where it runs.
		t.receive.Like.NodeSelector, t.receive.Like.Affinity, t.receive.Like.Tolerations = to.Like.NodeSelector, to.Like.Affinity, to.Like.Tolerations
	}
	return t, nil
}

// job is one of the Jobs. Files of any owner are read and written, so both are root, with no more than that needs.
func job(at volume.Place, owner, command string) platform.Errand {
	root, no, yes := int64(0), false, true
	return platform.Errand{Namespace: at.Namespace, Delivery: owner, Args: []string{command}, Mounts: []platform.Mount{{Claim: at.Claim, Path: mountedAt}}, Resumes: true, Within: streamsMost,
		Like: corev1.PodSpec{Containers: []corev1.Container{{SecurityContext: &corev1.SecurityContext{RunAsUser: &root, RunAsGroup: &root, RunAsNonRoot: &no, ReadOnlyRootFilesystem: &yes,
			AllowPrivilegeEscalation: &no, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"}}}}}}}
}

func (t *transfer) within(d time.Duration) { t.send.Within, t.receive.Within = d, d }

func (t *transfer) abandon(ctx context.Context) error {
	return errors.Join(t.source.Abandon(ctx, t.sendKey, t.send), t.target.Abandon(ctx, t.getKey, t.receive))
}

// run runs both ends. What the receiver says counts: it knows what is durable.
func (t *transfer) run(ctx context.Context, sender, receiver Identity, say func(line string)) (Summary, error) {
	ctx, cancel := context.WithCancel(ctx)
	var ends sync.WaitGroup
	defer ends.Wait() // who abandons the Jobs while an end is still at work would leave what it makes then
	defer cancel()
	var err error
	if t.receive.Input, err = json.Marshal(Task{ID: t.id, Identity: receiver, Dir: mountedAt}); err != nil {
		return Summary{}, err
	}
	t.send.Progress, t.receive.Progress = say, say
	received, sent := make(chan told, 1), make(chan error, 1)
	ends.Go(func() {
		result, err := t.target.Run(ctx, t.getKey, t.receive)
		var s Summary
		if err == nil {
			err = json.Unmarshal(result[0], &s)
		}
		if err != nil {
			err = fmt.Errorf("the receiver in account %s: %w", t.to.Account, err)
		} else {
			say(fmt.Sprintf("streamed %d entries with %s to claim %s of namespace %s; all were read back, SHA-256 %s", s.Entries, bytesText(s.Bytes), t.to.Claim, t.to.Namespace, s.SHA256))
		}
		received <- told{s, err}
	})
	send := func() { sent <- t.sendTo(ctx, sender, say) }
	ends.Go(send)
	var again <-chan time.Time
	for {
		select {
		case r := <-received:
			return r.Summary, r.err
		case err := <-sent:
			if err != nil {
				return soon(received, fmt.Errorf("the sender in account %s: %w", t.from.Account, err))
			}
			again = time.After(toldWithin)
		case <-again:
			// The receiver was killed after its last word to the sender, and before it could tell us: it compares everything again.
			ends.Go(send)
		}
	}
}

// told is what the receiver says.
type told struct {
	Summary
	err error
}

// soon prefers what the receiver says, if it says something at once, to what the sender has heard from it.
func soon(received <-chan told, err error) (Summary, error) {
	select {
	case r := <-received:
		return r.Summary, r.err
	case <-time.After(toldWithin):
		return Summary{}, err
	}
}

// toldWithin is how long an end may need to tell a result that the other one has told already.
const toldWithin = 10 * time.Second

// dialed are the ports that the sender needs: where both ends are in one cluster, its network means the receiver's own.
func dialed(address string) ([]int, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "the receiver's address %q has no port: %w", address, err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "the receiver's address %q has no port: %w", address, err)
	}
	return slices.Compact([]int{n, Port}), nil
}

// addressWithin is how long a cluster may take to give the receiver an address.
const addressWithin = 5 * time.Minute

// sendTo starts the sender when the receiver has an address.
func (t *transfer) sendTo(ctx context.Context, identity Identity, say func(line string)) error {
	within, cancel := context.WithTimeout(ctx, addressWithin)
	defer cancel()
	address, err := t.target.Address(within, t.getKey, t.to.Namespace)
	if err != nil {
		return err
	}
	if t.send.Input, err = json.Marshal(Task{ID: t.id, Identity: identity, Dir: mountedAt, Address: address}); err != nil {
		return err
	}
	if t.send.Dials, err = dialed(address); err != nil {
		return err
	}
	say(fmt.Sprintf("streaming from account %s to %s in account %s: their storage is not shared", t.from.Account, address, t.to.Account))
	result, err := t.source.Run(ctx, t.sendKey, t.send)
	if err != nil {
		return err
	}
	var s Summary
	if err := json.Unmarshal(result[0], &s); err != nil {
		return fault.Newf(fault.Lost, "what the sender tells cannot be read: %w", err)
	}
	return nil
}
