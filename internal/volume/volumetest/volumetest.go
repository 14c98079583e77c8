// Package volumetest is the conformance suite of package volume: every driver of directories runs it.
package volumetest

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/volume"
)

// Binder is a fake volume.Binder that keeps the claims in memory.
type Binder struct {
	Dir    string
	mu     sync.Mutex
	claims map[volume.Place]string
}

// Bind implements volume.Binder.
func (b *Binder) Bind(_ context.Context, p volume.Place, dir string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.claims == nil {
		b.claims = map[volume.Place]string{}
	}
	b.claims[p] = dir
	return nil
}

// Bound implements volume.Binder.
func (b *Binder) Bound(_ context.Context, p volume.Place) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d, ok := b.claims[p]
	if !ok {
		return "", fault.Newf(fault.NotFound, "claim %s is not bound", p.Claim)
	}
	return d, nil
}

// Unbind implements volume.Binder.
func (b *Binder) Unbind(_ context.Context, p volume.Place) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.claims, p)
	return nil
}

// VolumesDir implements volume.Binder.
func (b *Binder) VolumesDir(context.Context) (string, error) { return b.Dir, nil }

// Env is one test's surroundings. Volume makes an empty volume directory as the method under test needs it.
type Env struct {
	Driver volume.Driver
	Binder *Binder
	Volume func(t *testing.T, name string) string
}

var (
	claim = volume.Place{Account: "a", Namespace: "prod", Claim: "data"}
	twin  = volume.Place{Account: "a", Namespace: "staging", Claim: "data"}
)

// Run runs the suite.
func Run(t *testing.T, newEnv func(t *testing.T) Env) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Env, volume.Source)
	}{
		{"a copy holds what the source held", holds}, {"an id is used once", once}, {"a clone is writable and apart", apart},
		{"swap and back", swap}, {"what a swap took out of service goes when its time is over", retired}, {"delete refuses what is needed", refuses}, {"half a copy is never returned", half},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEnv(t)
			dir := e.Volume(t, "source")
			write(t, dir, "a.txt", "one")
			write(t, dir, "deep/b.txt", "two")
			if err := os.Symlink("a.txt", filepath.Join(dir, "link")); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(filepath.Join(dir, "a.txt"), filepath.Join(dir, "hard")); err != nil {
				t.Fatal(err)
			}
			if err := e.Binder.Bind(t.Context(), claim, dir); err != nil {
				t.Fatal(err)
			}
			c.test(t, e, volume.Source{Account: "a", Namespace: "prod", Claim: "data", Dir: dir})
		})
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

