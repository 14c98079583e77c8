// Package platform is the port to where workloads run: a real cluster, or processes on this machine.
//
// Every change to a platform carries a key and is idempotent by it: a call repeated with the same key after a crash
// has the effect of one call. Errors carry a kind (package fault).
package platform

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/internal/manifest"
)

// Platform runs workloads in the namespaces of one account.
type Platform interface {
	// Apply makes the objects be as given, in order, and returns one Change per object with its pre-image. It returns
	// when the desired state is accepted, not when it is reached: see Watch. The same key returns the same changes.
	Apply(ctx context.Context, key string, objects []manifest.Object, o Options) ([]Change, error)
	// Revert puts the pre-images back, last change first; what the changes created is deleted, except claims and namespaces.
	Revert(ctx context.Context, key string, changes []Change) error
	// Watch sends the present state of each ref first and then every change of it until ctx ends, and then closes the
	// channel. A ref that does not exist is sent with Exists false.
	Watch(ctx context.Context, refs []manifest.Ref) (<-chan State, error)
	// Dial connects to a port of a Service. The port is a number or a name; "" is the only port.
	Dial(ctx context.Context, service manifest.Ref, port string) (net.Conn, error)
}

// Options say how objects are applied.
type Options struct {
	Namespace  string            // overrides the namespace of every object
	Delivery   string            // recorded on every object and pod
	Annotate   map[string]string // added to pod templates
	Env        map[string]string // added to the containers
	Claims     map[string]string // claim name → volume name: bind these claims to existing volumes before the workload starts
	Quarantine *Quarantine       // a twin: how its pods differ from production's
	Force      bool              // take over what others hold: otherwise it is an error of kind Conflict
	Meshes     []Mesh            // of a canary: what of a mesh gives it its share
}

// Mesh is an object of a service mesh that shares traffic out: a VirtualService of Istio with its DestinationRule, or a
// TrafficSplit of SMI.
type Mesh struct {
	VirtualService  string `json:"virtualService,omitempty"`
	Route           string `json:"route,omitempty"` // the http route that is meant; "": all that lead to the Service
	DestinationRule string `json:"destinationRule,omitempty"`
	ActiveSubset    string `json:"activeSubset,omitempty"`
	CanarySubset    string `json:"canarySubset,omitempty"`

	TrafficSplit  string `json:"trafficSplit,omitempty"` // made where it is not there
	RootService   string `json:"rootService,omitempty"`
	CanaryService string `json:"canaryService,omitempty"` // is made
}

// Quarantine keeps a twin from acting as production.
type Quarantine struct {
	Suffix string            // appended to the names of workloads and Services, "" for none
	Args   []string          // appended to the arguments of the first container
	Env    map[string]string // set in the first container
}

// Change is one applied object and what was there before.
type Change struct {
	Ref      manifest.Ref     `json:"ref"`
	Created  bool             `json:"created"`
	PreImage *manifest.Object `json:"preImage,omitempty"`
	Journal  string           `json:"journal,omitempty"` // where the platform keeps what more it must know to take the change back
}

// State is what a platform says of one object.
type State struct {
	Ref      manifest.Ref
	Exists   bool
	Ready    bool   // every desired replica serves the desired generation; a Job is Ready when it is complete
	Failed   bool   // it cannot become Ready by waiting
	Stopped  bool   // no process of it runs
	Reason   string // one word, as Kubernetes would say: CrashLoopBackOff, ImagePullBackOff, Unschedulable …
	Message  string // a sentence with the last log lines where they help
	Replicas int    // running replicas
	Images   []string
}

// Track names a version beside another behind one Service.
type Track string

// The tracks.
const (
	Stable  Track = "stable"
	Canary  Track = "canary"
	Preview Track = "preview"
)

// Shifter is a Platform that can run a canary of Deployments beside the stable version and shift traffic to it. What belongs to
// one delivery has keys that begin with its id and a slash.
type Shifter interface {
	// StartCanary brings the new version of each Deployment up beside the stable one with no traffic.
	StartCanary(ctx context.Context, key string, objects []manifest.Object, o Options) ([]Change, error)
	// SetWeight gives the canary a share of the traffic in percent, and the replicas for it.
	SetWeight(ctx context.Context, key string, refs []manifest.Ref, percent int) error
	// Promote makes the canary the stable version and ends the old one.
	Promote(ctx context.Context, key string, refs []manifest.Ref) error
	// Abort gives all traffic back to the stable version and ends the canary.
	Abort(ctx context.Context, key string, refs []manifest.Ref) error
}

