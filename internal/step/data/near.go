package data

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
	"github.com/sluice-cd/sluice/internal/volume"
)

// prepare readies volumes before a database is started on them: here, where their files are at hand, else by an errand that
// mounts the claims where the workload will, so that a path means the same to both.
func (b base) prepare(ctx context.Context, c step.Call, p place, db plan.Database, w workload, on []volume.Source, role database.Role, key string) (database.Launch, error) {
	var launch database.Launch
	r, away := p.Platform.(platform.Runner)
	if !away {
		engine, err := b.ports.Engine(db.Engine)
		if err != nil {
			return launch, err
		}
		return engine.Prepare(ctx, dirsOf(on), role)
	}
	e := platform.Errand{Delivery: c.Delivery, Mounts: w.mounts(on), Like: w.template.Spec, Args: []string{"prepare", "--engine", db.Engine, "--role", string(role)}}
	return launch, runErrand(ctx, r, key, e, on, &launch)
}

// runErrand runs an errand where volumes are mounted, and reads its result. The paths of the mounts are its last arguments.
func runErrand(ctx context.Context, r platform.Runner, key string, e platform.Errand, on []volume.Source, result any) error {
	if len(on) == 0 {
		return fault.Newf(fault.Lost, "the copy names no claim")
	}
	e.Namespace = on[0].Namespace
	for _, m := range e.Mounts {
		e.Args = append(e.Args, m.Path)
	}
	told, err := r.Run(ctx, key, e)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(told[0], result); err != nil {
		return fault.Newf(fault.Lost, "what sluice errand %s tells cannot be read: %w", e.Args[0], err)
	}
	return nil
}

// atRisk counts what a restore would discard, in the log on production's volumes behind the fence: here, where their files
// are at hand, else by an errand among the programs of the database's own image, which reads its own log.
func (b base) atRisk(ctx context.Context, c step.Call, p place, db plan.Database, l database.Log, now live, from, key string) (database.AtRisk, error) {
	r, away := p.Platform.(platform.Runner)
	if !away {
		return l.AtRisk(ctx, dirsOf(now.sources), from)
	}
	e := platform.Errand{Delivery: c.Delivery, Mounts: now.mounts(now.sources), Like: now.template.Spec, Image: now.template.Spec.Containers[0].Image,
		Args: []string{"at-risk", "--engine", db.Engine, "--from", from}}
	for i := range e.Mounts {
		e.Mounts[i].ReadOnly = true
	}
	var n database.AtRisk
	err := runErrand(ctx, r, key, e, now.sources, &n)
	if err != nil {
		err = fmt.Errorf("read the log by a pod of %s: %w", e.Image, err)
	}
	return n, err
}

// dirsOf returns where volumes are on this machine.
func dirsOf(on []volume.Source) []string {
	var dirs []string
	for _, s := range on {
		dirs = append(dirs, s.Dir)
	}
	return dirs
}

// files returns the volumes of a clone.
func files(clone volume.Copy) []volume.Source {
	i := clone.Info()
	out := make([]volume.Source, max(len(i.Places), len(i.Dirs)))
	for n := range out {
		if n < len(i.Places) {
			out[n].Account, out[n].Namespace, out[n].Claim = i.Places[n].Account, i.Places[n].Namespace, i.Places[n].Claim
		}
		if n < len(i.Dirs) {
			out[n].Dir = i.Dirs[n]
		}
	}
	return out
}

// mounts returns where the workload's containers mount volumes, given in the order of its claims. The first container is the
// database.
func (w workload) mounts(on []volume.Source) []platform.Mount {
	var out []platform.Mount
	for i, s := range on {
		found := false
		for _, c := range w.template.Spec.Containers {
			for _, m := range c.VolumeMounts {
				if i < len(w.volumes) && m.Name == w.volumes[i] && m.SubPathExpr == "" {
					out, found = append(out, platform.Mount{Claim: s.Claim, Path: m.MountPath, SubPath: m.SubPath}), true
				}
			}
			if found {
				break
			}
		}
		if !found {
			out = append(out, platform.Mount{Claim: s.Claim, Path: fmt.Sprintf("/volumes/%d", i)})
		}
	}
	return out
}

