package cli

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/demo"
)

func (a *app) demo() *cobra.Command {
	var o demo.Options
	var at demo.Clusters
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show three deliveries of a database upgrade on this machine",
		Long: `Demo starts a small shop with its database and its customers on this machine, and then makes three deliveries of one
deploy file: a migration that damages data is stopped at the gate in staging, a release that fails requests goes back
together with the database and everything that was ordered meanwhile, and a good one is promoted.

It needs no root and no account, keeps everything in one temporary directory, and ends everything that it started.
With the kubeconfig files of two clusters it plays there, with pods and snapshots; make demo-kubernetes makes two.
Exit code 1 where a delivery ended otherwise than it had to.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			if !c.Flags().Changed("seed") {
				o.Seed = someSeed()
			}
			if at != (demo.Clusters{}) {
				o.Clusters = &at
			}
			o.Self, o.Out, o.Width = []string{self}, a.out, a.terminal()
			o.Compile = func(file string) (delivery.Spec, error) { return Compile(a.errs, file) }
			// A terminal that is closed must not leave a node and a server behind.
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGHUP)
			defer stop()
			return demo.Run(ctx, o)
		},
	}
	c.Flags().BoolVar(&o.Keep, "keep", false, "leave everything running at the end, until Ctrl-C")
	c.Flags().Uint64Var(&o.Seed, "seed", 0, "`number` that chooses the damaged orders (default a random one)")
	c.Flags().StringVar(&o.Dir, "dir", "", "keep everything in this `directory`, and leave it there")
	c.Flags().StringVar(&at.Production, "production-kubeconfig", "", "play on clusters: production's kubeconfig `file`")
	c.Flags().StringVar(&at.Staging, "staging-kubeconfig", "", "play on clusters: staging's kubeconfig `file`")
	c.MarkFlagsRequiredTogether("production-kubeconfig", "staging-kubeconfig")
	return c
}

// Compile makes a delivery of a deploy file as deploy start does: of these targets, or of all. Findings go to errs.
func Compile(errs io.Writer, file string, targets ...string) (delivery.Spec, error) {
	a := &app{errs: errs}
	spec, _, err := a.compile(a.fetcher(context.Background()), startFlags{file: file, targets: targets}, newID())
	return spec, err
}

// someSeed is small enough to be typed in again.
func someSeed() uint64 {
	var b [8]byte
	// rand.Read never returns an error and always fills the slice.
	_, _ = rand.Read(b[:])
	return 1 + binary.LittleEndian.Uint64(b[:])%99_999
}