// Separator is a Shifter that keeps changed settings from the stable version until the promotion.
type Separator interface {
	// StartCanaryWith is StartCanary with ConfigMaps and Secrets that the Deployments name. Those that are there and will change
	// stay as they are until Promote; the canary gets copies of the new ones.
	StartCanaryWith(ctx context.Context, key string, objects, settings []manifest.Object, o Options) ([]Change, error)
}

// Roller is a Platform that can give a StatefulSet its new version one member after another, the last ordinal first. Until an
// ordinal's turn has come its pod comes back in the old version, whatever ends it.
type Roller interface {
	// StartRoll gives the StatefulSet, which must exist, its new version while no member has it. The replicas stay as they are.
	StartRoll(ctx context.Context, key string, o manifest.Object, opts Options) ([]Change, error)
	// Roll lets the members from an ordinal on have the new version. A budget for disruptions that does not allow it is an
	// error of kind Conflict.
	Roll(ctx context.Context, key string, workload manifest.Ref, from int) error
	// EndRoll makes the StatefulSet be as StartRoll was told, once every member has the new version.
	EndRoll(ctx context.Context, key string, changes []Change) error
	// TurnBack makes the old version the one that pods are made of again. No member is ended by it: see Members.Restart. What
	// is left is for Revert.
	TurnBack(ctx context.Context, key string, changes []Change) error
}

// Members is a Platform that knows the pods of a StatefulSet one by one.
type Members interface {
	// Members returns what there is of each ordinal, once the StatefulSet's controller has seen its present version.
	Members(ctx context.Context, workload manifest.Ref) ([]Member, error)
	// Restart ends exactly this pod of a member, so that another is made. One that is ready is ended only where the budgets for
	// disruptions allow: otherwise the error is of kind Conflict. A pod that is gone already is none.
	Restart(ctx context.Context, key string, workload manifest.Ref, m Member) error
	// DialMember connects to a port of a Service at one of the pods that it leads to.
	DialMember(ctx context.Context, service manifest.Ref, member, port string) (net.Conn, error)
}

// Member is one ordinal of a StatefulSet.
type Member struct {
	Name    string
	ID      string // of the present pod; "" where there is none
	Ready   bool
	Present bool // it is of the version that pods are made of now, for its ordinal's turn or not
}

// Keeper is a Platform on which others write, too: it can tell whether what was applied still stands.
type Keeper interface {
	// Kept returns an error of kind Conflict that names who has undone which of the changes.
	Kept(ctx context.Context, changes []Change) error
}

// Forgetter is a Platform that keeps what was there before the changes of a delivery where its objects are.
type Forgetter interface {
	// Forget removes what is kept of a delivery in a namespace: nothing of it can be taken back any more.
	Forget(ctx context.Context, namespace, delivery string) error
}

// OpenLabel is required of its pods by a Service that is closed, where a Service is closed by its selector.
const OpenLabel = "sluice.dev/open"

// Fencer is a Platform that can keep everybody from writing to a workload.
type Fencer interface {
	// Close pauses the Services of the workload: new and idle connections are held, not refused.
	Close(ctx context.Context, key string, services []manifest.Ref) error
	// Open resumes the Services.
	Open(ctx context.Context, key string, services []manifest.Ref) error
	// Scale sets the replicas of a workload; with 0 the processes are stopped cleanly. Watch tells when it is reached.
	Scale(ctx context.Context, key string, workload manifest.Ref, replicas int) error
}

// Logger is a Platform that keeps the output of workloads.
type Logger interface {
	// Logs copies the last lines of a workload's output.
	Logs(ctx context.Context, workload manifest.Ref, lines int, w io.Writer) error
}

// Deleter is a Platform that can delete what this delivery created. It refuses objects of another delivery, and claims
// whose volumes are protected. What belongs to no namespace stays: others live by it.
type Deleter interface {
	Delete(ctx context.Context, key, delivery string, refs []manifest.Ref) error
}

// Getter is a Platform that tells the live object: what is there now, by any hand.
type Getter interface {
	// Get returns the live object, or an error of kind NotFound.
	Get(ctx context.Context, ref manifest.Ref) (manifest.Object, error)
	// List returns the live objects of a kind in a namespace.
	List(ctx context.Context, kind, namespace string) ([]manifest.Object, error)
}

// DryRunner tells what Apply would make of objects, and changes nothing.
type DryRunner interface {
	// DryRun returns one Difference per object, in order. What Apply would refuse is an error of its kind.
	DryRun(ctx context.Context, objects []manifest.Object, o Options) ([]Difference, error)
}

