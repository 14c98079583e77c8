package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform/local"
	"github.com/sluice-cd/sluice/internal/server"
)

// TestServerScripts runs testdata/server/*.txtar: deliveries on the local platform, carried out by a server that the
// first command starts. Both are ended with the script.
func TestServerScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/server",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			clean(e)
			data := e.Getenv("SLUICE_DATA")
			e.Defer(func() {
				if err := end(data); err != nil {
					t.Error(err)
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "grab": grab, "eventually": eventually},
	})
}

// end ends the server of a data directory, and the node of its account.
func end(data string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var errs []error
	client, err := server.Connect(ctx, data)
	if err == nil {
		_, err = client.Stop(ctx)
	}
	if !fault.Is(err, fault.NotFound) {
		errs = append(errs, err)
	}
	node := filepath.Join(data, "accounts", "local")
	if _, err := os.Stat(node); err == nil {
		p, err := local.Connect(ctx, local.Config{Dir: node, Account: "local"})
		if err == nil {
			err = p.Shutdown(ctx)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// grab keeps a part of what the last command printed: grab ID 'deploymentId": "(.*)"'.
func grab(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: grab VARIABLE PATTERN")
	}
	m := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) != 2 {
		ts.Fatalf("%s is not in what was printed", args[1])
	}
	ts.Setenv(args[0], m[1])
}

// eventually runs a command until what it prints matches: eventually PATTERN COMMAND [ARGUMENT…].
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually PATTERN COMMAND [ARGUMENT…]")
	}
	want := regexp.MustCompile(args[0])
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := ts.Exec(args[1], args[2:]...); err == nil && want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-deadline.C:
			ts.Fatalf("%s is not printed; the last that was is\n%s", args[0], ts.ReadFile("stdout"))
		case <-tick.C:
		}
	}
}
