package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/store"
)

// follow shows a delivery until it has ended, and ends with the exit code that it deserves.
func (a *app) follow(ctx context.Context, client deliveries, id string) error {
	v := &view{out: a.out, width: a.terminal(), now: time.Now, told: map[string]time.Time{}}
	if a.output != "text" {
		v.quiet = true
	}
	err := client.Watch(ctx, id, v.event)
	v.end()
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return &exit{exitFailure, fmt.Errorf("delivery %s has not ended in time; it goes on: sluice deploy watch %s", id, id)}
	case ctx.Err() != nil:
		fmt.Fprintf(a.errs, "delivery %s goes on: sluice deploy watch %s, or cancel\n", id, id)
		return ctx.Err()
	case err != nil:
		return err
	}
	if e := githubOutput("RUN_RESULT", word(v.last)); e != nil {
		fmt.Fprintln(a.errs, "warning:", e)
	}
	if v.quiet {
		err = a.show(map[string]string{"deploymentId": id, "status": word(v.last)}, nil)
	} else {
		fmt.Fprintf(a.out, "[%s] Deployment %s completed with status: %s\n", stamp(), id, word(v.last))
		if v.last.Status.Reason != "" && v.last.Status.State != delivery.Succeeded {
			fmt.Fprintf(a.out, "  %s\n", oneLine(v.last.Status.Reason))
		}
	}
	if err == nil && v.last.Status.State != delivery.Succeeded {
		return &exit{code: exitFailure}
	}
	return err
}

// progressEvery is how often the progress of one step is a line where there is no terminal.
const progressEvery = 5 * time.Second

// view shows a delivery: plain lines, and on a terminal one more line with what is going on now.
type view struct {
	out   io.Writer
	width int
	quiet bool
	now   func() time.Time
	last  store.Delivery
	live  bool                 // the line that is written over stands
	told  map[string]time.Time // step → when a line last told of its progress
}

func (v *view) event(e server.Event) {
	switch {
	case e.Delivery != nil && v.quiet:
		v.last = *e.Delivery
	case e.Delivery != nil:
		for _, l := range changed(v.last, *e.Delivery) {
			v.line(fmt.Sprintf("%s %s", v.now().Format(time.TimeOnly), l))
		}
		v.last = *e.Delivery
	case e.Progress == nil || v.quiet:
	case v.width > 0:
		v.over(fmt.Sprintf("  … %s: %s", e.Progress.Path, e.Progress.Line))
	case v.now().Sub(v.told[e.Progress.Path]) >= progressEvery:
		v.told[e.Progress.Path] = v.now()
		v.line(fmt.Sprintf("%s %s: %s", v.now().Format(time.TimeOnly), e.Progress.Path, e.Progress.Line))
	}
}

func (v *view) line(s string) {
	v.end()
	fmt.Fprintln(v.out, s)
}

// over writes the line that the next one replaces.
func (v *view) over(s string) {
	r := []rune(s)
	if len(r) >= v.width {
		r = r[:v.width-1]
	}
	fmt.Fprintf(v.out, "\r\x1b[K%s", string(r))
	v.live = true
}

func (v *view) end() {
	if v.live {
		fmt.Fprint(v.out, "\r\x1b[K")
		v.live = false
	}
}
