// Package volumetest is the conformance suite of package volume: every driver runs it.
package volumetest

import (
	"context"
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
	b.claims[p.Bare()] = dir
	return nil
}

// Bound implements volume.Binder.
func (b *Binder) Bound(_ context.Context, p volume.Place) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d, ok := b.claims[p.Bare()]
	if !ok {
		return "", fault.Newf(fault.NotFound, "claim %s is not bound", p.Claim)
	}
	return d, nil
}

// Unbind implements volume.Binder.
func (b *Binder) Unbind(_ context.Context, p volume.Place) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.claims, p.Bare())
	return nil
}

// VolumesDir implements volume.Binder.
func (b *Binder) VolumesDir(context.Context) (string, error) { return b.Dir, nil }

// Env is one test's surroundings.
type Env struct {
	Driver volume.Driver
	Owner  string          // the delivery of the test: nobody else makes copies for it, whatever other tests do meanwhile
	Live   volume.Place    // a claim with an empty volume
	Twins  [2]volume.Place // where clones may go; the claims do not exist

	// Write and Read reach the files behind a claim. Nothing holds the claim when they return.
	Write func(t *testing.T, p volume.Place, name, text string)
	Read  func(t *testing.T, p volume.Place, name string) (text string, ok bool)
	// Exists tells whether there is such a claim, Volume which volume is behind it, and VolumeExists whether one is there that was
	// behind the claim.
	Exists       func(t *testing.T, p volume.Place) bool
	Volume       func(t *testing.T, p volume.Place) string
	VolumeExists func(t *testing.T, p volume.Place, volume string) bool
}

// Run runs the suite.
func Run(t *testing.T, newEnv func(t *testing.T) Env) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Env)
	}{
		{"a copy holds what the source held", holds}, {"an id is used once", once}, {"a clone is writable and apart", apart},
		{"a clone can be cloned", again}, {"swap and back", swap}, {"what a swap took out of service goes when its time is over", retired},
		{"delete refuses what is needed", refuses}, {"half a copy is never returned", half},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEnv(t)
			e.Write(t, e.Live, "a.txt", "one")
			e.Write(t, e.Live, "deep/b.txt", "two")
			c.test(t, e)
		})
	}
}

// id is that of a copy of the test.
func (e Env) id(name string) string { return e.Owner + "/" + name }

func (e Env) source() volume.Source {
	return volume.Source{Account: e.Live.Account, Namespace: e.Live.Namespace, Claim: e.Live.Claim}
}

