package engine_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/store"
)

// effect is one change of the recorded world, one line of its file.
type effect struct {
	Key     string            `json:"key"`
	Verb    string            `json:"verb"`
	Digest  string            `json:"digest"` // of everything that was asked for
	Changes []platform.Change `json:"changes,omitempty"`
	World   world             `json:"world"` // as it is after the effect
}

// world is what runs: the version of each object, the new version beside it and its share of the traffic.
type world struct {
	Objects  map[string]string `json:"objects"`
	Canaries map[string]string `json:"canaries"`
	Weights  map[string]int    `json:"weights"`
}

// recorder is a platform for the crash tests only: it runs nothing and keeps each effect as a line of a file, written and
// synced before the caller knows of it. Like a real platform it does a key once, and unlike one it notices when a key
// comes again with something else. It is always ready at once.
type recorder struct {
	mu    sync.Mutex
	file  *os.File
	done  map[string]effect
	world world
	dir   string
	fuse  *fuse
	store store.Journaler
}

func openRecorder(dir string, f *fuse, j store.Journaler) (*recorder, error) {
	path := filepath.Join(dir, "effects.jsonl")
	body, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	r := &recorder{dir: dir, fuse: f, store: j, done: map[string]effect{}, world: world{map[string]string{}, map[string]string{}, map[string]int{}}}
	for line := range bytes.Lines(body) {
		var e effect
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, err
		}
		r.done[e.Key], r.world = e, e.World
	}
	r.file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	return r, err
}

// intended holds that the intent of an effect has been written down before.
func (r *recorder) intended(ctx context.Context, key string) error {
	path := strings.TrimPrefix(key[:strings.LastIndex(key, "/1/")], "d/")
	records, err := r.store.Journal(ctx, "d")
	if err == nil && !slices.ContainsFunc(records, func(rec store.Record) bool { return rec.Kind == "intent" && rec.Path == path }) {
		err = fault.Newf(fault.Invalid, "the effect %s was not intended", key)
	}
	return err
}

// effect does a change unless its key has been used. The fuse may blow when it is done and nobody knows.
func (r *recorder) effect(ctx context.Context, key, verb string, asked any, do func(*world) []platform.Change) ([]platform.Change, error) {
	if err := r.intended(ctx, key); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	body, err := json.Marshal(asked)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	e := effect{Key: key, Verb: verb, Digest: hex.EncodeToString(sum[:])}
	if was, ok := r.done[key]; ok {
		if was.Verb != e.Verb || was.Digest != e.Digest {
			return nil, fault.Newf(fault.Invalid, "key %s did %s and is now used for another %s", key, was.Verb, verb)
		}
		return was.Changes, nil
	}
	e.World = world{maps.Clone(r.world.Objects), maps.Clone(r.world.Canaries), maps.Clone(r.world.Weights)}
	e.Changes = do(&e.World)
	line, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	if _, err := r.file.Write(append(line, '\n')); err != nil {
		return nil, err
	}
	if err := r.file.Sync(); err != nil {
		return nil, err
	}
	r.done[key], r.world = e, e.World
	r.fuse.point()
	return e.Changes, nil
}

// version of an object is what its manifest says in spec.version.
func version(o manifest.Object) string {
	spec, _ := o.Object["spec"].(map[string]any)
	v, _ := spec["version"].(string)
	return v
}

// placed returns what an object is called in the namespace that it is applied to.
func placed(o manifest.Object, namespace string) manifest.Ref {
	r := o.Ref()
	r.Namespace = namespace
	return r
}

// Apply implements platform.Platform. An object of version "refused" is refused, as by an admission controller.
func (r *recorder) Apply(ctx context.Context, key string, objects []manifest.Object, o platform.Options) ([]platform.Change, error) {
	for _, ob := range objects {
		if version(ob) == "refused" {
			return nil, fault.Newf(fault.Invalid, "%s is refused", ob.Ref())
		}
	}
	return r.effect(ctx, key, "apply", objects, func(w *world) []platform.Change {
		var out []platform.Change
		for _, ob := range objects {
			ref := placed(ob, o.Namespace)
			out = append(out, change(w, ob, ref))
			w.Objects[ref.String()] = version(ob)
		}
		return out
	})
}

