// Command controller measures what Sluice's controller costs while many deliveries rest, and how soon it goes on when all are
// approved at once, beside the controller of Argo Rollouts on the same API server. README.md in the folder above says what
// is measured and how.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// The limits that Sluice is held to.
const (
	mostResident = 150_000_000
	mostReads    = 0
)

type options struct {
	kubeconfig, audit string
	sluice, rollouts  string // programs
	count             int
	rest              time.Duration
	dir               string // of this run
	out               io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	missed, err := command(ctx, os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(2)
	}
	if missed {
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string, out io.Writer) (missed bool, err error) {
	o := options{out: out}
	f := flag.NewFlagSet("bench/controller", flag.ContinueOnError)
	f.StringVar(&o.kubeconfig, "kubeconfig", os.Getenv("LAB_KUBECONFIG"), "kubeconfig of an administrator of the cluster")
	f.StringVar(&o.audit, "audit", "", "audit log of its API server, a pattern (default: the lab's)")
	f.StringVar(&o.sluice, "sluice", "bin/sluice", "the program sluice")
	f.StringVar(&o.rollouts, "rollouts", "", "the program rollouts-controller; without it Sluice is measured alone")
	f.IntVar(&o.count, "count", 1000, "how many deliveries, and how many Rollouts")
	f.DurationVar(&o.rest, "rest", time.Minute, "how long they rest")
	if err := f.Parse(args); err != nil {
		return false, err
	}
	if o.kubeconfig == "" {
		return false, fmt.Errorf("no cluster: give --kubeconfig, or run it by make bench-controller")
	}
	if o.audit == "" {
		o.audit = filepath.Join(filepath.Dir(filepath.Dir(o.kubeconfig)), "log", "audit*.log")
	}
	if o.dir, err = os.MkdirTemp("", "sluice-bench-"); err != nil {
		return false, err
	}
	defer os.RemoveAll(o.dir)
	return measure(ctx, o)
}

// side is one controller, and what it looks after.
type side interface {
	// install makes its definitions and namespaces, and starts it.
	install(ctx context.Context) (*program, error)
	// fill makes what rests, and returns when all does.
	fill(ctx context.Context) error
	// proceed lets all go on at once, and returns for each how long its next step took to begin.
	proceed(ctx context.Context) ([]time.Duration, error)
	// remove takes away what there is of it, also of an earlier run. Its controller does not run.
	remove(ctx context.Context) error
}

// measure fills both sides one after another, has them rest beside each other, and lets them go on one after another.
func measure(ctx context.Context, o options) (missed bool, err error) {
	c, err := connect(o.kubeconfig)
	if err != nil {
		return false, err
	}
	names := []string{"sluice"}
	sides := map[string]side{"sluice": &sluice{o: o, cluster: c}}
	if o.rollouts != "" {
		names = append(names, "rollouts")
		sides["rollouts"] = &rollouts{o: o, cluster: c}
	}
	programs, found := map[string]*program{}, map[string]*result{}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Minute)
		defer cancel()
		for _, n := range names {
			programs[n].stop()
			if e := sides[n].remove(clean); e != nil && err == nil {
				err = e
			}
		}
	}()
	for _, n := range names {
		// An earlier run may have been killed.
		if err := sides[n].remove(ctx); err != nil {
			return false, fmt.Errorf("%s: %w", n, err)
		}
		if programs[n], err = sides[n].install(ctx); err != nil {
			return false, fmt.Errorf("%s: %w", n, err)
		}
		begun := time.Now()
		if err := sides[n].fill(ctx); err != nil {
			return false, fmt.Errorf("%s: %w", n, err)
		}
		found[n] = &result{filled: time.Since(begun)}
		fmt.Fprintf(o.out, "%s: %d rest after %s\n", n, o.count, found[n].filled.Round(100*time.Millisecond))
	}
	// The audit log tells of whole requests: what was begun before the rest is let end.
	if err := pass(ctx, 5*time.Second); err != nil {
		return false, err
	}
	since := time.Now()
	if err := pass(ctx, o.rest); err != nil {
		return false, err
	}
	until := time.Now()
	for _, n := range names {
		if found[n].resident, _, err = programs[n].memory(); err != nil {
			return false, err
		}
	}
	// The log is written in batches.
	if err := pass(ctx, 5*time.Second); err != nil {
		return false, err
	}
	for _, n := range names {
		if found[n].requests, err = requests(o.audit, n, since, until); err != nil {
			return false, err
		}
		if found[n].took, err = sides[n].proceed(ctx); err != nil {
			return false, fmt.Errorf("%s: %w", n, err)
		}
		fmt.Fprintf(o.out, "%s: %d went on, p50 %s, p99 %s\n", n, o.count, percentile(found[n].took, 50).Round(time.Millisecond),
			percentile(found[n].took, 99).Round(time.Millisecond))
		if found[n].after, found[n].peak, err = programs[n].memory(); err != nil {
			return false, err
		}
	}
	return report(o, names, found), nil
}

func pass(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// each calls f for each of what is measured, some at a time.
func each(ctx context.Context, count, beside int, f func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(beside)
	for i := range count {
		g.Go(func() error { return f(ctx, i) })
	}
	return g.Wait()
}
