package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/controller"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/lease"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/server/wire"
	"github.com/sluice-cd/sluice/internal/store"
	cluster "github.com/sluice-cd/sluice/internal/store/kubernetes"
)

// inPod is where Kubernetes tells a pod its namespace.
const inPod = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

func (a *app) controller() *cobra.Command {
	var o wire.ControlOptions
	var kubeconfig, kubecontext string
	c := &cobra.Command{
		Use:   "controller",
		Short: "Carry out the deliveries of a cluster",
		Long: `Controller carries out the Delivery resources of one namespace until it is told to end by SIGTERM or Ctrl-C. Any number may run: one
is elected by a Lease, the others stand by, and all take callbacks in. A controller that could not renew its Lease in time
ends with exit code 1 and does nothing more; whoever runs it starts it again.

It is made to run in the cluster: the Helm chart in charts/sluice and the plain YAML in config install it. Accounts, metric
providers, secrets and roles are those of its sluice.yaml, as for sluice server.`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			listen := o.Listen
			if o.Options, err = a.wiring(slog.New(slog.NewTextHandler(a.errs, nil))); err != nil {
				return err
			}
			o.Listen = listen
			if o.URL == "" {
				o.URL = o.Config.Current().Server.ExternalURL
			}
			if o.URL == "" {
				o.URL = "http://" + o.Listen
			}
			if o.Namespace, err = namespaceOf(o.Namespace); err != nil {
				return err
			}
			if o.Identity, err = identity(); err != nil {
				return err
			}
			if o.Credentials, err = kubernetes.Credentials(kubernetes.Config{Account: "of the controller", Kubeconfig: kubeconfig, Context: kubecontext, Log: o.Log}); err != nil {
				return err
			}
			return wire.Control(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Namespace, "namespace", "", "`namespace` of the deliveries (default: that of its pod, else sluice)")
	f.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig `file` (default: where kubectl looks; in a pod the pod's own credentials)")
	f.StringVar(&kubecontext, "context", "", "`context` of the kubeconfig (default: the current one)")
	f.StringVar(&o.Listen, "listen", ":8080", "`address` for callbacks, health and metrics")
	f.StringVar(&o.URL, "external-url", "", "what callback `URLs` begin with (default: server.externalURL of sluice.yaml, else the address)")
	f.DurationVar(&o.Duration, "lease-duration", 15*time.Second, "how long a controller that is not heard of keeps its place")
	f.DurationVar(&o.Deadline, "renew-deadline", 10*time.Second, "how long one acts that could not renew its Lease")
	f.DurationVar(&o.Retry, "retry-period", 2*time.Second, "how often the Lease is renewed")
	return c
}

func namespaceOf(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	b, err := os.ReadFile(inPod)
	if errors.Is(err, fs.ErrNotExist) {
		return "sluice", nil
	}
	if err != nil {
		return "", fault.WithRemedy(fmt.Errorf("read the namespace of this pod: %w", err), "give --namespace NAME")
	}
	return strings.TrimSpace(string(b)), nil
}

// identity names this process: its host, which in a cluster is its pod, and a word that no earlier process there had.
func identity() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find the name of this host: %w", err)
	}
	return host + "-" + newID(), nil
}

// remote returns the controller that sluice.yaml names, if its Lease says that one is alive; nil where there is none.
func (a *app) remote(ctx context.Context) (deliveries, error) {
	if a.localEngine {
		return nil, nil
	}
	c, err := config.Load(a.config)
	if err != nil || c.Controller.Account == "" {
		return nil, err
	}
	account, err := c.Account(c.Controller.Account)
	if err != nil {
		return nil, fmt.Errorf("the controller: %w", err)
	}
	if account.Kind != config.Kubernetes {
		return nil, fault.Newf(fault.Invalid, "the controller runs in account %s, which is not a cluster", account.Name)
	}
	credentials, err := kubernetes.Credentials(kubernetes.Config{Account: account.Name, Kubeconfig: account.Kubeconfig, Context: account.Context})
	if err != nil {
		return nil, err
	}
	fresh, err := lease.Fresh(ctx, credentials, c.Controller.Namespace, controller.LeaseName)
	if err != nil {
		return nil, fault.WithRemedy(fmt.Errorf("ask whether the controller of account %s is alive: %w", account.Name, err), "--local-engine does without it")
	}
	if !fresh {
		fmt.Fprintf(a.errs, "warning: no controller is alive in namespace %s of account %s; this machine carries deliveries out\n", c.Controller.Namespace, account.Name)
		return nil, nil
	}
	r, err := cluster.NewRemote(cluster.Config{Credentials: credentials, Namespace: c.Controller.Namespace})
	return remote{r}, err
}

// remote is a controller in a cluster. What steps say while they run is not told there.
type remote struct{ *cluster.Remote }

// Watch implements deliveries.
func (r remote) Watch(ctx context.Context, id string, f func(server.Event)) error {
	return r.Remote.Watch(ctx, id, func(d store.Delivery) { f(server.Event{Delivery: &d}) })
}
