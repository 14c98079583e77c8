package mongodb

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/databasetest"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/volume"
	"github.com/sluice-cd/sluice/internal/volume/reflink"
	"github.com/sluice-cd/sluice/internal/volume/volumetest"
)

const (
	copiesMade  = 50
	copiesBytes = 200 << 20
	ledger      = "ledger" // the collection that the load writes to
)

// TestCopies takes 50 copies of a database of at least 200 MB under load, with a checkpoint of the engine forced during
// each, and looks what each holds: every write acknowledged before the lease, none begun after its release.
func TestCopies(t *testing.T) {
	long(t)
	t.Run("ext4", func(t *testing.T) {
		if u := databasetest.User(t); u != nil {
			asUser(t, u, mounted(t, "ext4"))
			return
		}
		root := databasetest.Root(t)
		var st unix.Statfs_t
		if err := unix.Statfs(root, &st); err != nil {
			t.Fatal(err)
		}
		if st.Type != unix.EXT4_SUPER_MAGIC {
			t.Skipf("%s is not on ext4 (its file system is %#x); name a directory that is by TMPDIR", root, st.Type)
		}
		t.Logf("user %d, copies in %s", os.Getuid(), root)
		copies(t, root, false)
	})
	for _, fs := range []string{"xfs", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("only root can mount a file system of another kind")
			}
			copies(t, mounted(t, fs), fs == "btrfs")
		})
	}
}

// asUser runs the test that calls it once more, in a process of an ordinary user, whose servers, copies and holds are that
// user's then. Its temporary files are in dir.
func asUser(t *testing.T, u *syscall.Credential, dir string) {
	t.Helper()
	if err := os.Chown(dir, int(u.Uid), int(u.Gid)); err != nil {
		t.Fatal(err)
	}
	// The test's binary is where only root may go.
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(databasetest.Root(t), "mongodb.test")
	if err := os.WriteFile(binary, self, 0o755); err != nil {
		t.Fatal(err)
	}
	var levels []string
	for _, level := range strings.Split(t.Name(), "/") {
		levels = append(levels, "^"+level+"$")
	}
	cmd := exec.CommandContext(t.Context(), binary, "-test.v", "-test.run", strings.Join(levels, "/"))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir, "SLUICE_COMPANIONS="+filepath.Dir(companion(t, older)))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: u, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("as user %d:\n%s", u.Uid, out)
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name()+" ")) {
		t.Fatalf("as user %d it did not pass: %v", u.Uid, err)
	}
}

// mounted makes a file system in a file and mounts it.
func mounted(t *testing.T, fs string) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "image"), filepath.Join(databasetest.Root(t), "mounted")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 6<<30); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs."+fs, "-q", image)
	run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { run(t, "umount", dir) })
	return dir
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

