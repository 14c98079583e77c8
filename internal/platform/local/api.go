package local

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/volume"
)

// call is what every request may carry; each method reads what it needs.
type call struct {
	Key      string              `json:"key,omitempty"`
	Delivery string              `json:"delivery,omitempty"`
	Objects  []manifest.Object   `json:"objects,omitempty"`
	Options  platform.Options    `json:"options"`
	Changes  []platform.Change   `json:"changes,omitempty"`
	Refs     []manifest.Ref      `json:"refs,omitempty"`
	Kind     string              `json:"kind,omitempty"`
	N        int                 `json:"n,omitempty"`
	Port     string              `json:"port,omitempty"`
	Place    volume.Place        `json:"place"`
	Dir      string              `json:"dir,omitempty"`
	TTL      time.Duration       `json:"ttl,omitempty"`
	Images   map[string][]string `json:"images,omitempty"`
}

// answer is what every method returns.
type answer struct {
	Changes []platform.Change `json:"changes,omitempty"`
	Objects []manifest.Object `json:"objects,omitempty"`
	Text    string            `json:"text,omitempty"`
	Error   string            `json:"error,omitempty"`
	Kind    fault.Kind        `json:"kind,omitempty"`
}

// api answers the engine. end makes the node return.
func (n *node) api(end context.CancelFunc) http.Handler {
	mux := http.NewServeMux()
	for name, f := range map[string]func(call) (answer, error){
		"apply": n.apply, "revert": n.revert, "canary": n.startCanary, "weight": n.setWeight, "promote": n.promote, "abort": n.abort,
		"close": n.closed(true), "open": n.closed(false), "scale": n.scale, "delete": n.deleteObjects, "get": n.get, "list": n.list,
		"endpoint": n.endpoint, "address": n.address, "logs": n.logs, "bind": n.bind, "bound": n.bound, "unbind": n.unbind, "expose": n.exposeService, "images": n.images,
		"metrics": func(call) (answer, error) { return answer{Text: n.metrics}, nil },
		"pid":     func(call) (answer, error) { return answer{Text: strconv.Itoa(os.Getpid())}, nil },
	} {
		mux.HandleFunc("POST /v1/"+name, func(w http.ResponseWriter, r *http.Request) {
			var c call
			var a answer
			err := json.NewDecoder(r.Body).Decode(&c)
			if err == nil {
				n.mu.Lock()
				a, err = f(c)
				n.mu.Unlock()
			}
			if err != nil {
				a = answer{Error: err.Error(), Kind: fault.KindOf(err)}
			}
			_ = json.NewEncoder(w).Encode(a)
		})
	}
	mux.HandleFunc("POST /v1/watch", n.watch)
	mux.HandleFunc("POST /v1/shutdown", func(w http.ResponseWriter, _ *http.Request) {
		n.shutdown()
		_ = json.NewEncoder(w).Encode(answer{Text: strconv.Itoa(os.Getpid())})
		_ = http.NewResponseController(w).Flush()
		end()
	})
	return mux
}

// keep writes the state and has it carried out.
func (n *node) keep() error {
	defer n.kick()
	return n.state.save(n.dir)
}

// once runs an effect unless its key has been used.
func (n *node) once(c call, f func() error) (answer, error) {
	if n.state.Done[c.Key] {
		return answer{}, nil
	}
	if err := f(); err != nil {
		return answer{}, err
	}
	n.state.Done[c.Key] = true
	n.state.remember(c.Key, time.Now())
	return answer{}, n.keep()
}