// tree reads a directory: path → mode and content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.Walk(dir, func(path string, i os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		v := i.Mode().String()
		if i.Mode()&os.ModeSymlink != 0 {
			to, _ := os.Readlink(path)
			v += " → " + to
		} else if i.Mode().IsRegular() {
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			v += " " + i.ModTime().UTC().Format(time.RFC3339Nano) + " " + string(body)
		}
		if rel != "." {
			out[rel] = v
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (e Env) cut(t *testing.T, id string, s volume.Source) volume.Copy {
	t.Helper()
	c, err := e.Driver.Cut(t.Context(), id, "d1", []volume.Source{s})
	if err == nil {
		err = e.Driver.Ready(t.Context(), c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (e Env) clone(t *testing.T, id string, from volume.Copy) volume.Copy {
	t.Helper()
	c, err := e.Driver.Clone(t.Context(), id, "d1", from, []volume.Place{twin})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func holds(t *testing.T, e Env, s volume.Source) {
	a, err := e.Driver.Probe(t.Context(), []volume.Source{s})
	if err != nil || a.Method == "" || a.Reason == "" || a.FreeBytes == 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	before := tree(t, s.Dir)
	c := e.cut(t, "d1/x/cut", s)
	if got := tree(t, c.Info().Dirs[0]); !maps.Equal(got, before) {
		t.Errorf("copied %v, want %v", got, before)
	}
	if c.Info().Method != a.Method {
		t.Errorf("probed %s and copied by %s", a.Method, c.Info().Method)
	}
	if got := tree(t, s.Dir); !maps.Equal(got, before) {
		t.Error("the source has changed")
	}
	listed, err := e.Driver.List(t.Context(), "d1")
	if err != nil || len(listed) != 1 || listed[0].ID() != c.ID() {
		t.Errorf("listed %v, %v", listed, err)
	}
	if other, err := e.Driver.List(t.Context(), "d2"); err != nil || len(other) != 0 {
		t.Errorf("of another owner: %v, %v", other, err)
	}
}

func once(t *testing.T, e Env, s volume.Source) {
	first := e.cut(t, "cut", s)
	write(t, s.Dir, "later.txt", "x")
	again := e.cut(t, "cut", s)
	if !slices.Equal(first.Info().Dirs, again.Info().Dirs) {
		t.Errorf("%v and %v", first.Info().Dirs, again.Info().Dirs)
	}
	if _, ok := tree(t, again.Info().Dirs[0])["later.txt"]; ok {
		t.Error("the second call has copied again")
	}
}

func apart(t *testing.T, e Env, s volume.Source) {
	c := e.cut(t, "cut", s)
	k := e.clone(t, "clone", c)
	bound, err := e.Binder.Bound(t.Context(), twin)
	if err != nil || bound != k.Info().Dirs[0] {
		t.Fatalf("the claim is bound to %q, %v", bound, err)
	}
	write(t, bound, "a.txt", "changed")
	if got, _ := os.ReadFile(filepath.Join(s.Dir, "a.txt")); string(got) != "one" {
		t.Errorf("the source now holds %q", got)
	}
	if got, _ := os.ReadFile(filepath.Join(c.Info().Dirs[0], "a.txt")); string(got) != "one" {
		t.Errorf("the copy now holds %q", got)
	}
}

func swap(t *testing.T, e Env, s volume.Source) {
	k := e.clone(t, "clone", e.cut(t, "cut", s))
	live := []volume.Source{s}
	old, err := e.Driver.Swap(t.Context(), "swap", live, k, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := e.Driver.Swap(t.Context(), "swap", live, k, time.Now().Add(time.Hour)); err != nil || again.Info().Dirs[0] != old.Info().Dirs[0] {
		t.Errorf("again: %v, %v", again.Info(), err)
	}
	if b, _ := e.Binder.Bound(t.Context(), claim); b != k.Info().Dirs[0] {
		t.Errorf("production is bound to %s", b)
	}
	if old.Info().Dirs[0] != s.Dir {
		t.Errorf("the old volume is %s, want %s", old.Info().Dirs[0], s.Dir)
	}
	if err := e.Driver.Delete(t.Context(), k); !fault.Is(err, fault.Denied) {
		t.Errorf("production's volume could be deleted: %v", err)
	}
	if err := e.Driver.Delete(t.Context(), old); !fault.Is(err, fault.Denied) {
		t.Errorf("the old volume is not protected: %v", err)
	}
	if _, err := e.Driver.Swap(t.Context(), "back", live, old, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if b, _ := e.Binder.Bound(t.Context(), claim); b != s.Dir {
		t.Errorf("after the way back production is bound to %s", b)
	}
}

// retired takes two upgrades: production's first volume and then the clone that it ran on go out of service, and each is
// deleted after its time and not before, while what production runs on stays.
func retired(t *testing.T, e Env, s volume.Source) {
	live := []volume.Source{s}
	first := e.clone(t, "first", e.cut(t, "cut1", s))
	was, err := e.Driver.Swap(t.Context(), "swap1", live, first, time.Now().Add(-time.Second))
	if err != nil {
		t.Fatal(err)
	}
	between := s
	between.Dir = first.Info().Dirs[0]
	second := e.clone(t, "second", e.cut(t, "cut2", between))
	kept, err := e.Driver.Swap(t.Context(), "swap2", live, second, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Driver.Delete(t.Context(), first); !fault.Is(err, fault.Denied) {
		t.Errorf("the clone that production ran on could be deleted while it is protected: %v", err)
	}
	if err := e.Driver.Delete(t.Context(), was); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.Dir); !os.IsNotExist(err) {
		t.Errorf("the first volume is still there: %v", err)
	}
	for _, dir := range []string{kept.Info().Dirs[0], second.Info().Dirs[0]} {
		if got := tree(t, dir); len(got) != 5 {
			t.Errorf("%s has %v", dir, got)
		}
	}
	if _, err := e.Driver.Swap(t.Context(), "swap3", live, e.clone(t, "third", e.cut(t, "cut3", between)), time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	third, err := e.Driver.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range third {
		if c.ID() == "swap3" {
			if err := e.Driver.Delete(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := os.Stat(second.Info().Dirs[0]); !os.IsNotExist(err) {
		t.Errorf("the clone that went out of service is still there: %v", err)
	}
	for _, c := range third {
		if c.ID() == "second" {
			if left, err := e.Driver.List(t.Context(), c.Info().Owner); err != nil || has(left, "second") {
				t.Errorf("it is still listed: %v", err)
			}
		}
	}
}

func has(all []volume.Copy, id string) bool {
	return slices.ContainsFunc(all, func(c volume.Copy) bool { return c.ID() == id })
}

func refuses(t *testing.T, e Env, s volume.Source) {
	c := e.cut(t, "cut", s)
	k := e.clone(t, "clone", c)
	if err := e.Driver.Delete(t.Context(), c); !fault.Is(err, fault.Conflict) {
		t.Errorf("a copy with a child could be deleted: %v", err)
	}
	for _, x := range []volume.Copy{k, c} {
		if err := e.Driver.Delete(t.Context(), x); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.Binder.Bound(t.Context(), twin); !fault.Is(err, fault.NotFound) {
		t.Errorf("the claim of a deleted clone: %v", err)
	}
	if left, err := e.Driver.List(t.Context(), ""); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if got := tree(t, s.Dir); len(got) != 5 {
		t.Errorf("the source has %v", got)
	}
}

func half(t *testing.T, e Env, s volume.Source) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := e.Driver.Cut(ctx, "cut", "d1", []volume.Source{s}); err == nil && c.Info().Method != volume.Snapshot {
		t.Error("a cancelled copy is returned")
	}
	gone := s
	gone.Dir = filepath.Join(s.Dir, "missing")
	if _, err := e.Driver.Cut(t.Context(), "none", "d1", []volume.Source{gone}); err == nil {
		t.Error("a missing volume was copied")
	}
	c := e.cut(t, "cut2", s)
	if got := tree(t, c.Info().Dirs[0]); len(got) != 5 {
		t.Errorf("copied %v", got)
	}
}
