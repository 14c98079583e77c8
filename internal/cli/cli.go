// Package cli is the commands of the program sluice: what people and CI jobs type and read.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/goccy/go-yaml"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/spf13/cobra"
)

// The exit codes that CI can use.
const (
	exitOK        = 0
	exitFailure   = 1 // refused, failed, different
	exitUnable    = 2 // wrong usage, or it could not be told
	exitRunning   = 3 // another delivery of the application is running
	exitInterrupt = 130
)

// exit is an error that ends the program with a code. A nil err has been shown already.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// app is what the commands share.
type app struct {
	in     io.Reader
	out    io.Writer
	errs   io.Writer
	config string // --config
	data   string // --data
	output string // -o

	localEngine bool // --local-engine
	allowHTTP   bool // --allow-http
}

// Main runs one command and returns its exit code.
func Main(args []string, in io.Reader, out, errs io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// What the libraries of Kubernetes would write to standard error by themselves, errors tell.
	ctx = logr.NewContext(ctx, logr.Discard())
	root := New(in, out, errs)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	e, ok := errors.AsType[*exit](err)
	if ok && e.err == nil {
		return e.code
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		fmt.Fprintln(errs, "interrupted")
		return exitInterrupt
	}
	fmt.Fprintln(errs, "error:", err)
	if ok {
		return e.code
	}
	return exitFailure
}

// New returns the root command.
func New(in io.Reader, out, errs io.Writer) *cobra.Command {
	a := &app{in: in, out: out, errs: errs}
	root := &cobra.Command{
		Use:   "sluice",
		Short: "Continuous delivery for applications that have data",
		Long: `Sluice rehearses a change on a copy of production's data, proves that the data came through, and only then opens the gate
to production, where live metrics decide whether the change stays. If it must go back, app and data go back together.

Start with: sluice demo`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &exit{code: exitUnable, err: fault.WithRemedy(err, "%s --help lists the flags", c.CommandPath())}
	})
	root.PersistentFlags().StringVar(&a.config, "config", "", "configuration `file` (default $SLUICE_CONFIG, ./sluice.yaml, then the user's folder)")
	root.PersistentFlags().StringVar(&a.data, "data", "", "`directory` where deliveries are kept (default $SLUICE_DATA, then the user's folder)")
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "text", "`format`: text, json or yaml")
	root.PersistentFlags().BoolVar(&a.allowHTTP, "allow-http", false, "fetch deploy files and manifests by http, too: they can be changed on the way")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		switch a.output {
		case "text", "json", "yaml":
			return nil
		}
		return &exit{code: exitUnable, err: fmt.Errorf("output format %q is not one of text, json, yaml", a.output)}
	}
	root.AddCommand(a.validate(), a.schema(), a.planCommand(), a.deploy(), a.dataCommand(), a.server(), a.controller(), a.localNode(), a.demo(),
		a.version(), quiesceHelper(), errandCommand())
	exact(root)
	return root
}

// exact makes wrong arguments and unknown commands end with the exit code of wrong usage, everywhere. Left to itself the
// library shows the help of a group whose command is misspelt, and calls that a success.
func exact(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			if _, done := errors.AsType[*exit](err); err == nil || done {
				return err
			}
			return &exit{exitUnable, fault.WithRemedy(err, "usage: %s", c.UseLine())}
		}
	}
	if c.HasSubCommands() && !c.Runnable() {
		c.Args = cobra.ArbitraryArgs
		c.SuggestionsMinimumDistance = 2
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			remedy := c.CommandPath() + " --help lists the commands"
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				remedy = "did you mean " + strings.Join(near, " or ") + "?"
			}
			return &exit{exitUnable, fault.WithRemedy(fault.Newf(fault.Invalid, "%s has no command %q", c.CommandPath(), args[0]), "%s", remedy)}
		}
	}
	for _, sub := range c.Commands() {
		exact(sub)
	}
}

// noArguments refuses arguments with the exit code of wrong usage.
func noArguments(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return &exit{exitUnable, fault.WithRemedy(fmt.Errorf("%s takes no argument, %q is given", c.CommandPath(), args[0]), "%s --help tells more", c.CommandPath())}
	}
	return nil
}

// version is what this program was built from.
func version() string {
	if i, ok := debug.ReadBuildInfo(); ok && i.Main.Version != "" {
		return i.Main.Version
	}
	return "devel"
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: noArguments, RunE: func(*cobra.Command, []string) error {
		v := map[string]string{"version": version(), "go": runtime.Version()}
		return a.show(v, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, "sluice", v["version"])
			return err
		})
	}}
}

// show writes a value as the output format asks: text by the function, else the value.
func (a *app) show(v any, text func(io.Writer) error) error {
	switch a.output {
	case "json":
		e := json.NewEncoder(a.out)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "yaml":
		// By way of JSON, so that both formats name the fields alike.
		body, err := json.Marshal(v)
		if err != nil {
			return err
		}
		y, err := yaml.JSONToYAML(body)
		if err != nil {
			return err
		}
		_, err = a.out.Write(y)
		return err
	default:
		return text(a.out)
	}
}

// terminal returns the width of the terminal behind the output, 0 where it is none.
func (a *app) terminal() int { return width(a.out) }
