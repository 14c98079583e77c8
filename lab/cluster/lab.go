// Package cluster starts and stops complete Kubernetes clusters of one node on this machine, several side by side.
//
// A cluster is a network namespace with the programs of a control plane and a node in it, and a directory that holds
// everything they write. It outlives the process that started it. What belongs to a cluster can always be found again,
// also after its maker was killed at any point: a slot file names it before anything else is made; its processes have
// pid files with start times and carry a mark in their environment; its pods are below one control group; its mounts
// are below its directory.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/sluice-cd/sluice/lab/build"
	"github.com/sluice-cd/sluice/lab/kube"
)

// Lab is a directory of clusters.
type Lab struct {
	// Dir holds the clusters' files. Two labs on one machine do not see each other's clusters.
	Dir string
	// Builder makes the programs and images. It is not needed to take clusters down.
	Builder *build.Builder
	// Out is told what happens.
	Out io.Writer
}

// DefaultDir is where clusters live: LAB_DIR, or a directory of the machine.
func DefaultDir() string {
	if dir := os.Getenv("LAB_DIR"); dir != "" {
		return dir
	}
	return "/var/lib/sluice-lab"
}

// Storage says where a cluster's volumes are.
type Storage struct {
	// FileSystem is btrfs or xfs.
	FileSystem string
	// Own gives the cluster a pool of its own; else all clusters of the lab share one, as two clusters share a
	// storage system, and a snapshot of one can be handed to another.
	Own bool
	// Size of a new pool in bytes. Its file is sparse.
	Size int64
}

// Options of a new cluster.
type Options struct {
	Storage Storage
	// Images are imported beside those that every cluster needs.
	Images []string
	// NetworkPolicies are enforced.
	NetworkPolicies bool
}

// Cluster is one cluster of a lab.
type Cluster struct {
	Name string
	// Ready is false while it is brought up, and for what a killed start left behind.
	Ready bool

	lab      *Lab
	slot     slot
	storage  Storage
	programs build.Programs
	images   []string
	// policies is the program that enforces NetworkPolicies; empty: nothing does.
	policies string
}

// New makes a lab. Nothing is started.
func New(dir string, b *build.Builder, out io.Writer) (*Lab, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	// Sockets below it may have paths of at most 107 bytes.
	if len(dir) > 40 {
		return nil, fmt.Errorf("the lab's directory %s is too long for the sockets below it: name one of at most 40 characters in LAB_DIR", dir)
	}
	return &Lab{Dir: dir, Builder: b, Out: out}, nil
}

// Up starts a cluster, or returns the one that runs. A start that fails takes down what it made.
func (l *Lab) Up(ctx context.Context, name string, o Options) (*Cluster, error) {
	if !regexp.MustCompile(`^[a-z][a-z0-9-]{0,19}$`).MatchString(name) {
		return nil, fmt.Errorf("%q is no name of a cluster: use at most 20 lower-case letters, digits and dashes", name)
	}
	if err := Check(); err != nil {
		return nil, err
	}
	// Building comes before the lock: it may take long and changes nothing here.
	programs, err := l.Builder.Programs(ctx)
	if err != nil {
		return nil, err
	}
	images, err := l.Builder.Images(ctx, programs, o.Images)
	if err != nil {
		return nil, err
	}
	policies := ""
	if o.NetworkPolicies {
		if policies, err = l.Builder.NetworkPolicies(ctx); err != nil {
			return nil, err
		}
	}
	unlock, err := l.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	c, err := l.find(name)
	if err != nil {
		return nil, err
	}
	if c != nil && c.Ready && c.Healthy(ctx) == nil {
		return c, nil
	}
	if err := l.remove(ctx, name); err != nil {
		return nil, err
	}
	c = &Cluster{Name: name, lab: l, storage: o.Storage.withDefaults(), programs: programs, images: images, policies: policies}
	if err := c.start(ctx); err != nil {
		// The caller's context may be what ended the start.
		cleaning, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("cluster %s: %w", name, err), l.remove(cleaning, name))
	}
	return c, nil
}

// Cluster finds a running cluster.
func (l *Lab) Cluster(name string) (*Cluster, error) {
	c, err := l.find(name)
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, fmt.Errorf("there is no cluster %q in %s: start it with `lab up %s`", name, l.Dir, name)
	}
	return c, nil
}

// Clusters are all clusters of this lab, also half-started ones.
func (l *Lab) Clusters() ([]*Cluster, error) {
	slots, err := readSlots()
	if err != nil {
		return nil, err
	}
	var clusters []*Cluster
	for _, s := range slots {
		if s.Dir == l.Dir {
			clusters = append(clusters, &Cluster{Name: s.Name, Ready: s.Ready, lab: l, slot: s, storage: s.Storage})
		}
	}
	return clusters, nil
}

func (l *Lab) find(name string) (*Cluster, error) {
	all, err := l.Clusters()
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if c.Name == name {
			return c, nil
		}
	}
	return nil, nil
}

// Down takes a cluster away, with everything that belongs to it. There need not be one.
func (l *Lab) Down(ctx context.Context, name string) error {
	unlock, err := l.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	return l.remove(ctx, name)
}

// Clean takes all clusters of this lab away, also what killed starts left behind.
func (l *Lab) Clean(ctx context.Context) error {
	clusters, err := l.Clusters()
	if err != nil {
		return err
	}
	var failed []error
	for _, c := range clusters {
		failed = append(failed, l.Down(ctx, c.Name))
	}
	// Directories without a slot are left by a machine that was switched off.
	entries, err := os.ReadDir(l.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && e.Name() != poolName {
			failed = append(failed, l.Down(ctx, e.Name()))
		}
	}
	return errors.Join(append(failed, l.releasePool(ctx))...)
}

// lock makes starts and stops of one cluster exclude each other. No cluster's name begins with the dash of "-run".
func (l *Lab) lock(ctx context.Context, name string) (func(), error) {
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return nil, err
	}
	return lockFile(ctx, filepath.Join(l.Dir, "."+name+".lock"))
}

// Hold waits until no other process holds this lab, and keeps others out until it is released or this process ends.
// Only those that ask are kept out: test runs, which begin by removing all clusters.
func (l *Lab) Hold(ctx context.Context) (release func(), err error) { return l.lock(ctx, "-run") }

// Kubeconfig is the administrator's, for programs on this machine.
func (c *Cluster) Kubeconfig() string { return c.path("pki", "admin.kubeconfig") }

// AuditLog is the API server's, one JSON object a line.
func (c *Cluster) AuditLog() string { return c.path("log", "audit.log") }

// Namespace is the network namespace in which the cluster runs.
func (c *Cluster) Namespace() string { return c.slot.namespace() }

// Client talks to the cluster as its administrator.
func (c *Cluster) Client() (*kube.Client, error) { return kube.Open(c.Kubeconfig()) }

// Healthy asks the API server.
func (c *Cluster) Healthy(ctx context.Context) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	return err
}

// dir holds everything of the cluster.
func (c *Cluster) dir() string { return filepath.Join(c.lab.Dir, c.Name) }

func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.dir()}, parts...)...)
}
