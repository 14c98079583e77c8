package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/store"
)

func (a *app) deploy() *cobra.Command {
	c := &cobra.Command{Use: "deploy", Short: "Start deliveries and decide what becomes of them"}
	c.PersistentFlags().BoolVar(&a.localEngine, "local-engine", false, "leave a controller in the cluster aside and carry deliveries out on this machine")
	c.AddCommand(a.start(), a.list())
	byID := []*cobra.Command{a.redeploy(), a.status(), a.watch(), a.logs(), a.acknowledge(), a.stay(),
		a.decide("approve ID [STEP]", "Approve a step that waits for approval", delivery.Approve, stepArg),
		a.decide("reject ID [STEP]", "Reject a step that waits for approval", delivery.Reject, stepArg),
		a.decide("pause ID", "Start no further steps", delivery.Pause, noArg),
		a.decide("resume ID", "Go on after a pause", delivery.Resume, noArg),
		a.decide("cancel ID", "End a delivery; targets under way go back", delivery.CancelAll, noArg),
		a.decide("rollback ID [TARGET]", "Take a target back to the version before", delivery.Rollback, targetArg),
		a.decide("promote ID [TARGET]", "Skip what is left of a canary and promote it", delivery.Promote, targetArg),
		a.decide("retry ID", "Try a failed undo again, or a step that an error holds", delivery.Retry, noArg),
	}
	for _, sub := range byID {
		sub.ValidArgsFunction = a.completeID
	}
	c.AddCommand(byID...)
	return c
}

// completeID offers deliveries, newest first.
func (a *app) completeID(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	if len(args) > 0 {
		return nil, none
	}
	all, err := a.listed(c.Context())
	if err != nil {
		return nil, none
	}
	var out []cobra.Completion
	for _, d := range all {
		out = append(out, cobra.CompletionWithDesc(d.Spec.ID, d.Spec.Application+", "+word(d)))
	}
	return out, none
}

// listed returns the deliveries of the controller, or of a server that runs. It starts none.
func (a *app) listed(ctx context.Context) ([]store.Delivery, error) {
	r, err := a.remote(ctx)
	if err != nil {
		return nil, err
	}
	if r != nil {
		return r.List(ctx)
	}
	dir, err := a.dataDir()
	if err != nil {
		return nil, err
	}
	client, err := server.Connect(ctx, dir)
	if err != nil {
		return nil, err
	}
	return client.List(ctx)
}

