package postgres

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// The versions whose output of pg_waldump is understood.
const oldestWAL, newestWAL = 14, 17

// The programs that read the log.
const waldump, controldata = "pg_waldump", "pg_controldata"

// slotOf is the replication slot of an id: names of slots are short and take few characters.
func slotOf(id string) string { return fmt.Sprintf("sluice_%x", sha256.Sum256([]byte(id)))[:32] }

// Pin implements database.Log by a physical replication slot. The position is where the log ends now: what is committed
// afterwards lies behind it.
func (e *Engine) Pin(ctx context.Context, id string, u database.URL) (string, error) {
	var position string
	err := e.session(ctx, u, "keeping the log", func(c *pgx.Conn) error {
		var there bool
		if err := c.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)", slotOf(id)).Scan(&there); err != nil {
			return err
		}
		if !there {
			if _, err := c.Exec(ctx, "SELECT pg_create_physical_replication_slot($1, true)", slotOf(id)); err != nil {
				return err
			}
		}
		return c.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&position)
	})
	return position, err
}

// Unpin implements database.Log.
func (e *Engine) Unpin(ctx context.Context, id string, u database.URL) error {
	return e.session(ctx, u, "letting the log go", func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", slotOf(id))
		return err
	})
}

// Countable implements database.Log: the programs that read the log must be there, and be of the server's version or, where
// that is not known, of any that is understood.
func (e *Engine) Countable(ctx context.Context, dirs []string) error {
	v := &volumes{}
	if len(dirs) > 0 {
		var err error
		if v, err = findVolumes(dirs); err != nil {
			return err
		}
		if err := v.understood(); err != nil {
			return err
		}
	}
	for _, name := range []string{waldump, controldata} {
		if _, err := v.tool(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// AtRisk implements database.Log: it counts the transactions in the log of a server that was stopped cleanly which have
// committed a change of a user's relation. The server's own pg_waldump reads the log; a program of another version may not.
func (e *Engine) AtRisk(ctx context.Context, dirs []string, from string) (database.AtRisk, error) {
	var r database.AtRisk
	v, err := findVolumes(dirs)
	if err != nil {
		return r, err
	}
	if err := v.understood(); err != nil {
		return r, err
	}
	if err := v.allLogged(); err != nil {
		return r, err
	}
	end, timeline, err := v.stopped(ctx)
	if err != nil {
		return r, err
	}
	w, err := v.readWAL(ctx, from, timeline)
	if err != nil {
		return r, err
	}
	if !w.shutdown || w.last != end {
		return r, fault.Newf(fault.Lost, "the log ends at %s and the server was stopped at %s", w.last, end)
	}
	r = database.AtRisk{Value: w.value, Kind: database.Exact, Source: fmt.Sprintf("PostgreSQL's log from %s to %s", from, end)}
	if w.atMost {
		r.Kind = database.AtMost
	}
	return r, nil
}

// understood refuses versions whose log is not.
func (v *volumes) understood() error {
	if v.version < oldestWAL || v.version > newestWAL {
		return fault.Newf(fault.Invalid, "the log of PostgreSQL %d is not understood, that of %d to %d is", v.version, oldestWAL, newestWAL)
	}
	return nil
}

// allLogged refuses databases with unlogged tables: what is written to them is in no log, and yet a restore discards it.
func (v *volumes) allLogged() error {
	for _, pattern := range []string{v.path("base", "*", "*_init"), v.path("pg_tblspc", "*", "*", "*", "*_init")} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			return fault.Newf(fault.Invalid, "%d relation(s) are unlogged, and what is written to them is in no log", len(found))
		}
	}
	return nil
}

var (
	controlState    = regexp.MustCompile(`(?m)^Database cluster state: +(.+)$`)
	controlEnd      = regexp.MustCompile(`(?m)^Latest checkpoint location: +([0-9A-F]+/[0-9A-F]+)$`)
	controlTimeline = regexp.MustCompile(`(?m)^Latest checkpoint's TimeLineID: +(\d+)$`)
)

// stopped returns where the log of a server that was stopped cleanly ends.
func (v *volumes) stopped(ctx context.Context) (end, timeline string, err error) {
	tool, err := v.tool(ctx, controldata)
	if err != nil {
		return "", "", err
	}
	out, err := run(ctx, tool, v.data)
	if err != nil {
		return "", "", err
	}
	state, at, line := controlState.FindSubmatch(out), controlEnd.FindSubmatch(out), controlTimeline.FindSubmatch(out)
	if state == nil || at == nil || line == nil {
		return "", "", fault.Newf(fault.Invalid, "what %s prints is not understood", tool)
	}
	if string(state[1]) != "shut down" {
		return "", "", fault.Newf(fault.Invalid, "the server was not stopped cleanly: its state is %q", state[1])
	}
	full, err := parseLSN(string(at[1]))
	return fmt.Sprintf("%X/%08X", full>>32, uint32(full)), string(line[1]), err
}

func (v *volumes) readWAL(ctx context.Context, from, timeline string) (*walCount, error) {
	tool, err := v.tool(ctx, waldump)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, "--path", v.path("pg_wal"), "--timeline", timeline, "--start", from)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", tool, err)
	}
	w, err := countWAL(out, from)
	if err != nil {
		cancel()
		_ = cmd.Wait() // it is killed, or has said why it read nothing
		return nil, fmt.Errorf("%w %s", err, strings.TrimSpace(said.String()))
	}
	// It fails when it comes to the end of the log, which the caller holds against the end that the server has written down.
	if err := cmd.Wait(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return nil, fmt.Errorf("%s: %w", tool, err)
		}
	}
	return w, nil
}

// tool finds a program of the server's own version; of any version whose log is understood, where the server's is not known.
func (v *volumes) tool(ctx context.Context, name string) (string, error) {
	versions, of := []int{v.version}, strconv.Itoa(v.version)
	if v.version == 0 {
		versions, of = nil, fmt.Sprintf("%d to %d", oldestWAL, newestWAL)
		for version := oldestWAL; version <= newestWAL; version++ {
			versions = append(versions, version)
		}
	}
	onPath, missing := exec.LookPath(name)
	for _, version := range versions {
		candidates := []string{filepath.Join("/usr/lib/postgresql", strconv.Itoa(version), "bin", name), filepath.Join(fmt.Sprintf("/usr/pgsql-%d/bin", version), name)}
		if missing == nil {
			candidates = append(candidates, onPath)
		}
		want := regexp.MustCompile(fmt.Sprintf(`\(PostgreSQL\) %d(\.|\D|$)`, version))
		for _, c := range candidates {
			if _, err := os.Stat(c); err != nil {
				continue
			}
			if out, err := run(ctx, c, "--version"); err == nil && want.Match(out) {
				return c, nil
			}
		}
	}
	return "", fault.Newf(fault.NotFound, "%s of PostgreSQL %s is not installed here", name, of)
}

func run(ctx context.Context, tool string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", tool, err)
	}
	return out, nil
}
