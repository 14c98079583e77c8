package local

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// want is one pod as a workload asks for it.
type want struct {
	name     string // namespace/name
	hash     string
	owner    string
	track    platform.Track
	record   *record
	template corev1.PodTemplateSpec
}

// reconcile makes the processes and listeners be what the state says. It is called with the lock held, after every
// change of the state and of a pod.
func (n *node) reconcile() {
	wanted := map[string]want{}
	for k, r := range n.state.Objects {
		for _, w := range n.wants(k, r) {
			wanted[w.name] = w
		}
	}
	for _, name := range slices.Sorted(keysOf(n.pods)) {
		p := n.pods[name]
		w, ok := wanted[name]
		switch {
		case p.now().ended && !(ok && p.hash == w.hash && p.once):
			delete(n.pods, name)
			if !ok && strings.HasPrefix(p.owner, "Deployment/") {
				n.state.release("pod/" + name) // the next version's pods have other names
			}
		case p.refused != "":
			// What it lacked may be there by now.
			p.cancel()
			delete(n.pods, name)
		case !ok && n.replaced(p, wanted), ok && p.hash != w.hash && n.turn(p, wanted):
			p.cancel()
		case ok:
			p.place(w.track)
		}
	}
	for _, name := range slices.Sorted(keysOf(wanted)) {
		if _, ok := n.pods[name]; !ok && n.ctx.Err() == nil && n.mayStart(wanted[name]) {
			n.launch(wanted[name], nil)
		}
	}
	n.listenAll()
	n.routes()
	n.version++
	n.changed.Broadcast()
}

// mayStart reports whether a pod may start now. The new pods of a Deployment that recreates wait until the old ones have
// ended: two of them would write to one volume.
func (n *node) mayStart(w want) bool {
	if !w.record.recreates() || w.track != platform.Stable {
		return true
	}
	for _, p := range n.pods {
		if p.owner == w.owner && p.hash != w.hash && p.where() == platform.Stable {
			return false
		}
	}
	return true
}

// turn reports whether a pod of a StatefulSet may be replaced now: one at a time, the last ordinal first, and while all
// others serve. One that does not serve itself is not waited for.
func (n *node) turn(p *pod, wanted map[string]want) bool {
	if !strings.HasPrefix(p.owner, "StatefulSet/") {
		return true
	}
	for _, w := range wanted {
		if w.owner != p.owner || w.name == p.name {
			continue
		}
		q, ok := n.pods[w.name]
		if p.now().ready && (!ok || !q.now().ready) {
			return false
		}
		if ok && q.hash != w.hash && ordinal(w.name) > ordinal(p.name) {
			return false
		}
	}
	return true
}

// ordinal is the number at the end of a pod's name.
func ordinal(pod string) int {
	i, _ := strconv.Atoi(pod[strings.LastIndexByte(pod, '-')+1:])
	return i
}

