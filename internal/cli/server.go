package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

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

// machineStatus is what runs on this machine.
type machineStatus struct {
	Server   *server.Info    `json:"server"` // null: none runs
	Accounts []accountStatus `json:"accounts"`
}

type accountStatus struct {
	Name     string   `json:"name"`
	Node     int      `json:"node"` // its process
	Services []string `json:"services"`
}

func (a *app) serverStatus() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Show the server, and where the Services of local accounts are reached; exit code 1 where no server runs",
		Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			var s machineStatus
			client, none := a.running(c)
			if none == nil {
				i, err := client.Info(c.Context())
				if err != nil {
					return err
				}
				s.Server = &i
			}
			err := a.eachNode(c.Context(), func(name string, p *local.Platform) error {
				k, err := accountOf(c.Context(), name, p)
				s.Accounts = append(s.Accounts, k)
				return err
			})
			if err != nil {
				return err
			}
			if err := a.show(s, s.write); err != nil {
				return err
			}
			return none
		}}
}

func (s machineStatus) write(w io.Writer) error {
	if i := s.Server; i != nil {
		fmt.Fprintf(w, "pid %d, at %s, since %s\ndata in %s\nopen deliveries: %d\n", i.PID, i.URL, i.Started.Local().Format(time.DateTime), i.Data, i.Open)
	}
	for _, k := range s.Accounts {
		fmt.Fprintf(w, "account %s runs (node pid %d)\n", k.Name, k.Node)
		for _, v := range k.Services {
			fmt.Fprintln(w, "  "+v)
		}
	}
	return nil
}

func accountOf(ctx context.Context, name string, p *local.Platform) (accountStatus, error) {
	k := accountStatus{Name: name, Services: []string{}}
	var err error
	if k.Node, err = p.PID(ctx); err != nil {
		return k, err
	}
	services, err := p.List(ctx, "Service", "")
	if err != nil {
		return k, err
	}
	for _, o := range services {
		at, err := p.Address(ctx, o.Ref(), "")
		if err != nil {
			return k, err
		}
		k.Services = append(k.Services, o.GetNamespace()+"/"+o.GetName()+" at "+at)
	}
	return k, nil
}

// eachNode calls f with every local account whose node runs.
func (a *app) eachNode(ctx context.Context, f func(name string, p *local.Platform) error) error {
	dir, err := a.dataDir()
	if err != nil {
		return err
	}
	c, err := config.Load(a.config)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(c.Accounts)) {
		if c.Accounts[name].Kind != config.Local {
			continue
		}
		p, err := local.Connect(ctx, local.Config{Dir: wire.AccountDir(dir, c.Accounts[name]), Account: name})
		if fault.Is(err, fault.Transient) {
			continue // none runs
		}
		if err == nil {
			err = f(name, p)
		}
		if err != nil {
			return fmt.Errorf("account %s: %w", name, err)
		}
	}
	return nil
}

func (a *app) serverStop() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "stop",
		Short: "End the server; open deliveries go on at its next start",
		Long: `Stop ends the server of the data directory. What it has deployed to local accounts goes on, and open deliveries go on at
the next start. With --all the processes of the local accounts are ended as well; the next server brings them back.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.running(c)
			switch {
			case fault.Is(err, fault.NotFound):
				// That none runs is what was asked for.
				fmt.Fprintln(a.errs, err)
			case err != nil:
				return err
			default:
				i, err := client.Stop(c.Context())
				if err != nil {
					return err
				}
				fmt.Fprintf(a.errs, "the server (pid %d) has ended; %d open deliveries go on at its next start\n", i.PID, i.Open)
			}
			if !all {
				return nil
			}
			return a.eachNode(c.Context(), func(name string, p *local.Platform) error {
				if err := p.Shutdown(c.Context()); err != nil {
					return err
				}
				fmt.Fprintf(a.errs, "what ran in account %s has ended\n", name)
				return nil
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also end the processes of local accounts")
	return c
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
