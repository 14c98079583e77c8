package engine_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/store/sqlite"
)

// result is all that a delivery leaves behind, without what may differ between two runs of it.
type result struct {
	State   delivery.State
	Reason  string
	Targets map[string]delivery.State
	Steps   map[string]string
	Effects []string // what the platform did, with the key
	World   world
	Jobs    map[string]string // key → request
	Asked   int               // queries, each with its instant
}

// crash is one delivery that is carried out by processes which are killed.
type crash struct {
	t     *testing.T
	dir   string
	shape string
	recv  *receiver
	base  time.Time
	kills int
}

func newCrash(t *testing.T, shape string) *crash {
	dir, err := os.MkdirTemp("", "sluice-crash-") // not TempDir of the test: a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	c := &crash{t: t, dir: dir, shape: shape, base: time.Now().UTC()}
	c.recv = newReceiver(t, dir)
	return c
}

func (c *crash) close() {
	c.recv.close()
	if !c.t.Failed() {
		if err := os.RemoveAll(c.dir); err != nil {
			c.t.Error(err)
		}
	}
}

// run starts one process, which is killed at the given point or, with 0, goes on to the end. It reports whether the end was
// reached, and how many points were passed.
func (c *crash) run(killAt int64) (ended bool, points int64) {
	c.t.Helper()
	told, err := json.Marshal(order{Dir: c.dir, Shape: c.shape, Hooks: c.recv.URL, KillAt: killAt, Base: c.base})
	if err != nil {
		c.t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(c.t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+string(told))
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() && s.Signal() == syscall.SIGKILL && killAt > 0 {
			c.kills++
			return false, killAt
		}
	}
	if err != nil {
		c.t.Fatalf("%s, killed at %d: %v\n%s", c.dir, killAt, err, errs.String())
	}
	points, err = strconv.ParseInt(strings.TrimSpace(out.String()), 10, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	return true, points
}

// doubts is what messages say of requests that were sent again because nobody could know.
var doubts = regexp.MustCompile(` \(a restart left open whether it had been sent; it was sent again (\d+) times? under the same Idempotency-Key\)`)

// result reads what is left, and holds what must be true of it whatever was killed.
func (c *crash) result() result {
	c.t.Helper()
	db, err := sqlite.Open(c.t.Context(), filepath.Join(c.dir, "sluice.db"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer db.Close()
	d, err := db.Load(c.t.Context(), "d")
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := db.Journal(c.t.Context(), "d"); err != nil {
		c.t.Error(err)
	}
	r := result{State: d.Status.State, Reason: doubts.ReplaceAllString(d.Status.Reason, ""), Targets: map[string]delivery.State{}, Steps: map[string]string{},
		Jobs: map[string]string{}}
	for name, t := range d.Status.Targets {
		r.Targets[name] = t.State
	}
	for p, n := range d.Status.Nodes {
		r.Steps[p] = fmt.Sprintf("%d %s %s %s", n.Order, n.Phase, n.Verdict, doubts.ReplaceAllString(n.Message, ""))
	}
	c.effects(&r)
	c.requests(&r, d.Status)
	return r
}

// effects reads the recorded world. No key stands in it twice.
func (c *crash) effects(r *result) {
	body, err := os.ReadFile(filepath.Join(c.dir, "effects.jsonl"))
	if err != nil {
		c.t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range bytes.Lines(body) {
		var e effect
		if err := json.Unmarshal(line, &e); err != nil {
			c.t.Fatal(err)
		}
		if seen[e.Key] {
			c.t.Errorf("the effect %s happened twice", e.Key)
		}
		seen[e.Key] = true
		r.Effects = append(r.Effects, fmt.Sprintf("%s %s %s", e.Verb, e.Key, e.Digest))
		r.World = e.World
	}
	slices.Sort(r.Effects)
}

// requests reads what the receiver counted: a request is repeated only under its key, unchanged, and only as often as the
// record of its step says that nobody could know.
func (c *crash) requests(r *result, s delivery.Status) {
	c.recv.mu.Lock()
	defer c.recv.mu.Unlock()
	r.Asked = len(c.recv.asked)
	for key, all := range c.recv.got {
		r.Jobs[key] = all[0]
		for _, other := range all {
			if other != all[0] {
				c.t.Errorf("the request of key %s was repeated with a change:\n%s\n%s", key, all[0], other)
			}
		}
		expected := 1
		if strings.Contains(all[0], "/flaky ") {
			expected = 2
		}
		path := strings.TrimSuffix(strings.TrimPrefix(key, "d/"), "/1")
		var kept struct{ Unknown int }
		if err := json.Unmarshal(s.Nodes[path].Saved, &kept); err != nil {
			c.t.Fatal(err)
		}
		if len(all) > expected+kept.Unknown {
			c.t.Errorf("key %s was sent %d times, of which %d are expected and %d are told", key, len(all), expected, kept.Unknown)
		}
		if told := doubts.FindStringSubmatch(s.Nodes[path].Message); (told != nil) != (kept.Unknown > 0) && s.Nodes[path].Verdict != "" {
			c.t.Errorf("step %s keeps %d requests that nobody knows of, its message says %q", path, kept.Unknown, s.Nodes[path].Message)
		}
	}
}

// unkilled runs a shape without a kill and holds it against what the shape is to come to.
func unkilled(t *testing.T, name string) (result, int64) {
	t.Helper()
	c := newCrash(t, name)
	defer c.close()
	_, points := c.run(0)
	r := c.result()
	s := shapes()[name]
	if r.State != s.state || !reflect.DeepEqual(r.World, s.world) || len(r.Jobs) != s.jobs {
		t.Fatalf("without a kill it ended %s (%s)\n%+v, want %+v\njobs %v, want %d", r.State, r.Reason, r.World, s.world, r.Jobs, s.jobs)
	}
	for target, state := range s.ends {
		if r.Targets[target] != state {
			t.Fatalf("without a kill target %s is %s, want %s (%s)", target, r.Targets[target], state, r.Reason)
		}
	}
	return r, points
}

// same holds that a killed run came to the same as an unkilled one.
func (c *crash) same(want result) {
	c.t.Helper()
	got := c.result()
	if reflect.DeepEqual(got, want) {
		return
	}
	for p := range want.Steps {
		if got.Steps[p] != want.Steps[p] {
			c.t.Errorf("step %s\n got: %s\nwant: %s", p, got.Steps[p], want.Steps[p])
		}
	}
	for _, e := range got.Effects {
		if !slices.Contains(want.Effects, e) {
			c.t.Errorf("effect that should not be: %s", e)
		}
	}
	for _, e := range want.Effects {
		if !slices.Contains(got.Effects, e) {
			c.t.Errorf("effect that is missing: %s", e)
		}
	}
	if !reflect.DeepEqual(got.World, want.World) || !maps.Equal(got.Targets, want.Targets) {
		c.t.Errorf("the world is %+v %v, want %+v %v", got.World, got.Targets, want.World, want.Targets)
	}
	c.t.Errorf("%s: %s %q, want %s %q; %d and %d webhooks, %d and %d queries", c.dir, got.State, got.Reason, want.State, want.Reason,
		len(got.Jobs), len(want.Jobs), got.Asked, want.Asked)
}

// TestKilledAgainAndAgain carries each shape out by processes that are killed at one of the next seven points each,
// until one reaches the end. It comes to the same as without a kill, and nothing happened twice.
func TestKilledAgainAndAgain(t *testing.T) {
	for _, name := range names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want, _ := unkilled(t, name)
			seed := rand.Uint64()
			rnd := rand.New(rand.NewPCG(seed, 0))
			c := newCrash(t, name)
			defer c.close()
			for ended := false; !ended; {
				if c.kills > 1000 {
					t.Fatal("it does not get on")
				}
				ended, _ = c.run(1 + rnd.Int64N(7))
			}
			c.same(want)
			t.Logf("%d kills, seed %d", c.kills, seed)
		})
	}
}

// TestKilledEverywhere kills each shape once at each of its points, right before and right after every commit and between
// each effect and its record, and lets it go on.
func TestKilledEverywhere(t *testing.T) {
	every := int64(1)
	if os.Getenv("SLUICE_LONG") == "" {
		every = 11 // a sample, another one each time
	}
	for _, name := range names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want, points := unkilled(t, name)
			killed := 0
			for at := 1 + rand.Int64N(every); at <= points; at += every {
				c := newCrash(t, name)
				if ended, _ := c.run(at); !ended {
					killed++
					c.run(0)
				}
				c.same(want)
				c.close()
			}
			t.Logf("%d points, killed at %d", points, killed)
		})
	}
}
