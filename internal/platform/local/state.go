package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// state is what the node knows: everything that must survive it. It is written before anything is done about it, in
// one piece.
type state struct {
	Objects   map[string]*record           `json:"objects"`
	Canaries  map[string]*canary           `json:"canaries,omitempty"` // by the Deployment's key
	Claims    map[string]string            `json:"claims,omitempty"`   // namespace/claim → directory
	Closed    map[string]bool              `json:"closed,omitempty"`   // Services that hold their connections
	Addresses map[string]string            `json:"addresses,omitempty"`
	Changes   map[string][]platform.Change `json:"changes,omitempty"` // by key: what a repeated call returns
	Done      map[string]bool              `json:"done,omitempty"`    // keys of the other calls
	Used      map[string]time.Time         `json:"used,omitempty"`    // when a key of a delivery was last used
	Images    map[string][]string          `json:"images,omitempty"`
	Exposed   map[string]exposed           `json:"exposed,omitempty"`
	Jobs      map[string]jobEnd            `json:"jobs,omitempty"`
	Next      int                          `json:"next"` // the next address
}

// record is one applied object.
type record struct {
	Object     manifest.Object      `json:"object"`
	Delivery   string               `json:"delivery,omitempty"`
	Annotate   map[string]string    `json:"annotate,omitempty"`
	Env        map[string]string    `json:"env,omitempty"`
	Claims     map[string]string    `json:"claims,omitempty"`
	Quarantine *platform.Quarantine `json:"quarantine,omitempty"`
	Replicas   *int                 `json:"replicas,omitempty"` // set by Scale, stronger than the object's
	Revision   string               `json:"revision,omitempty"` // of a Deployment: names its pods
}

// canary is a new version of a Deployment beside the stable one.
type canary struct {
	Record record `json:"record"`
	Weight int    `json:"weight"`
}

// exposed is a temporary address of a Service.
type exposed struct {
	Service manifest.Ref `json:"service"`
	Address string       `json:"address"`
	Until   time.Time    `json:"until"`
}

// jobEnd is how a Job ended.
type jobEnd struct {
	Complete bool   `json:"complete"`
	Reason   string `json:"reason,omitempty"`
	Message  string `json:"message,omitempty"`
}

func newState() *state {
	return &state{Objects: map[string]*record{}, Canaries: map[string]*canary{}, Claims: map[string]string{}, Closed: map[string]bool{},
		Addresses: map[string]string{}, Changes: map[string][]platform.Change{}, Done: map[string]bool{}, Images: map[string][]string{},
		Exposed: map[string]exposed{}, Jobs: map[string]jobEnd{}, Used: map[string]time.Time{}}
}

// How long keys are remembered: beyond many deliveries, those that have been at rest for longer than any waits.
const (
	rememberedDeliveries = 200
	rememberedFor        = 90 * 24 * time.Hour
)

// remember notes that a key was used, and forgets the keys of deliveries that nobody will go on with. A key begins with
// its delivery.
func (s *state) remember(key string, now time.Time) {
	id, _, _ := strings.Cut(key, "/")
	s.Used[id] = now
	if len(s.Used) <= rememberedDeliveries {
		return
	}
	for id, at := range s.Used {
		if now.Sub(at) < rememberedFor {
			continue
		}
		delete(s.Used, id)
		of := func(key string) bool { return key == id || strings.HasPrefix(key, id+"/") }
		maps.DeleteFunc(s.Changes, func(k string, _ []platform.Change) bool { return of(k) })
		maps.DeleteFunc(s.Done, func(k string, _ bool) bool { return of(k) })
	}
}

func key(r manifest.Ref) string { return r.Kind + "/" + r.Namespace + "/" + r.Name }

func stateFile(dir string) string { return filepath.Join(dir, "state.json") }

// Used reports whether a node has ever kept anything in a directory.
func Used(dir string) bool {
	_, err := os.Stat(stateFile(dir))
	return err == nil
}

func loadState(dir string) (*state, error) {
	s := newState()
	body, err := os.ReadFile(stateFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's state: %w", err)
	}
	if err := json.Unmarshal(body, s); err != nil {
		return nil, fault.Newf(fault.Lost, "the node's state %s cannot be read: %w", stateFile(dir), err)
	}
	return s, nil
}

// save writes the state in one piece: a crash leaves the old one or the new one.
func (s *state) save(dir string) error {
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "state-*")
	if err != nil {
		return fmt.Errorf("write the node's state: %w", err)
	}
	_, err = f.Write(body)
	if e := f.Sync(); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), stateFile(dir))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write the node's state: %w", err)
	}
	return nil
}

// The addresses of one node: a block of four times 256 in 127.64.0.0 to 127.191.255.255, without the ends of each 256.
const addresses = 4 * 254

// address gives a name an address of its own in 127.0.0.0/8, and the same one ever after. Nodes of different
// directories use different parts of the range.
func (s *state) address(dir, name string) string {
	if a, ok := s.Addresses[name]; ok {
		return a
	}
	h := fnv.New32a()
	h.Write([]byte(dir))
	n := h.Sum32()
	used := map[string]bool{}
	for _, a := range s.Addresses {
		used[a] = true
	}
	var a string
	for range addresses {
		i := uint32(s.Next % addresses)
		s.Next++
		if a = fmt.Sprintf("127.%d.%d.%d", 64+n%128, (n>>7)%64*4+i/254, i%254+1); !used[a] {
			break
		}
	}
	s.Addresses[name] = a
	return a
}

// release gives up an address that nobody will ask for again.
func (s *state) release(name string) { delete(s.Addresses, name) }

// recreates reports whether a workload's old pods must end before new ones start.
func (r *record) recreates() bool {
	v, _, _ := unstructured.NestedString(r.Object.Object, "spec", "strategy", "type")
	return r.Object.GetKind() == "Deployment" && v == "Recreate"
}

// activeDeadline is how long a Job may run, 0 for ever.
func (r *record) activeDeadline() time.Duration {
	n, ok, err := nested(r.Object, "spec", "activeDeadlineSeconds")
	if err != nil || !ok {
		return 0
	}
	return time.Duration(n) * time.Second
}

// replicas returns how many pods a workload is to have.
func (r *record) replicas() int {
	if r.Replicas != nil {
		return *r.Replicas
	}
	n, ok, err := nested(r.Object, "spec", "replicas")
	if err != nil || !ok {
		return 1
	}
	return n
}

func nested(o manifest.Object, path ...string) (int, bool, error) {
	var v any = o.Object
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return 0, false, nil
		}
		if v, ok = m[p]; !ok {
			return 0, false, nil
		}
	}
	switch n := v.(type) {
	case int64:
		return int(n), true, nil
	case float64:
		return int(n), true, nil
	case int:
		return n, true, nil
	}
	return 0, false, fault.Newf(fault.Invalid, "%s: %v is not a number", o.Origin, v)
}
