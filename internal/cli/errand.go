package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes/errand"
	"github.com/sluice-cd/sluice/internal/server/wire"
	"github.com/sluice-cd/sluice/internal/verification"
)

// errandCommand is what Sluice's own pods in a cluster run. People never call it.
func errandCommand() *cobra.Command {
	c := &cobra.Command{Use: "errand", Hidden: true}
	c.AddCommand(prepareErrand(), atRiskErrand(), countableErrand(), compareErrand(), fingerprintErrand(), installErrand(), probeErrand(), sendErrand(), receiveErrand())
	return c
}

// prepareErrand readies the volumes of a copy where they are mounted.
func prepareErrand() *cobra.Command {
	var engine, role string
	c := &cobra.Command{Use: "prepare DIRECTORY...", Args: cobra.MinimumNArgs(1), RunE: func(c *cobra.Command, dirs []string) error {
		return reported(c, func(ctx context.Context) (any, error) {
			e, err := builtIn(engine)
			if err != nil {
				return nil, err
			}
			return e.Prepare(ctx, dirs, database.Role(role))
		})
	}}
	c.Flags().StringVar(&engine, "engine", "", "engine of the database")
	c.Flags().StringVar(&role, "role", "", "what the copy is for")
	return c
}

// atRiskErrand counts what a restore would discard, in the log on the volumes of a database that was stopped.
func atRiskErrand() *cobra.Command {
	var engine, from string
	c := &cobra.Command{Use: "at-risk DIRECTORY...", Args: cobra.MinimumNArgs(1), RunE: func(c *cobra.Command, dirs []string) error {
		return reported(c, func(ctx context.Context) (any, error) {
			l, err := logOf(engine)
			if err != nil {
				return nil, err
			}
			return l.AtRisk(ctx, dirs, from)
		})
	}}
	c.Flags().StringVar(&engine, "engine", "", "engine of the database")
	c.Flags().StringVar(&from, "from", "", "position in the log after which is counted")
	return c
}

// countableErrand says whether the log could be read by the programs that are here.
func countableErrand() *cobra.Command {
	var engine string
	c := &cobra.Command{Use: "countable", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return reported(c, func(ctx context.Context) (any, error) {
			l, err := logOf(engine)
			if err != nil {
				return nil, err
			}
			return nil, l.Countable(ctx, nil)
		})
	}}
	c.Flags().StringVar(&engine, "engine", "", "engine of the database")
	return c
}

func logOf(engine string) (database.Log, error) {
	l, ok := wire.Engines(nil)[engine].(database.Log)
	if !ok {
		return nil, fault.Newf(fault.Invalid, "this version of Sluice reads no log of engine %q", engine)
	}
	return l, nil
}

// installErrand puts this program into a directory, for a container of another image.
func installErrand() *cobra.Command {
	return &cobra.Command{Use: "install DIRECTORY", Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, dir []string) error {
		own, err := os.Executable()
		if err != nil {
			return err
		}
		from, err := os.Open(own)
		if err != nil {
			return err
		}
		defer from.Close()
		to, err := os.OpenFile(filepath.Join(dir[0], "sluice"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		if _, err := io.Copy(to, from); err != nil {
			return errors.Join(err, to.Close())
		}
		return to.Close()
	}}
}

// reported does an errand and reports what came of it.
func reported(c *cobra.Command, do func(context.Context) (any, error)) error {
	result, err := do(c.Context())
	if err != nil {
		fmt.Fprintln(c.ErrOrStderr(), "error:", err) // for whoever reads the pod's output
	}
	return errand.Report(c.Context(), result, err)
}

func builtIn(engine string) (database.Engine, error) {
	e, ok := wire.Engines(nil)[engine]
	if !ok {
		return nil, fault.Newf(fault.Invalid, "this version of Sluice has no engine %q", engine)
	}
	return e, nil
}

// compareErrand compares two databases beside which it runs.
func compareErrand() *cobra.Command {
	return &cobra.Command{Use: verification.CompareCommand, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return besideData(c, func(ctx context.Context, t verification.Task, e database.Engine, d verification.Dial, o verification.Options) (any, error) {
			return t.Compare(ctx, e, d, o)
		})
	}}
}

