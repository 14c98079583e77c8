// Command lab starts and stops real Kubernetes clusters on this machine, for tests and for looking around.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-cd/sluice/lab/build"
	"github.com/sluice-cd/sluice/lab/cluster"
)

const usage = `lab runs complete Kubernetes clusters on this machine (as root).

  lab up [flags] [NAME…]        start clusters; without names: prod and staging
  lab run [flags] COMMAND…      start prod and staging, run a command that finds them in LAB_KUBECONFIG and
                                LAB_KUBECONFIG_STAGING (and, in LAB_KUBECONFIG_ENFORCED, one that enforces
                                NetworkPolicies, if a flag says so) and the lab's kubectl in PATH, and take them down;
                                what an earlier run left goes first
  lab down [NAME…]              take clusters down; without names: all of this lab
  lab status                    what runs
  lab kubeconfig NAME           print the path of the administrator's kubeconfig
  lab kubectl NAME ARG…         kubectl of the lab's own version
  lab exec NAME PROGRAM ARG…    run a program with KUBECONFIG set, in the cluster's network
  lab image NAME IMAGE…         build images and give them to a running cluster
  lab build                     only fill the cache

LAB_DIR is where clusters live, LAB_CACHE where what was built is kept.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	var exit *exec.ExitError
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("give a command\n\n%s", strings.TrimSpace(usage))
	}
	l, err := open(os.Stderr)
	if err != nil {
		return err
	}
	command, args := args[0], args[1:]
	switch command {
	case "up":
		return up(ctx, l, args, out)
	case "run":
		return runIn(ctx, l, args, out)
	case "down":
		return down(ctx, l, args)
	case "status":
		return status(ctx, l, out)
	case "kubeconfig", "kubectl", "exec", "image":
		if len(args) == 0 {
			return fmt.Errorf("give the name of a cluster: lab %s NAME", command)
		}
		c, err := l.Cluster(args[0])
		if err != nil {
			return err
		}
		return within(ctx, l, c, command, args[1:], out)
	case "build":
		_, err := l.Builder.Programs(ctx)
		return err
	case "help", "-h", "--help":
		fmt.Fprint(out, usage)
		return nil
	}
	return fmt.Errorf("there is no command %q\n\n%s", command, strings.TrimSpace(usage))
}

func open(out io.Writer) (*cluster.Lab, error) {
	here, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	b, err := build.New(here, out)
	if err != nil {
		return nil, err
	}
	return cluster.New(cluster.DefaultDir(), b, out)
}

// settings are the options of all clusters that a command starts.
type settings struct {
	cluster.Options
	enforcing []string // the clusters in which NetworkPolicies are enforced
}

func (s settings) of(name string) cluster.Options {
	o := s.Options
	o.NetworkPolicies = slices.Contains(s.enforcing, name)
	return o
}

// parse reads the flags of a command that starts clusters, and returns what follows them.
func parse(command string, args []string) (settings, []string, error) {
	quick, debian := build.ImageNames()
	flags := flag.NewFlagSet("lab "+command, flag.ContinueOnError)
	var o settings
	flags.StringVar(&o.Storage.FileSystem, "storage", "xfs", "file system of the volumes' pool: xfs or btrfs")
	flags.BoolVar(&o.Storage.Own, "own-storage", false, "each cluster has a pool of its own, instead of one for all")
	flags.Int64Var(&o.Storage.Size, "storage-size", 16<<30, "bytes of a new pool; its file is sparse")
	images := flags.String("images", "quick", "images to import, separated by commas; quick stands for those that are built in seconds, not "+strings.Join(debian, ", "))
	policies := flags.String("network-policies", "", "clusters in which NetworkPolicies are enforced, separated by commas; the network of the others enforces none")
	err := flags.Parse(args)
	if *policies != "" {
		o.enforcing = strings.Split(*policies, ",")
	}
	for name := range strings.SplitSeq(*images, ",") {
		switch name {
		case "quick":
			o.Images = append(o.Images, quick...)
		case "":
		default:
			o.Images = append(o.Images, name)
		}
	}
	return o, flags.Args(), err
}

func up(ctx context.Context, l *cluster.Lab, args []string, out io.Writer) error {
	o, names, err := parse("up", args)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		names = []string{"prod", "staging"}
	}
	if err := start(ctx, l, o, names...); err != nil {
		return err
	}
	return status(ctx, l, out)
}

func start(ctx context.Context, l *cluster.Lab, o settings, names ...string) error {
	for _, name := range o.enforcing {
		if !slices.Contains(names, name) {
			return fmt.Errorf("--network-policies: %q is none of the clusters %s", name, strings.Join(names, ", "))
		}
	}
	starts, both := errgroup.WithContext(ctx)
	for _, name := range names {
		starts.Go(func() error { _, err := l.Up(both, name, o.of(name)); return err })
	}
	return starts.Wait()
}

// runIn runs a command with two clusters that live as long as it. It finds the lab's kubectl before any other.
func runIn(ctx context.Context, l *cluster.Lab, args []string, out io.Writer) (err error) {
	o, command, err := parse("run", args)
	if err != nil {
		return err
	}
	if len(command) == 0 {
		return errors.New("give a command: lab run COMMAND…")
	}
	if err := l.Clean(ctx); err != nil {
		return err
	}
	defer func() {
		cleaning, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		gone := errors.Join(l.Clean(cleaning), l.NothingLeft())
		if gone == nil {
			fmt.Fprintln(l.Out, "the clusters are gone, and nothing is left of them: no process, mount, loop device, network or control group")
		}
		err = errors.Join(err, gone)
	}()
	if err := start(ctx, l, o, "prod", "staging"); err != nil {
		return err
	}
	child := exec.CommandContext(ctx, command[0], command[1:]...)
	// The command ends what it has begun; only one that does not end is killed.
	child.Cancel, child.WaitDelay = func() error { return child.Process.Signal(syscall.SIGTERM) }, time.Minute
	programs, err := l.Builder.Programs(ctx)
	if err != nil {
		return err
	}
	child.Env = append(os.Environ(), "PATH="+filepath.Dir(programs.Path("kubectl"))+":"+os.Getenv("PATH"))
	found := map[string]string{"LAB_KUBECONFIG": "prod", "LAB_KUBECONFIG_STAGING": "staging"}
	if len(o.enforcing) > 0 {
		found["LAB_KUBECONFIG_ENFORCED"] = o.enforcing[0]
	}
	for variable, name := range found {
		c, err := l.Cluster(name)
		if err != nil {
			return err
		}
		child.Env = append(child.Env, variable+"="+c.Kubeconfig())
	}
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, out, os.Stderr
	return child.Run()
}

func down(ctx context.Context, l *cluster.Lab, names []string) error {
	if len(names) == 0 {
		return l.Clean(ctx)
	}
	var failed []error
	for _, name := range names {
		failed = append(failed, l.Down(ctx, name))
	}
	return errors.Join(failed...)
}

func status(ctx context.Context, l *cluster.Lab, out io.Writer) error {
	clusters, err := l.Clusters()
	if err != nil {
		return err
	}
	if len(clusters) == 0 {
		fmt.Fprintln(out, "no cluster runs in", l.Dir)
	}
	for _, c := range clusters {
		state := "running"
		switch {
		case !c.Ready:
			state = "not complete: it is being started, or its start was cut off (lab down " + c.Name + ")"
		case c.Healthy(ctx) != nil:
			state = "not answering (lab down " + c.Name + ")"
		}
		fmt.Fprintf(out, "%-12s %-10s KUBECONFIG=%s\n", c.Name, state, c.Kubeconfig())
	}
	return nil
}

// within is what needs a running cluster.
func within(ctx context.Context, l *cluster.Lab, c *cluster.Cluster, command string, args []string, out io.Writer) error {
	switch command {
	case "kubeconfig":
		fmt.Fprintln(out, c.Kubeconfig())
		return nil
	case "image":
		return c.Import(ctx, args...)
	case "kubectl":
		programs, err := l.Builder.Programs(ctx)
		if err != nil {
			return err
		}
		args = slices.Insert(args, 0, programs.Path("kubectl"))
	case "exec":
		if len(args) == 0 {
			return errors.New("give a program: lab exec NAME PROGRAM ARG…")
		}
		args = slices.Insert(args, 0, "nsenter", "--net=/run/netns/"+c.Namespace())
	}
	child := exec.CommandContext(ctx, args[0], args[1:]...)
	child.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, out, os.Stderr
	return child.Run()
}
