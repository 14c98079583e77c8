package data

import (
	"context"
	"encoding/json"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/verification"
)

const (
	// readWithin is how long reading a database may take by itself; what the step has left may be less.
	readWithin = 24 * time.Hour
	// reportParts is how many Secrets a report may fill: with 20 examples per class and column it is large only where much
	// differs.
	reportParts = 8
)

// job is work on databases that is done where they are.
type job struct {
	runner platform.Runner
	errand platform.Errand
	task   verification.Task
}

// beside returns the job that reads copies of a database, the one in the first namespace beside the pod; not ok where it is
// read from here: on a platform of this machine, where there is little to read, or where the connection names files of this
// machine.
func (b base) beside(p place, db plan.Database, much bool, namespaces ...string) (j job, ok bool, err error) {
	r, away := p.Platform.(platform.Runner)
	if !away || !much {
		return j, false, nil
	}
	connection, service, err := b.connection(db)
	if err != nil || !verification.Portable(connection) {
		return j, false, err
	}
	j = job{runner: r, errand: platform.Errand{Namespace: namespaces[0], Within: readWithin, Parts: reportParts}, task: verification.Task{Engine: db.Engine}}
	for _, n := range namespaces {
		j.task.Sites = append(j.task.Sites, verification.Site{Name: db.Name, Namespace: n, URL: connection})
		j.errand.Services = append(j.errand.Services, manifest.Ref{Kind: "Service", Namespace: n, Name: service})
	}
	return j, true, nil
}

// run runs a command of Sluice's beside the databases, shows what it says, and reads what it reports.
func (j job) run(ctx context.Context, c step.Call, key, command string, into any) error {
	input, err := json.Marshal(j.task)
	if err != nil {
		return err
	}
	e := j.errand
	e.Delivery, e.Args, e.Input, e.Progress = c.Delivery, []string{command}, input, func(line string) { c.Progress("%s", line) }
	if end, ok := ctx.Deadline(); ok {
		e.Within = min(e.Within, max(time.Second, time.Until(end)))
	}
	result, err := j.runner.Run(ctx, key, e)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(result, into); err != nil {
		return fault.Newf(fault.Lost, "what sluice errand %s reported cannot be read: %w", command, err)
	}
	return nil
}
