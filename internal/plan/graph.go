// Package plan turns a deploy file and its manifests into the graph of a delivery: what each step waits for, does, how
// it is undone and where the point of no return is. It is pure.
package plan

import (
	"encoding/json"
	"time"

	"github.com/sluice-cd/sluice/internal/manifest"
)

// Graph is the plan of one delivery: steps and what each waits for. It has no cycle and its nodes are in an order in
// which they could run one after another.
type Graph struct {
	Application string            `json:"application"`
	Context     map[string]string `json:"context,omitempty"`
	Targets     []Target          `json:"targets"`
	Nodes       []Node            `json:"nodes"`
}

// Target is one environment of the delivery.
type Target struct {
	Name      string   `json:"name"`
	Account   string   `json:"account"`
	Namespace string   `json:"namespace"`
	DependsOn []string `json:"dependsOn,omitempty"`
	Notes     []string `json:"notes,omitempty"` // what the deploy file says about it and has no effect
}

// Phase is a part of a target's run. It decides what a failure means: before: the target never starts; deploy: what was
// begun in this phase of this target is undone, last first; after: nothing is undone. In all cases the dependants of the
// target are cancelled and the other open steps of the target are ended.
type Phase string

// The phases.
const (
	Before Phase = "before"
	Deploy Phase = "deploy"
	After  Phase = "after"
)

// Node is one step of the graph.
type Node struct {
	Path   string          `json:"path"` // target/phase/…: unique, stable for the same deploy file
	Title  string          `json:"title"`
	Target string          `json:"target"`
	Phase  Phase           `json:"phase"`
	Kind   string          `json:"kind"`
	Args   json.RawMessage `json:"args,omitempty"`
	After  []string        `json:"after,omitempty"` // paths that must have passed
	// OnInconclusive is what the verdicts inconclusive, error and no data do: wait (the default: 24 h, then roll back),
	// rollback, continue.
	OnInconclusive string `json:"onInconclusive,omitempty"`
	// Background steps do not hold up the steps after them; they end when the last node of their phase has passed, and
	// their failure fails the target at once.
	Background  bool        `json:"background,omitempty"`
	Description Description `json:"description"`
}

// Description is what plan prints of a step.
type Description struct {
	Does          string `json:"does"`
	WaitsFor      string `json:"waitsFor,omitempty"`
	UndoneBy      string `json:"undoneBy,omitempty"`
	NoReturnAfter bool   `json:"pointOfNoReturn,omitempty"`
}

// The kinds of nodes.
const (
	KindPause          = "pause"
	KindApproval       = "approval"
	KindWebhook        = "runWebhook"
	KindAnalysis       = "analysis"
	KindExpose         = "exposeServices"
	KindApply          = "apply"         // apply objects, wait until they are ready
	KindStartCanary    = "startCanary"   // the new version beside the old one, no traffic
	KindSetWeight      = "setWeight"     //
	KindPromote        = "promote"       // the canary becomes stable
	KindRedirect       = "redirect"      // blueGreen: the active Service to the new version
	KindCopyData       = "copyData"      // one cut of production, two twins
	KindApplyDatabase  = "applyDatabase" // the target's database on the candidate's volumes
	KindMarkData       = "markData"      // the thin clone that is verified
	KindVerifyData     = "verifyData"    //
	KindRehearse       = "rehearseRollback"
	KindCheckpointData = "checkpointData"
	KindRestoreData    = "restoreData"
	KindRunJob         = "runJob"
	KindWaitFor        = "waitFor"
	KindFence          = "fenceDatabase" // the fenced upgrade, in this order
	KindUpgradeClone   = "upgradeClone"  // takes the checkpoint, too
	KindQuickVerify    = "quickVerify"   //
	KindSwap           = "swapVolumes"   //
	KindOpen           = "openDatabase"  // the point of no return for R0
	KindStartMembers   = "startMembers"  // a replicated database: its new version, which no member has yet
	KindRollMembers    = "rollMembers"   // some of its members get it, the last ordinal first
)

// Arguments of the nodes. They are complete: a step needs nothing but them and its ports. Connection and the templates
// still hold {{secrets.…}}, which are resolved when the step runs and never stored.

// PauseArgs of KindPause.
type PauseArgs struct {
	For time.Duration `json:"for"`
}

// ApprovalArgs of KindApproval. Expires 0 waits for ever.
type ApprovalArgs struct {
	Roles   []string      `json:"roles,omitempty"`
	Expires time.Duration `json:"expires,omitempty"`
}