// dataDir is where deliveries are kept.
func (a *app) dataDir() (string, error) {
	if a.data != "" {
		return filepath.Abs(a.data)
	}
	if d := os.Getenv("SLUICE_DATA"); d != "" {
		return filepath.Abs(d)
	}
	if d := os.Getenv("XDG_DATA_HOME"); d != "" {
		return filepath.Join(d, "sluice"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fault.WithRemedy(err, "give --data DIR")
	}
	return filepath.Join(home, ".local", "share", "sluice"), nil
}

// deliveries is what carries deliveries out: a server of this machine, or a controller in a cluster.
type deliveries interface {
	Start(ctx context.Context, spec delivery.Spec) error
	Get(ctx context.Context, id string) (store.Delivery, error)
	List(ctx context.Context) ([]store.Delivery, error)
	Journal(ctx context.Context, id string) ([]store.Record, error)
	Signal(ctx context.Context, id string, s delivery.Signal) (bool, error)
	Watch(ctx context.Context, id string, f func(server.Event)) error
}

// connect returns the controller where one is configured and alive, else the server of the data directory, started if none
// answers.
func (a *app) connect(ctx context.Context) (deliveries, error) {
	if r, err := a.remote(ctx); r != nil || err != nil {
		return r, err
	}
	dir, err := a.dataDir()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	command := []string{self, "server", "--data", dir}
	if a.config != "" {
		path, err := filepath.Abs(a.config)
		if err != nil {
			return nil, err
		}
		command = append(command, "--config", path)
	}
	return server.EnsureRunning(ctx, dir, command)
}

// startFlags are the flags of deploy start and of plan.
type startFlags struct {
	file        string
	earlier     string // id of a delivery that is run again
	application string
	targets     []string
	context     map[string]string
	account     string
	force       bool
	watch       bool
	timeout     time.Duration
}

func (f *startFlags) bind(c *cobra.Command) {
	c.Flags().StringVarP(&f.file, "file", "f", "", "deploy `file`")
	c.Flags().StringVarP(&f.application, "application", "n", "", "application `name`, in place of the file's")
	c.Flags().StringSliceVarP(&f.targets, "target-filters", "t", nil, "deploy only these `targets`")
	c.Flags().StringSliceVar(&f.targets, "targetFilters", nil, "as --target-filters")
	c.Flags().StringToStringVar(&f.context, "add-context", nil, "`key=value` pairs for context.*, stronger than the file's")
	c.Flags().StringVar(&f.account, "account", "", "`account` in place of every target's")
	c.Flags().BoolVar(&f.force, "force-conflicts", false, "take over fields that other managers of a cluster's objects hold")
	_ = c.Flags().MarkHidden("targetFilters")
}

func newID() string {
	b := make([]byte, 8)
	// rand.Read never returns an error and always fills the slice.
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

func (a *app) start() *cobra.Command {
	var f startFlags
	c := &cobra.Command{
		Use:   "start -f FILE",
		Short: "Start a delivery",
		Long: `Start reads the deploy file and its manifests, makes the plan, and hands it to the server, which is started if none runs.

Exit code: 0 started (with --watch: Succeeded), 1 anything failed, 3 a delivery of the application is running.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case (f.file == "") == (f.earlier == ""):
				return &exit{exitUnable, errors.New("give the deploy file with -f FILE, or an earlier delivery with -i ID")}
			case f.earlier != "":
				return a.beginAgain(c.Context(), f)
			}
			spec, _, err := a.compile(a.fetcher(c.Context()), f, newID())
			if err != nil {
				return err
			}
			if err := a.prepared(c.Context(), spec); err != nil {
				return err
			}
			return a.begin(c.Context(), spec, f)
		},
	}
	f.bind(c)
	c.Flags().StringVarP(&f.earlier, "pipelineId", "i", "", "`id` of a delivery that is run once more, as deploy redeploy does")
	c.Flags().BoolVarP(&f.watch, "watch", "w", false, "watch until it has ended")
	c.Flags().DurationVar(&f.timeout, "timeout", 0, "with --watch: give up watching after this `time`; the delivery goes on")
	return c
}

// prepared refuses a delivery for which something is not configured, before it begins. A server that runs already may
// know more than the configuration that is seen from here: then it is a warning.
func (a *app) prepared(ctx context.Context, spec delivery.Spec) error {
	if err := a.unfit(ctx, spec.Graph); err != nil {
		return err
	}
	lacks, err := a.unready(spec.Graph)
	if err != nil || len(lacks) == 0 {
		return err
	}
	r, err := a.remote(ctx)
	if err != nil {
		return err
	}
	dir, err := a.dataDir()
	if err != nil {
		return err
	}
	if _, err := server.Connect(ctx, dir); r == nil && fault.Is(err, fault.NotFound) {
		return fault.Newf(fault.Invalid, "%s cannot be delivered yet: %w", spec.Application, errors.Join(lacks...))
	}
	for _, l := range lacks {
		fmt.Fprintln(a.errs, "warning: unless the server is configured otherwise:", l)
	}
	return nil
}

func (a *app) begin(ctx context.Context, spec delivery.Spec, f startFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	if spec, err = a.inTurn(ctx, client, spec); err != nil {
		return err
	}
	if err := githubOutput("DEPLOYMENT_ID", spec.ID); err != nil {
		fmt.Fprintln(a.errs, "warning:", err)
	}
	if !f.watch {
		return a.show(map[string]string{"deploymentId": spec.ID}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "[%s] Deployment ID: %s\n[%s] Watch it: sluice deploy watch %s\n", stamp(), spec.ID, stamp(), spec.ID)
			return err
		})
	}
	if a.output == "text" {
		fmt.Fprintf(a.out, "[%s] Deployment ID: %s\n", stamp(), spec.ID)
	}
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.timeout)
		defer cancel()
	}
	return a.follow(ctx, client, spec.ID)
}

// inTurn starts a delivery. Where an earlier one of the application has ended, and only cleans up, it waits until that is over.
// It returns the delivery as it was started: each try is one of its own, as a cluster keeps those that it has refused.
func (a *app) inTurn(ctx context.Context, client deliveries, spec delivery.Spec) (delivery.Spec, error) {
	for seen := ""; ; spec = again(spec, newID()) {
		err := client.Start(ctx, spec)
		running, ok := errors.AsType[*store.ErrRunning](err)
		if !ok {
			return spec, err
		}
		other, missing := client.Get(ctx, running.ID) // one that another engine carries out is not known here
		switch {
		case missing == nil && other.Status.Done && seen != running.ID:
			// It has ended since.
		case missing == nil && other.Status.CleaningUp():
			fmt.Fprintf(a.errs, "delivery %s has ended (%s) and cleans up; the next one starts when that is over\n", running.ID, word(other))
			if err := client.Watch(ctx, running.ID, func(server.Event) {}); err != nil {
				return spec, err
			}
			continue
		case missing == nil && other.Status.State.Final() && !other.Status.Done:
			return spec, &exit{exitRunning, fault.WithRemedy(fmt.Errorf("%w: an undo of it has failed", err),
				"sluice deploy retry %s tries it again, sluice deploy acknowledge %[1]s leaves it as it is", running.ID)}
		case fault.Is(missing, fault.NotFound):
			return spec, &exit{exitRunning, fault.WithRemedy(err, "another engine carries it out: watch it there, or wait until it has ended and is cleaned up")}
		default:
			return spec, &exit{exitRunning, fault.WithRemedy(err, "sluice deploy watch %s shows it", running.ID)}
		}
		seen = running.ID
	}
}

func stamp() string { return time.Now().UTC().Format(time.RFC3339) }

func (a *app) redeploy() *cobra.Command {
	var f startFlags
	c := &cobra.Command{Use: "redeploy ID", Short: "Run a delivery once more as it was", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		f.earlier = args[0]
		return a.beginAgain(c.Context(), f)
	}}
	c.Flags().BoolVarP(&f.watch, "watch", "w", false, "watch until it has ended")
	c.Flags().DurationVar(&f.timeout, "timeout", 0, "with --watch: give up watching after this `time`; the delivery goes on")
	return c
}

// beginAgain starts a delivery with the plan of an earlier one. What would change the plan is refused.
func (a *app) beginAgain(ctx context.Context, f startFlags) error {
	if f.application != "" || f.account != "" || f.force || len(f.targets) > 0 || len(f.context) > 0 {
		return &exit{exitUnable, errors.New("a delivery is run again as it was: give the deploy file with -f to change what is delivered")}
	}
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	d, err := client.Get(ctx, f.earlier)
	if err != nil {
		return err
	}
	return a.begin(ctx, again(d.Spec, newID()), f)
}

func (a *app) status() *cobra.Command {
	var named string
	c := &cobra.Command{Use: "status ID", Short: "Show how a delivery is doing", Args: func(_ *cobra.Command, args []string) error {
		if given := len(args); given > 1 || (given == 0) == (named == "") {
			return errors.New("one ID is needed")
		}
		return nil
	}, RunE: func(c *cobra.Command, args []string) error {
		client, err := a.connect(c.Context())
		if err != nil {
			return err
		}
		d, err := client.Get(c.Context(), strings.Join(append(args, named), ""))
		if err != nil {
			return err
		}
		return a.show(statusOf(d), func(w io.Writer) error { return writeStatus(w, d) })
	}}
	c.Flags().StringVarP(&named, "deploymentId", "i", "", "`id` of the delivery, as an argument")
	return c
}

func (a *app) watch() *cobra.Command {
	return &cobra.Command{Use: "watch ID", Short: "Watch a delivery until it has ended", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		client, err := a.connect(c.Context())
		if err != nil {
			return err
		}
		return a.follow(c.Context(), client, args[0])
	}}
}

func (a *app) list() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List deliveries, newest first", Args: noArguments, RunE: func(c *cobra.Command, _ []string) error {
		client, err := a.connect(c.Context())
		if err != nil {
			return err
		}
		all, err := client.List(c.Context())
		if err != nil {
			return err
		}
		out := []status{}
		for _, d := range all {
			out = append(out, statusOf(d))
		}
		return a.show(out, func(w io.Writer) error {
			t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "ID\tAPPLICATION\tSTATUS\tSTARTED\tBY")
			for _, s := range out {
				started := "-"
				if !s.Started.IsZero() {
					started = s.Started.Local().Format(time.DateTime)
				}
				is := s.Status
				if s.CleaningUp {
					is += ", cleans up"
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", s.ID, s.Application, is, started, s.InitiatedBy)
			}
			return t.Flush()
		})
	}}
}

// What the second argument of a decision names.
const (
	noArg = iota
	stepArg
	targetArg
)

// decide makes a command that sends one signal. Where the second argument is left out and only one step or target can be
// meant, that one is.
func (a *app) decide(use, short, kind string, second int) *cobra.Command {
	most := 2
	if second == noArg {
		most = 1
	}
	return &cobra.Command{Use: use, Short: short, Args: cobra.RangeArgs(1, most), RunE: func(c *cobra.Command, args []string) error {
		client, err := a.connect(c.Context())
		if err != nil {
			return err
		}
		path := ""
		if len(args) == 2 {
			path = args[1]
		} else if second != noArg {
			if path, err = only(c.Context(), client, args[0], kind); err != nil {
				return err
			}
		}
		return a.send(c.Context(), client, args[0], delivery.Signal{Kind: kind, Path: path})
	}}
}

// only returns the one step or target that a decision can mean.
func only(ctx context.Context, client deliveries, id, kind string) (string, error) {
	d, err := client.Get(ctx, id)
	if err != nil {
		return "", err
	}
	can := delivery.Candidates(d.Spec, d.Status, kind)
	switch len(can) {
	case 1:
		return can[0], nil
	case 0:
		return "", fault.Newf(fault.Conflict, "delivery %s has nothing to %s now", id, kind)
	}
	return "", fault.Newf(fault.Invalid, "several could be meant, name one: %s", strings.Join(can, ", "))
}

func (a *app) acknowledge() *cobra.Command {
	var value, digest, step string
	c := &cobra.Command{Use: "acknowledge ID", Short: "Accept a failed undo as it is, or the rows that a restore discards", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			s := delivery.Signal{Kind: delivery.Acknowledge, Path: step, Data: map[string]string{}}
			if value != "" || digest != "" {
				s.Data["value"], s.Data["digest"] = value, digest
				if step == "" {
					if s.Path, err = only(c.Context(), client, args[0], delivery.Acknowledge); err != nil {
						return err
					}
				}
			}
			return a.send(c.Context(), client, args[0], s)
		}}
	c.Flags().StringVar(&value, "value", "", "the `number` of rows that may be discarded")
	c.Flags().StringVar(&digest, "digest", "", "the `digest` that was shown with the number")
	c.Flags().StringVar(&step, "step", "", "the step's `path` where several wait")
	return c
}

func (a *app) stay() *cobra.Command {
	var step, reason string
	c := &cobra.Command{
		Use:   "stay ID",
		Short: "Keep a database on the new version where going back would discard what was written",
		Long: `Stay answers the question of a delivery that can only go back by restoring a checkpoint: nothing is restored, the database starts again on
the new version with all that was written, and the fence opens. What else the delivery changed has gone back by then, and the
delivery ends as failed, with the reason that you give.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			if step == "" {
				if step, err = only(c.Context(), client, args[0], delivery.Stay); err != nil {
					return err
				}
			}
			return a.send(c.Context(), client, args[0], delivery.Signal{Kind: delivery.Stay, Path: step, Data: map[string]string{"reason": reason}})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "a `sentence` that is kept with the decision")
	c.Flags().StringVar(&step, "step", "", "the step's `path` where several databases ask")
	return c
}

func (a *app) send(ctx context.Context, client deliveries, id string, s delivery.Signal) error {
	s.Key = s.Kind + "/" + s.Path
	switch s.Kind {
	case delivery.Pause, delivery.Resume, delivery.Retry, delivery.Acknowledge, delivery.Stay:
		s.Key += "/" + newID() // these can be meant more than once
	}
	s.By = me()
	won, err := client.Signal(ctx, id, s)
	if err != nil {
		return err
	}
	if !won {
		fmt.Fprintf(a.errs, "%s was decided before; the first decision stands\n", s.Key)
	}
	return nil
}

func (a *app) logs() *cobra.Command {
	return &cobra.Command{Use: "logs ID", Short: "Show the journal of a delivery", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		client, err := a.connect(c.Context())
		if err != nil {
			return err
		}
		records, err := client.Journal(c.Context(), args[0])
		if err != nil {
			return err
		}
		return a.show(records, func(w io.Writer) error {
			for _, r := range records {
				fmt.Fprintf(w, "%s %-8s %-50s %s\n", r.At.Format(time.RFC3339), r.Kind, r.Path, brief(r.Data))
			}
			return nil
		})
	}}
}

func brief(data []byte) string {
	s := string(data)
	if len(s) > 160 {
		s = s[:160] + "…"
	}
	return s
}
