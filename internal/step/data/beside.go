package data

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
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
	runner   platform.Runner
	errand   platform.Errand
	task     verification.Task
	estimate int64 // of the rows, where several pods share the work
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

// divide has several pods share the work, where there is enough of it. Sizes that are estimated can change between two entries:
// the number of shares is in the key, so that an entry finds the Job of another that shared out alike, and no other.
func (j job) divide(p *fingerprint.Plan, key string, sides ...fingerprint.Role) (job, string) {
	d := verification.Divide(p, len(sides) == 2, j.runner.Pods())
	if d == nil {
		return j, key
	}
	j.task.Division, j.errand.Shares, j.estimate = d, d.Shares, p.Estimate(sides...)
	return j, fmt.Sprintf("%s/%d", key, d.Shares)
}

// run runs a command of Sluice's beside the databases, shows what it says, and reads what its pods report.
func run[T any](ctx context.Context, j job, c step.Call, key, command string) ([]T, error) {
	input, err := json.Marshal(j.task)
	if err != nil {
		return nil, err
	}
	e := j.errand
	e.Delivery, e.Args, e.Input, e.Progress = c.Delivery, []string{command}, input, func(line string) { c.Progress("%s", line) }
	if e.Shares > 0 {
		e.Progress = verification.Gather(j.estimate, e.Progress)
	}
	if end, ok := ctx.Deadline(); ok {
		e.Within = min(e.Within, max(time.Second, time.Until(end)))
	}
	results, err := j.runner.Run(ctx, key, e)
	if err != nil {
		return nil, err
	}
	reports := make([]T, len(results))
	for i, r := range results {
		if err := json.Unmarshal(r, &reports[i]); err != nil {
			return nil, fault.Newf(fault.Lost, "what sluice errand %s reported cannot be read: %w", command, err)
		}
	}
	return reports, nil
}
