package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/internal/fault"
)

// includeDepth is how deep configuration files may include each other, as in the server.
const includeDepth = 10

// settings are what a server's configuration files say; the last word counts.
type settings struct {
	values map[string]string
	files  []string // that were read
}

// readSettings reads postgresql.conf with what it includes, and then what ALTER SYSTEM wrote.
func (v *volumes) readSettings() (*settings, error) {
	s := &settings{values: map[string]string{}}
	for _, name := range []string{"postgresql.conf", "postgresql.auto.conf"} {
		err := s.read(v, v.path(name), 0)
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
	}
	return s, nil
}

func (s *settings) read(v *volumes, path string, depth int) error {
	if depth > includeDepth {
		return fault.Newf(fault.Invalid, "%s is included more than %d files deep", path, includeDepth)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	s.files = append(s.files, path)
	for number, line := range strings.Split(string(b), "\n") {
		name, value, ok := setting(line)
		if !ok {
			continue
		}
		switch name {
		case "include", "include_if_exists", "include_dir":
			if !filepath.IsAbs(value) {
				value = filepath.Join(filepath.Dir(path), value)
			}
			if !v.holds(value) {
				return fault.WithRemedy(fault.Newf(fault.Invalid, "%s:%d includes %s, which is not part of the copy", path, number+1, value),
					"keep it in the data directory and include it by a relative name")
			}
			if err := s.include(v, name, value, depth); err != nil {
				return err
			}
		default:
			s.values[name] = value
		}
	}
	return nil
}

func (s *settings) include(v *volumes, kind, path string, depth int) error {
	if kind != "include_dir" {
		err := s.read(v, path, depth+1)
		if kind == "include_if_exists" && os.IsNotExist(err) {
			return nil
		}
		return err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries { // in the order of their names, as the server reads them
		if strings.HasSuffix(e.Name(), ".conf") && !strings.HasPrefix(e.Name(), ".") && !e.IsDir() {
			if err := s.read(v, filepath.Join(path, e.Name()), depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// setting reads one line: a name, an equals sign that may be missing, and a value that may be quoted.
func setting(line string) (name, value string, ok bool) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return "", "", false
	}
	end := strings.IndexAny(line, " \t=")
	if end <= 0 {
		return "", "", false
	}
	name = strings.ToLower(line[:end])
	rest := strings.TrimSpace(line[end:])
	rest = strings.TrimSpace(strings.TrimPrefix(rest, "="))
	if !strings.HasPrefix(rest, "'") {
		rest, _, _ = strings.Cut(rest, "#")
		return name, strings.TrimSpace(rest), true
	}
	var b strings.Builder
	for i := 1; i < len(rest); i++ {
		switch c := rest[i]; {
		case c == '\'' && i+1 < len(rest) && rest[i+1] == '\'':
			b.WriteByte(c)
			i++
		case c == '\'':
			return name, b.String(), true
		case c == '\\' && i+1 < len(rest):
			i++
			b.WriteByte(rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false // the server does not start with an open quote
}

// preloadable are libraries that may be loaded into a clone: they watch, and start nothing that acts on its own. A
// library that is not loaded may leave its extension's functions unusable, which the notes say.
func preloadable() []string {
	return []string{"auto_explain", "credcheck", "passwordcheck", "pg_hint_plan", "pg_qualstats", "pg_stat_kcache", "pg_stat_monitor",
		"pg_stat_statements",
		"pg_store_plans", "pg_wait_sampling", "pgaudit", "plpgsql_check", "set_user"}
}

// preload returns which of a list of libraries stay and which do not.
func preload(list string) (stay, not []string) {
	for _, l := range strings.Split(list, ",") {
		l = strings.Trim(strings.TrimSpace(l), `"`)
		name := strings.TrimSuffix(strings.TrimPrefix(l, "$libdir/"), ".so")
		switch {
		case l == "":
		case slices.Contains(preloadable(), name):
			stay = append(stay, l)
		default:
			not = append(not, l)
		}
	}
	return stay, not
}

// option is one setting on the command line, where it beats every file.
func option(name, value string) []string { return []string{"-c", fmt.Sprintf("%s=%s", name, value)} }
