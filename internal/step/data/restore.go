package data

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/volume"
)

// failedCut is the copy of the failed state from which is counted; the volumes themselves are kept, too, by the swap.
func failedCut(key string) string { return key + "/failed" }

// failedClone, beforeClone and restoredClone are what runs while it is counted, and what R4 binds.
func failedClone(key string) string   { return key + "/failed/clone" }
func beforeClone(key string) string   { return key + "/before/clone" }
func restoredClone(key string) string { return key + "/restored" }

// countRows compares the failed state with the checkpoint, each read by the version that wrote it, exports the difference
// so that it can be written again, and readies the clone of the checkpoint that a restore binds.
func (st open) countRows(ctx context.Context, c step.Call, k fencedCall, s opened, checkpoint volume.Copy) (n *atRisk, proof *fingerprint.Digest, err error) {
	seed, err := fingerprint.ParseSeed(s.Seed)
	if err != nil {
		return nil, nil, err
	}
	t, err := st.raiseBoth(ctx, c, k, s, checkpoint)
	if err != nil {
		return nil, nil, err
	}
	if n, err = st.export(ctx, c, k, t, seed); err != nil {
		return nil, nil, err
	}
	before, err := st.digest(ctx, c, k.p, k.a.Database, t.old, seed, fmt.Sprintf("%s/before/fingerprint/%d", c.Key, s.Try))
	if err != nil {
		return nil, nil, err
	}
	return n, before.Roots(), st.uncount(ctx, c, k, s.Try)
}

// raiseBoth starts the failed state on the new version and the checkpoint on the old one, on clones.
func (st open) raiseBoth(ctx context.Context, c step.Call, k fencedCall, s opened, checkpoint volume.Copy) (twins, error) {
	t := twins{old: k.before().Namespace, new: failedSite(k.a).Namespace}
	old, err := k.old()
	if err != nil {
		return t, err
	}
	// What the fence saw were the old volumes; the claims hold the upgraded ones now.
	now, err := st.live(ctx, k.p, k.a.Database)
	if err != nil {
		return t, err
	}
	failed, err := k.p.volumes.Cut(ctx, failedCut(c.Key), c.Delivery, now.sources)
	if err != nil {
		return t, fmt.Errorf("copy the failed state: %w", err)
	}
	if err := k.p.volumes.Ready(ctx, failed); err != nil {
		return t, err
	}
	if err := st.raise(ctx, c, k.p, k.a.Database, raising{namespace: t.new, from: failed, workload: k.next, objects: k.objects, role: database.Control,
		copyID: failedClone(c.Key), upKey: fmt.Sprintf("%s/failed/up/%d", c.Key, s.Try), timeout: k.a.Timeout}); err != nil {
		return t, fmt.Errorf("start the new version on a copy of the failed state: %w", err)
	}
	if err := st.raise(ctx, c, k.p, k.a.Database, raising{namespace: t.old, from: checkpoint, workload: old, objects: k.f.Old, role: database.Control,
		copyID: beforeClone(c.Key), upKey: fmt.Sprintf("%s/before/up/%d", c.Key, s.Try), timeout: k.a.Timeout}); err != nil {
		return t, fmt.Errorf("start the old version on a clone of the checkpoint: %w", err)
	}
	_, err = st.ready(ctx, c, k.p, k.a.Database, raising{namespace: restoredSite(k.a).Namespace, from: checkpoint, workload: old,
		role: database.Production, copyID: restoredClone(c.Key)})
	return t, err
}

// export writes the difference of the checkpoint and the failed state as one line of JSON per row: what would bring the
// restored database to where the failed one was.
func (st open) export(ctx context.Context, c step.Call, k fencedCall, t twins, seed fingerprint.Seed) (*atRisk, error) {
	file, err := st.reportFile(c, "discarded.ndjson")
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write the export: %w", err)
	}
	defer f.Close()
	x, err := st.pair(ctx, k.p, k.a, t)
	if err != nil {
		return nil, err
	}
	defer x.Close()
	sum := sha256.New()
	out := bufio.NewWriter(io.MultiWriter(f, sum))
	e := &exporter{out: json.NewEncoder(out)}
	e.out.SetEscapeHTML(false)
	o, err := st.scanning(c)
	if err != nil {
		return nil, err
	}
	o.Rows = e.each
	r, err := x.Rows(ctx, seed, o)
	if err == nil {
		err = out.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, fmt.Errorf("export what a restore would discard: %w", err)
	}
	if r.Verdict == fingerprint.Unknown {
		return nil, fault.Newf(fault.Lost, "what a restore would discard cannot be counted: %s", r.Reason)
	}
	if err := os.Rename(file+".part", file); err != nil {
		return nil, err
	}
	n := &atRisk{Value: e.rows, Kind: string(database.NetRows), Source: "fingerprints of the checkpoint and of the failed state",
		Digest: fmt.Sprintf("%x", sum.Sum(nil))[:digestLength], Export: file}
	return n, nil
}

// digestLength is how much of a SHA-256 an acknowledgement quotes: a person types it, and nobody forges it.
const digestLength = 16

// exporter writes differing rows in a form that can be written again.
type exporter struct {
	out  *json.Encoder
	rows int64
}

// discarded is one line of an export: an operation that repeats on the restored database what the failed one held.
type discarded struct {
	Op       string          `json:"op"` // upsert, delete
	Relation database.Name   `json:"relation"`
	Copies   int64           `json:"copies,omitempty"` // of a row without a key, where there are several
	Row      json.RawMessage `json:"row"`
}

func (e *exporter) each(d fingerprint.RowDifference) error {
	e.rows++
	before, err := d.Render(fingerprint.Source)
	if err != nil {
		return err
	}
	after, err := d.Render(fingerprint.Target)
	if err != nil {
		return err
	}
	l := discarded{Relation: d.Relation}
	if d.Count > 1 {
		l.Copies = d.Count
	}
	// A changed row is found by its key, so its old form need not be deleted; one whose key changed must be.
	if before != nil && (after == nil || d.Class != fingerprint.ClassChanged) {
		l.Op, l.Row = "delete", before
		if err := e.out.Encode(l); err != nil {
			return err
		}
	}
	if after == nil {
		return nil
	}
	l.Op, l.Row = "upsert", after
	return e.out.Encode(l)
}

// uncount stops and deletes what counting started. What R4 binds stays.
func (st open) uncount(ctx context.Context, c step.Call, k fencedCall, try int) error {
	for namespace, objects := range map[string][]manifest.Object{failedSite(k.a).Namespace: k.objects, k.before().Namespace: k.f.Old} {
		if err := st.clear(ctx, c, k.p, namespace, objects, fmt.Sprintf("%s/uncount/%d/%s", c.Key, try, namespace)); err != nil {
			return err
		}
	}
	return k.p.discard(ctx, c.Delivery, failedClone(c.Key), beforeClone(c.Key), failedCut(c.Key))
}

// prove holds a restored database, still behind the fence, against what the checkpoint held.
func (b base) prove(ctx context.Context, c step.Call, p place, db plan.Database, o opened) error {
	seed, err := fingerprint.ParseSeed(o.Seed)
	if err != nil {
		return err
	}
	have, err := b.digest(ctx, c, p, db, db.Namespace, seed, c.Key+"/restored/fingerprint")
	if err != nil {
		return err
	}
	if tables := o.Proof.Differing(have); len(tables) > 0 {
		return fault.Newf(fault.Lost, "the restored database does not hold what the checkpoint held: %v", tables)
	}
	return nil
}
