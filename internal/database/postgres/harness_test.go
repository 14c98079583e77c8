package postgres

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/databasetest"
)

// binaries are the directories of two minor versions' programs.
type binaries struct{ old, new string }

// findBinaries looks where Makefile and CI put them.
func findBinaries(t testing.TB) binaries {
	t.Helper()
	at := func(variable, otherwise string) string {
		dir := os.Getenv(variable)
		if dir == "" {
			dir = otherwise
		}
		dir, err := filepath.Abs(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "postgres")); err != nil {
			missing := t.Skipf
			if os.Getenv("CI") != "" {
				missing = t.Fatalf
			}
			missing("no PostgreSQL in %s: set %s, or run test/postgres and install PostgreSQL 15", dir, variable)
		}
		return dir
	}
	return binaries{old: at("SLUICE_POSTGRES_OLD", "../../../.cache/postgres-old/bin"), new: at("SLUICE_POSTGRES_NEW", "/usr/lib/postgresql/15/bin")}
}

// own gives a directory to the servers' user.
func own(t testing.TB, path string) {
	t.Helper()
	if c := databasetest.User(t); c != nil {
		if err := os.Chown(path, int(c.Uid), int(c.Gid)); err != nil {
			t.Fatal(err)
		}
	}
}

// template is a data directory that was made once for the whole test program.
var template struct {
	sync.Mutex
	dir string
}

// freshData copies the template, which initdb makes in the first call. TestMain removes it.
func freshData(t testing.TB, b binaries) string {
	t.Helper()
	template.Lock()
	defer template.Unlock()
	if template.dir == "" {
		root, err := os.MkdirTemp("", "sluice-postgres-template-")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(root, 0o755); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(root, "data")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		own(t, dir)
		cmd := exec.Command(filepath.Join(b.old, "initdb"), "-D", dir, "-U", "sluice", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--data-checksums",
			"--no-sync",
			"--wal-segsize=4") // smaller than usual, because data directories are copied all the time
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: databasetest.User(t)}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("initdb: %v\n%s", err, out)
		}
		template.dir = dir
	}
	return databasetest.Copy(t, []string{template.dir})[0]
}

func TestMain(m *testing.M) {
	code := m.Run()
	if template.dir != "" {
		_ = os.RemoveAll(filepath.Dir(template.dir)) // a temporary directory
	}
	os.Exit(code)
}

// harness implements databasetest.Harness.
type harness struct {
	bin     binaries
	options []string // of every server
}

func newHarness(t testing.TB, options ...string) *harness {
	return &harness{bin: findBinaries(t), options: options}
}

func (h *harness) Engine() database.Engine { return New() }

func (h *harness) New(t testing.TB) databasetest.Server {
	return h.start(t, h.bin.old, []string{freshData(t, h.bin)}, nil)
}

func (h *harness) Start(t testing.TB, dirs []string, l database.Launch) databasetest.Server {
	return h.start(t, h.bin.old, dirs, l.Args)
}

// instance is a running server.
type instance struct {
	h       *harness
	dirs    []string
	data    string
	address string
	cmd     *exec.Cmd
	log     *serverLog
	ended   chan struct{}

	mu     sync.Mutex
	writer *pgx.Conn // of Insert
}

// addresses gives every server a loopback address of its own, so that all can use one port. The process's id keeps
// programs apart that test at the same time.
var addresses atomic.Uint32

func nextAddress() string {
	n := addresses.Add(1)
	pid := uint32(os.Getpid())
	return fmt.Sprintf("127.%d.%d.%d", 64+pid>>8%64, pid%256, 1+n%250)
}

const port = "5499"

// start runs postgres on volumes and returns when it takes connections.
func (h *harness) start(t testing.TB, bin string, dirs, args []string) *instance {
	t.Helper()
	s, err := h.tryStart(t, bin, dirs, args)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (h *harness) tryStart(t testing.TB, bin string, dirs, args []string) (*instance, error) {
	t.Helper()
	v, err := findVolumes(dirs)
	if err != nil {
		t.Fatal(err)
	}
	s := &instance{h: h, dirs: dirs, data: v.data, address: nextAddress(), log: &serverLog{ready: make(chan struct{})}, ended: make(chan struct{})}
	argv := []string{"-D", s.data, "-c", "listen_addresses=" + s.address, "-p", port, "-c", "unix_socket_directories=", "-c", "log_min_messages=log",
		"-c", "shared_buffers=32MB", "-c", "max_connections=60", "-c", "log_checkpoints=off"}
	argv = append(argv, h.options...)
	s.cmd = exec.Command(filepath.Join(bin, "postgres"), append(argv, args...)...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: databasetest.User(t)}
	s.cmd.Dir = s.data
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait() // how it ended is in its log
		close(s.ended)
	}()
	t.Cleanup(func() { s.Stop(t) })
	select {
	case <-s.log.ready:
	case <-s.ended:
		return nil, fmt.Errorf("the server ended: %s", s.log)
	case <-time.After(60 * time.Second):
		return nil, fmt.Errorf("the server is not ready after a minute: %s", s.log)
	}
	return s, nil
}