func (e Env) cut(t *testing.T, name string) volume.Copy {
	t.Helper()
	c, err := e.Driver.Cut(t.Context(), e.id(name), e.Owner, []volume.Source{e.source()})
	if err == nil {
		err = e.Driver.Ready(t.Context(), c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (e Env) clone(t *testing.T, name string, from volume.Copy, to volume.Place) volume.Copy {
	t.Helper()
	c, err := e.Driver.Clone(t.Context(), e.id(name), e.Owner, from, []volume.Place{to})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// expect reads a file; "" says that there must be none.
func (e Env) expect(t *testing.T, p volume.Place, name, want string) {
	t.Helper()
	if got, ok := e.Read(t, p, name); got != want || ok != (want != "") {
		t.Errorf("%s of claim %s of namespace %s holds %q (there: %t), want %q", name, p.Claim, p.Namespace, got, ok, want)
	}
}

func holds(t *testing.T, e Env) {
	a, err := e.Driver.Probe(t.Context(), []volume.Source{e.source()})
	if err != nil || a.Method == "" || a.Reason == "" || a.FreeBytes == 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	start := time.Now()
	c := e.cut(t, "x/cut")
	i := c.Info()
	if i.Method != a.Method {
		t.Errorf("probed %s and copied by %s", a.Method, i.Method)
	}
	if i.CutAt.Before(start.Add(-time.Second)) || i.CutAt.After(time.Now().Add(time.Second)) {
		t.Errorf("cut at %s, begun at %s", i.CutAt, start)
	}
	e.clone(t, "x/clone", c, e.Twins[0])
	e.expect(t, e.Twins[0], "a.txt", "one")
	e.expect(t, e.Twins[0], "deep/b.txt", "two")
	e.expect(t, e.Live, "a.txt", "one")
	listed, err := e.Driver.List(t.Context(), e.Owner)
	if err != nil || len(listed) != 2 || listed[0].ID() != c.ID() || listed[1].Info().Parent != c.ID() || !listed[0].Info().CutAt.Equal(i.CutAt) {
		t.Errorf("listed %+v, %v", listed, err)
	}
	if there, err := e.Driver.List(t.Context(), e.Owner+"-2"); err != nil || len(there) != 0 {
		t.Errorf("of another owner: %v, %v", there, err)
	}
}

func once(t *testing.T, e Env) {
	first := e.cut(t, "cut")
	e.Write(t, e.Live, "later.txt", "x")
	second := e.cut(t, "cut")
	if !first.Info().CutAt.Equal(second.Info().CutAt) {
		t.Errorf("cut at %s and at %s", first.Info().CutAt, second.Info().CutAt)
	}
	e.clone(t, "clone", second, e.Twins[0])
	e.expect(t, e.Twins[0], "later.txt", "")
	e.Write(t, e.Twins[0], "a.txt", "changed")
	e.clone(t, "clone", second, e.Twins[0])
	e.expect(t, e.Twins[0], "a.txt", "changed")
}

func apart(t *testing.T, e Env) {
	c := e.cut(t, "cut")
	e.clone(t, "clone", c, e.Twins[0])
	e.Write(t, e.Twins[0], "a.txt", "changed")
	e.expect(t, e.Live, "a.txt", "one")
	e.clone(t, "clone2", c, e.Twins[1])
	e.expect(t, e.Twins[1], "a.txt", "one")
	e.expect(t, e.Twins[0], "a.txt", "changed")
}

func again(t *testing.T, e Env) {
	base := e.clone(t, "base", e.cut(t, "cut"), e.Twins[0])
	e.Write(t, e.Twins[0], "a.txt", "recovered")
	k := e.clone(t, "candidate", base, e.Twins[1])
	e.expect(t, e.Twins[1], "a.txt", "recovered")
	if k.Info().Parent != base.ID() {
		t.Errorf("the parent is %q", k.Info().Parent)
	}
	if err := e.Driver.Delete(t.Context(), base); !fault.Is(err, fault.Conflict) {
		t.Errorf("a clone with a child could be deleted: %v", err)
	}
}

func swap(t *testing.T, e Env) {
	k := e.clone(t, "clone", e.cut(t, "cut"), e.Twins[0])
	e.Write(t, e.Twins[0], "a.txt", "upgraded")
	live, protect := []volume.Source{e.source()}, time.Now().Add(time.Hour)
	if found := e.find(t, e.id("swap")); found {
		t.Error("the swap is known before it began")
	}
	old, err := e.Driver.Swap(t.Context(), e.id("swap"), live, k, protect)
	if err != nil {
		t.Fatal(err)
	}
	if !e.find(t, e.id("swap")) || !e.find(t, e.id("clone")) {
		t.Error("the old volume, or what production runs on now, is not listed")
	}
	e.expect(t, e.Live, "a.txt", "upgraded")
	if same, err := e.Driver.Swap(t.Context(), e.id("swap"), live, k, protect); err != nil || same.ID() != old.ID() || !same.Info().CutAt.Equal(old.Info().CutAt) {
		t.Errorf("again: %+v, %v", same, err)
	}
	e.expect(t, e.Live, "a.txt", "upgraded")
	if err := e.Driver.Delete(t.Context(), k); !fault.Is(err, fault.Denied) {
		t.Errorf("production's volume could be deleted: %v", err)
	}
	if err := e.Driver.Delete(t.Context(), old); !fault.Is(err, fault.Denied) {
		t.Errorf("the old volume is not protected: %v", err)
	}
	failed, err := e.Driver.Swap(t.Context(), e.id("back"), live, old, protect)
	if err != nil {
		t.Fatal(err)
	}
	e.expect(t, e.Live, "a.txt", "one")
	if _, err := e.Driver.Swap(t.Context(), "back again", live, old, time.Time{}); err != nil {
		t.Fatalf("back to what the claim holds already: %v", err)
	}
	e.expect(t, e.Live, "a.txt", "one")
	if err := e.Driver.Delete(t.Context(), old); !fault.Is(err, fault.Denied) {
		t.Errorf("production's volume could be deleted as what a swap took out of service: %v", err)
	}
	// What was taken out of service is kept by its other name as well.
	for _, x := range []volume.Copy{failed, k} {
		if err := e.Driver.Delete(t.Context(), x); !fault.Is(err, fault.Denied) {
			t.Errorf("%s is not protected: %v", x.ID(), err)
		}
	}
	if _, err := e.Driver.Swap(t.Context(), e.id("forth"), live, failed, time.Time{}); err != nil {
		t.Fatal(err)
	}
	e.expect(t, e.Live, "a.txt", "upgraded")
}

// retired takes two upgrades: production's first volume and then the clone that it ran on go out of service, and each is
// deleted after its time and not before, while what production runs on stays.
func retired(t *testing.T, e Env) {
	live, over := []volume.Source{e.source()}, time.Now().Add(-time.Second)
	swap := func(id string, to volume.Place, until time.Time) (old, with volume.Copy, was string) {
		t.Helper()
		was = e.Volume(t, e.Live)
		with = e.clone(t, id, e.cut(t, "cut "+id), to)
		e.Write(t, to, "by.txt", id)
		old, err := e.Driver.Swap(t.Context(), e.id("swap "+id), live, with, until)
		if err != nil {
			t.Fatal(err)
		}
		return old, with, was
	}
	was, first, original := swap("first", e.Twins[0], over)
	kept, _, _ := swap("second", e.Twins[1], time.Now().Add(time.Hour))
	for _, c := range []volume.Copy{first, kept} {
		if err := e.Driver.Delete(t.Context(), c); !fault.Is(err, fault.Denied) {
			t.Errorf("what production ran on could be deleted as %s while it is protected: %v", c.ID(), err)
		}
	}
	if err := e.Driver.Delete(t.Context(), was); err != nil {
		t.Fatal(err)
	}
	if e.VolumeExists(t, e.Live, original) {
		t.Error("the first volume is still there")
	}
	e.expect(t, e.Live, "by.txt", "second")
	spent, third, volumeOfSecond := swap("third", e.Twins[0], over)
	if err := e.Driver.Delete(t.Context(), spent); err != nil {
		t.Fatal(err)
	}
	if e.VolumeExists(t, e.Live, volumeOfSecond) || e.find(t, e.id("second")) || e.find(t, spent.ID()) {
		t.Error("the clone that went out of service is still there, or listed")
	}
	if !e.find(t, kept.ID()) || !e.find(t, third.ID()) {
		t.Error("what is protected, or what production runs on, is no longer listed")
	}
	e.expect(t, e.Live, "by.txt", "third")
}

func (e Env) find(t *testing.T, id string) bool {
	t.Helper()
	all, err := e.Driver.List(t.Context(), e.Owner)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(all, func(c volume.Copy) bool { return c.ID() == id })
}

func refuses(t *testing.T, e Env) {
	c := e.cut(t, "cut")
	k := e.clone(t, "clone", c, e.Twins[0])
	if err := e.Driver.Delete(t.Context(), c); !fault.Is(err, fault.Conflict) {
		t.Errorf("a copy with a child could be deleted: %v", err)
	}
	for _, x := range []volume.Copy{k, c} {
		if err := e.Driver.Delete(t.Context(), x); err != nil {
			t.Fatal(err)
		}
	}
	if e.Exists(t, e.Twins[0]) {
		t.Error("the claim of a deleted clone is still there")
	}
	if left, err := e.Driver.List(t.Context(), e.Owner); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	e.expect(t, e.Live, "deep/b.txt", "two")
}

func half(t *testing.T, e Env) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := e.Driver.Cut(ctx, e.id("cut"), e.Owner, []volume.Source{e.source()}); err == nil && c.Info().Method != volume.Snapshot {
		t.Error("a cancelled copy is returned")
	}
	gone := e.source()
	gone.Claim = "missing"
	if _, err := e.Driver.Cut(t.Context(), e.id("none"), e.Owner, []volume.Source{gone}); !fault.Is(err, fault.NotFound) {
		t.Errorf("a missing volume was copied: %v", err)
	}
	e.clone(t, "clone", e.cut(t, "cut2"), e.Twins[0])
	e.expect(t, e.Twins[0], "deep/b.txt", "two")
}