// WebhookArgs of KindWebhook. Context is the step's own over the delivery's.
type WebhookArgs struct {
	Name            string            `json:"name"`
	Method          string            `json:"method"`
	URI             string            `json:"uri"`
	Headers         []Header          `json:"headers,omitempty"`
	Body            string            `json:"body,omitempty"` // opaque
	RetryCount      int               `json:"retryCount,omitempty"`
	DisableCallback bool              `json:"disableCallback,omitempty"`
	Agent           string            `json:"agent,omitempty"` // account through which it goes, "" direct
	Context         map[string]string `json:"context,omitempty"`
	Where           Where             `json:"where"`
}

// Header is one header of a webhook.
type Header struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Where is what the armory.* variables are made of.
type Where struct {
	Application    string   `json:"application"`
	Target         string   `json:"target"`
	Account        string   `json:"account"`
	Namespace      string   `json:"namespace"`
	ReplicaSetName string   `json:"replicaSetName,omitempty"` // <deployment>-<8 of the delivery>; filled with {delivery} for the id
	Previews       []string `json:"previews,omitempty"`       // paths of the exposeServices nodes whose addresses armory.preview.* means
}

// Query is one metric query with its limits, both inclusive.
type Query struct {
	Name     string   `json:"name"`
	Template string   `json:"template"`
	Provider string   `json:"provider"`
	Upper    *float64 `json:"upper,omitempty"`
	Lower    *float64 `json:"lower,omitempty"`
}

// AnalysisArgs of KindAnalysis. Judge is threshold or counts.
type AnalysisArgs struct {
	Judge        string            `json:"judge"`
	Queries      []Query           `json:"queries"`
	Interval     time.Duration     `json:"interval"`
	Runs         int               `json:"runs"`
	InitialDelay time.Duration     `json:"initialDelay,omitempty"`
	Lookback     string            `json:"lookback,omitempty"` // growing, sliding
	AbortOnFail  bool              `json:"abortOnFail,omitempty"`
	RollBack     string            `json:"rollBack"`    // automatic, manual
	RollForward  string            `json:"rollForward"` // automatic, manual
	Counts       *CountsArgs       `json:"counts,omitempty"`
	Context      map[string]string `json:"context,omitempty"`
	Where        Where             `json:"where"`
}

// CountsArgs of the counts judge: four counters as query templates, each a number that only grows.
type CountsArgs struct {
	CanaryTotal string  `json:"canaryTotal"`
	CanaryBad   string  `json:"canaryBad"`
	StableTotal string  `json:"stableTotal"`
	StableBad   string  `json:"stableBad"`
	Provider    string  `json:"provider"`
	Alpha       float64 `json:"alpha"`       // false-alarm budget of the whole canary
	Margin      float64 `json:"margin"`      // the canary may be this many times worse
	MinRequests int64   `json:"minRequests"` // no pass below it
}

// ExposeArgs of KindExpose.
type ExposeArgs struct {
	Account   string        `json:"account"`
	Namespace string        `json:"namespace"`
	Services  []string      `json:"services"`
	TTL       time.Duration `json:"ttl"`
}

// ApplyArgs of KindApply and KindStartCanary. The objects are applied in order and awaited within Timeout.
type ApplyArgs struct {
	Account   string            `json:"account"`
	Namespace string            `json:"namespace"`
	Objects   []manifest.Object `json:"objects"`
	Settings  []manifest.Object `json:"settings,omitempty"` // of KindStartCanary: what the Deployments alone name and the old version must not see changed
	Timeout   time.Duration     `json:"timeout"`
	Annotate  map[string]string `json:"annotate,omitempty"`
	Env       map[string]string `json:"env,omitempty"`
	Force     bool              `json:"force,omitempty"`    // fields that others hold are taken over
	Meshes    []Mesh            `json:"meshes,omitempty"`   // of KindStartCanary: what of a mesh shares the traffic out
	Recovers  bool              `json:"recovers,omitempty"` // of KindStartCanary: what runs may not be ready yet, because its database was away
}

// Mesh is a VirtualService of Istio with its DestinationRule, or a TrafficSplit of SMI.
type Mesh struct {
	VirtualService  string `json:"virtualService,omitempty"`
	Route           string `json:"route,omitempty"`
	DestinationRule string `json:"destinationRule,omitempty"`
	ActiveSubset    string `json:"activeSubset,omitempty"`
	CanarySubset    string `json:"canarySubset,omitempty"`

	TrafficSplit  string `json:"trafficSplit,omitempty"`
	RootService   string `json:"rootService,omitempty"`
	CanaryService string `json:"canaryService,omitempty"`
}

// WeightArgs of KindSetWeight, KindPromote and KindRedirect.
type WeightArgs struct {
	Account     string         `json:"account"`
	Namespace   string         `json:"namespace"`
	Deployments []manifest.Ref `json:"deployments"`
	Weight      int            `json:"weight"`
	Timeout     time.Duration  `json:"timeout"`
}

