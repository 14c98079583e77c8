// Package config is sluice.yaml: which accounts there are, where metrics come from, what secrets are called, and which
// program an image means on a machine without containers.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/internal/fault"
)

// The kinds of accounts.
const (
	Local      = "local"
	Kubernetes = "kubernetes"
)

// LoadBalancer as Stream of an account: the cluster gives an address to what others reach.
const LoadBalancer = "loadBalancer"

// Prometheus is the kind of metric provider.
const Prometheus = "prometheus"

// Owner is the role that may decide everything.
const Owner = "owner"

// Config is what is configured. Secrets are named in it, never held.
type Config struct {
	Path            string // the file it was read from, "" where none was found
	Accounts        map[string]Account
	MetricProviders map[string]MetricProvider
	Secrets         map[string]Source
	Images          map[string][]string // image → command
	Server          Server
	Controller      Controller
	Roles           map[string][]string // user → the roles that approvals ask for
}

// Account is where workloads run.
type Account struct {
	Name       string
	Kind       string   // Local or Kubernetes
	Directory  string   // of a local one, absolute; "" means a folder of the account's name under the data directory
	Context    string   // of a Kubernetes one
	Kubeconfig string   // absolute; "" means where kubectl looks, and in a pod the pod's own credentials
	Adopt      []string // of a Kubernetes one: field managers whose fields are taken over, besides kubectl's
	Jobs       Jobs     // of a Kubernetes one
	CopyAs     string   // of a Kubernetes one: the user who copies volumes, whom the account's own impersonates; "" means itself
	RestoreAs  string   // likewise, the user who swaps them
	Stream     string   // of a Kubernetes one whose storage other accounts do not share: the host at which their pods reach its nodes, or LoadBalancer
}

// Jobs say how Sluice's own pods run in a cluster: those that ready the volumes of copies, that read databases, and
// that test a quarantine.
type Jobs struct {
	Image       string // of Sluice; "" where there is none, and databases of the cluster cannot be copied
	Limits      corev1.ResourceList
	Tolerations []corev1.Toleration
	Parallelism int // how many pods read a large database at a time; 0: 4
}

// MetricProvider is where numbers come from.
type MetricProvider struct {
	Name     string
	Kind     string // Prometheus
	URL      string
	User     string
	Password *Source // nil: none
	Bearer   *Source // nil: none
}

// Server is how the server is reached.
type Server struct {
	Listen      string // host:port, "" where the server may choose
	ExternalURL string // what callback URLs begin with, "" where it is the address that is listened on
	SocketGroup string // whose members may connect to the socket, besides the owner of the data directory; "" is nobody
}

// Controller is where a controller carries deliveries out. The zero value is none.
type Controller struct {
	Account   string // the cluster
	Namespace string // of its deliveries
}

// Default is what holds where no file is found: one local account named local.
func Default() *Config {
	return &Config{
		Accounts:        map[string]Account{Local: {Name: Local, Kind: Local}},
		MetricProviders: map[string]MetricProvider{},
		Secrets:         map[string]Source{},
		Images:          map[string][]string{},
		Roles:           map[string][]string{},
	}
}

// Load reads the configuration: the explicit file, else that of $SLUICE_CONFIG, else ./sluice.yaml, else
// sluice/sluice.yaml in the user's configuration folder. A file that was named must exist; where none was named and none
// is found the defaults hold.
func Load(explicit string) (*Config, error) {
	if explicit == "" {
		explicit = os.Getenv("SLUICE_CONFIG")
	}
	if explicit != "" {
		c, err := read(explicit)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.WithRemedy(fault.Newf(fault.NotFound, "the configuration %s does not exist", explicit), "name another with --config or $SLUICE_CONFIG")
		}
		return c, err
	}
	places := []string{"sluice.yaml"}
	if dir, err := os.UserConfigDir(); err == nil {
		places = append(places, filepath.Join(dir, "sluice", "sluice.yaml"))
	}
	for _, p := range places {
		c, err := read(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return c, err
	}
	return Default(), nil
}

func read(path string) (*Config, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return Parse(path, body)
}

// Account returns a configured account.
func (c *Config) Account(name string) (Account, error) {
	a, ok := c.Accounts[name]
	if !ok {
		return Account{}, c.missing("account", name, "accounts", slices.Sorted(maps.Keys(c.Accounts)))
	}
	return a, nil
}

// Apart tells why an account does not have the snapshots of volumes of another one, "" where it has them: all clusters are taken to
// share one storage but for those that say otherwise.
func (c *Config) Apart(from, to string) string {
	if from == to {
		return ""
	}
	for _, name := range []string{to, from} {
		if c.Accounts[name].Stream != "" {
			return fmt.Sprintf("account %s has a storage of its own", name)
		}
	}
	return ""
}

// Streamed refuses an account to which volumes are to be streamed and that does not say how it is reached.
func (c *Config) Streamed(from, to string) error {
	if why := c.Apart(from, to); why != "" && c.Accounts[to].Stream == "" {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "volumes cannot be copied from account %s to %s: %s, and account %s does not say how volumes are streamed to it", from, to, why, to),
			"set `stream` of account %s to a host at which the pods of account %s reach its nodes, or to %s", to, from, LoadBalancer)
	}
	return nil
}

// MetricProvider returns a configured provider. With no name and only one provider it is that one.
func (c *Config) MetricProvider(name string) (MetricProvider, error) {
	names := slices.Sorted(maps.Keys(c.MetricProviders))
	if name == "" && len(names) == 1 {
		name = names[0]
	}
	p, ok := c.MetricProviders[name]
	if !ok {
		return p, c.missing("metric provider", name, "metricProviders", names)
	}
	return p, nil
}

// Secret returns the value of a secret. It is read anew each time and kept nowhere.
func (c *Config) Secret(name string) (string, error) {
	s, ok := c.Secrets[name]
	if !ok {
		return "", c.missing("secret", name, "secrets", slices.Sorted(maps.Keys(c.Secrets)))
	}
	v, err := s.Value()
	if err != nil {
		return "", fmt.Errorf("secret %s: %w", name, err)
	}
	return v, nil
}

// RolesOf returns the roles of a user.
func (c *Config) RolesOf(user string) []string { return slices.Clone(c.Roles[user]) }

// missing says that a name is not configured, what it may have meant, and where it would be.
func (c *Config) missing(what, name, section string, known []string) error {
	where := c.Path
	if where == "" {
		where = "sluice.yaml, which was not found"
	}
	err := fault.Newf(fault.NotFound, "there is no %s named %q", what, name)
	if near := closest(name, known); near != "" {
		return fault.WithRemedy(err, "did you mean %s? Otherwise add it under %s: in %s", near, section, where)
	}
	if len(known) == 0 {
		return fault.WithRemedy(err, "none is configured: add it under %s: in %s", section, where)
	}
	return fault.WithRemedy(err, "configured are %s: add it under %s: in %s", strings.Join(known, ", "), section, where)
}