// serverLog collects what a server writes and tells when it is ready.
type serverLog struct {
	mu    sync.Mutex
	text  bytes.Buffer
	ready chan struct{}
	told  bool
}

func (l *serverLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(b)
	if !l.told && strings.Contains(l.text.String(), "ready to accept connections") {
		l.told = true
		close(l.ready)
	}
	return len(b), nil
}

func (l *serverLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (s *instance) url(db string) string {
	return "postgres://sluice@" + net.JoinHostPort(s.address, port) + "/" + db + "?sslmode=disable"
}

func (s *instance) URL() database.URL { return database.URL{Value: s.url(s.home())} }
func (s *instance) Dirs() []string    { return s.dirs }

// home is the database that URLs name: the shop where there is one.
func (s *instance) home() string {
	c, err := pgx.Connect(context.Background(), s.url("postgres"))
	if err != nil {
		return databasetest.Shop
	}
	defer c.Close(context.Background())
	var name string
	if err := c.QueryRow(context.Background(), "SELECT datname FROM pg_database WHERE datname = $1", databasetest.Shop).Scan(&name); err != nil {
		return "postgres"
	}
	return name
}

// exec runs statements in a database.
func (s *instance) exec(t testing.TB, db string, statements ...string) {
	t.Helper()
	if err := s.try(db, statements...); err != nil {
		t.Fatal(err)
	}
}

func (s *instance) try(db string, statements ...string) error {
	ctx := context.Background()
	c, err := pgx.Connect(ctx, s.url(db))
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	for _, sql := range statements {
		if _, err := c.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// ask returns the one value of a query as text.
func (s *instance) ask(t testing.TB, db, sql string) string {
	t.Helper()
	ctx := context.Background()
	c, err := pgx.Connect(ctx, s.url(db))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	r := c.PgConn().ExecParams(ctx, sql, nil, nil, nil, nil).Read()
	if r.Err != nil || len(r.Rows) != 1 {
		t.Fatalf("%s: %d rows, %v", sql, len(r.Rows), r.Err)
	}
	return string(r.Rows[0][0])
}

func (s *instance) Fill(t testing.TB, n int) {
	t.Helper()
	s.exec(t, "postgres", "CREATE DATABASE "+databasetest.Shop)
	s.exec(t, databasetest.Shop, "CREATE EXTENSION amcheck", `CREATE TABLE orders (
		id int8 PRIMARY KEY, email text NOT NULL, placed timestamptz NOT NULL, total numeric(12,2), note text)`,
		fmt.Sprintf(`INSERT INTO orders SELECT %s FROM generate_series(1, %d) AS i`, orderValues, n), "ANALYZE orders")
	s.exec(t, "postgres", "CREATE EXTENSION amcheck")
}

// orderValues are the columns of order i.
const orderValues = `i, 'user' || i || '@example.com', timestamptz '2025-03-30 12:00+00' + i * interval '1 minute',
	i * 1.25, 'a note about order ' || i`

func (s *instance) Insert(ctx context.Context, id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writer == nil || s.writer.IsClosed() {
		c, err := pgx.Connect(ctx, s.url(databasetest.Shop))
		if err != nil {
			return err
		}
		s.writer = c
	}
	_, err := s.writer.Exec(ctx, "INSERT INTO orders SELECT "+orderValues+" FROM (SELECT $1::int8 AS i) AS x", id)
	return err
}

func (s *instance) Delay(t testing.TB, id int64) {
	t.Helper()
	s.exec(t, databasetest.Shop, fmt.Sprintf("UPDATE orders SET placed = placed + interval '1 hour' WHERE id = %d", id))
}

func (s *instance) Remove(t testing.TB, id int64) {
	t.Helper()
	s.exec(t, databasetest.Shop, fmt.Sprintf("DELETE FROM orders WHERE id = %d", id))
}

// Stop is the server's fast shutdown: sessions are ended, and a checkpoint is made.
func (s *instance) Stop(t testing.TB) {
	t.Helper()
	s.end(t, syscall.SIGINT)
}

func (s *instance) Kill(t testing.TB) {
	t.Helper()
	children := s.children()
	s.end(t, syscall.SIGKILL)
	for _, pid := range children {
		_ = syscall.Kill(pid, syscall.SIGKILL) // most have gone with their parent
	}
}

func (s *instance) end(t testing.TB, signal syscall.Signal) {
	t.Helper()
	s.mu.Lock()
	if s.writer != nil {
		_ = s.writer.Close(context.Background()) // the server goes anyway
		s.writer = nil
	}
	s.mu.Unlock()
	select {
	case <-s.ended:
		return
	default:
	}
	if err := s.cmd.Process.Signal(signal); err != nil {
		t.Error(err)
	}
	select {
	case <-s.ended:
	case <-time.After(60 * time.Second):
		_ = s.cmd.Process.Kill()
		t.Errorf("the server did not end within a minute of %s: %s", signal, s.log)
	}
}

// children lists the processes of the server.
func (s *instance) children() []int {
	pid := s.cmd.Process.Pid
	out := []int{pid}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return out
	}
	for _, f := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// Freeze implements databasetest.Freezer: the server stands still in all its processes.
func (s *instance) Freeze(t testing.TB) (thaw func()) {
	t.Helper()
	stopped := map[int]bool{}
	// The first to be stopped is the one that starts others.
	for _, pid := range append(s.children(), s.children()...) {
		if !stopped[pid] && syscall.Kill(pid, syscall.SIGSTOP) == nil {
			stopped[pid] = true
		}
	}
	for pid := range stopped {
		awaitStopped(t, pid)
	}
	return func() {
		for pid := range stopped {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
}

// awaitStopped waits until the kernel says that a process stands; it offers no event for that.
func awaitStopped(t testing.TB, pid int) {
	deadline, tick := time.After(10*time.Second), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return // it has ended
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		if strings.HasPrefix(rest, "T") || strings.HasPrefix(rest, "Z") {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("process %d does not stop", pid)
		}
	}
}

// WrongPassword implements databasetest.Denier.
func (s *instance) WrongPassword(t testing.TB) (database.URL, string) {
	t.Helper()
	s.exec(t, "postgres", "DROP ROLE IF EXISTS careful; CREATE ROLE careful LOGIN PASSWORD 'right'")
	hba := filepath.Join(s.data, "pg_hba.conf")
	b, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hba, append([]byte("host all careful all scram-sha-256\n"), b...), 0o600); err != nil {
		t.Fatal(err)
	}
	s.exec(t, "postgres", "SELECT pg_reload_conf()")
	const wrong = "wr%0ng p@ss"
	return database.URL{Value: "postgres://careful:wr%250ng%20p%40ss@" + net.JoinHostPort(s.address, port) + "/postgres?sslmode=disable"}, wrong
}

// Lesser implements databasetest.Lesser.
func (s *instance) Lesser(t testing.TB) database.URL {
	t.Helper()
	s.exec(t, "postgres", "DROP ROLE IF EXISTS lesser; CREATE ROLE lesser LOGIN")
	return database.URL{Value: strings.Replace(s.url(databasetest.Shop), "sluice@", "lesser@", 1)}
}

// sleeper starts a process that stands in a directory, as a server does in its own, and returns its id.
func sleeper(t testing.TB, dir string) int {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed, as asked
	})
	return cmd.Process.Pid
}

// skeleton makes what Prepare looks at in a data directory.
func skeleton(t testing.TB) string {
	t.Helper()
	data := databasetest.Root(t)
	for _, dir := range []string{"global", "pg_wal/archive_status", "pg_tblspc", "pg_replslot", "pg_twophase"} {
		if err := os.MkdirAll(filepath.Join(data, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"PG_VERSION": "15\n", "global/pg_control": "", "postgresql.conf": "", "postgresql.auto.conf": "",
		"pg_hba.conf": "", "pg_ident.conf": ""} {
		if err := os.WriteFile(filepath.Join(data, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return data
}
