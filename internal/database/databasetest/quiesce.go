package databasetest

import (
	"hash/crc64"
	"testing"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
)

func checksum(b []byte) uint64 { return crc64.Checksum(b, crc64.MakeTable(crc64.ECMA)) }

func quiesce(t *testing.T, h Harness) {
	q, ok := h.Engine().(database.Quiescer)
	if !ok {
		t.Fatal("the engine cannot hold writers")
	}
	s := h.New(t)
	s.Fill(t, rows)
	t.Run("a copy under load holds every write acknowledged before the hold", func(t *testing.T) { copies(t, h, q, s, false) })
	t.Run("an atomic copy too", func(t *testing.T) { copies(t, h, q, s, true) })
	t.Run("the hold ends by itself", func(t *testing.T) { expires(t, q, s) })
	t.Run("the hold ends with its holder", func(t *testing.T) { dies(t, q, s) })
	t.Run("a server that is not there is not held", func(t *testing.T) {
		gone := h.New(t)
		gone.Stop(t)
		if _, err := q.Quiesce(t.Context(), database.QuiesceRequest{ID: "gone", URL: gone.URL(), Dirs: gone.Dirs(), MaxHold: time.Second}); err == nil {
			t.Error("a lease on a stopped server")
		}
	})
}

// copies copies a server under a writer, starts a clone of the copy and looks which writes it holds.
func copies(t *testing.T, h Harness, q database.Quiescer, s Server, atomic bool) {
	var freeze func(testing.TB) func()
	if f, ok := s.(Freezer); ok && atomic {
		freeze = f.Freeze
	} else if atomic {
		t.Log("this server cannot be frozen, so there is no atomic cut to test")
		return
	}
	first := int64(1_000_000)
	if atomic {
		first = 2_000_000
	}
	w := startWriting(t, s, first)
	before := time.Now()
	lease, err := q.Quiesce(t.Context(), database.QuiesceRequest{ID: t.Name(), URL: s.URL(), Dirs: s.Dirs(), Atomic: atomic, MaxHold: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	if atomic {
		thaw := freeze(t)
		dirs = Copy(t, s.Dirs())
		thaw()
	} else {
		dirs = Copy(t, s.Dirs())
	}
	select {
	case <-lease.Lost():
		t.Error("the lease was lost")
	default:
	}
	assembly, err := lease.Release(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after := time.Now()
	if assembly.Finish != nil {
		if err := assembly.Finish(t.Context(), dirs); err != nil {
			t.Fatal(err)
		}
	}
	w.await(t, 2) // the first may have begun before the release
	log, worst := w.finish(t)
	t.Logf("%s, %s held, %d writes, the slowest took %s, notes %v", lease.Level(), after.Sub(before), len(log), worst, assembly.Notes)
	clone := Raise(t, h, dirs, database.Control)
	db := open(t, h, clone)
	_, have := orders(t, db)
	if lacks := database.Covers(lease.Census(), have); len(lacks) > 0 {
		t.Errorf("the clone lacks %v", lacks)
	}
	got := ids(t, h, clone)
	for i := int64(1); i <= rows; i++ {
		if _, ok := got[i]; !ok {
			t.Fatalf("order %d is not in the clone", i)
		}
	}
	written := 0
	for _, x := range log {
		_, there := got[x.id]
		if there {
			written++
		}
		if x.acked.Before(before) && !there {
			t.Fatalf("order %d was acknowledged %s before the hold and is not in the clone", x.id, before.Sub(x.acked))
		}
		if x.begun.After(after) && there {
			t.Fatalf("order %d was begun %s after the release and is in the clone", x.id, x.begun.Sub(after))
		}
	}
	if written < 20 || written == len(log) {
		t.Errorf("the clone holds %d of %d writes: the writer did not write before and after the hold", written, len(log))
	}
	if lease.Level() == "application" && worst > 10*time.Second {
		t.Errorf("a writer was stalled for %s", worst)
	}
	if again, err := lease.Release(t.Context()); err != nil || again.Finish != nil && assembly.Finish == nil {
		t.Errorf("a second release gives %v", err)
	}
}

// expires lets a lease run out.
func expires(t *testing.T, q database.Quiescer, s Server) {
	w := startWriting(t, s, 3_000_000)
	start := time.Now()
	lease, err := q.Quiesce(t.Context(), database.QuiesceRequest{ID: t.Name(), URL: s.URL(), Dirs: s.Dirs(), MaxHold: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-lease.Lost():
	case <-time.After(15 * time.Second):
		t.Fatal("a hold of one second lasts longer than 15")
	}
	if took := time.Since(start); took < time.Second {
		t.Errorf("the lease was lost after %s", took)
	}
	if _, err := lease.Release(t.Context()); err == nil {
		t.Error("a lease that was lost is released as if it had held")
	}
	resumes(t, s, 3_500_000)
	if _, worst := w.finish(t); worst > 10*time.Second {
		t.Errorf("a writer was stalled for %s", worst)
	}
}

// dies kills the process that holds a lease.
func dies(t *testing.T, q database.Quiescer, s Server) {
	child := holdInChild(t, s, 30*time.Second)
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // killed, as asked
	resumes(t, s, 4_000_000)
	// What the dead left behind must not be in the way of the next lease.
	lease, err := q.Quiesce(t.Context(), database.QuiesceRequest{ID: t.Name(), URL: s.URL(), Dirs: s.Dirs(), MaxHold: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lease.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

// resumes inserts one order, which must not take longer than a writer may wait.
func resumes(t *testing.T, s Server, id int64) {
	t.Helper()
	start := time.Now()
	if err := s.Insert(t.Context(), id); err != nil {
		t.Errorf("the writer does not go on: %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the writer went on after %s", took)
	}
}
