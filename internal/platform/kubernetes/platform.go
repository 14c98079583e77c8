// Package kubernetes is the platform of a real cluster: objects are applied by server-side apply, every change is journaled
// in the cluster before it is made, and what a delivery did is taken back from that journal.
package kubernetes

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/kube"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// manager is the name under which fields are owned.
const manager = kube.Manager

// The labels and annotations that Sluice writes.
const (
	deliveryLabel = kube.DeliveryLabel
	trackLabel    = "sluice.dev/track"
	openLabel     = platform.OpenLabel     // required by a closed Service, carried by no pod
	canaryOf      = "sluice.dev/canary-of" // on a canary: the Deployment that it stands beside
	startedBy     = "sluice.dev/started-by"
	twinLabel     = "sluice.dev/twin"
	managedBy     = kube.ManagedByLabel
	revisionName  = "deploy.armory.io/replica-set-name" // Armory's: real queries join on it
	templateHash  = "pod-template-hash"
)

// Config says which cluster an account is, and how it is treated.
type Config struct {
	Account    string
	Kubeconfig string        // a file; "" means where kubectl looks, and in a pod the pod's own credentials
	Context    string        // of the kubeconfig; "" means the current one
	Adopt      []string      // field managers whose fields are taken over besides kubectl's
	Grace      time.Duration // how long a pod may find no node; 0 means two minutes
	Jobs       Jobs          // how Sluice's own pods run there
	Stream     string        // the host at which other clusters reach ports of this one's nodes, or LoadBalancer; "" where they do not
	Log        *slog.Logger

	// Expose makes the address of a Service, which is answered until its time is over; nil where nobody would answer.
	Expose func(service manifest.Ref, until time.Time) string

	// Wrap, where it is set, stands before every request: it may refuse one that its sender is no longer entitled to.
	Wrap func(http.RoundTripper) http.RoundTripper
	// Conn, where it is set, stands before every write to a connection, likewise.
	Conn func(net.Conn) net.Conn
}

// Platform is a cluster.
type Platform struct {
	c       Config
	config  *rest.Config
	dynamic dynamic.Interface
	pods    rest.Interface // for logs, which are no objects
	kinds   *kinds
	journal journal
	held    held
	log     *slog.Logger
}

var (
	_ platform.Platform  = (*Platform)(nil)
	_ platform.Getter    = (*Platform)(nil)
	_ platform.DryRunner = (*Platform)(nil)
	_ platform.Checker   = (*Platform)(nil)
	_ platform.Deleter   = (*Platform)(nil)
	_ platform.Fencer    = (*Platform)(nil)
	_ platform.Logger    = (*Platform)(nil)
	_ platform.Shifter   = (*Platform)(nil)
	_ platform.Separator = (*Platform)(nil)
	_ platform.Keeper    = (*Platform)(nil)
	_ platform.Roller    = (*Platform)(nil)
	_ platform.Members   = (*Platform)(nil)
	_ platform.Exposer   = (*Platform)(nil)
)

// Files are where the credentials of an account are read from.
func Files(c Config) []string { return rules(c).GetLoadingPrecedence() }

func rules(c Config) *clientcmd.ClientConfigLoadingRules {
	r := clientcmd.NewDefaultClientConfigLoadingRules()
	if c.Kubeconfig != "" {
		r.ExplicitPath = c.Kubeconfig
	}
	return r
}

// Credentials reads the credentials of an account. Nothing is reached yet.
func Credentials(c Config) (*rest.Config, error) {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules(c), &clientcmd.ConfigOverrides{CurrentContext: c.Context}).ClientConfig()
	if err != nil {
		return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "the credentials of account %s cannot be read: %w", c.Account, err),
			"check kubeconfig and context of the account; kubectl --context reads the same file")
	}
	// The API server shares its capacity out fairly; a limit here would only delay decisions.
	config.QPS = -1
	config.UserAgent = manager
	// A warning about an old API version is for whoever writes manifests, and is not told on a server's standard error.
	config.WarningHandlerWithContext = rest.NoWarnings{}
	Guard(config, c.Wrap, c.Conn)
	return config, nil
}

// Guard has wrap stand before every request that is made with credentials, and conn before every write to a connection.
func Guard(config *rest.Config, wrap func(http.RoundTripper) http.RoundTripper, conn func(net.Conn) net.Conn) {
	if wrap != nil {
		config.Wrap(wrap)
	}
	if conn == nil {
		return
	}
	d := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return conn(c), nil
	}
}

// Connect reads the credentials of an account. The cluster is reached with the first call, so that one that is away is an
// error of that call, which may be tried again.
func Connect(c Config) (*Platform, error) {
	config, err := Credentials(c)
	if err != nil {
		return nil, err
	}
	return connect(c, config)
}

// Client is the connection to the cluster, for others who work on the same account.
func (p *Platform) Client() dynamic.Interface { return p.dynamic }

// As is the connection of another user of the cluster, whom the account's own may impersonate; "" is the own one.
func (p *Platform) As(user string) (dynamic.Interface, error) {
	if user == "" {
		return p.dynamic, nil
	}
	config := rest.CopyConfig(p.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "account %s as %s: %w", p.c.Account, user, err)
	}
	return client, nil
}

func connect(c Config, config *rest.Config) (*Platform, error) {
	p := &Platform{c: c, config: config, log: c.Log}
	if p.log == nil {
		p.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if p.c.Grace == 0 {
		p.c.Grace = 2 * time.Minute
	}
	p.c.Adopt = slices.Concat(kubectls(), c.Adopt)
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "the credentials of account %s cannot be used: %w", c.Account, err)
	}
	if p.dynamic, err = dynamic.NewForConfigAndClient(config, client); err != nil {
		return nil, fault.Newf(fault.Invalid, "account %s: %w", c.Account, err)
	}
	disco, err := discovery.NewDiscoveryClientForConfigAndClient(config, client)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "account %s: %w", c.Account, err)
	}
	if p.pods, err = Client(config, client, schema.GroupVersion{Version: "v1"}, runtime.NewScheme()); err != nil {
		return nil, err
	}
	p.kinds = &kinds{disco: disco}
	p.journal = journal{p.dynamic.Resource(secrets())}
	return p, nil
}
