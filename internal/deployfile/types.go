// Package deployfile is the deploy file: its types, its reading with places in the file, what is found wrong, and its
// JSON schema.
package deployfile

import "time"

// Pos is a place in the deploy file, counted from 1.
type Pos struct {
	Line   int `json:"line"`
	Column int `json:"column"`
}

// File is a deploy file in normal form: every alias is resolved, enumerations are in lower case, durations are durations.
type File struct {
	Path              string
	Version           string
	Kind              string // kubernetes, lambda
	Application       string
	Description       string
	Context           map[string]string
	Targets           []Target
	Manifests         []Manifest
	Strategies        []Strategy
	Analysis          AnalysisConfig
	Webhooks          []Webhook
	TrafficManagement []TrafficManagement
	DeploymentConfig  DeploymentConfig
	Data              Data
	// Substitutions are secrets that are named outside of webhooks, queries and connections.
	Substitutions []Substitution
}

// Target is one environment.
type Target struct {
	Pos              Pos
	Name             string
	Account          string
	Namespace        string
	Strategy         string
	DependsOn        []string
	BeforeDeployment []Step
	AfterDeployment  []Step
}

// Manifest is where objects come from, and which targets get them: all with none named.
type Manifest struct {
	Pos     Pos
	Path    string
	Inline  string
	Targets []string
}

// Strategy is how a new version takes over. At most one of its fields is set; none means rolling.
type Strategy struct {
	Pos       Pos
	Name      string
	Canary    *Canary
	BlueGreen *BlueGreen
}

// Canary is a strictly ordered list of steps; after the last one all traffic goes to the new version.
type Canary struct{ Steps []Step }

// BlueGreen has two lists that run in parallel.
type BlueGreen struct {
	RedirectTrafficAfter    []Step
	ShutDownOldVersionAfter []Step
	ActiveService           string
	PreviewService          string
}

// Step is one item of a list of steps: exactly one field besides Pos is set.
type Step struct {
	Pos              Pos
	SetWeight        *SetWeight
	Pause            *Pause
	RunWebhook       *RunWebhook
	Analysis         *Analysis
	ExposeServices   *ExposeServices
	CopyData         *CopyData
	VerifyData       *VerifyData
	RehearseRollback *RehearseRollback
	CheckpointData   *CheckpointData
	RestoreData      *RestoreData
	MaskData         *MaskData
	RunJob           *RunJob
	WaitFor          *WaitFor
	Sequence         []Step
}

// SetWeight gives the new version a share of the traffic in percent.
type SetWeight struct{ Weight int }

// Pause waits for a time, or for a person.
type Pause struct {
	Duration           time.Duration
	UntilApproved      bool
	RequiresRoles      []string
	ApprovalExpiration time.Duration // 0: none
}

// RunWebhook calls a declared webhook.
type RunWebhook struct {
	Name    string
	Context map[string]string
}

// Analysis judges metrics.
type Analysis struct {
	Queries               []string
	Interval              time.Duration
	NumberOfJudgmentRuns  int
	RollBackMode          string // automatic, manual
	RollForwardMode       string // automatic, manual
	LookbackMethod        string // growing, sliding
	AbortOnFailedJudgment bool
	MetricProviderName    string
	Context               map[string]string
	Counts                *Counts
	InitialDelay          time.Duration
	Background            bool
	OnInconclusive        string // wait, rollback, continue
}

// Counts are the counters of the counts judge, each a query for a number that only grows.
type Counts struct {
	CanaryTotal string
	CanaryBad   string
	StableTotal string
	StableBad   string
	Alpha       float64
	Margin      float64
	MinRequests int64
}

// ExposeServices gives Services a temporary address.
type ExposeServices struct {
	Services []string
	TTL      time.Duration
}

// CopyData makes twins of a database in the target.
type CopyData struct {
	Database string
	Replace  bool
	MaxHold  time.Duration
	Timeout  time.Duration
}

// VerifyData compares control with the mark.
type VerifyData struct {
	Database string
	Contract string
	Timeout  time.Duration
}

