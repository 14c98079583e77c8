// Command shop is the application of Sluice's demo: a small shop that keeps its orders in a database that speaks the
// MongoDB wire protocol, with all that is needed to watch it from outside: a load generator that keeps a ledger of what
// the shop acknowledged, and a checker that holds the database against that ledger with nothing but the plain driver.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// command is one subcommand. It reads its own flags.
type command struct {
	name, does string
	run        func(ctx context.Context, args []string, out io.Writer) error
}

func commands() []command {
	return []command{
		{"web", "serve the shop", web},
		{"seed", "fill an empty shop, and begin its ledger", seed},
		{"migrate", "bring the data to the next release", migrate},
		{"damages", "tell what migrate --damage does with a seed", damages},
		{"load", "place and read orders, and keep the ledger of what was acknowledged", load},
		{"check", "hold the database against the ledger", check},
		{"test", "place and read orders, as a test of a release", test},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 {
		for _, c := range commands() {
			if c.name == args[0] {
				return c.run(ctx, args[1:], out)
			}
		}
	}
	usage := "give a command:"
	for _, c := range commands() {
		usage += fmt.Sprintf("\n  shop %-8s %s", c.name, c.does)
	}
	return errors.New(usage)
}

// required says which of these flags was left out.
func required(flags map[string]string) error {
	for name, v := range flags {
		if v == "" {
			return fmt.Errorf("give --%s", name)
		}
	}
	return nil
}
