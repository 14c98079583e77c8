package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/fault"
)

// backup is what the backup mode left to be put into the copy.
type backup struct {
	label, spaces string // to be written verbatim: without the label a copy of files of different moments is silent corruption
	stop          string // position at which the copy becomes consistent
	first, last   string // segments of the log, from the backup's start to its stop
	control       []byte // global/pg_control, read whole
	live          []string
	done          bool
}

// String tells what was done.
func (b *backup) String() string {
	return fmt.Sprintf("put together by backup mode, consistent at %s (log segments %s to %s)", b.stop, b.first, b.last)
}

// stop leaves backup mode. The log is not waited for: it is copied from where it lies.
func (l *lease) stop(ctx context.Context, c *pgx.Conn) (*backup, error) {
	b := &backup{live: l.live}
	var version int
	if err := c.QueryRow(ctx, "SELECT current_setting('server_version_num')::int4").Scan(&version); err != nil {
		return nil, l.target.fault(ctx, err, "leaving backup mode")
	}
	stop := "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(false)"
	if version < 150000 {
		stop = "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
	}
	if err := c.QueryRow(ctx, stop).Scan(&b.stop, &b.label, &b.spaces); err != nil {
		return nil, l.target.fault(ctx, err, "leaving backup mode")
	}
	var ok bool
	if b.first, ok = labelSegment(b.label); !ok {
		return nil, fault.Newf(fault.Lost, "the backup's label does not say where its log begins")
	}
	if err := c.QueryRow(ctx, "SELECT pg_walfile_name($1::pg_lsn)", b.stop).Scan(&b.last); err != nil {
		return nil, l.target.fault(ctx, err, "asking for the last segment of the log")
	}
	v, err := findVolumes(l.live)
	if err != nil {
		return nil, err
	}
	b.control, err = readWhole(v.path("global", "pg_control"))
	return b, err
}

// labelSegment reads the first segment from a label: START WAL LOCATION: 0/2000028 (file 000000010000000000000002).
func labelSegment(label string) (string, bool) {
	for _, line := range strings.Split(label, "\n") {
		if rest, ok := strings.CutPrefix(line, "START WAL LOCATION:"); ok {
			_, file, ok := strings.Cut(rest, "(file ")
			file = strings.TrimSuffix(strings.TrimSpace(file), ")")
			return file, ok && walSegment.MatchString(file)
		}
	}
	return "", false
}

// readWhole reads a file that the server may be writing, until two readings agree.
func readWhole(path string) ([]byte, error) {
	last, err := os.ReadFile(path)
	for range 20 {
		if err != nil {
			return nil, err
		}
		var again []byte
		if again, err = os.ReadFile(path); err == nil && bytes.Equal(again, last) {
			return again, nil
		}
		last = again
	}
	return nil, fault.Newf(fault.Transient, "%s changes each time it is read", path)
}

// finish puts the label, the map of tablespaces, the control file and the log into the copy, and takes out what belongs to
// the running server only. The session keeps the slot that keeps the log; when it is gone, the log may be gone too.
func (b *backup) finish(ctx context.Context, c *pgx.Conn, dirs []string) error {
	if b.done {
		return nil
	}
	if len(dirs) != len(b.live) {
		return fault.Newf(fault.Invalid, "the copy has %d directories, the server has %d", len(dirs), len(b.live))
	}
	v, err := findVolumes(dirs)
	if err != nil {
		return err
	}
	for _, d := range v.dirs {
		for _, live := range b.live {
			if real, err := filepath.EvalSymlinks(live); err == nil && real == d {
				return fault.Newf(fault.Invalid, "%s is the running server's directory, not a copy of it", d)
			}
		}
	}
	// Before anything is written: a link of the copy may still lead into the running server.
	if _, astray, err := v.repoint(); err != nil || len(astray) > 0 {
		return errors.Join(err, astrayFault(astray))
	}
	for _, name := range []string{"postmaster.pid", "postmaster.opts", "backup_label.old", "tablespace_map.old"} {
		if err := os.Remove(v.path(name)); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	if _, err := v.removeSlots(); err != nil {
		return err
	}
	if err := c.Ping(ctx); err != nil {
		return fault.Newf(fault.Lost, "the session that kept the log for the copy has ended: %w", err)
	}
	if err := b.copyLog(ctx, v); err != nil {
		return fmt.Errorf("copy the log: %w", err)
	}
	if err := v.write(v.path("global", "pg_control"), b.control); err != nil {
		return err
	}
	if b.spaces != "" {
		if err := v.write(v.path("tablespace_map"), []byte(b.spaces)); err != nil {
			return err
		}
		if err := v.remap(nil); err != nil {
			return err
		}
	}
	if err := v.write(v.path("backup_label"), []byte(b.label)); err != nil {
		return err
	}
	b.done = true
	return nil
}

func astrayFault(astray []string) error {
	if len(astray) == 0 {
		return nil
	}
	return fault.Newf(fault.Invalid, "the copy is not complete: %s", strings.Join(astray, "; "))
}

// copyLog makes the copy's log exactly the segments of the backup, as they are now.
func (b *backup) copyLog(ctx context.Context, v *volumes) error {
	live, err := findVolumes(b.live)
	if err != nil {
		return err
	}
	old, err := os.ReadDir(v.path("pg_wal"))
	if err != nil {
		return err
	}
	for _, e := range old {
		if walSegment.MatchString(e.Name()) {
			if err := os.Remove(v.path("pg_wal", e.Name())); err != nil {
				return err
			}
		}
	}
	entries, err := os.ReadDir(live.path("pg_wal"))
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		history := strings.HasSuffix(name, ".history")
		if !history && (!walSegment.MatchString(name) || name < b.first || name > b.last) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := v.copyIn(live.path("pg_wal", name), v.path("pg_wal", name)); err != nil {
			return err
		}
		seen[name] = true
	}
	if !seen[b.first] || !seen[b.last] {
		return fault.Newf(fault.Lost, "segments %s to %s were needed, and the first or the last is gone", b.first, b.last)
	}
	return b.archived(v, seen)
}

// archived marks the segments of the copy as archived, as production archives them itself: a copy that becomes production
// must not archive them again under the same names.
func (b *backup) archived(v *volumes, segments map[string]bool) error {
	status := v.path("pg_wal", "archive_status")
	entries, err := os.ReadDir(status)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(status, e.Name())); err != nil {
			return err
		}
	}
	for name := range segments {
		if err := v.write(filepath.Join(status, name+".done"), nil); err != nil {
			return err
		}
	}
	return nil
}

// copyIn copies one file and makes it durable.
func (v *volumes) copyIn(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	if err := v.give(to); err != nil {
		return err
	}
	if err := out.Sync(); err != nil {
		return err
	}
	return out.Close()
}
