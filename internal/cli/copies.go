package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/server/wire"
	"github.com/sluice-cd/sluice/internal/step/data"
	"github.com/sluice-cd/sluice/internal/volume"
)

// copyView is a copy as programs read it.
type copyView struct {
	volume.CopyInfo
	Account string    `json:"account"`
	Deleted time.Time `json:"deletedAt,omitzero"` // when the server deletes it by itself
	Then    string    `json:"deletedBy"`          // server, hand, delivery (which has not ended), or unknown where no server runs
}

// The ends of copies.
const (
	byServer   = "server"
	byHand     = "hand"
	byDelivery = "delivery"
	unknown    = "unknown"
)

// ends says of each copy how it ends, as far as the server of the data directory knows its delivery.
func (a *app) ends(ctx context.Context, all []copyView) error {
	dir, err := a.dataDir()
	if err != nil {
		return err
	}
	for i := range all {
		all[i].Then = unknown
	}
	client, err := server.Connect(ctx, dir)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	kept := map[string][]data.Kept{}
	done := map[string]string{}
	for i, c := range all {
		if _, asked := done[c.Owner]; !asked {
			d, err := client.Get(ctx, c.Owner)
			switch {
			case fault.Is(err, fault.NotFound):
				done[c.Owner] = byHand // its delivery is not of this data directory
			case err != nil:
				return err
			case !d.Status.Done:
				done[c.Owner] = byDelivery
			default:
				done[c.Owner] = byHand
				if kept[c.Owner], err = data.Keeps(d.Spec, d.Status); err != nil {
					return err
				}
			}
		}
		all[i].Then = done[c.Owner]
		for _, k := range kept[c.Owner] {
			if k.ID == c.ID {
				all[i].Then, all[i].Deleted = byServer, k.Until
			}
		}
	}
	return nil
}

// end is how a copy ends, for people.
func (c copyView) end() string {
	switch c.Then {
	case byServer:
		return c.Deleted.Local().Format(time.DateTime)
	case byHand:
		return "by hand"
	case byDelivery:
		return "its delivery runs"
	}
	return "-"
}

func (a *app) dataList() *cobra.Command {
	var account, owner string
	c := &cobra.Command{Use: "list", Short: "List the copies of databases that an account keeps", Args: noArguments, RunE: func(c *cobra.Command, _ []string) error {
		return a.listCopies(c.Context(), account, owner)
	}}
	c.Flags().StringVar(&account, "account", "", "only those of this `account` (default all)")
	c.Flags().StringVar(&owner, "owner", "", "only those of this `delivery`")
	return c
}

