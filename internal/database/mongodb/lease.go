package mongodb

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/connstring"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// longestHold keeps a hold well below the ten seconds after which FerretDB's writers give up with an error.
const longestHold = 5 * time.Second

// levelApplication is package volume's word: writers are held across the cut.
const levelApplication = "application"

// Quiesce implements database.Quiescer for FerretDB on SQLite files.
func (e *Engine) Quiesce(ctx context.Context, q database.QuiesceRequest) (database.Lease, error) {
	if q.Atomic && len(q.Dirs) == 0 {
		return e.unheld(ctx, q.URL)
	}
	if len(e.o.HelperCommand) == 0 {
		return nil, fault.Newf(fault.Invalid, "no command is configured that holds writers")
	}
	if len(q.Dirs) == 0 {
		return nil, fault.Newf(fault.Invalid, "no volume is named whose writers are to be held")
	}
	dirs := make([]string, len(q.Dirs))
	for i, dir := range q.Dirs {
		var err error
		if dirs[i], err = filepath.EvalSymlinks(dir); err != nil {
			return nil, fault.Newf(fault.NotFound, "look for databases: %w", err)
		}
	}
	info, served, err := e.serves(ctx, q.URL)
	if err != nil {
		return nil, err
	}
	hold := q.MaxHold
	if hold <= 0 || hold > longestHold {
		hold = longestHold
	}
	l := &lease{dirs: dirs, hold: hold, lost: make(chan struct{}), events: make(chan event, 1), exited: make(chan struct{})}
	if err := l.start(ctx, e.o.HelperCommand); err != nil {
		return nil, err
	}
	if err := l.held(ctx); err != nil {
		l.abandon()
		return nil, err
	}
	l.census.Info = info
	if err := l.belongs(served); err != nil {
		l.abandon()
		return nil, err
	}
	l.only(q.URL)
	return l, nil
}

// serves asks the server what it is and which databases it has. Without an answer there is nobody to hold, and the files
// may be another server's.
func (e *Engine) serves(ctx context.Context, u database.URL) (database.Info, []string, error) {
	opened, err := e.Open(ctx, u)
	if err != nil {
		return database.Info{}, nil, err
	}
	s := opened.(*server)
	info, names, err := func() (database.Info, []string, error) {
		if !s.ferretdb {
			err := fault.Newf(fault.Invalid, "%s is a real mongod: holding its writers (fsyncLock with a watchdog) is not built", s.host)
			return database.Info{}, nil, fault.WithRemedy(err, "stop the workload for the copy")
		}
		info, err := s.Describe(ctx)
		if err != nil {
			return info, nil, err
		}
		s.only = ""
		names, err := s.databases(ctx)
		return info, names, err
	}()
	if closing := s.Close(); err == nil {
		err = closing
	}
	return info, names, err
}

// lease implements database.Lease: a helper that holds the writers.
type lease struct {
	dirs   []string
	hold   time.Duration
	taken  time.Time
	census database.Catalog
	files  []dataFile
	logs   []walIdentity

	command *exec.Cmd
	input   io.WriteCloser
	stderr  bytes.Buffer
	events  chan event    // the first event, then the last
	exited  chan struct{} // closed when the helper is gone
	lost    chan struct{}

	once     sync.Once
	assembly database.Assembly
	err      error
}

// start runs the helper.
func (l *lease) start(ctx context.Context, command []string) error {
	// The lease outlives the call that took it.
	l.command = exec.CommandContext(context.WithoutCancel(ctx), command[0], command[1:]...)
	// A signal from the terminal goes to Sluice, which decides; the helper dies with Sluice, whatever ends it.
	l.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	l.command.Stderr = &l.stderr
	var err error
	if l.input, err = l.command.StdinPipe(); err != nil {
		return fmt.Errorf("start the helper: %w", err)
	}
	output, err := l.command.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start the helper: %w", err)
	}
	started := make(chan error, 1)
	go func() {
		// The kernel takes the end of the thread that started a process for the end of its parent.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := l.command.Start()
		started <- err
		if err == nil {
			l.listen(output)
		}
	}()
	if err := <-started; err != nil {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "start the helper that holds writers: %w", err), "the program %s must be executable", command[0])
	}
	body, err := json.Marshal(order{Dirs: l.dirs, Hold: l.hold})
	if err == nil {
		_, err = l.input.Write(append(body, '\n'))
	}
	if err != nil {
		l.abandon()
		return l.ended()
	}
	return nil
}

// ended says why a helper that was not told to is gone.
func (l *lease) ended() error {
	return fault.Newf(fault.Lost, "the helper that holds writers ended: %s", bytes.TrimSpace(l.stderr.Bytes()))
}

// listen passes events on until the helper is gone. Whatever ends a hold before its release loses the lease.
func (l *lease) listen(output io.Reader) {
	lines := bufio.NewScanner(output)
	lines.Buffer(nil, 1<<30)
	released := false
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			e = event{Event: eventFailed, Message: "the helper said something else than was agreed"}
		}
		released = released || e.Event == eventReleased || e.Event == eventChanged
		l.events <- e
		if e.Event == eventExpired {
			break
		}
	}
	if !released {
		close(l.lost)
	}
	close(l.events)
	// How a process ends whose locks are gone changes nothing any more.
	_ = l.command.Wait()
	close(l.exited)
}