// change remembers what an object was.
func change(w *world, o manifest.Object, ref manifest.Ref) platform.Change {
	was, ok := w.Objects[ref.String()]
	if !ok {
		return platform.Change{Ref: ref, Created: true}
	}
	pre := object(o.GetKind(), o.GetName(), was)
	return platform.Change{Ref: ref, PreImage: &pre}
}

// Revert implements platform.Platform. What is called stuck does not go back before a file says that it may.
func (r *recorder) Revert(ctx context.Context, key string, changes []platform.Change) error {
	for _, c := range changes {
		if _, err := os.Stat(filepath.Join(r.dir, "unstuck")); c.Ref.Name == "stuck" && err != nil {
			return fault.Newf(fault.Invalid, "%s does not go back", c.Ref)
		}
	}
	_, err := r.effect(ctx, key, "revert", changes, func(w *world) []platform.Change {
		for _, c := range changes {
			if delete(w.Objects, c.Ref.String()); c.PreImage != nil {
				w.Objects[c.Ref.String()] = version(*c.PreImage)
			}
		}
		return nil
	})
	return err
}

// Watch implements platform.Platform: everything is as it was asked to be.
func (r *recorder) Watch(ctx context.Context, refs []manifest.Ref) (<-chan platform.State, error) {
	out := make(chan platform.State, len(refs))
	for _, ref := range refs {
		out <- platform.State{Ref: ref, Exists: true, Ready: true}
	}
	context.AfterFunc(ctx, func() { close(out) })
	return out, nil
}

// Dial implements platform.Platform: nothing listens.
func (r *recorder) Dial(_ context.Context, service manifest.Ref, _ string) (net.Conn, error) {
	return nil, fault.Newf(fault.NotFound, "%s is recorded, not run", service)
}

// StartCanary implements platform.Shifter.
func (r *recorder) StartCanary(ctx context.Context, key string, objects []manifest.Object, o platform.Options) ([]platform.Change, error) {
	return r.effect(ctx, key, "start", objects, func(w *world) []platform.Change {
		var out []platform.Change
		for _, ob := range objects {
			ref := placed(ob, o.Namespace)
			out = append(out, change(w, ob, ref))
			w.Canaries[ref.String()] = version(ob)
		}
		return out
	})
}

// SetWeight implements platform.Shifter.
func (r *recorder) SetWeight(ctx context.Context, key string, refs []manifest.Ref, percent int) error {
	_, err := r.effect(ctx, key, "weight", []any{refs, percent}, func(w *world) []platform.Change {
		for _, ref := range refs {
			w.Weights[ref.String()] = percent
		}
		return nil
	})
	return err
}

// Promote implements platform.Shifter.
func (r *recorder) Promote(ctx context.Context, key string, refs []manifest.Ref) error {
	_, err := r.effect(ctx, key, "promote", refs, func(w *world) []platform.Change {
		for _, ref := range refs {
			w.Objects[ref.String()] = w.Canaries[ref.String()]
			delete(w.Canaries, ref.String())
			delete(w.Weights, ref.String())
		}
		return nil
	})
	return err
}

// Abort implements platform.Shifter.
func (r *recorder) Abort(ctx context.Context, key string, refs []manifest.Ref) error {
	_, err := r.effect(ctx, key, "abort", refs, func(w *world) []platform.Change {
		for _, ref := range refs {
			delete(w.Canaries, ref.String())
			delete(w.Weights, ref.String())
		}
		return nil
	})
	return err
}

// Expose implements platform.Exposer.
func (r *recorder) Expose(ctx context.Context, key string, service manifest.Ref, _ time.Duration) (string, error) {
	_, err := r.effect(ctx, key, "expose", service, func(*world) []platform.Change { return nil })
	return "http://preview/" + service.Name, err
}

// Delete implements platform.Deleter.
func (r *recorder) Delete(ctx context.Context, key, delivery string, refs []manifest.Ref) error {
	_, err := r.effect(ctx, key, "delete", []any{delivery, refs}, func(w *world) []platform.Change {
		for _, ref := range refs {
			delete(w.Objects, ref.String())
		}
		return nil
	})
	return err
}
