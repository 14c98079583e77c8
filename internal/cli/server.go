package cli

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/platform/local"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/server/wire"
)

func (a *app) server() *cobra.Command {
	var listen string
	c := &cobra.Command{
		Use:   "server",
		Short: "Carry out the deliveries of a data directory",
		Long: `Server carries out deliveries in the foreground until it is told to end by SIGTERM, Ctrl-C or sluice server stop. Open
deliveries go on where they are at its next start. The other commands start one detached when none runs; that one
writes to server.log in the data directory and runs until sluice server stop.

It listens for callbacks and the API on a port of 127.0.0.1 that is chosen once and kept, because webhooks were given
URLs with it. Give --listen, or server.listen in sluice.yaml, for another address, and server.externalURL for what the
outside calls it. The API on that address answers only to the token in api.token of the data directory.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o, err := a.wiring(slog.New(slog.NewTextHandler(a.errs, nil)))
			if err != nil {
				return err
			}
			o.Listen = listen
			return wire.Serve(c.Context(), o)
		},
	}
	c.Flags().StringVar(&listen, "listen", "", "`address` for callbacks and the API (default 127.0.0.1 and a kept port)")
	c.AddCommand(a.serverStatus(), a.serverStop())
	return c
}

// wiring is how Sluice is put together for this invocation.
func (a *app) wiring(log *slog.Logger) (wire.Options, error) {
	dir, err := a.dataDir()
	if err != nil {
		return wire.Options{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return wire.Options{}, fmt.Errorf("find this program: %w", err)
	}
	live, err := wire.NewLive(func() (*config.Config, error) { return config.Load(a.config) }, log)
	if err != nil {
		return wire.Options{}, err
	}
	return wire.Options{Dir: dir, Config: live, Self: []string{self}, Log: log}, nil
}

// running reaches the server of the data directory and starts none.
func (a *app) running(c *cobra.Command) (*server.Client, error) {
	dir, err := a.dataDir()
	if err != nil {
		return nil, err
	}
	return server.Connect(c.Context(), dir)
}

func (a *app) serverStatus() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Show whether a server runs; exit code 1 where none does", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.running(c)
			if err != nil {
				return err
			}
			i, err := client.Info(c.Context())
			if err != nil {
				return err
			}
			return a.show(i, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "pid %d, at %s, since %s\ndata in %s\nopen deliveries: %d\n", i.PID, i.URL, i.Started.Local().Format("2006-01-02 15:04:05"), i.Data, i.Open)
				return err
			})
		}}
}

func (a *app) serverStop() *cobra.Command {
	return &cobra.Command{Use: "stop", Short: "End the server; open deliveries go on at its next start", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.running(c)
			if fault.Is(err, fault.NotFound) {
				// That none runs is what was asked for.
				fmt.Fprintln(a.errs, err)
				return nil
			}
			if err != nil {
				return err
			}
			i, err := client.Stop(c.Context())
			if err != nil {
				return err
			}
			return a.show(i, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "the server (pid %d) has ended; %d open deliveries go on at its next start\n", i.PID, i.Open)
				return err
			})
		}}
}

// localNode is the process that owns what a local account runs. It is started by the server, never by people.
func (a *app) localNode() *cobra.Command {
	var dir string
	c := &cobra.Command{Use: "local-node", Hidden: true, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		if dir == "" {
			return &exit{exitUnable, fault.Newf(fault.Invalid, "local-node needs --dir DIR")}
		}
		return local.RunNode(c.Context(), dir, slog.New(slog.NewTextHandler(a.errs, nil)))
	}}
	c.Flags().StringVar(&dir, "dir", "", "`directory` of the account")
	return c
}