func keysOf[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// replaced reports whether a pod that is not wanted may go: an old pod of a Deployment serves until every new one is
// ready.
func (n *node) replaced(p *pod, wanted map[string]want) bool {
	if r, ok := n.state.Objects[p.owner]; !ok || r.recreates() || p.where() != platform.Stable || !strings.HasPrefix(p.owner, "Deployment/") {
		return true
	}
	for _, w := range wanted {
		if w.owner != p.owner || w.track != platform.Stable {
			continue
		}
		if q, ok := n.pods[w.name]; !ok || !q.now().ready {
			return false
		}
	}
	return true
}

// wants returns the pods of one object.
func (n *node) wants(k string, r *record) []want {
	template, ok, err := r.Object.PodTemplate()
	if err != nil || !ok {
		return nil
	}
	ns, name := r.Object.GetNamespace(), r.Object.GetName()
	one := func(r *record, t corev1.PodTemplateSpec, pod string, track platform.Track) want {
		return want{name: ns + "/" + pod, hash: r.hash(t), owner: k, track: track, record: r, template: t}
	}
	var out []want
	switch r.Object.GetKind() {
	case "StatefulSet":
		for i := range r.replicas() {
			out = append(out, one(r, template, fmt.Sprintf("%s-%d", name, i), platform.Stable))
		}
	case "Deployment":
		for i := range r.replicas() {
			out = append(out, one(r, template, fmt.Sprintf("%s-%d", revision(r, name, template), i), platform.Stable))
		}
		c, ok := n.state.Canaries[k]
		if !ok || r.replicas() == 0 {
			break
		}
		t, _, err := c.Record.Object.PodTemplate()
		if err != nil {
			break
		}
		// The share is the requests', so the stable version keeps all its pods until the promotion.
		total := c.Record.replicas()
		for i := range max(1, (total*c.Weight+99)/100) {
			out = append(out, one(&c.Record, t, fmt.Sprintf("%s-%d", revision(&c.Record, name, t), i), platform.Canary))
		}
	case "Job":
		if _, over := n.state.Jobs[k]; !over {
			out = append(out, one(r, template, fmt.Sprintf("%s-%d", name, n.attempts[k]), platform.Stable))
		}
	}
	return out
}

// revision names the pods of one version of a Deployment.
func revision(r *record, name string, t corev1.PodTemplateSpec) string {
	if rs := r.Annotate[replicaSetAnnotation]; strings.HasPrefix(rs, name+"-") {
		return rs
	}
	return name + "-" + r.hash(t)
}

// launch starts the supervisor of a pod, with the process that a predecessor left behind if there is one.
func (n *node) launch(w want, adopted *process) {
	ns, name, _ := strings.Cut(w.name, "/")
	x := &expansion{n: n, r: w.record, namespace: ns, pod: name, template: w.template}
	known := len(n.state.Addresses)
	spec, err := x.spec(w.track, w.owner)
	if err == nil && len(n.state.Addresses) != known {
		// Before the process knows its address: a successor must give it the same one.
		err = n.state.save(n.dir)
	}
	p := &pod{podSpec: spec, changed: n.kick, done: make(chan struct{})}
	p.idle = sync.NewCond(&p.mu)
	if err != nil {
		// The pod stands as one that cannot start; the state of its workload tells why.
		p.podSpec = podSpec{name: w.name, owner: w.owner, hash: w.hash, track: w.track, refused: err.Error()}
	}
	p.once = strings.HasPrefix(w.owner, "Job/")
	p.register = func(pid int) {
		if err := n.register(p.name, p.hash, pid); err != nil {
			n.log.Error("a successor of this node could not adopt the pod by its number", "pod", p.name, "error", err)
		}
	}
	p.sweep = func() { sweep(n.dir, p.name) }
	ctx, cancel := context.WithCancel(n.ctx)
	if limit := w.record.activeDeadline(); p.once && limit > 0 {
		ctx, cancel = context.WithTimeout(n.ctx, limit)
	}
	p.cancel = cancel
	n.pods[w.name] = p
	if p.refused != "" {
		return
	}
	n.wg.Go(func() {
		defer cancel()
		n.log.Info("pod starts", "pod", w.name, "address", p.address, "command", p.launch.argv[0])
		p.run(ctx, adopted)
		n.forget(p.name)
		n.podEnded(p, errors.Is(ctx.Err(), context.DeadlineExceeded))
	})
}

// podEnded keeps how a Job's pod ended.
func (n *node) podEnded(p *pod, late bool) {
	if !p.once {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	r, ok := n.state.Objects[p.owner]
	if !ok || n.ctx.Err() != nil || n.pods[p.name] != p {
		return
	}
	var j batchv1.Job
	limit := int32(6)
	if r.Object.Into(&j) == nil && j.Spec.BackoffLimit != nil {
		limit = *j.Spec.BackoffLimit
	}
	end := p.now()
	switch {
	case late:
		n.state.Jobs[p.owner] = jobEnd{Reason: "DeadlineExceeded",
			Message: fmt.Sprintf("it ran longer than its activeDeadlineSeconds (%s)\n%s", r.activeDeadline(), tail(p.launch.logFile, 10))}
	case end.code == 0:
		n.state.Jobs[p.owner] = jobEnd{Complete: true}
	case end.code == unknown:
		n.state.Jobs[p.owner] = jobEnd{Reason: "ExitCodeUnknown", Message: "the node died while it ran, so its exit code is unknown\n" + tail(p.launch.logFile, 10)}
	case n.attempts[p.owner] >= int(limit) || strings.HasPrefix(end.reason, commandNotFound):
		n.state.Jobs[p.owner] = jobEnd{Reason: "BackoffLimitExceeded", Message: fmt.Sprintf("%s\n%s", end.reason, tail(p.launch.logFile, 10))}
	default:
		n.attempts[p.owner]++
	}
	if err := n.state.save(n.dir); err != nil {
		n.log.Error("the state cannot be kept", "error", err)
	}
	delete(n.pods, p.name)
	n.kick()
}

// routes tells every Service which pods it has.
func (n *node) routes() {
	for k, r := range n.state.Objects {
		if r.Object.GetKind() != "Service" {
			continue
		}
		s, ok := n.services[k]
		if !ok {
			continue
		}
		var pods []*pod
		weight := 0
		for _, name := range slices.Sorted(keysOf(n.pods)) {
			p := n.pods[name]
			if strings.HasPrefix(p.name, r.Object.GetNamespace()+"/") && !p.once && r.Object.Selects(p.labels) && !previewOnly(r.Object, p) {
				pods = append(pods, p)
				if c, ok := n.state.Canaries[p.owner]; ok {
					weight = c.Weight
					if isPreview(r.Object) {
						weight = 100
					}
				}
			}
		}
		s.route(pods, weight, n.state.Closed[k], isPreview(r.Object))
	}
	for k, s := range n.services {
		if _, ok := n.state.Objects[k]; !ok {
			s.stop()
			delete(n.services, k)
		}
	}
}

// previewOnly reports whether a preview Service must not show a pod: one of the stable version beside a new one.
func previewOnly(service manifest.Object, p *pod) bool {
	return isPreview(service) && p.where() != platform.Canary
}

func isPreview(service manifest.Object) bool {
	return service.GetAnnotations()["sluice.dev/track"] == string(platform.Preview)
}

// present tells what the platform says of one object.
func (n *node) present(ref manifest.Ref) platform.State {
	k := key(ref)
	s := platform.State{Ref: ref, Stopped: true}
	r, ok := n.state.Objects[k]
	s.Exists = ok
	var pods []*pod
	for _, p := range n.pods {
		if p.owner != k {
			continue
		}
		if !p.now().ended {
			// What is deleted exists until its last process has ended.
			s.Exists = true
			s.Stopped = s.Stopped && p.refused != ""
		}
		pods = append(pods, p)
	}
	if !ok {
		return s
	}
	switch ref.Kind {
	case "Job":
		end, over := n.state.Jobs[k]
		s.Ready, s.Failed, s.Message = end.Complete, over && !end.Complete, end.Message
		if s.Failed {
			s.Reason = end.Reason
		}
		for _, p := range pods {
			if p.refused != "" {
				s.Failed, s.Reason, s.Message = true, "CannotStart", p.refused
			}
		}
		return s
	case "Deployment", "StatefulSet":
	case "Service":
		v, ok := n.services[k]
		if s.Ready = ok; ok {
			s.Message = v.where()
		} else if s.Message = n.deaf[k]; s.Message != "" {
			s.Reason = "PortTaken"
		}
		return s
	default:
		s.Ready = true
		return s
	}
	n.workloadState(&s, k, r, pods)
	return s
}

// crashes is after how many restarts without ever being ready a workload has failed.
const crashes = 4

func (n *node) workloadState(s *platform.State, k string, r *record, pods []*pod) {
	wants := map[string]want{}
	for _, w := range n.wants(k, r) {
		wants[w.name] = w
	}
	ready := 0
	for _, p := range pods {
		st := p.now()
		w, ok := wants[p.name]
		if st.ready {
			s.Replicas++
			if ok && w.hash == p.hash {
				ready++
			}
		}
		// One pod that has failed says why the workload has; another one that still starts must not talk over it.
		if ok && w.hash == p.hash && !st.ready && !s.Failed {
			switch {
			case p.refused != "":
				s.Failed, s.Reason, s.Message = true, "CannotStart", p.refused
			case strings.HasPrefix(st.reason, commandNotFound):
				s.Failed, s.Reason = true, commandNotFound
				s.Message = strings.TrimPrefix(st.reason, commandNotFound+": ") +
					" (map its image to a program that exists under images: in sluice.yaml, or mend its command:)"
			case st.restarts > 0:
				s.Failed = st.restarts >= crashes
				s.Reason, s.Message = "CrashLoopBackOff", fmt.Sprintf("pod %s: %s\n%s", p.name, st.reason, hinted(tail(p.launch.logFile, 10)))
			default:
				s.Reason, s.Message = "Progressing", fmt.Sprintf("pod %s: %s", p.name, st.reason)
			}
		}
	}
	// Every wanted pod is ready, and none that is not wanted is left.
	s.Ready = ready == len(wants) && len(pods) == len(wants) && (r.replicas() > 0 || r.Replicas == nil)
	if t, ok, err := r.Object.PodTemplate(); ok && err == nil {
		for _, c := range t.Spec.Containers {
			s.Images = append(s.Images, c.Image)
		}
	}
}

// hinted adds to the last lines of a pod what they mean on this platform.
func hinted(lines string) string {
	if strings.Contains(strings.ToLower(lines), "address already in use") {
		return lines + "\n(each pod has an address of its own: let its manifest say on which to listen, as 0.0.0.0 or $(POD_IP) in an argument or a variable)"
	}
	return lines
}
