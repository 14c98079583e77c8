package config

import (
	"fmt"
	"os"
	"strings"

	"github.com/sluice-cd/sluice/internal/fault"
)

// Source is where the value of a secret is: an environment variable or a file.
type Source struct {
	Env  string
	File string // absolute
}

// Value reads the secret. A newline at the end of a file does not belong to it. An empty secret is an error: what it
// would open fails later, and further away from the cause.
func (s Source) Value() (string, error) {
	if s.Env != "" {
		v, ok := os.LookupEnv(s.Env)
		switch {
		case !ok:
			return "", fault.WithRemedy(fault.Newf(fault.NotFound, "environment variable %s is not set", s.Env),
				"set it where the server of Sluice is started")
		case v == "":
			return "", fault.Newf(fault.Invalid, "environment variable %s is empty", s.Env)
		}
		return v, nil
	}
	body, err := os.ReadFile(s.File)
	if err != nil {
		return "", fmt.Errorf("read the file of the secret: %w", err)
	}
	v := strings.TrimRight(string(body), "\r\n")
	if v == "" {
		return "", fault.Newf(fault.Invalid, "file %s is empty", s.File)
	}
	return v, nil
}
