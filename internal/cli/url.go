package cli

import (
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// source reads a connection from an argument: a URL, env:NAME or file:PATH. A password that stands in the argument itself
// works, and is warned about: everybody on the machine can read the arguments of a process.
func (a *app) source(arg string) (value, shown string, err error) {
	switch {
	case strings.HasPrefix(arg, "env:"):
		name := strings.TrimPrefix(arg, "env:")
		v, ok := os.LookupEnv(name)
		if !ok {
			return "", "", &exit{exitUnable, fault.Newf(fault.NotFound, "environment variable %s is not set", name)}
		}
		value = v
	case strings.HasPrefix(arg, "file:"):
		path := strings.TrimPrefix(arg, "file:")
		body, err := os.ReadFile(path)
		if err != nil {
			return "", "", &exit{exitUnable, fmt.Errorf("read the connection: %w", err)}
		}
		value = strings.TrimSpace(string(body))
	default:
		value = arg
	}
	u, err := url.Parse(value)
	if err != nil || u.Scheme == "" || u.Host == "" && u.RawQuery == "" {
		return "", "", &exit{exitUnable, fault.WithRemedy(fault.Newf(fault.Invalid, "a connection is not a URL"),
			"write postgres://…, mongodb://…, env:NAME or file:PATH")}
	}
	if _, has := u.User.Password(); has && value == arg {
		fmt.Fprintln(a.errs, "warning: a password in an argument can be read by everybody on this machine; use env:NAME or file:PATH")
	}
	return value, u.Redacted(), nil
}

// engineOf returns the engine that a connection URL means.
func engineOf(engines map[string]database.Engine, value string) (database.Engine, error) {
	scheme, _, _ := strings.Cut(value, "://")
	name := map[string]string{"postgres": "postgres", "postgresql": "postgres", "mongodb": "mongodb", "mongodb+srv": "mongodb", "mysql": "mysql"}[scheme]
	e, ok := engines[name]
	switch {
	case ok:
		return e, nil
	case name != "":
		return nil, &exit{exitUnable, fault.Newf(fault.Invalid, "engine %s is not built yet", name)}
	default:
		return nil, &exit{exitUnable, fault.WithRemedy(fault.Newf(fault.Invalid, "scheme %q is of no engine that is known", scheme), "postgres:// and mongodb:// are")}
	}
}
