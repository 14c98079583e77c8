package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// step compiles one step of a list and returns the paths at its end; none for a step in the background.
func (b *targetPlan) step(ph Phase, path string, s deployfile.Step, after []string) ([]string, error) {
	one := func(p string, err error) ([]string, error) {
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", s.Pos.Line, err)
		}
		return []string{p}, nil
	}
	switch {
	case s.Sequence != nil:
		return b.sequential(ph, path, s.Sequence, after)
	case s.Pause != nil && s.Pause.UntilApproved:
		return one(b.add(ph, path+"-approval", "approval", KindApproval,
			ApprovalArgs{Roles: s.Pause.RequiresRoles, Expires: s.Pause.ApprovalExpiration}, after))
	case s.Pause != nil:
		return one(b.add(ph, path+"-pause", "pause "+s.Pause.Duration.String(), KindPause, PauseArgs{For: s.Pause.Duration}, after))
	case s.RunWebhook != nil:
		return one(b.webhook(ph, path, s.RunWebhook, after))
	case s.Analysis != nil:
		p, err := b.analysis(ph, path, s.Analysis, after)
		if err == nil && s.Analysis.Background {
			return nil, nil
		}
		return one(p, err)
	case s.ExposeServices != nil:
		ttl := s.ExposeServices.TTL
		if ttl == 0 {
			ttl = exposedFor
		}
		return one(b.add(ph, path+"-expose", "expose "+strings.Join(s.ExposeServices.Services, ", "), KindExpose,
			ExposeArgs{Account: b.site.Account, Namespace: b.site.Namespace, Services: s.ExposeServices.Services, TTL: ttl}, after))
	case s.RunJob != nil:
		return one(b.job(ph, path, s.RunJob, after))
	case s.WaitFor != nil:
		return one(b.add(ph, path+"-waitFor", "wait for "+s.WaitFor.Kind+"/"+s.WaitFor.Name, KindWaitFor, WaitForArgs{To: b.site,
			Ref: manifest.Ref{Kind: s.WaitFor.Kind, Namespace: b.site.Namespace, Name: s.WaitFor.Name}, Timeout: orElse(s.WaitFor.Timeout, readyWithin)}, after))
	default:
		return one(b.dataStep(ph, path, s, after))
	}
}

