package cli

import (
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// connection is a database that an argument names.
type connection struct {
	value  string // the URL, password and all
	shown  string // as it may be shown
	engine string
}

// engineName is the engine of a URL's scheme, "" where none is known.
func engineName(scheme string) string {
	switch scheme {
	case "postgres", "postgresql":
		return "postgres"
	case "mongodb", "mongodb+srv":
		return "mongodb"
	case "mysql", "mariadb":
		return "mysql"
	}
	return ""
}

// connection reads a connection from an argument: a URL, env:NAME or file:PATH. A password that stands in the argument
// itself works, and is warned about: everybody on the machine can read the arguments of a process.
func (a *app) connection(arg string) (connection, error) {
	value, err := indirect(arg)
	if err != nil {
		return connection{}, &exit{exitUnable, err}
	}
	scheme, rest, ok := strings.Cut(value, "://")
	engine := engineName(scheme)
	switch {
	case !ok:
		// The value is not repeated: what is no URL may still hold a password.
		return connection{}, &exit{exitUnable, fault.WithRemedy(fault.Newf(fault.Invalid, "a connection is not a URL"),
			"write postgres://…, mongodb://…, env:NAME or file:PATH")}
	case engine == "":
		return connection{}, &exit{exitUnable, fault.WithRemedy(fault.Newf(fault.Invalid, "scheme %q is of no engine that is known", scheme),
			"postgres:// and mongodb:// are")}
	}
	shown, secret := redact(rest)
	if secret && value == arg {
		fmt.Fprintln(a.errs, "warning: a password in an argument can be read by everybody on this machine; use env:NAME or file:PATH")
	}
	return connection{value: value, shown: scheme + "://" + shown, engine: engine}, nil
}

// indirect returns what an argument stands for.
func indirect(arg string) (string, error) {
	if name, ok := strings.CutPrefix(arg, "env:"); ok {
		v := os.Getenv(name)
		if v == "" {
			return "", fault.Newf(fault.NotFound, "environment variable %s is not set", name)
		}
		return v, nil
	}
	if path, ok := strings.CutPrefix(arg, "file:"); ok {
		body, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("read the connection: %w", err)
		}
		return strings.TrimSpace(string(body)), nil
	}
	return arg, nil
}

// redact takes the passwords out of what follows the scheme of a URL, and reports whether there were any. URLs of several
// hosts are none that package url can read.
func redact(rest string) (shown string, secret bool) {
	rest, query, hasQuery := strings.Cut(rest, "?")
	authority, path, hasPath := strings.Cut(rest, "/")
	// A password that is not encoded may hold the characters that end it.
	if i := strings.LastIndex(rest, "@"); i > len(authority) {
		authority, path = rest[:i+1], rest[i+1:]
		authority, path, hasPath = authority+before(path, "/"), after(path, "/"), strings.Contains(path, "/")
	}
	if i := strings.LastIndex(authority, "@"); i >= 0 {
		if user, _, ok := strings.Cut(authority[:i], ":"); ok {
			authority, secret = user+":***"+authority[i:], true
		}
	}
	shown = authority
	if hasPath {
		shown += "/" + path
	}
	if !hasQuery {
		return shown, secret
	}
	pairs := strings.Split(query, "&")
	for i, p := range pairs {
		name, _, ok := strings.Cut(p, "=")
		if n, err := url.QueryUnescape(name); ok && err == nil && strings.Contains(strings.ToLower(n), "password") {
			pairs[i], secret = name+"=***", true
		}
	}
	return shown + "?" + strings.Join(pairs, "&"), secret
}

func before(s, sep string) string {
	s, _, _ = strings.Cut(s, sep)
	return s
}

func after(s, sep string) string {
	_, s, _ = strings.Cut(s, sep)
	return s
}

// engineOf returns the engine of a connection.
func engineOf(engines map[string]database.Engine, c connection) (database.Engine, error) {
	e, ok := engines[c.engine]
	if !ok {
		return nil, &exit{exitUnable, fault.Newf(fault.Invalid, "engine %s is not built yet", c.engine)}
	}
	return e, nil
}