func copies(t *testing.T, root string, subvolume bool) {
	data := filepath.Join(root, "data")
	if subvolume {
		run(t, "btrfs", "subvolume", "create", data)
	}
	f := startFerret(t, older, data)
	fillLarge(t, f)
	driver := reflink.New(&volumetest.Binder{Dir: root}, "local")
	w := writeEveryMillisecond(f)
	defer w.stop()
	var stalls, holds []time.Duration
	refused := 0
	var method volume.Method
	w.until(t, time.Now()) // the first copy too has writes before it
	for n := 0; n < copiesMade; n++ {
		before := time.Now()
		l := lend(t, f, 0)
		checkpointed := make(chan error, 1)
		go func() { checkpointed <- checkpoint(f, n) }()
		cut, err := driver.Cut(t.Context(), fmt.Sprintf("cut/%d/%d", n, refused), "test", []volume.Source{{Dir: data}})
		if err != nil {
			t.Fatal(err)
		}
		assembly, err := l.Release(t.Context())
		after := time.Now()
		if err := <-checkpointed; err != nil {
			t.Fatal(err)
		}
		if fault.Is(err, fault.Transient) && refused < copiesMade {
			// A disk that others keep busy may be slower than the longest hold. The copy is refused, as it must be; the
			// writer has not waited longer for it, and a copy is taken again.
			refused++
			n--
			stalls = append(stalls, worst(w.until(t, after), before, after))
			if err := driver.Delete(t.Context(), cut); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("copy %d: %v", n, err)
		}
		holds = append(holds, after.Sub(before))
		if err := assembly.Finish(t.Context(), cut.Info().Dirs); err != nil {
			t.Fatal(err)
		}
		method = cut.Info().Method
		writes := w.until(t, after)
		stalls = append(stalls, worst(writes, before, after))
		holdsWrites(t, l.Census(), cut.Info().Dirs, writes, before, after)
		if err := driver.Delete(t.Context(), cut); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(stalls)
	slices.Sort(holds)
	t.Logf("%d copies by %s: the lease took %s, at most %s; the slowest of a client's writes every millisecond took %s, at most %s; "+
		"%d more were refused because the hold ran out", copiesMade, method, holds[len(holds)/2].Round(time.Millisecond), holds[len(holds)-1].Round(time.Millisecond),
		stalls[len(stalls)/2].Round(time.Millisecond), stalls[len(stalls)-1].Round(time.Millisecond), refused)
	if worst := stalls[len(stalls)-1]; worst > 10*time.Second {
		t.Errorf("a writer was stalled for %s", worst)
	}
}

// fillLarge makes a database that is large in bytes, not in documents.
func fillLarge(t *testing.T, f *ferret) {
	t.Helper()
	random := rand.NewChaCha8([32]byte{1})
	text := make([]byte, 20_000)
	size := int64(0)
	for i := int64(0); size < copiesBytes; {
		var batch []any
		for range 100 {
			for j := range text {
				text[j] = 'a' + byte(random.Uint64()%26)
			}
			i++
			batch = append(batch, bson.D{{Key: "_id", Value: fmt.Sprintf("document-%06d", i)}, {Key: "body", Value: string(text)}})
		}
		if _, err := f.client.Database(databasetest.Shop).Collection("large").InsertMany(context.Background(), batch); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(f.file())
		if err != nil {
			t.Fatal(err)
		}
		size = st.Size()
	}
}

// checkpoint makes SQLite move what its log holds into the file, from a process of its own: a connection of the test's
// process would be closed by it, and with it locks that nobody has.
func checkpoint(f *ferret, n int) error {
	modes := []string{"PASSIVE", "FULL", "RESTART", "TRUNCATE"}
	cmd := exec.Command(os.Args[0], checkpointWord, f.file(), modes[n%len(modes)])
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("checkpoint: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// holdsWrites starts a clone of the copy, as the twins' base is started, stops it, and reads which writes it holds.
func holdsWrites(t *testing.T, census database.Catalog, dirs []string, writes []written, before, after time.Time) {
	t.Helper()
	clone := databasetest.Raise(t, harness{older}, dirs, database.Control).(*ferret)
	s, err := newEngine().Open(t.Context(), clone.URL())
	if err != nil {
		t.Fatal(err)
	}
	have, err := s.Catalog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if lacks := database.Covers(census, have); len(lacks) > 0 {
		t.Errorf("the clone lacks %v", lacks)
	}
	clone.Stop(t)
	ids := storedIDs(t, clone.file())
	acknowledged, late := 0, 0
	for _, x := range writes {
		switch there := ids[x.id]; {
		case x.acked.Before(before):
			if acknowledged++; !there {
				t.Fatalf("write %d was acknowledged %s before the lease and is not in the copy", x.id, before.Sub(x.acked))
			}
		case x.begun.After(after):
			if late++; there {
				t.Fatalf("write %d was begun %s after the release and is in the copy", x.id, x.begun.Sub(after))
			}
		}
	}
	if acknowledged == 0 || late == 0 {
		t.Errorf("%d writes before the lease and %d after its release prove nothing", acknowledged, late)
	}
}

// storedIDs reads the ledger from a stopped server's file.
func storedIDs(t *testing.T, file string) map[int64]bool {
	t.Helper()
	db := outside(t, file)
	defer db.Close()
	var table string
	if err := db.QueryRow("SELECT table_name FROM "+collectionsOf+" WHERE name = ?", ledger).Scan(&table); err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query(fmt.Sprintf(`SELECT json_extract(_ferretdb_sjson, '$._id') FROM %q`, table))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	ids := map[int64]bool{}
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		ids[id] = true
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return ids
}

// written is one write of the load.
type written struct {
	id           int64
	begun, acked time.Time
}

// load is a client that writes every millisecond, or as fast as it is let.
type load struct {
	cancel context.CancelFunc
	done   chan struct{}
	news   chan written
	log    []written
	failed error
}

func writeEveryMillisecond(f *ferret) *load {
	ctx, cancel := context.WithCancel(context.Background())
	w := &load{cancel: cancel, done: make(chan struct{}), news: make(chan written, 1<<20)}
	go func() {
		defer close(w.done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for id := int64(1); ctx.Err() == nil; id++ {
			x := written{id: id, begun: time.Now()}
			document := bson.D{{Key: "_id", Value: id}, {Key: "at", Value: x.begun}}
			if _, w.failed = f.collection(ledger).InsertOne(context.Background(), document); w.failed != nil {
				return
			}
			x.acked = time.Now()
			w.news <- x
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	return w
}

// until returns everything written so far when some writes were begun after an instant.
func (w *load) until(t *testing.T, after time.Time) []written {
	t.Helper()
	late, deadline := 0, time.After(30*time.Second)
	for late < 20 {
		select {
		case x := <-w.news:
			if w.log = append(w.log, x); x.begun.After(after) {
				late++
			}
		case <-w.done:
			t.Fatalf("the load ended: %v", w.failed)
		case <-deadline:
			t.Fatal("the load does not go on")
		}
	}
	return w.log
}

func (w *load) stop() {
	w.cancel()
	<-w.done
}

// worst is the slowest write that the hold can have slowed.
func worst(writes []written, before, after time.Time) (most time.Duration) {
	for _, x := range writes {
		if x.acked.After(before) && x.begun.Before(after) {
			most = max(most, x.acked.Sub(x.begun))
		}
	}
	return most
}