// Database is a declared database.
type Database struct {
	Name       string       `json:"name"`
	Engine     string       `json:"engine"`
	Account    string       `json:"account"`   // where production's runs
	Namespace  string       `json:"namespace"` //
	Workload   manifest.Ref `json:"workload"`
	Connection string       `json:"connection"`           // template; its host is a Service
	Unenforced bool         `json:"unenforced,omitempty"` // that copies can reach production is accepted in writing
	Sidecars   []string     `json:"sidecars,omitempty"`   // containers that copies run besides the first
}

// Site is a place in an account.
type Site struct {
	Account   string `json:"account"`
	Namespace string `json:"namespace"`
}

// CopyArgs of KindCopyData. Objects are the database's workload and Services as this delivery's manifests for the target
// give them (the candidate); control is made from production's live ones.
type CopyArgs struct {
	Database Database          `json:"database"`
	To       Site              `json:"to"`
	Replace  bool              `json:"replace,omitempty"`
	MaxHold  time.Duration     `json:"maxHold,omitempty"`
	Timeout  time.Duration     `json:"timeout"`
	Objects  []manifest.Object `json:"objects"`
}

// DataArgs of KindApplyDatabase, KindMarkData, KindVerifyData, KindRehearse and the steps of the fenced upgrade. CopyPath is the path of
// the copyData node that made the twins, "" in production.
type DataArgs struct {
	Database  Database          `json:"database"`
	To        Site              `json:"to"`
	CopyPath  string            `json:"copyPath,omitempty"`
	MarkPath  string            `json:"markPath,omitempty"`
	Group     string            `json:"group,omitempty"`     // of a fenced upgrade: its steps are <group>/fence, upgrade, verify, swap, open
	Rehearsal string            `json:"rehearsal,omitempty"` // path of the rehearseRollback node that opened the ways back
	Contract  *Contract         `json:"contract,omitempty"`
	Checks    []Check           `json:"checks,omitempty"`
	Objects   []manifest.Object `json:"objects,omitempty"` // the new workload with its Services, and the migration Jobs
	Then      *Application      `json:"then,omitempty"`    // of KindFence
	Apps      []manifest.Object `json:"apps,omitempty"`    // the new application's workloads, for the rehearsal
	Jobs      []manifest.Object `json:"jobs,omitempty"`    // tests for the rehearsal
	Require   bool              `json:"require,omitempty"`
	Deadline  time.Duration     `json:"deadline,omitempty"`
	Bake      time.Duration     `json:"bake,omitempty"`
	MaxLost   int64             `json:"maxLost,omitempty"` // writes that a restore of the checkpoint may discard without asking
	TTL       time.Duration     `json:"ttl,omitempty"`
	Name      string            `json:"name,omitempty"` // of a checkpoint
	Timeout   time.Duration     `json:"timeout"`
	Force     bool              `json:"force,omitempty"` // of KindApplyDatabase and the fenced upgrade: fields that others hold are taken over
}

// Application is what a target gets once its database has the new version: asked about before, it is refused before anybody is
// held back for it.
type Application struct {
	Plain  *ApplyArgs `json:"plain,omitempty"`
	Canary *ApplyArgs `json:"canary,omitempty"`
}

// MembersArgs of KindStartMembers and KindRollMembers.
type MembersArgs struct {
	Database Database        `json:"database"`
	Workload manifest.Object `json:"workload"`
	Group    string          `json:"group"`          // its steps are <group>/start and others
	Members  int             `json:"members"`        // how many the manifest has
	Roll     int             `json:"roll,omitempty"` // how many of them have the new version afterwards
	Last     bool            `json:"last,omitempty"` // all of them, and the workload is as the manifest says
	Then     *Application    `json:"then,omitempty"` // of KindStartMembers
	Timeout  time.Duration   `json:"timeout"`        // for each member
	Force    bool            `json:"force,omitempty"`
}

// Contract is what a change is expected to change. Only exclusions are built: "database.schema.table" or
// "database.schema.table.column", with * for any one part.
type Contract struct {
	Name     string   `json:"name"`
	Exclude  []string `json:"exclude,omitempty"`
	Describe string   `json:"describe,omitempty"`
}

// Check is an invariant: a query that must give the same on both twins, or Equals where it is set.
type Check struct {
	Name   string  `json:"name"`
	Query  string  `json:"query"`
	Equals *string `json:"equals,omitempty"`
}

// JobArgs of KindRunJob.
type JobArgs struct {
	Name    string            `json:"name"`
	To      Site              `json:"to"`
	Objects []manifest.Object `json:"objects"`
	Timeout time.Duration     `json:"timeout"`
}

// WaitForArgs of KindWaitFor: until the object is Ready.
type WaitForArgs struct {
	To      Site          `json:"to"`
	Ref     manifest.Ref  `json:"ref"`
	Timeout time.Duration `json:"timeout"`
}
