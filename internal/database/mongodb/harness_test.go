package mongodb

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/databasetest"
)

// What the test's binary does beside testing: it is the helper that holds writers, as Sluice's own binary is, and a
// program that knows nothing of FerretDB and makes SQLite checkpoint a file.
const (
	helperWord     = "quiesce-helper"
	checkpointWord = "checkpoint"
)

// TestMain runs the tests, or what the words above say.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == checkpointWord {
		if err := checkpointFile(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == helperWord {
		if err := Helper(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func checkpointFile(path, mode string) error {
	db, err := sql.Open("sqlite", "file:"+path+"?mode=rw")
	if err != nil {
		return err
	}
	defer db.Close()
	var busy, log, moved int
	return db.QueryRow("PRAGMA wal_checkpoint("+mode+")").Scan(&busy, &log, &moved)
}

// newEngine returns the engine with the test's own binary as its helper.
func newEngine() *Engine { return New(Options{HelperCommand: []string{os.Args[0], helperWord}}) }

// long tells whether the tests that take minutes run.
func long(t testing.TB) {
	t.Helper()
	if os.Getenv("SLUICE_LONG") != "1" {
		t.Skip("takes minutes; SLUICE_LONG=1 runs it, as make test does in its second part")
	}
}

// The two versions.
const (
	older = "ferretdb-a" // v1.17.0
	newer = "ferretdb-b" // v1.24.2
)

// harness starts one version of FerretDB.
type harness struct{ version string }

// Engine implements databasetest.Harness.
func (harness) Engine() database.Engine { return newEngine() }

// New implements databasetest.Harness.
func (h harness) New(t testing.TB) databasetest.Server {
	return startFerret(t, h.version, filepath.Join(databasetest.Root(t), "data"))
}

// Start implements databasetest.Harness.
func (h harness) Start(t testing.TB, dirs []string, l database.Launch) databasetest.Server {
	return startFerret(t, h.version, dirs[0], l.Args...)
}

// ferret is a running FerretDB.
type ferret struct {
	dir, address string
	command      *exec.Cmd
	ended        chan error
	client       *mongo.Client
}

// companion finds a program that `make companions` builds.
func companion(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("SLUICE_COMPANIONS")
	if dir == "" {
		dir = "../../../bin"
	}
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; run: make companions", err)
	}
	return path
}

// startFerret starts a version on a directory and ends it with the test.
func startFerret(t testing.TB, version, dir string, args ...string) *ferret {
	t.Helper()
	f := &ferret{dir: dir, ended: make(chan error, 1)}
	f.command = exec.Command(companion(t, version), append([]string{"--listen", "127.0.0.1:0", "--dir", dir}, args...)...)
	f.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	f.command.Stderr = os.Stderr
	out, err := f.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.command.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	go func() {
		_, _ = io.Copy(io.Discard, lines)
		f.ended <- f.command.Wait()
		close(f.ended)
	}()
	t.Cleanup(func() { f.Kill(t) })
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		t.Fatalf("%s did not start: %q, %v, %v", version, line, err, <-f.ended)
	}
	f.address = address
	if f.client, err = mongo.Connect(options.Client().ApplyURI(f.URL().Value).SetServerSelectionTimeout(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = f.client.Disconnect(ctx) // the server may be gone already
	})
	return f
}

// URL implements databasetest.Server.
func (f *ferret) URL() database.URL { return database.URL{Value: "mongodb://" + f.address + "/"} }

// Dirs implements databasetest.Server.
func (f *ferret) Dirs() []string { return []string{f.dir} }

func (f *ferret) collection(name string) *mongo.Collection {
	return f.client.Database(databasetest.Shop).Collection(name)
}

var noon = time.Date(2025, 3, 30, 12, 0, 0, 0, time.UTC)

// orderDocument makes an order of a number: strings, dates, integers of both widths, floats, arrays and documents.
func orderDocument(id int64) bson.D {
	return bson.D{
		{Key: "_id", Value: id}, {Key: "email", Value: fmt.Sprintf("customer%d@example.com", id%997)},
		{Key: databasetest.Placed, Value: noon.Add(time.Duration(id) * time.Minute)},
		{Key: "quantity", Value: int32(id % 9)}, {Key: "cents", Value: id * 101}, {Key: "weight", Value: float64(id) / 8},
		{Key: "items", Value: bson.A{fmt.Sprintf("sku-%d", id%31), fmt.Sprintf("sku-%d", id%37+100)}},
		{Key: "address", Value: bson.D{{Key: "street", Value: fmt.Sprintf("%d Main St", id%199)}, {Key: "city", Value: "Utrecht"}}},
		{Key: "paid", Value: id%3 == 0}, {Key: "note", Value: nil},
	}
}

// Fill implements databasetest.Server.
func (f *ferret) Fill(t testing.TB, n int) {
	t.Helper()
	f.insert(t, databasetest.Orders, n, orderDocument)
}

// insert adds documents in batches.
func (f *ferret) insert(t testing.TB, name string, n int, document func(int64) bson.D) {
	t.Helper()
	var batch []any
	for i := int64(1); i <= int64(n); i++ {
		if batch = append(batch, document(i)); len(batch) == 1000 || i == int64(n) {
			if _, err := f.collection(name).InsertMany(context.Background(), batch); err != nil {
				t.Fatal(err)
			}
			batch = batch[:0]
		}
	}
}

// Insert implements databasetest.Server. The driver must see no deadline: it would send maxTimeMS, which FerretDB refuses.
func (f *ferret) Insert(ctx context.Context, id int64) error {
	_, err := f.collection(databasetest.Orders).InsertOne(undated{ctx}, orderDocument(id))
	return err
}

// Delay implements databasetest.Server.
func (f *ferret) Delay(t testing.TB, id int64) {
	t.Helper()
	f.set(t, databasetest.Orders, id, bson.D{{Key: databasetest.Placed, Value: noon.Add(time.Duration(id)*time.Minute + time.Hour)}})
}

// set changes fields of one document.
func (f *ferret) set(t testing.TB, name string, id any, fields bson.D) {
	t.Helper()
	r, err := f.collection(name).UpdateOne(context.Background(), bson.D{{Key: "_id", Value: id}}, bson.D{{Key: "$set", Value: fields}})
	if err != nil || r.MatchedCount != 1 {
		t.Fatalf("setting %v of %v: %+v, %v", fields, id, r, err)
	}
}

// Remove implements databasetest.Server.
func (f *ferret) Remove(t testing.TB, id int64) {
	t.Helper()
	f.remove(t, databasetest.Orders, id)
}

func (f *ferret) remove(t testing.TB, name string, id any) {
	t.Helper()
	r, err := f.collection(name).DeleteOne(context.Background(), bson.D{{Key: "_id", Value: id}})
	if err != nil || r.DeletedCount != 1 {
		t.Fatalf("removing %v: %+v, %v", id, r, err)
	}
}

// Stop implements databasetest.Server.
func (f *ferret) Stop(t testing.TB) {
	t.Helper()
	_ = f.command.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case err, first := <-f.ended:
		if first && err != nil {
			t.Errorf("FerretDB ended with %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("FerretDB does not stop")
		f.Kill(t)
	}
}

// Kill implements databasetest.Server.
func (f *ferret) Kill(testing.TB) {
	_ = f.command.Process.Kill() // it may have ended
	<-f.ended
}

// Freeze implements databasetest.Freezer.
func (f *ferret) Freeze(t testing.TB) func() {
	t.Helper()
	signal := func(s syscall.Signal) {
		if err := f.command.Process.Signal(s); err != nil {
			t.Error(err)
		}
	}
	signal(syscall.SIGSTOP)
	return func() { signal(syscall.SIGCONT) }
}
