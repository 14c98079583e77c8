package mongodb

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// order is the first line that a helper is given; the second is releaseWord.
type order struct {
	Dirs []string      `json:"dirs"`
	Hold time.Duration `json:"hold"`
}

const releaseWord = "release"

// event is a line that a helper answers with.
type event struct {
	Event   string            `json:"event"`
	Census  *database.Catalog `json:"census,omitempty"`
	Files   []dataFile        `json:"files,omitempty"`
	Kind    fault.Kind        `json:"kind,omitempty"`
	Message string            `json:"message,omitempty"`
}

// The events. The first is held or failed, the last of a helper that was not killed is one of the others.
const (
	eventHeld     = "held"
	eventFailed   = "failed"
	eventReleased = "released"
	eventChanged  = "changed"
	eventExpired  = "expired"
)

// Helper is the process that holds the writers of SQLite files. It has to be a process of its own: POSIX locks belong
// to a process, and one that copies the files it has locked drops the locks with the first file that it closes.
//
// It holds until it is told to release, until the time is up, until its input ends because its parent died, or until it
// is killed; in each case the kernel or SQLite takes the locks away, and nothing has been written.
func Helper(ctx context.Context, in io.Reader, out io.Writer) error {
	// The end of the input comes a moment after the parent's death; this comes with it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("tie the helper to its parent: %w", err)
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	if !lines.Scan() {
		return fault.Newf(fault.Invalid, "the helper was given no order; it is started by Sluice, not by people")
	}
	var o order
	if err := json.Unmarshal(lines.Bytes(), &o); err != nil || len(o.Dirs) == 0 || o.Hold <= 0 {
		return fault.Newf(fault.Invalid, "the helper cannot read its order; it is started by Sluice, not by people")
	}
	say := json.NewEncoder(out)
	h := &hold{order: o}
	held, err := h.take(ctx)
	if err != nil {
		return errors.Join(say.Encode(event{Event: eventFailed, Kind: fault.KindOf(err), Message: err.Error()}), h.drop())
	}
	if err := say.Encode(held); err != nil {
		return errors.Join(err, h.drop())
	}
	told := make(chan bool, 1)
	go func() { told <- lines.Scan() && lines.Text() == releaseWord }()
	last := event{Event: eventExpired}
	select {
	case <-ctx.Done():
		return h.drop()
	case <-time.After(time.Until(h.until)):
	case release := <-told:
		if !release {
			return h.drop()
		}
		last = h.unchanged()
	}
	return errors.Join(h.drop(), say.Encode(last))
}

// hold is the locks that a helper has.
type hold struct {
	order
	until  time.Time
	files  []dataFile
	conns  []*sql.Conn
	closes []func() error
	locked int // so many of them, the first ones
}

// take locks every file against writers and takes the census. The time runs from before the first lock.
func (h *hold) take(ctx context.Context) (event, error) {
	if err := h.warm(ctx); err != nil {
		return event{}, err
	}
	h.until = time.Now().Add(h.Hold)
	for {
		// A database may be created before the last lock is taken; then it is locked too.
		found, err := dataFiles(h.Dirs)
		if err != nil {
			return event{}, err
		}
		if len(found) == 0 {
			return event{}, fault.WithRemedy(fault.Newf(fault.NotFound, "there is no database of FerretDB on SQLite (*%s) in %v", extension, h.Dirs),
				"name the workload whose volumes hold them")
		}
		before := len(h.files)
		for _, f := range found {
			if slices.Contains(h.files, f) {
				continue
			}
			if err := h.lock(ctx, f); err != nil {
				return event{}, err
			}
		}
		if len(h.files) == before {
			if len(found) != before {
				return event{}, fault.Newf(fault.Transient, "a database was dropped while its writers were to be held; try again")
			}
			break
		}
	}
	c := database.Catalog{}
	for i, f := range h.files {
		st, err := os.Stat(f.in(h.Dirs))
		if err != nil {
			return event{}, fault.Newf(fault.Transient, "a database was dropped while its writers were to be held: %w", err)
		}
		if err := census(ctx, h.conns[i], f, st.Size(), &c); err != nil {
			return event{}, err
		}
	}
	arrange(&c)
	return event{Event: eventHeld, Census: &c, Files: h.files}, nil
}

// warm counts once before anybody is held, so that the census finds its pages in memory.
func (h *hold) warm(ctx context.Context) error {
	found, err := dataFiles(h.Dirs)
	if err != nil {
		return err
	}
	for _, f := range found {
		conn, closing, err := openFile(ctx, f.in(h.Dirs), h.Hold)
		if err != nil {
			return err
		}
		var c database.Catalog
		// What is wrong now may be right once writers are held, and is an error then.
		_ = census(ctx, conn, f, 0, &c)
		if err := errors.Join(conn.Close(), closing()); err != nil {
			return fmt.Errorf("close %s: %w", f.Path, err)
		}
	}
	return nil
}

// lock keeps writers of one file waiting. They wait as long as their busy_timeout says, which is ten seconds in FerretDB.
func (h *hold) lock(ctx context.Context, f dataFile) error {
	conn, closing, err := openFile(ctx, f.in(h.Dirs), time.Until(h.until))
	if err != nil {
		return err
	}
	h.files, h.conns, h.closes = append(h.files, f), append(h.conns, conn), append(h.closes, closing)
	if _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return fault.WithRemedy(fault.Newf(fault.Transient, "the writers of %s cannot be held: %w", f.Path, err),
			"somebody writes for longer than %s at a time; try again later", h.Hold)
	}
	h.locked++
	return nil
}

// unchanged looks whether the databases are still those that were locked: nothing keeps FerretDB from creating another
// one, or from dropping one, while the others are held, and a copy may then hold half of it.
func (h *hold) unchanged() event {
	found, err := dataFiles(h.Dirs)
	if err != nil {
		return event{Event: eventChanged, Message: err.Error()}
	}
	for _, f := range found {
		if !slices.Contains(h.files, f) {
			return event{Event: eventChanged, Message: "database " + f.name() + " was created meanwhile"}
		}
	}
	for _, f := range h.files {
		if !slices.Contains(found, f) {
			return event{Event: eventChanged, Message: "database " + f.name() + " was dropped meanwhile"}
		}
	}
	return event{Event: eventReleased}
}

// drop lets writers go on.
func (h *hold) drop() error {
	var all error
	for i, c := range h.conns {
		if i < h.locked {
			// The context of the order may be over; the locks must go all the same.
			_, err := c.ExecContext(context.Background(), "ROLLBACK")
			all = errors.Join(all, err)
		}
		all = errors.Join(all, c.Close(), h.closes[i]())
	}
	return all
}
