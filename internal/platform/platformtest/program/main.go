// Command program is what the conformance suite deploys, as a program of its own: where a test binary cannot be one.
package main

import (
	"fmt"
	"os"

	"github.com/sluice-cd/sluice/internal/platform/platformtest"
)

func main() {
	if !platformtest.Program() {
		fmt.Fprintln(os.Stderr, "program: "+platformtest.ProgramEnv+" names nothing to be")
		os.Exit(2)
	}
}
