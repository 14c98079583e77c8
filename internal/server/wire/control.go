package wire

import (
	"context"
	"time"

	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/internal/controller"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/step"
)

// ControlOptions say which controller is put together, besides what a server needs as well.
type ControlOptions struct {
	Options
	Credentials               *rest.Config // of the cluster that holds the deliveries
	Namespace, Identity       string
	Duration, Deadline, Retry time.Duration // of its Lease
	URL                       string        // what callback URLs begin with
}

// Control takes part in carrying the deliveries of a namespace until ctx ends.
func Control(ctx context.Context, o ControlOptions) error {
	if err := folders(o.Dir); err != nil {
		return err
	}
	var ports step.Ports
	// Whoever leads: what a Service is asked through its address is no effect of a delivery.
	reached := newAccounts(ctx, o.Options)
	return controller.Run(ctx, controller.Options{
		Credentials: o.Credentials, Namespace: o.Namespace, Identity: o.Identity, Duration: o.Duration, Deadline: o.Deadline, Retry: o.Retry,
		Listen: o.Listen, URL: o.URL, Log: o.Log,
		Roles: func(user string) []string { return o.Config.Current().RolesOf(user) },
		Shown: func(f *server.Front) {
			o.Expose = f.Expose
			f.Reach(reached.dial)
		},
		Steps: func(callback func(string) string, guard controller.Guard) (map[string]step.Step, engine.Locks) {
			o.Guard = &guard
			a := newAccounts(ctx, o.Options)
			ports = a.ports(callback)
			return Steps(ports, o.Dir), locks{a, o.Log}
		},
		Beside: func(ctx context.Context, st engine.Store) { expire(ctx, st, ports, o.Log) },
	})
}