// held waits for the locks.
func (l *lease) held(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case e, ok := <-l.events:
		switch {
		case !ok:
			<-l.exited
			return l.ended()
		case e.Event == eventFailed:
			return fault.Newf(e.Kind, "%s", e.Message)
		case e.Event != eventHeld || e.Census == nil:
			return fault.Newf(fault.Lost, "the helper that holds writers answered %q", e.Event)
		}
		l.taken, l.census, l.files = time.Now(), *e.Census, e.Files
	}
	for _, f := range l.files {
		w, err := readLog(f.in(l.dirs))
		if err != nil {
			return err
		}
		l.logs = append(l.logs, w)
	}
	return nil
}

// belongs refuses a server whose databases are not in the files: the lease would hold somebody else's writers.
func (l *lease) belongs(served []string) error {
	for _, db := range served {
		if !slices.ContainsFunc(l.files, func(f dataFile) bool { return f.name() == db }) {
			return fault.WithRemedy(fault.Newf(fault.Invalid, "the server has a database %q, and no file in %v is it", db, l.dirs),
				"connection and workload must name the same database")
		}
	}
	return nil
}

// only narrows the census to what a catalog read by the same URL shows.
func (l *lease) only(u database.URL) {
	parsed, err := connstring.Parse(u.Value)
	if err != nil || parsed.Database == "" {
		return
	}
	db := parsed.Database
	l.census.Databases = slices.DeleteFunc(l.census.Databases, func(name string) bool { return name != db })
	l.census.Relations = slices.DeleteFunc(l.census.Relations, func(r database.Relation) bool { return r.Name.Database != db })
	l.census.Objects = slices.DeleteFunc(l.census.Objects, func(o database.Object) bool {
		return !slices.ContainsFunc(l.census.Relations, func(r database.Relation) bool {
			return o.Name == r.Name.String() || strings.HasSuffix(o.Name, indexName(r.Name, ""))
		})
	})
}

// Census implements database.Lease.
func (l *lease) Census() database.Catalog { return l.census }

// Level implements database.Lease.
func (l *lease) Level() string { return levelApplication }

// Lost implements database.Lease.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Release implements database.Lease.
func (l *lease) Release(ctx context.Context) (database.Assembly, error) {
	l.once.Do(func() { l.assembly, l.err = l.release(ctx) })
	return l.assembly, l.err
}

func (l *lease) release(ctx context.Context) (database.Assembly, error) {
	defer l.abandon()
	// A helper that is gone cannot be told; its last event, or none, says what became of the hold.
	_, _ = io.WriteString(l.input, releaseWord+"\n")
	var e event
	select {
	case <-ctx.Done():
		return database.Assembly{}, ctx.Err()
	case e = <-l.events:
	}
	switch e.Event {
	case eventReleased:
	case eventChanged:
		return database.Assembly{}, fault.WithRemedy(fault.Newf(fault.Transient, "the copy is not one state of the server: %s", e.Message), "copy again")
	case eventExpired:
		return database.Assembly{}, fault.WithRemedy(fault.Newf(fault.Transient, "writers were let go after %s, before the copy was done", l.hold),
			"copy by snapshot or reflink, or when there is less to copy")
	default:
		return database.Assembly{}, fault.Newf(fault.Lost, "the process that held the writers ended before the copy was done")
	}
	held := time.Since(l.taken).Round(time.Millisecond)
	return database.Assembly{Finish: l.finish, Notes: []string{fmt.Sprintf("writers of %d SQLite files were held for %s", len(l.files), held)}}, nil
}

// abandon ends the helper, however far it is.
func (l *lease) abandon() {
	_ = l.input.Close()
	go func() {
		for range l.events { // so that the helper's last words do not keep it from being buried
		}
	}()
	select {
	case <-l.exited:
	case <-time.After(time.Second):
		_ = l.command.Process.Kill()
		<-l.exited
	}
}

// finish holds a copy against what was there when it was cut. Without the log that belongs to it a file opens without a
// complaint and shows an older state.
func (l *lease) finish(_ context.Context, dirs []string) error {
	if len(dirs) != len(l.dirs) {
		return fault.Newf(fault.Invalid, "the copy has %d volumes, the source %d", len(dirs), len(l.dirs))
	}
	for i, f := range l.files {
		if st, err := os.Stat(f.in(dirs)); err != nil || st.Size() == 0 {
			return fault.Newf(fault.Lost, "the copy lacks %s", f.Path)
		}
		have, err := readLog(f.in(dirs))
		if err != nil {
			return err
		}
		if have != l.logs[i] {
			return fault.Newf(fault.Lost, "the copy lacks the write-ahead log %s%s that %s had when it was cut, or has another", f.Path, writeAheadLog, f.Path)
		}
	}
	return nil
}

// walIdentity tells one write-ahead log from another: while writers are held its length stands still, and its header
// holds salts that each new log changes.
type walIdentity struct {
	size   int64
	header [walHeaderBytes]byte
}

// readLog returns the identity of the log beside a file; an empty log is as good as none.
func readLog(path string) (w walIdentity, err error) {
	f, err := os.Open(path + writeAheadLog)
	if errors.Is(err, os.ErrNotExist) {
		return w, nil
	}
	if err != nil {
		return w, fmt.Errorf("read the write-ahead log: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return w, fmt.Errorf("read the write-ahead log: %w", err)
	}
	if w.size = st.Size(); w.size == 0 {
		return w, nil
	}
	if _, err := io.ReadFull(f, w.header[:]); err != nil {
		return w, fmt.Errorf("read the write-ahead log %s: %w", f.Name(), err)
	}
	return w, nil
}
