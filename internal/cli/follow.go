package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/store"
)

// follow shows a delivery until it has ended, and ends with the exit code that it deserves.
func (a *app) follow(ctx context.Context, client *server.Client, id string) error {
	v := &view{app: a, width: a.terminal()}
	if a.output != "text" {
		v.quiet = true
	}
	err := client.Watch(ctx, id, v.event)
	v.end()
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return &exit{exitFailure, fmt.Errorf("delivery %s has not ended in time; it goes on: sluice deploy watch %s", id, id)}
		}
		return err
	}
	if v.quiet {
		err = a.show(map[string]string{"deploymentId": id, "status": word(v.last)}, nil)
	} else {
		fmt.Fprintf(a.out, "[%s] Deployment %s completed with status: %s\n", stamp(), id, word(v.last))
		if v.last.Status.Reason != "" && v.last.Status.State != delivery.Succeeded {
			fmt.Fprintf(a.out, "  %s\n", v.last.Status.Reason)
		}
	}
	if err == nil && v.last.Status.State != delivery.Succeeded {
		return &exit{code: exitFailure}
	}
	return err
}

// view shows a delivery: plain lines, and on a terminal one more line with what is going on now.
type view struct {
	app   *app
	width int
	quiet bool
	last  store.Delivery
	live  bool // the line that is written over stands
}

func (v *view) event(e server.Event) {
	switch {
	case v.quiet:
		if e.Delivery != nil {
			v.last = *e.Delivery
		}
	case e.Delivery != nil:
		for _, l := range changed(v.last, *e.Delivery) {
			v.line(fmt.Sprintf("%s %s", time.Now().Format(time.TimeOnly), l))
		}
		v.last = *e.Delivery
	case e.Progress != nil && v.width > 0:
		v.over(fmt.Sprintf("  … %s: %s", e.Progress.Path, e.Progress.Line))
	case e.Progress != nil:
		v.line(fmt.Sprintf("%s %s: %s", e.Progress.At.Local().Format(time.TimeOnly), e.Progress.Path, e.Progress.Line))
	}
}

func (v *view) line(s string) {
	v.end()
	fmt.Fprintln(v.app.out, s)
}

// over writes the line that the next one replaces.
func (v *view) over(s string) {
	r := []rune(s)
	if len(r) >= v.width {
		r = r[:v.width-1]
	}
	fmt.Fprintf(v.app.out, "\r\x1b[K%s", string(r))
	v.live = true
}

func (v *view) end() {
	if v.live {
		fmt.Fprint(v.app.out, "\r\x1b[K")
		v.live = false
	}
}