// put names and checks objects before any of them is kept.
func put(c call) ([]manifest.Object, error) {
	var out []manifest.Object
	for _, o := range c.Objects {
		o = manifest.Object{Unstructured: *o.DeepCopy(), Origin: o.Origin}
		switch {
		case c.Options.Namespace != "":
			o.SetNamespace(c.Options.Namespace)
		case o.GetNamespace() == "":
			o.SetNamespace("default")
		}
		if q := c.Options.Quarantine; q != nil && q.Suffix != "" {
			o.SetName(o.GetName() + q.Suffix)
		}
		if err := validate(o); err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

// replicaSetAnnotation names the version of a Deployment that a pod belongs to.
const replicaSetAnnotation = "deploy.armory.io/replica-set-name"

func (n *node) newRecord(o manifest.Object, c call) *record {
	r := &record{Object: o, Delivery: c.Options.Delivery}
	if t, pods, _ := o.PodTemplate(); pods {
		r.Annotate, r.Env, r.Claims, r.Quarantine = maps.Clone(c.Options.Annotate), c.Options.Env, c.Options.Claims, c.Options.Quarantine
		if rs := t.Annotations[replicaSetAnnotation]; rs != "" {
			// Each Deployment has a name of its own for its version, even where several are applied together.
			if r.Annotate == nil {
				r.Annotate = map[string]string{}
			}
			r.Annotate[replicaSetAnnotation] = rs
		}
	}
	return r
}

// preImage is the record in a form that Revert understands: the object, with the record beside it in an annotation.
const recordAnnotation = "sluice.dev/record"

func preImage(r *record) *manifest.Object {
	if r == nil {
		return nil
	}
	o := manifest.Object{Unstructured: *r.Object.DeepCopy(), Origin: r.Object.Origin}
	rest := *r
	rest.Object = manifest.Object{}
	body, _ := json.Marshal(rest)
	a := o.GetAnnotations()
	if a == nil {
		a = map[string]string{}
	}
	a[recordAnnotation] = string(body)
	o.SetAnnotations(a)
	return &o
}

func fromPreImage(o manifest.Object) *record {
	o = manifest.Object{Unstructured: *o.DeepCopy(), Origin: o.Origin}
	r := &record{}
	a := o.GetAnnotations()
	_ = json.Unmarshal([]byte(a[recordAnnotation]), r)
	delete(a, recordAnnotation)
	o.SetAnnotations(a)
	r.Object = o
	return r
}

func (n *node) apply(c call) (answer, error) {
	if was, ok := n.state.Changes[c.Key]; ok {
		return answer{Changes: was}, nil
	}
	objects, err := put(c)
	if err != nil {
		return answer{}, err
	}
	for _, o := range objects {
		if err := n.runnable(o, c); err != nil {
			return answer{}, err
		}
	}
	if err := n.listenFirst(objects); err != nil {
		return answer{}, err
	}
	changes := []platform.Change{}
	for _, o := range objects {
		k := key(o.Ref())
		old := n.state.Objects[k]
		changes = append(changes, platform.Change{Ref: o.Ref(), Created: old == nil, PreImage: preImage(old)})
		r := n.newRecord(o, c)
		if o.GetKind() == "Job" && (old == nil || old.Delivery != r.Delivery || !sameSpec(old.Object, o)) {
			// A Job belongs to its delivery: the next delivery's runs again.
			delete(n.state.Jobs, k)
			delete(n.attempts, k)
		}
		if o.GetKind() == "PersistentVolumeClaim" {
			if _, err := n.claim(o.GetNamespace(), o.GetName()); err != nil {
				return answer{}, err
			}
		}
		n.state.Objects[k] = r
	}
	n.state.Changes[c.Key] = changes
	n.state.remember(c.Key, time.Now())
	return answer{Changes: changes}, n.keep()
}

// listenFirst makes the Services among the objects listen before anything is changed: a port may be taken. Where one is,
// those before it listen as they did.
func (n *node) listenFirst(objects []manifest.Object) error {
	for i, o := range objects {
		if o.GetKind() != "Service" {
			continue
		}
		err := n.listen(key(o.Ref()), o)
		if err == nil {
			continue
		}
		for _, before := range objects[:i] {
			k := key(before.Ref())
			s, ok := n.services[k]
			if r, known := n.state.Objects[k]; known {
				_ = n.listen(k, r.Object) // it did before
			} else if ok {
				s.stop()
				delete(n.services, k)
			}
		}
		return err
	}
	return nil
}

func sameSpec(a, b manifest.Object) bool {
	x, _ := json.Marshal(a.Object["spec"])
	y, _ := json.Marshal(b.Object["spec"])
	return string(x) == string(y)
}

// runnable refuses a workload whose containers have no command.
func (n *node) runnable(o manifest.Object, c call) error {
	t, ok, err := o.PodTemplate()
	if err != nil || !ok {
		return err
	}
	if err := supported(o, t); err != nil {
		return err
	}
	x := &expansion{n: n, r: n.newRecord(o, c)}
	for _, k := range slices.Concat(t.Spec.InitContainers, t.Spec.Containers) {
		if _, err := x.command(k, false); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) revert(c call) (answer, error) {
	return n.once(c, func() error {
		for _, ch := range slices.Backward(c.Changes) {
			k := key(ch.Ref)
			switch {
			case ch.PreImage != nil:
				r := fromPreImage(*ch.PreImage)
				if ch.Ref.Kind == "Service" {
					if err := n.listen(k, r.Object); err != nil {
						return err
					}
				}
				n.state.Objects[k] = r
			case ch.Created && ch.Ref.Kind != "PersistentVolumeClaim" && ch.Ref.Kind != "Namespace":
				delete(n.state.Objects, k)
			}
			delete(n.state.Canaries, k)
		}
		return nil
	})
}

func (n *node) startCanary(c call) (answer, error) {
	if was, ok := n.state.Changes[c.Key]; ok {
		return answer{Changes: was}, nil
	}
	objects, err := put(c)
	if err != nil {
		return answer{}, err
	}
	for _, o := range objects {
		if err := n.runnable(o, c); err != nil {
			return answer{}, err
		}
	}
	changes := []platform.Change{}
	for _, o := range objects {
		k := key(o.Ref())
		old := n.state.Objects[k]
		changes = append(changes, platform.Change{Ref: o.Ref(), Created: old == nil, PreImage: preImage(old)})
		if old == nil {
			// The first deployment ever has nothing to be beside: it takes all traffic at once.
			n.state.Objects[k] = n.newRecord(o, c)
			continue
		}
		n.state.Canaries[k] = &canary{Record: *n.newRecord(o, c)}
	}
	n.state.Changes[c.Key] = changes
	n.state.remember(c.Key, time.Now())
	return answer{Changes: changes}, n.keep()
}

func (n *node) setWeight(c call) (answer, error) {
	return n.once(c, func() error {
		for _, r := range c.Refs {
			if cn, ok := n.state.Canaries[key(r)]; ok {
				cn.Weight = c.N
			}
		}
		// Whoever is told that the weight is set may count on it: the next request is shared by it.
		n.routes()
		return nil
	})
}

func (n *node) promote(c call) (answer, error) {
	return n.once(c, func() error {
		for _, r := range c.Refs {
			if cn, ok := n.state.Canaries[key(r)]; ok {
				next := cn.Record
				n.state.Objects[key(r)] = &next
				delete(n.state.Canaries, key(r))
			}
		}
		return nil
	})
}

func (n *node) abort(c call) (answer, error) {
	return n.once(c, func() error {
		for _, r := range c.Refs {
			delete(n.state.Canaries, key(r))
		}
		return nil
	})
}

func (n *node) closed(shut bool) func(call) (answer, error) {
	return func(c call) (answer, error) {
		return n.once(c, func() error {
			for _, r := range c.Refs {
				if _, ok := n.state.Objects[key(r)]; !ok {
					return fault.Newf(fault.NotFound, "there is no %s", r)
				}
				if shut {
					n.state.Closed[key(r)] = true
				} else {
					delete(n.state.Closed, key(r))
				}
			}
			n.routes()
			return nil
		})
	}
}

func (n *node) scale(c call) (answer, error) {
	return n.once(c, func() error {
		r, ok := n.state.Objects[key(c.Refs[0])]
		if !ok {
			return fault.Newf(fault.NotFound, "there is no %s", c.Refs[0])
		}
		r.Replicas = &c.N
		return nil
	})
}

func (n *node) deleteObjects(c call) (answer, error) {
	return n.once(c, func() error {
		for _, r := range c.Refs {
			o, ok := n.state.Objects[key(r)]
			if !ok {
				continue
			}
			if o.Delivery != c.Delivery {
				return fault.Newf(fault.Denied, "%s belongs to delivery %q, not to %s", r, o.Delivery, c.Delivery)
			}
			delete(n.state.Objects, key(r))
			delete(n.state.Canaries, key(r))
			delete(n.state.Closed, key(r))
			delete(n.state.Jobs, key(r))
			delete(n.attempts, key(r))
		}
		return nil
	})
}

func (n *node) get(c call) (answer, error) {
	r, ok := n.state.Objects[key(c.Refs[0])]
	if !ok {
		return answer{}, fault.Newf(fault.NotFound, "there is no %s", c.Refs[0])
	}
	return answer{Objects: []manifest.Object{r.Object}}, nil
}

func (n *node) list(c call) (answer, error) {
	var a answer
	for _, k := range slices.Sorted(maps.Keys(n.state.Objects)) {
		o := n.state.Objects[k].Object
		if o.GetKind() == c.Kind && (o.GetNamespace() == c.Refs[0].Namespace || c.Refs[0].Namespace == "") {
			a.Objects = append(a.Objects, o)
		}
	}
	return a, nil
}

// endpoint tells where a ready pod of a Service listens. Sluice itself goes past a closed switch: what it checks behind
// the fence is behind the fence.
func (n *node) endpoint(c call) (answer, error) {
	ref := c.Refs[0]
	r, ok := n.state.Objects[key(ref)]
	if !ok {
		return answer{}, fault.Newf(fault.NotFound, "there is no Service %s", ref)
	}
	for _, p := range servicePorts(r.Object) {
		if !p.called(c.Port) {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(n.pods)) {
			pd := n.pods[name]
			if strings.HasPrefix(pd.name, ref.Namespace+"/") && r.Object.Selects(pd.labels) && pd.now().ready {
				return answer{Text: net.JoinHostPort(pd.address, strconv.Itoa(portOf(pd.container, p.target)))}, nil
			}
		}
		return answer{}, fault.Newf(fault.Transient, "no pod of Service %s is ready", ref)
	}
	return answer{}, fault.Newf(fault.NotFound, "Service %s has no port %q", ref, c.Port)
}

// address tells where clients reach a Service.
func (n *node) address(c call) (answer, error) {
	ref := c.Refs[0]
	r, ok := n.state.Objects[key(ref)]
	if !ok {
		return answer{}, fault.Newf(fault.NotFound, "there is no Service %s", ref)
	}
	for _, p := range servicePorts(r.Object) {
		if p.called(c.Port) {
			return answer{Text: net.JoinHostPort(n.state.address(n.dir, key(ref)), strconv.Itoa(p.listen))}, nil
		}
	}
	return answer{}, fault.Newf(fault.NotFound, "Service %s has no port %q", ref, c.Port)
}

func (n *node) logs(c call) (answer, error) {
	ref := c.Refs[0]
	var all []string
	for _, name := range slices.Sorted(maps.Keys(n.pods)) {
		if p := n.pods[name]; p.owner == key(ref) && p.launch.logFile != "" {
			all = append(all, p.launch.logFile)
		}
	}
	if len(all) == 0 {
		all, _ = filepath.Glob(filepath.Join(n.dir, "logs", ref.Namespace, ref.Name+"-*.log"))
	}
	var a answer
	for _, f := range all {
		a.Text += "== " + strings.TrimSuffix(filepath.Base(f), ".log") + " ==\n" + tail(f, c.N) + "\n"
	}
	return a, nil
}

func (n *node) bind(c call) (answer, error) {
	n.state.Claims[c.Place.Namespace+"/"+c.Place.Claim] = c.Dir
	return answer{}, n.keep()
}

func (n *node) bound(c call) (answer, error) {
	d, ok := n.state.Claims[c.Place.Namespace+"/"+c.Place.Claim]
	if !ok {
		return answer{}, fault.Newf(fault.NotFound, "namespace %s has no claim %s", c.Place.Namespace, c.Place.Claim)
	}
	return answer{Text: d}, nil
}

func (n *node) unbind(c call) (answer, error) {
	delete(n.state.Claims, c.Place.Namespace+"/"+c.Place.Claim)
	return answer{}, n.keep()
}

func (n *node) exposeService(c call) (answer, error) {
	if e, ok := n.state.Exposed[c.Key]; ok {
		return answer{Text: "http://" + e.Address}, nil
	}
	if _, ok := n.services[key(c.Refs[0])]; !ok {
		return answer{}, fault.Newf(fault.NotFound, "there is no Service %s", c.Refs[0])
	}
	l, err := tcp("127.0.0.1:0")
	if err != nil {
		return answer{}, err
	}
	e := exposed{Service: c.Refs[0], Address: l.Addr().String(), Until: time.Now().Add(c.TTL)}
	n.state.Exposed[c.Key] = e
	n.expose(c.Key, e, l)
	return answer{Text: "http://" + e.Address}, n.keep()
}

func (n *node) images(c call) (answer, error) {
	known := true
	for name, command := range c.Images {
		known = known && slices.Equal(n.state.Images[name], command)
	}
	if known {
		return answer{}, nil
	}
	maps.Copy(n.state.Images, c.Images)
	return answer{}, n.keep()
}

// watch streams the present state of each ref, and then every change.
func (n *node) watch(w http.ResponseWriter, r *http.Request) {
	var c call
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	defer context.AfterFunc(r.Context(), func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.changed.Broadcast()
	})()
	enc, flush := json.NewEncoder(w), http.NewResponseController(w)
	sent := map[manifest.Ref]string{}
	seen := -1
	for r.Context().Err() == nil {
		n.mu.Lock()
		for n.version == seen && r.Context().Err() == nil && n.ctx.Err() == nil {
			n.changed.Wait()
		}
		if n.ctx.Err() != nil {
			n.mu.Unlock()
			// The client is told, so that it does not start a successor. Where it is gone there is nobody to tell.
			_ = enc.Encode(platform.State{Reason: shutDown})
			_ = flush.Flush()
			return
		}
		seen = n.version
		var states []platform.State
		for _, ref := range c.Refs {
			states = append(states, n.present(ref))
		}
		n.mu.Unlock()
		for _, s := range states {
			body, _ := json.Marshal(s)
			if sent[s.Ref] == string(body) {
				continue
			}
			sent[s.Ref] = string(body)
			if err := enc.Encode(s); err != nil {
				return
			}
		}
		if err := flush.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return
		}
	}
}

func volumesDir(dir string) (string, error) {
	d := filepath.Join(dir, "volumes")
	return d, os.MkdirAll(d, 0o755)
}