// drivers returns the drivers of volumes of one account, or of all: without those that cannot be had now, for which there is an
// error.
func (a *app) drivers(ctx context.Context, account string) (map[string]volume.Driver, error) {
	o, err := a.wiring(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	ports := wire.Ports(ctx, o, func(string) string { return "" })
	names := []string{account}
	if account == "" {
		names = nil
		for n, k := range o.Config.Current().Accounts {
			// A local account that nothing was ever run in is left alone: asking it would begin it.
			if _, err := os.Stat(wire.AccountDir(o.Dir, k)); k.Kind != config.Local || err == nil {
				names = append(names, n)
			}
		}
	}
	out := map[string]volume.Driver{}
	var failed []error
	for _, n := range names {
		d, err := ports.Volumes(n)
		if err != nil {
			failed = append(failed, fmt.Errorf("account %s: %w", n, err))
			continue
		}
		out[n] = d
	}
	return out, errors.Join(failed...)
}

// listCopies shows the copies of the accounts that answer, and fails where one does not.
func (a *app) listCopies(ctx context.Context, account, owner string) error {
	drivers, err := a.drivers(ctx, account)
	failed := []error{err}
	all := []copyView{}
	free := map[string]int64{}
	for name, d := range drivers {
		copies, err := d.List(ctx, owner)
		if err != nil {
			failed = append(failed, fmt.Errorf("account %s: %w", name, err))
			continue
		}
		for _, c := range copies {
			all = append(all, copyView{CopyInfo: c.Info(), Account: name})
			if _, ok := free[name]; !ok {
				// A source that is gone cannot be probed; the copies are listed all the same.
				if p, err := d.Probe(ctx, c.Info().Sources); err == nil && p.FreeBytes >= 0 {
					free[name] = p.FreeBytes
				}
			}
		}
	}
	failure := errors.Join(failed...)
	if failure != nil && len(all) == 0 {
		return failure
	}
	slices.SortFunc(all, func(x, y copyView) int {
		if c := strings.Compare(x.Account, y.Account); c != 0 {
			return c
		}
		return x.CutAt.Compare(y.CutAt)
	})
	if err := a.ends(ctx, all); err != nil {
		return errors.Join(err, failure)
	}
	return errors.Join(a.show(all, func(w io.Writer) error { return writeCopies(w, all, free) }), failure)
}

func writeCopies(w io.Writer, all []copyView, free map[string]int64) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ACCOUNT\tCUT AT\tOWNER\tMETHOD\tWRITTEN\tPROTECTED UNTIL\tDELETED AT\tOF\tID")
	for _, c := range all {
		protected := "-"
		if !c.Protected.IsZero() {
			protected = c.Protected.Local().Format(time.DateTime)
		}
		var of []string
		for _, s := range c.Sources {
			of = append(of, s.Namespace+"/"+s.Claim)
		}
		cut := "cut short"
		if !c.CutAt.IsZero() {
			cut = c.CutAt.Local().Format(time.DateTime)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Account, cut, c.Owner, c.Method, byteText(c.Bytes), protected, c.end(),
			strings.Join(of, ","), c.ID)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for name, n := range free {
		if _, err := fmt.Fprintf(w, "account %s: %s free for further copies\n", name, byteText(n)); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) dataDelete() *cobra.Command {
	var account string
	c := &cobra.Command{
		Use:   "delete ID…",
		Short: "Delete copies that no delivery needs any more",
		Long: `Delete removes copies of databases. It refuses those that are protected, that others were cloned from, that a workload runs on, and
those of a delivery that has not ended. No source is ever deleted.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.deleteCopies(c.Context(), account, args) },
	}
	c.Flags().StringVar(&account, "account", "", "only those of this `account` (default all)")
	return c
}

func (a *app) deleteCopies(ctx context.Context, account string, ids []string) error {
	drivers, failed := a.drivers(ctx, account)
	for _, id := range ids {
		err := a.deleteCopy(ctx, drivers, id)
		if fault.Is(err, fault.NotFound) && failed != nil {
			return errors.Join(err, failed) // it may be where nobody could look
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(a.out, "deleted", id)
	}
	return nil
}

func (a *app) deleteCopy(ctx context.Context, drivers map[string]volume.Driver, id string) error {
	var failed []error
	for name, d := range drivers {
		copies, err := d.List(ctx, "")
		if err != nil {
			failed = append(failed, fmt.Errorf("account %s: %w", name, err))
			continue
		}
		for _, c := range copies {
			if c.ID() != id {
				continue
			}
			if err := a.unneeded(ctx, c.Info().Owner); err != nil {
				return err
			}
			return d.Delete(ctx, c)
		}
	}
	missing := fault.WithRemedy(fault.Newf(fault.NotFound, "there is no copy %q", id), "sluice data list shows the copies")
	return errors.Join(append([]error{missing}, failed...)...)
}

// unneeded refuses to take a copy from a delivery that has not ended.
func (a *app) unneeded(ctx context.Context, owner string) error {
	dir, err := a.dataDir()
	if err != nil {
		return err
	}
	client, err := server.Connect(ctx, dir)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	d, err := client.Get(ctx, owner)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !d.Status.Done {
		return fault.WithRemedy(fault.Newf(fault.Conflict, "the copy belongs to delivery %s, which has not ended", owner), "sluice deploy cancel %s ends it", owner)
	}
	return nil
}

func (a *app) dataGrants() *cobra.Command {
	role := "sluice"
	c := &cobra.Command{
		Use:   "grants ENGINE",
		Short: "Print the statements that give a role what Sluice needs, and no more",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			var f compareFlags
			engines, err := f.engines()
			if err != nil {
				return err
			}
			e, err := engineOf(engines, connection{engine: args[0]})
			if err != nil {
				return err
			}
			p, ok := e.(database.Preflighter)
			if !ok {
				return &exit{exitUnable, errors.New("engine " + args[0] + " knows no grants")}
			}
			_, err = fmt.Fprintln(a.out, strings.TrimRight(p.Grants(role), "\n"))
			return err
		},
	}
	c.Flags().StringVar(&role, "role", role, "`name` of the role")
	return c
}
