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
)

// errandCommand is what Sluice's own pods in a cluster run. People never call it.
func errandCommand() *cobra.Command {
	c := &cobra.Command{Use: "errand", Hidden: true}
	c.AddCommand(prepareErrand(), atRiskErrand(), installErrand(), probeErrand())
	return c
}

// prepareErrand readies the volumes of a copy where they are mounted.
func prepareErrand() *cobra.Command {
	var engine, role string
	c := &cobra.Command{Use: "prepare DIRECTORY...", Args: cobra.MinimumNArgs(1), RunE: func(c *cobra.Command, dirs []string) error {
		launch, err := func() (database.Launch, error) {
			e, ok := wire.Engines(nil)[engine]
			if !ok {
				return database.Launch{}, fault.Newf(fault.Invalid, "this version of Sluice has no engine %q", engine)
			}
			return e.Prepare(c.Context(), dirs, database.Role(role))
		}()
		if err != nil {
			fmt.Fprintln(c.ErrOrStderr(), "error:", err) // for whoever reads the pod's output
		}
		return errand.Report(c.Context(), launch, err)
	}}
	c.Flags().StringVar(&engine, "engine", "", "engine of the database")
	c.Flags().StringVar(&role, "role", "", "what the copy is for")
	return c
}

// atRiskErrand counts what a restore would discard, in the log on the volumes of a database that was stopped.
func atRiskErrand() *cobra.Command {
	var engine, from string
	c := &cobra.Command{Use: "at-risk DIRECTORY...", Args: cobra.MinimumNArgs(1), RunE: func(c *cobra.Command, dirs []string) error {
		writes, err := func() (database.AtRisk, error) {
			l, ok := wire.Engines(nil)[engine].(database.Log)
			if !ok {
				return database.AtRisk{}, fault.Newf(fault.Invalid, "this version of Sluice reads no log of engine %q", engine)
			}
			return l.AtRisk(c.Context(), dirs, from)
		}()
		if err != nil {
			fmt.Fprintln(c.ErrOrStderr(), "error:", err) // for whoever reads the pod's output
		}
		return errand.Report(c.Context(), writes, err)
	}}
	c.Flags().StringVar(&engine, "engine", "", "engine of the database")
	c.Flags().StringVar(&from, "from", "", "position in the log after which is counted")
	return c
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