// fingerprintErrand fingerprints a database beside which it runs.
func fingerprintErrand() *cobra.Command {
	return &cobra.Command{Use: verification.FingerprintCommand, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return besideData(c, func(ctx context.Context, t verification.Task, e database.Engine, d verification.Dial, o verification.Options) (any, error) {
			return t.Fingerprint(ctx, e, d, o)
		})
	}}
}

func besideData(c *cobra.Command, do func(context.Context, verification.Task, database.Engine, verification.Dial, verification.Options) (any, error)) error {
	return reported(c, func(ctx context.Context) (any, error) {
		var t verification.Task
		in, err := errand.Told(&t)
		if err != nil {
			return nil, err
		}
		e, err := builtIn(t.Engine)
		if err != nil {
			return nil, err
		}
		return do(ctx, t, e, in.Dial, verification.Options{Spill: os.TempDir(), Share: errand.Share(), Progress: nowAndThen(c.OutOrStdout(), sayEvery)})
	})
}

// sayEvery is how often a Job says how far it has come: its output is kept by the cluster.
const sayEvery = 2 * time.Second

// nowAndThen writes a line now and then.
func nowAndThen(w io.Writer, every time.Duration) func(format string, args ...any) {
	var mu sync.Mutex
	var last time.Time
	return func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.Sub(last) >= every {
			last = now
			fmt.Fprintf(w, format+"\n", args...)
		}
	}
}

const (
	// lastWords is where a container's last words are written, for whoever reads the pod's state.
	lastWords = "/dev/termination-log"
	// enforced is how long a network may take until it enforces a policy for a pod that has just started.
	enforced = 10 * time.Second
	// unreachable is how long an address may take to answer.
	unreachable = 2 * time.Second
)

// probeErrand tries to reach addresses that must not be reached, and says which it has reached. It has no credentials of the
// cluster, as the pods that it stands for have none.
func probeErrand() *cobra.Command {
	return &cobra.Command{Use: "probe ADDRESS...", Args: cobra.MinimumNArgs(1), RunE: func(c *cobra.Command, addresses []string) error {
		reached := reach(c.Context(), addresses, enforced, unreachable)
		fmt.Fprintf(c.OutOrStdout(), "reached %d of %d addresses: %s\n", len(reached), len(addresses), strings.Join(reached, " "))
		return os.WriteFile(lastWords, []byte(strings.Join(reached, "\n")), 0o600)
	}}
}

// reach returns the addresses that can still be reached at the end of the time that a network is given. An address counts as
// unreachable once it was, because policies come into force a moment after a pod does.
func reach(ctx context.Context, addresses []string, within, each time.Duration) []string {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	reached := make([]bool, len(addresses))
	var wg sync.WaitGroup
	for i, a := range addresses {
		wg.Go(func() { reached[i] = stays(ctx, a, each) })
	}
	wg.Wait()
	var out []string
	for i, a := range addresses {
		if reached[i] {
			out = append(out, a)
		}
	}
	return out
}

// stays reports whether an address can be reached until the end of ctx.
func stays(ctx context.Context, address string, each time.Duration) bool {
	again := time.NewTicker(500 * time.Millisecond)
	defer again.Stop()
	for ctx.Err() == nil {
		// An attempt that has begun has its time, even if the end is near.
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), each)
		conn, err := (&net.Dialer{}).DialContext(attempt, "tcp", address)
		cancel()
		if err != nil {
			return false
		}
		_ = conn.Close() // that it was opened is all
		select {
		case <-ctx.Done():
		case <-again.C:
		}
	}
	return true
}
