package cli

import (
	"fmt"
	"os"
)

// githubOutput sets an output of the step in which a workflow of GitHub Actions runs this program. The names are those of
// Armory's action, so that later steps need not change; elsewhere it does nothing.
func githubOutput(name, value string) error {
	path := os.Getenv("GITHUB_OUTPUT")
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("the output %s of this workflow's step cannot be set: %w", name, err)
	}
	if _, err := fmt.Fprintf(f, "%s=%s\n", name, value); err != nil {
		f.Close()
		return fmt.Errorf("the output %s of this workflow's step cannot be set: %w", name, err)
	}
	return f.Close()
}
