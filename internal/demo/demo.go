// Package demo is the story that Sluice is for, on one machine: a shop with its database and its customers, and three
// deliveries of one deploy file. Nothing in it knows how a delivery is carried out: it starts production, hands deliveries
// to a server as the command line does, and watches from outside.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
)

// Options say how the demo runs.
type Options struct {
	Self     []string      // the command of Sluice itself, which runs the server and the node
	Dir      string        // where everything is kept; "" makes a temporary directory, which is removed at a good end
	Seed     uint64        // chooses the orders that the first delivery damages
	Orders   int           // of the shop when it opens; 0 is DefaultOrders
	Patience time.Duration // how long one delivery may take; 0 is DefaultPatience
	Clusters *Clusters     // where it plays; nil means on this machine
	Keep     bool          // leave everything running at the end until ctx ends
	Out      io.Writer
	Width    int                                            // of the terminal behind Out, 0 where it is none
	Compile  func(deployFile string) (delivery.Spec, error) // makes a delivery of a deploy file
}

// What holds where the options do not say.
const (
	DefaultOrders   = 10_000 // of the shop when it opens
	DefaultPatience = 5 * time.Minute
)

func (o *Options) complete() {
	if o.Orders == 0 {
		o.Orders = DefaultOrders
	}
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
}

func newStage(o Options, p programs, v *view) *stage {
	st := &stage{o: o, programs: p, view: v, site: &machine{o: o, programs: p}}
	if o.Clusters != nil {
		st.site = &clusters{at: *o.Clusters}
	}
	return st
}

// Run plays the demo. The error says which delivery ended otherwise than it had to; everything that was started has ended
// when Run returns, whatever happened.
func Run(ctx context.Context, o Options) (err error) {
	o.complete()
	programs, err := o.companions()
	if err != nil {
		return err
	}
	made := o.Dir == ""
	if o.Dir, err = directory(o.Dir); err != nil {
		return fmt.Errorf("the directory of the demo: %w", err)
	}
	v := &view{out: o.Out, width: o.Width}
	st := newStage(o, programs, v)
	defer func() {
		v.end()
		if e := st.stop(context.WithoutCancel(ctx)); err == nil {
			err = e
		}
		switch {
		case made && (err == nil || ctx.Err() != nil):
			err = errors.Join(err, os.RemoveAll(o.Dir))
		case err != nil:
			v.say("Logs and reports are in %s.", o.Dir)
		}
	}()
	if err := st.start(ctx); err != nil {
		return fmt.Errorf("start production: %w", err)
	}
	return play(ctx, st)
}

// directory makes the directory that everything is kept in.
func directory(name string) (string, error) {
	if name == "" {
		return os.MkdirTemp("", "sluice-demo-")
	}
	name, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(name, 0o700); err != nil {
		return "", err
	}
	if there, err := os.ReadDir(name); err != nil || len(there) > 0 {
		return "", errors.Join(err, fault.WithRemedy(fault.Newf(fault.Conflict, "%s is not empty", name), "name a directory that does not exist"))
	}
	return name, nil
}

// play runs the acts and sums them up.
func play(ctx context.Context, st *stage) error {
	var played []result
	var errs []error
	for i, a := range acts(st.o.Seed) {
		r, err := st.perform(ctx, i+1, a)
		if err != nil {
			return fmt.Errorf("delivery %d: %w", i+1, err)
		}
		played = append(played, r)
		for _, e := range r.wrong {
			errs = append(errs, fmt.Errorf("delivery %d ended otherwise than it had to: %w", i+1, e))
		}
		if len(r.wrong) > 0 {
			break // the acts build on each other
		}
	}
	st.view.table(played)
	if st.o.Keep && ctx.Err() == nil {
		st.view.say("Everything is still running. The shop is at %s; Prometheus at %s.", st.shopURL, st.prometheusURL)
		st.view.say("Look at the deliveries with: sluice deploy list --data %s", st.dataDir())
		st.view.say("End with Ctrl-C.")
		<-ctx.Done()
	}
	return errors.Join(errs...)
}

// programs are the companions by name.
type programs map[string]string

// companions finds the programs that the demo needs: beside this program, else where $SLUICE_COMPANIONS says. Clusters have
// all but the shop in images.
func (o Options) companions() (programs, error) {
	needed := []string{"shop", "ferretdb-a", "ferretdb-b", "prometheus"}
	if o.Clusters != nil {
		needed = needed[:1]
	}
	var places []string
	if self, err := os.Executable(); err == nil {
		places = append(places, filepath.Dir(self))
	}
	if dir := os.Getenv("SLUICE_COMPANIONS"); dir != "" {
		places = append(places, dir)
	}
	found := programs{}
	var missing []string
	for _, name := range needed {
		for _, p := range places {
			path, err := filepath.Abs(filepath.Join(p, name))
			if err != nil {
				return nil, err
			}
			if i, err := os.Stat(path); err == nil && i.Mode().IsRegular() && found[name] == "" {
				found[name] = path
			}
		}
		if found[name] == "" {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return nil, fault.WithRemedy(fault.Newf(fault.NotFound, "the demo needs %s, which is not in %s", strings.Join(missing, ", "), strings.Join(places, " or ")),
			"`make demo` builds all of them; $SLUICE_COMPANIONS names their directory where it is another one")
	}
	return found, nil
}

// endWithin is how long everything that was started may take to end.
const endWithin = time.Minute
