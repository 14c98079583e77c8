package postgres

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// Prepare implements database.Engine. What keeps a clone from acting as production is said on its command line, which
// beats configuration files and ALTER SYSTEM. Files are touched where the command line cannot help: links out of the
// copy, a dead server's lock, replication slots and the signals that start a recovery. A clone that is to become
// production keeps slots and signals.
func (e *Engine) Prepare(ctx context.Context, dirs []string, r database.Role) (database.Launch, error) {
	var l database.Launch
	v, err := findVolumes(dirs)
	if err != nil {
		return l, err
	}
	if err := v.unlock(); err != nil {
		return l, err
	}
	moved, astray, err := v.repoint()
	if err != nil {
		return l, err
	}
	l.Notes = append(l.Notes, moved...)
	if r == database.Production {
		return l, nil // production may reach out of its volumes; it always did
	}
	if len(astray) > 0 {
		return database.Launch{}, fault.WithRemedy(fault.Newf(fault.Invalid, "the copy is not complete: %s", strings.Join(astray, "; ")),
			"make the directory a volume of the database's workload, so that it is copied too")
	}
	s, err := v.readSettings()
	if err != nil {
		return l, fmt.Errorf("read the configuration of the copy: %w", err)
	}
	if err := v.neutralise(s, r, &l); err != nil {
		return database.Launch{}, err
	}
	if r != database.Upgrade {
		if err := v.detach(&l); err != nil {
			return database.Launch{}, fmt.Errorf("detach the copy: %w", err)
		}
	}
	return l, ctx.Err()
}

// unlock removes the lock of a server that is gone. One that still runs on these volumes is left alone.
func (v *volumes) unlock() error {
	path := v.path("postmaster.pid")
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(b), "\n")
	if pid, err := strconv.Atoi(strings.TrimSpace(first)); err == nil {
		// A server works in its data directory, whatever that is called where it runs; a number that another process has
		// now says nothing.
		if v.worksHere(pid) {
			return fault.Newf(fault.Conflict, "a server (pid %d) is running on %s", pid, v.data)
		}
	}
	return os.Remove(path)
}

// worksHere tells whether a process has the data directory as its working directory.
func (v *volumes) worksHere(pid int) bool {
	in, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	here, err := os.Stat(v.data)
	return err == nil && os.SameFile(in, here)
}

// neutralise says on the command line what the clone must not do.
func (v *volumes) neutralise(s *settings, r database.Role, l *database.Launch) error {
	set := func(name, value string) { l.Args = append(l.Args, option(name, value)...) }
	note := func(format string, args ...any) { l.Notes = append(l.Notes, fmt.Sprintf(format, args...)) }
	off := map[string]string{
		"archive_mode": "off", "archive_command": "", "restore_command": "", "archive_cleanup_command": "", "recovery_end_command": "",
		"primary_conninfo": "", "primary_slot_name": "", "synchronous_standby_names": "", "max_logical_replication_workers": "0",
		"cron.launch_active_jobs": "off", "logging_collector": "off", "log_destination": "stderr", "external_pid_file": "", "unix_socket_directories": "",
	}
	if v.version >= 15 {
		off["archive_library"] = ""
	}
	names := []string{}
	for name := range off {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		set(name, off[name])
		if had := s.values[name]; had != "" && had != off[name] && !strings.Contains(name, "conninfo") {
			note("%s was %q and is %q", name, had, off[name])
		} else if had != "" && had != off[name] {
			note("%s was set and is empty", name)
		}
	}
	set("cluster_name", "sluice-"+string(r))
	for _, name := range []string{"shared_preload_libraries", "session_preload_libraries", "local_preload_libraries"} {
		stay, not := preload(s.values[name])
		set(name, strings.Join(stay, ","))
		if len(not) > 0 {
			note("%s: %s not loaded, as it might act on its own", name, strings.Join(not, ", "))
		}
	}
	return v.localise(s, set, note)
}

// localise keeps the paths of the configuration inside the copy.
func (v *volumes) localise(s *settings, set func(name, value string), note func(string, ...any)) error {
	for name, file := range map[string]string{"data_directory": "", "hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf"} {
		value := s.values[name]
		if value == "" || name == "data_directory" && value == v.data {
			continue
		}
		if !filepath.IsAbs(value) {
			value = v.path(value)
		}
		if v.holds(value) && name != "data_directory" {
			continue
		}
		own := v.path(file)
		if _, err := os.Stat(own); err != nil {
			return fault.WithRemedy(fault.Newf(fault.Invalid, "%s is %s, which is not part of the copy", name, value), "keep %s in the data directory", file)
		}
		set(name, own)
		note("%s was %s and is %s", name, value, own)
	}
	for _, name := range []string{"stats_temp_directory", "ssl_cert_file", "ssl_key_file", "ssl_ca_file", "ssl_crl_file", "krb_server_keyfile"} {
		if value := s.values[name]; filepath.IsAbs(value) && !v.holds(value) {
			if name == "stats_temp_directory" {
				return fault.Newf(fault.Invalid, "%s is %s, which is not part of the copy: a clone would write there", name, value)
			}
			note("%s is %s: the clone reads it there", name, value)
		}
	}
	return nil
}

// detach removes what binds the copy to other servers, and lists transactions that wait for a decision from outside.
func (v *volumes) detach(l *database.Launch) error {
	for _, name := range []string{"standby.signal", "recovery.signal", "promote.signal", "recovery.conf"} {
		err := os.Remove(v.path(name))
		if err == nil {
			l.Notes = append(l.Notes, name+" was removed")
		} else if !os.IsNotExist(err) {
			return err
		}
	}
	slots, err := v.removeSlots()
	if err != nil {
		return err
	}
	for _, name := range slots {
		l.Notes = append(l.Notes, "replication slot "+name+" was removed")
	}
	prepared, err := os.ReadDir(v.path("pg_twophase"))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, e := range prepared {
		xid, err := strconv.ParseUint(e.Name(), 16, 64)
		if err == nil {
			l.Notes = append(l.Notes, fmt.Sprintf("prepared transaction %d waits for COMMIT PREPARED or ROLLBACK PREPARED and keeps its locks", xid))
		}
	}
	return nil
}

// removeSlots removes replication slots: they would keep the clone's log for ever, and logical ones may keep it from
// starting.
func (v *volumes) removeSlots() (names []string, err error) {
	entries, err := os.ReadDir(v.path("pg_replslot"))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if err := os.RemoveAll(v.path("pg_replslot", e.Name())); err != nil {
			return nil, err
		}
		names = append(names, e.Name())
	}
	return names, nil
}