// RehearseRollback walks the ways back. Jobs are names in data.jobs, all of them with none.
type RehearseRollback struct {
	Database string
	Require  bool
	Jobs     []string
	Timeout  time.Duration
}

// CheckpointData keeps a copy of the running database.
type CheckpointData struct {
	Database string
	Name     string
	TTL      time.Duration
}

// RestoreData restores a checkpoint.
type RestoreData struct {
	Database   string
	Checkpoint string
	MaxLost    int64
}

// MaskData makes a copy safe to look at. It is not built yet.
type MaskData struct {
	Database string
	Mask     string
}

// RunJob runs a Job of data.jobs in the target.
type RunJob struct {
	Name    string
	Timeout time.Duration
}

// WaitFor waits until an object of the target is ready.
type WaitFor struct {
	Kind    string
	Name    string
	Timeout time.Duration
}

// AnalysisConfig is the top-level section analysis.
type AnalysisConfig struct {
	DefaultMetricProviderName string
	Queries                   []Query
}

// Query is a metric query with inclusive limits.
type Query struct {
	Pos                Pos
	Name               string
	QueryTemplate      string
	UpperLimit         *float64
	LowerLimit         *float64
	MetricProviderName string
}

// Webhook is a declared webhook. Body is opaque.
type Webhook struct {
	Pos             Pos
	Name            string
	Method          string
	URI             string
	NetworkMode     string // direct, remotenetworkagent
	AgentIdentifier string
	Headers         []Header
	Body            string
	BodyPath        string
	RetryCount      int
	DisableCallback bool
}

// Header is one header of a webhook.
type Header struct {
	Key   string
	Value string
}

// TrafficManagement says what shifts the traffic of some targets: all with none named.
type TrafficManagement struct {
	Pos        Pos
	Targets    []string
	SMI        []SMI
	Istio      []Istio
	Kubernetes []ServicePair
}

// SMI is a TrafficSplit.
type SMI struct {
	RootServiceName   string
	CanaryServiceName string
	TrafficSplitName  string
}

// Istio is a VirtualService with its DestinationRule.
type Istio struct {
	VirtualService   string
	HTTPRouteName    string
	DestinationRule  string
	ActiveSubsetName string
	CanarySubsetName string
}

// ServicePair is an active Service with its preview Service.
type ServicePair struct {
	ActiveService  string
	PreviewService string
}

// DeploymentConfig is the section deploymentConfig. Timeout 0 means the default of 30 minutes.
type DeploymentConfig struct {
	Timeout                time.Duration
	KeepDeploymentObject   bool
	IfDeploymentInProgress string // reject, enqueueone
}

// Data is the section data.
type Data struct {
	Databases []Database
	Contracts []Contract
	Checks    []Check
	Masks     []Mask
	Jobs      []Job
}

// Database is a database that is copied, verified and upgraded.
type Database struct {
	Pos        Pos
	Name       string
	Engine     string
	Target     string   // where the live one runs
	Workload   string   // statefulset/NAME
	Connection string   // its host is a Service of the workload
	MarkAfter  string   // a workload whose own start migrates
	Quarantine string   // "unenforced": that copies can reach production is accepted
	Sidecars   []string // containers that copies run besides the first
	Upgrade    Upgrade
}

// Upgrade says how a database is upgraded in production.
type Upgrade struct {
	Deadline time.Duration // of the fence
	Bake     time.Duration
	MaxLost  int64
	Contract string
	Strategy string // of a replicated database: a canary whose weights are shares of its members
}

// Contract is what a change is expected to change.
type Contract struct {
	Pos      Pos
	Name     string
	Describe string
	Exclude  []string
	Other    []string // keys that are read and not built yet
}

// Check is an invariant.
type Check struct {
	Pos      Pos
	Name     string
	Database string
	Query    string
	Equals   *string
}

// Mask is a masking rule; not built yet.
type Mask struct {
	Pos  Pos
	Name string
}

// Job is a test that runs as a Job.
type Job struct {
	Pos    Pos
	Name   string
	Path   string
	Inline string
}