// others returns what a copy must not reach: the Services of the running database and its pods.
func (b base) others(ctx context.Context, db plan.Database) ([]platform.Endpoint, error) {
	p, err := b.at(db.Account)
	if err != nil {
		return nil, err
	}
	if _, ok := p.Platform.(platform.Isolator); !ok || db.Unenforced {
		return nil, nil
	}
	l, err := b.live(ctx, p, db)
	if err != nil {
		return nil, err
	}
	get, err := optional[platform.Getter](p, "read live objects")
	if err != nil {
		return nil, err
	}
	var out []platform.Endpoint
	for _, o := range l.services {
		e, err := endpoints(o)
		if err != nil {
			return nil, err
		}
		out = append(out, e...)
	}
	pods, err := get.List(ctx, "Pod", db.Namespace)
	if err != nil {
		return nil, err
	}
	for _, o := range pods {
		var pod corev1.Pod
		if err := o.Into(&pod); err != nil {
			return nil, err
		}
		if pod.Status.PodIP == "" || !labels.SelectorFromSet(l.template.Labels).Matches(labels.Set(pod.Labels)) {
			continue
		}
		for _, port := range l.ports() {
			out = append(out, platform.Endpoint{What: "Pod " + db.Namespace + "/" + pod.Name, UID: string(pod.UID),
				Address: net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(int(port)))})
		}
	}
	return out, nil
}

// endpoints returns the addresses of a Service.
func endpoints(o manifest.Object) ([]platform.Endpoint, error) {
	var s corev1.Service
	if err := o.Into(&s); err != nil {
		return nil, err
	}
	ips := append([]string{s.Spec.ClusterIP}, s.Spec.ExternalIPs...)
	for _, i := range s.Status.LoadBalancer.Ingress {
		ips = append(ips, i.IP)
	}
	var out []platform.Endpoint
	for _, ip := range ips {
		if net.ParseIP(ip) == nil {
			continue // a headless Service has none
		}
		for _, port := range s.Spec.Ports {
			if port.Protocol == "" || port.Protocol == corev1.ProtocolTCP {
				out = append(out, platform.Endpoint{What: "Service " + s.Namespace + "/" + s.Name, UID: string(s.UID),
					Address: net.JoinHostPort(ip, strconv.Itoa(int(port.Port)))})
			}
		}
	}
	return out, nil
}

// ports are the ports at which the database's pods listen, as far as manifests say.
func (l live) ports() []int32 {
	var out []int32
	for _, c := range l.template.Spec.Containers {
		for _, p := range c.Ports {
			out = append(out, p.ContainerPort)
		}
	}
	for _, o := range l.services {
		var s corev1.Service
		if o.Into(&s) != nil {
			continue
		}
		for _, p := range s.Spec.Ports {
			switch n := p.TargetPort.IntVal; {
			case n != 0:
				out = append(out, n)
			case p.TargetPort.StrVal == "":
				out = append(out, p.Port)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// isolate keeps the pods of a copy from everything else, before the first of them starts. Where the cluster's network does not
// enforce that, and production can be reached from there, it stops unless that was accepted in writing.
func (b base) isolate(ctx context.Context, c step.Call, p place, db plan.Database, r raising) error {
	i, ok := p.Platform.(platform.Isolator)
	if !ok {
		return nil
	}
	reached, err := i.Isolate(ctx, r.copyID+"/probe", platform.Isolation{Namespace: r.namespace, Own: !r.theirs, Delivery: c.Delivery,
		Labels: r.workload.template.Labels, Others: r.others,
		Whole: r.role == database.Rehearsal}) // its application is production's as much as the database is
	if err != nil || len(reached) == 0 {
		return err
	}
	return fault.WithRemedy(fault.Newf(fault.Denied, "a pod of a copy of %s in namespace %s reaches production: %s", db.Name, r.namespace, strings.Join(reached, ", ")),
		"copy into a cluster whose network enforces NetworkPolicies, or accept it in writing with `quarantine: unenforced` at the database")
}

// proofs prove that the quarantines of several copies hold, while the copies are made.
type proofs struct {
	base
	c       step.Call
	p       place
	db      plan.Database
	running sync.WaitGroup
}

// begin returns the context of all, and what ends them.
func (f *proofs) begin(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	return ctx, func() {
		cancel()
		f.running.Wait()
	}
}

// of begins to prove the quarantine of a copy. What it returns waits for the proof.
func (f *proofs) of(ctx context.Context, r raising) func(context.Context) error {
	done := make(chan struct{})
	var err error
	f.running.Go(func() {
		defer close(done)
		err = f.isolate(ctx, f.c, f.p, f.db, r)
	})
	return func(ctx context.Context) error {
		select {
		case <-done:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// release ends what of a delivery still runs beside copies in a namespace, and takes back what kept their pods from everything else.
func (b base) release(ctx context.Context, c step.Call, p place, namespace string) error {
	if r, ok := p.Platform.(platform.Runner); ok {
		if err := r.End(ctx, namespace, c.Delivery); err != nil {
			return err
		}
	}
	i, ok := p.Platform.(platform.Isolator)
	if !ok {
		return nil
	}
	return i.Release(ctx, namespace, c.Delivery)
}