// Checker is a Platform that says beforehand what it will refuse, as far as can be known by then. It changes nothing.
type Checker interface {
	// Check returns what Apply will refuse the objects with.
	Check(ctx context.Context, objects []manifest.Object, o Options) error
	// CheckCanary returns what StartCanaryWith will refuse the objects and settings with.
	CheckCanary(ctx context.Context, objects, settings []manifest.Object, o Options) error
}

// Difference is one object as it is and as it would be. A Secret's values are in both.
type Difference struct {
	Live    *manifest.Object // nil: it is not there
	Applied manifest.Object
}

// Exposer is a Platform that can give a Service a temporary address.
type Exposer interface {
	Expose(ctx context.Context, key string, service manifest.Ref, ttl time.Duration) (url string, err error)
}

// Runner is a Platform whose volumes no file of this machine is, and whose databases are far from it: what Sluice must do to
// them, it does by commands of its own that run beside them.
type Runner interface {
	// Run runs a command in a pod, or in one for each share, and returns what they reported, in the order of the shares. To report is
	// the last that a command does: then its pods are about to end, and may mount its claims for a moment longer; where it has failed
	// none does. A failure that the command reported keeps its kind; one of a share is that of all. The same key goes on with a run
	// that is under way; the sameness of the rest is the caller's care.
	Run(ctx context.Context, key string, e Errand) ([]json.RawMessage, error)
	// Pods is how many pods an errand may have at a time.
	Pods() int
	// End ends what of a delivery still runs in a namespace because nobody waited for it to its end. No pod of it mounts a claim then.
	End(ctx context.Context, namespace, delivery string) error
}

// Streamer is a Runner whose commands are reached from other clusters.
type Streamer interface {
	Runner
	// Address waits for the address at which the command of a key, one with a port, is reached from other clusters.
	Address(ctx context.Context, key, namespace string) (string, error)
	// Abandon ends what Run has begun by this key, if it has. No pod of it mounts a claim then.
	Abandon(ctx context.Context, key string, e Errand) error
}

// Errand is a command of Sluice that runs beside volumes, or beside databases.
type Errand struct {
	Namespace string
	Delivery  string
	Args      []string          // what follows "sluice errand"
	Image     string            // whose programs it needs; "" is Sluice's own
	Input     json.RawMessage   // what the command is told and nobody else may see; nil: nothing
	Mounts    []Mount           // beside volumes
	Like      corev1.PodSpec    // the pod whose user and nodes it shares, because the files are that pod's
	Services  []manifest.Ref    // beside databases: closed or not, the command may connect to these and to nothing else
	Shares    int               // how many pods do it together, each of which knows its number; 0: one, which has none
	Within    time.Duration     // from its start on; 0: ten minutes
	Parts     int               // how many times 256 KiB a report may have, compressed; 0: once
	Listens   int               // the port at which other clusters reach it; 0: none
	Dials     []int             // the ports at which it reaches other clusters, and nothing else
	Resumes   bool              // it goes on where it was when it was killed, so its pod is made again, however often
	Progress  func(line string) // is told what the pods say, at any time; may be nil
}

// Mount is where a claim is mounted.
type Mount struct {
	Claim    string
	Path     string
	SubPath  string
	ReadOnly bool
}

// Isolator is a Platform that can keep a copy's pods from reaching what is not theirs.
type Isolator interface {
	// Isolate has the pods with these labels reach nothing outside of their namespace, as far as the cluster enforces it, and
	// returns what of others such a pod reaches all the same.
	Isolate(ctx context.Context, key string, i Isolation) (reached []string, err error)
	// Release takes back what Isolate made for a delivery in a namespace, when none of its copies' pods is left there.
	Release(ctx context.Context, namespace, delivery string) error
}

// Isolation says whose pods are kept from whom.
type Isolation struct {
	Namespace string
	Own       bool // the namespace is one of Sluice's: made where there is none, and refused where somebody else made it
	Delivery  string
	Labels    map[string]string // of the pods
	Whole     bool              // not only those: every pod of the namespace, but Sluice's own
	Others    []Endpoint
}

// Endpoint is an address that must not be reached. UID is of the object that has it: the address may mean another object in
// the cluster where the copy is.
type Endpoint struct {
	What    string // "Service shop/mongo"
	Address string // ip:port
	UID     string
}

// Locker is a Platform that others deliver to as well, by engines that do not know of each other.
type Locker interface {
	// Lock makes an application of a namespace be the holder's for a while; the holder may take it again before that is over.
	// It returns who has it, "" where that is the holder now.
	Lock(ctx context.Context, namespace, application, holder string, within time.Duration) (other string, err error)
	// Unlock gives it back. What is not the holder's stays as it is.
	Unlock(ctx context.Context, namespace, application, holder string) error
}