func orElse(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// where is what the armory.* variables are made of. Which Deployment replicaSetName means where a target has several is
// documented nowhere: it is the first. Previews are seen by what comes after them in the same target, and nowhere else.
func (b *targetPlan) where() Where {
	w := Where{Application: b.c.f.Application, Target: b.t.Name, Account: b.site.Account, Namespace: b.site.Namespace}
	for _, o := range b.objects {
		if o.GetKind() == "Deployment" {
			w.ReplicaSetName = b.revision(o.GetName())
			break
		}
	}
	for _, n := range b.c.g.Nodes {
		if n.Target == b.t.Name && n.Kind == KindExpose {
			w.Previews = append(w.Previews, n.Path)
		}
	}
	return w
}

// revision names the new version of a Deployment.
func (b *targetPlan) revision(deployment string) string {
	return deployment + "-" + b.c.in.Delivery[:min(8, len(b.c.in.Delivery))]
}

// context is what context.* means in a step: what the command line added is strongest, then the step's own.
func (b *targetPlan) context(own map[string]string) map[string]string {
	return merged(b.c.f.Context, own, b.c.in.Context)
}

func (b *targetPlan) webhook(ph Phase, path string, s *deployfile.RunWebhook, after []string) (string, error) {
	i := slices.IndexFunc(b.c.f.Webhooks, func(w deployfile.Webhook) bool { return w.Name == s.Name })
	if i < 0 {
		return "", fault.Newf(fault.Invalid, "there is no webhook named %q", s.Name)
	}
	w := b.c.f.Webhooks[i]
	a := WebhookArgs{Name: w.Name, Method: w.Method, URI: w.URI, Body: w.Body, RetryCount: w.RetryCount, DisableCallback: w.DisableCallback,
		Context: b.context(s.Context), Where: b.where()}
	if a.Method == "" {
		a.Method = "POST"
	}
	if strings.EqualFold(w.NetworkMode, "remoteNetworkAgent") {
		if a.Agent = w.AgentIdentifier; a.Agent == "" {
			a.Agent = b.site.Account
		}
	}
	for _, h := range w.Headers {
		a.Headers = append(a.Headers, Header{Key: h.Key, Value: h.Value})
	}
	return b.add(ph, path+"-webhook", "webhook "+w.Name, KindWebhook, a, after)
}

func (b *targetPlan) analysis(ph Phase, path string, s *deployfile.Analysis, after []string) (string, error) {
	a := AnalysisArgs{Judge: "threshold", Interval: s.Interval, Runs: s.NumberOfJudgmentRuns, InitialDelay: s.InitialDelay, Lookback: s.LookbackMethod,
		AbortOnFail: s.AbortOnFailedJudgment, RollBack: s.RollBackMode, RollForward: s.RollForwardMode, Context: b.context(s.Context), Where: b.where()}
	if a.RollBack == "" {
		a.RollBack = "automatic"
	}
	if a.RollForward == "" {
		a.RollForward = "automatic"
	}
	provider := func(names ...string) string {
		for _, n := range append(names, s.MetricProviderName, b.c.f.Analysis.DefaultMetricProviderName) {
			if n != "" {
				return n
			}
		}
		return ""
	}
	for _, name := range s.Queries {
		i := slices.IndexFunc(b.c.f.Analysis.Queries, func(q deployfile.Query) bool { return q.Name == name })
		if i < 0 {
			return "", fault.Newf(fault.Invalid, "there is no query named %q", name)
		}
		q := b.c.f.Analysis.Queries[i]
		a.Queries = append(a.Queries, Query{Name: q.Name, Template: q.QueryTemplate, Provider: provider(q.MetricProviderName), Upper: q.UpperLimit, Lower: q.LowerLimit})
	}
	if s.Counts != nil {
		a.Judge = "counts"
		a.Counts = &CountsArgs{CanaryTotal: s.Counts.CanaryTotal, CanaryBad: s.Counts.CanaryBad, StableTotal: s.Counts.StableTotal, StableBad: s.Counts.StableBad,
			Provider: provider(), Alpha: s.Counts.Alpha, Margin: s.Counts.Margin, MinRequests: s.Counts.MinRequests}
	}
	title := "analysis " + strings.Join(s.Queries, ", ")
	if s.Counts != nil {
		title = "analysis of counted requests"
	}
	return b.add(ph, path+"-analysis", title, KindAnalysis, a, after, func(n *Node) {
		n.Background, n.OnInconclusive = s.Background, s.OnInconclusive
	})
}

func (b *targetPlan) job(ph Phase, path string, s *deployfile.RunJob, after []string) (string, error) {
	objects, ok := b.c.in.Jobs[s.Name]
	if !ok {
		return "", fault.Newf(fault.Invalid, "there is no job named %q in data.jobs", s.Name)
	}
	return b.add(ph, path+"-job", "job "+s.Name, KindRunJob, JobArgs{Name: s.Name, To: b.site, Objects: objects, Timeout: orElse(s.Timeout, readyWithin)}, after)
}

// database finds a declared database.
func (b *targetPlan) database(name string) (Database, error) {
	for _, d := range b.c.f.Data.Databases {
		if d.Name != name {
			continue
		}
		i := slices.IndexFunc(b.c.f.Targets, func(t deployfile.Target) bool { return t.Name == d.Target })
		if i < 0 {
			return Database{}, fault.Newf(fault.Invalid, "database %s: its target %q does not exist", name, d.Target)
		}
		site := b.c.site(b.c.f.Targets[i])
		kind, workload, ok := strings.Cut(d.Workload, "/")
		kinds := map[string]string{"statefulset": "StatefulSet", "deployment": "Deployment"}
		if !ok || kinds[strings.ToLower(kind)] == "" {
			return Database{}, fault.Newf(fault.Invalid, "database %s: workload %q is not statefulset/NAME or deployment/NAME", name, d.Workload)
		}
		return Database{Name: d.Name, Engine: d.Engine, Account: site.Account, Namespace: site.Namespace,
			Workload: manifest.Ref{Kind: kinds[strings.ToLower(kind)], Name: workload}, Connection: d.Connection,
			Unenforced: d.Quarantine == deployfile.Unenforced, Sidecars: d.Sidecars}, nil
	}
	return Database{}, fault.Newf(fault.Invalid, "there is no database named %q in data.databases", name)
}

// dataStep compiles the steps that touch data.
func (b *targetPlan) dataStep(ph Phase, path string, s deployfile.Step, after []string) (string, error) {
	switch {
	case s.CopyData != nil:
		return b.copyData(ph, path, s.CopyData, after)
	case s.VerifyData != nil:
		a, err := b.marked("verifyData", s.VerifyData.Database)
		if err != nil {
			return "", err
		}
		if a.Contract, err = b.contract(s.VerifyData.Contract); err != nil {
			return "", err
		}
		a.Timeout = orElse(s.VerifyData.Timeout, readyWithin)
		a.Checks = b.checks(s.VerifyData.Database)
		return b.add(ph, path+"-verifyData", "verify "+s.VerifyData.Database, KindVerifyData, a, after)
	case s.RehearseRollback != nil:
		a, err := b.marked("rehearseRollback", s.RehearseRollback.Database)
		if err != nil {
			return "", err
		}
		if err := b.alone(a.Database); err != nil {
			return "", err
		}
		a.Require, a.Timeout = s.RehearseRollback.Require, orElse(s.RehearseRollback.Timeout, readyWithin)
		a.Apps, _ = partition(b.objects, func(o manifest.Object) bool { return b.application(o, a.Database) })
		jobs := s.RehearseRollback.Jobs
		if len(jobs) == 0 {
			jobs = slices.Sorted(maps.Keys(b.c.in.Jobs))
		}
		for _, j := range jobs {
			objects, ok := b.c.in.Jobs[j]
			if !ok {
				return "", fault.Newf(fault.Invalid, "there is no job named %q in data.jobs", j)
			}
			a.Jobs = append(a.Jobs, objects...)
		}
		p, err := b.add(ph, path+"-rehearse", "rehearse the way back of "+a.Database.Name, KindRehearse, a, after)
		b.c.rehearsals[a.Database.Name] = p
		return p, err
	case s.CheckpointData != nil:
		db, err := b.database(s.CheckpointData.Database)
		if err != nil {
			return "", err
		}
		a := DataArgs{Database: db, To: b.site, Name: s.CheckpointData.Name, TTL: orElse(s.CheckpointData.TTL, keptFor),
			Timeout: readyWithin}
		return b.add(ph, path+"-checkpoint", "checkpoint "+db.Name, KindCheckpointData, a, after)
	}
	return "", fault.Newf(fault.Invalid, "%s", unbuilt(s))
}

// alone refuses to rehearse the way back of a database beside which others are deployed: the application would be tried with
// those empty.
func (b *targetPlan) alone(db Database) error {
	for _, d := range b.c.f.Data.Databases {
		if d.Name == db.Name {
			continue
		}
		other, err := b.database(d.Name)
		if err != nil {
			return err
		}
		if _, err := b.split(other); fault.Is(err, fault.NotFound) {
			continue
		} else if err != nil {
			return err
		}
		return fault.WithRemedy(fault.Newf(fault.Invalid, "rehearseRollback of %s: the manifests of target %s hold database %s too, and a rehearsal of several databases is not built yet",
			db.Name, b.t.Name, other.Name), "deliver one of them after the other, each with a deploy file of its own")
	}
	return nil
}

// unbuilt says why a step that the dialect knows cannot be planned here.
func unbuilt(s deployfile.Step) string {
	switch {
	case s.SetWeight != nil:
		return "setWeight belongs in the steps of a canary"
	case s.MaskData != nil:
		return "maskData needs masking, which is not built yet"
	case s.RestoreData != nil:
		return "restoreData is not built yet as a step"
	}
	return "the step does nothing"
}

// application reports whether an object belongs to the application beside the database that a rehearsal starts: it is not the
// database's own, it belongs to a namespace, and it neither acts by itself nor leads anybody to the copy.
func (b *targetPlan) application(o manifest.Object, db Database) bool {
	own, _ := b.split(db)
	return !o.ClusterWide() && !slices.Contains(unrehearsed(), o.GetKind()) && !slices.ContainsFunc(own, func(p manifest.Object) bool { return p.Ref() == o.Ref() })
}

// unrehearsed are the kinds that a rehearsal does without: what has work of its own, what routes users, what counts pods, and what
// would open the quarantine again.
func unrehearsed() []string {
	return []string{"Job", "CronJob", "Ingress", "IngressRoute", "Route", "Gateway", "HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "VirtualService", "TrafficSplit",
		"HorizontalPodAutoscaler", "ScaledObject", "PodDisruptionBudget", "NetworkPolicy", "CiliumNetworkPolicy"}
}

func (b *targetPlan) contract(name string) (*Contract, error) {
	if name == "" {
		return nil, nil
	}
	for _, k := range b.c.f.Data.Contracts {
		if k.Name == name {
			return &Contract{Name: k.Name, Exclude: k.Exclude, Describe: k.Describe}, nil
		}
	}
	return nil, fault.Newf(fault.Invalid, "there is no contract named %q in data.contracts", name)
}

func (b *targetPlan) checks(database string) []Check {
	var out []Check
	for _, k := range b.c.f.Data.Checks {
		if k.Database == "" || k.Database == database {
			out = append(out, Check{Name: k.Name, Query: k.Query, Equals: k.Equals})
		}
	}
	return out
}

func (b *targetPlan) copyData(ph Phase, path string, s *deployfile.CopyData, after []string) (string, error) {
	if ph != Before {
		return "", fault.Newf(fault.Invalid, "copyData belongs in beforeDeployment: the target is deployed onto the copy")
	}
	db, err := b.database(s.Database)
	if err != nil {
		return "", err
	}
	if db.Account == b.site.Account && db.Namespace == b.site.Namespace {
		return "", fault.Newf(fault.Invalid, "database %s runs in this very target: a copy beside it would be production", db.Name)
	}
	own, err := b.split(db)
	if err != nil {
		return "", err
	}
	if b.copies[db.Name] != "" {
		return "", fault.Newf(fault.Invalid, "database %s is copied into this target twice", db.Name)
	}
	p, err := b.add(ph, path+"-copyData", "copy "+db.Name, KindCopyData,
		CopyArgs{Database: db, To: b.site, Replace: s.Replace, MaxHold: s.MaxHold, Timeout: orElse(s.Timeout, readyWithin), Objects: own}, after)
	b.copies[db.Name] = p
	return p, err
}

// copied returns the arguments of a step on the twins of a database in this target.
func (b *targetPlan) copied(name string) (DataArgs, error) {
	db, err := b.database(name)
	if err != nil {
		return DataArgs{}, err
	}
	if b.copies[name] == "" {
		return DataArgs{}, fault.WithRemedy(fault.Newf(fault.Invalid, "no copy of %s exists in target %s", name, b.t.Name),
			"add copyData: {database: %s} to its beforeDeployment", name)
	}
	own, err := b.split(db)
	return DataArgs{Database: db, To: b.site, CopyPath: b.copies[name], MarkPath: b.marks[name], Objects: own}, err
}

// marked is copied for the steps that need the mark, which stands once the database of the target is deployed.
func (b *targetPlan) marked(step, name string) (DataArgs, error) {
	a, err := b.copied(name)
	if err == nil && a.MarkPath == "" {
		err = fault.WithRemedy(fault.Newf(fault.Invalid, "%s of %s comes before the change that it checks", step, name), "move it to afterDeployment")
	}
	return a, err
}
