// Package database is the port to what Sluice must know of a database engine: how it is quieted for a copy, what a
// copy must not do, what is in it, and how its rows are read in a form that two versions agree on.
//
// It imports no volume type. Optional abilities are found by type assertion and listed in Info. A method with an id is
// idempotent by it.
package database

import (
	"context"
	"encoding/json"
	"net"
	"time"
)

// URL says how to reach a server. Dial, when not nil, is used instead of the network for every connection, so that the
// host in Value names a Service and never an address. Frozen tells that nobody can write to the server (a twin, or
// production behind the fence), so that a read view of it is not live even where the engine has no snapshots.
type URL struct {
	Value  string
	Frozen bool
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
}

// Role is what a started copy is for.
type Role string

// The roles. Production is not quarantined; everything else is.
const (
	Production Role = "production"
	Control    Role = "control"
	Candidate  Role = "candidate"
	Rehearsal  Role = "rehearsal"
	Upgrade    Role = "upgrade" // becomes production: neutralised by how it is launched, its files stay as they are
)

// Launch is how a copy must be started: added to the workload's own command.
type Launch struct {
	Args  []string
	Env   map[string]string
	Notes []string // what was neutralised, for the report
}

// Engine knows one kind of database.
type Engine interface {
	// Name is the engine's name in deploy files: mongodb, postgres.
	Name() string
	// Prepare readies the volumes of a clone before its first start: quarantine. dirs are its volume directories; it
	// refuses what it cannot neutralise, naming it.
	Prepare(ctx context.Context, dirs []string, r Role) (Launch, error)
	// Open connects with a read-only session whose settings are pinned.
	Open(ctx context.Context, u URL) (Server, error)
}

// Server is an open connection to a server, or a pool of them.
type Server interface {
	Describe(ctx context.Context) (Info, error)
	// Catalog returns the normal form of everything there is; it is also the census.
	Catalog(ctx context.Context) (Catalog, error)
	// View opens one consistent read view, or one marked live.
	View(ctx context.Context) (View, error)
	// Check runs the engine's own checks.
	Check(ctx context.Context, d Depth, found func(Finding)) error
	Close() error
}

// Depth says how much a check reads.
type Depth string

// The depths of a check.
const (
	Quick Depth = "quick" // catalogs and flags only
	Full  Depth = "full"  // every index against its table
)

// Finding is what a check or a comparison of catalogs found wrong.
type Finding struct {
	Object  string `json:"object"`
	Class   string `json:"class"`
	Message string `json:"message"`
}

// Info describes a server.
type Info struct {
	Engine    string    `json:"engine"`
	Version   string    `json:"version"`
	ServedBy  string    `json:"servedBy,omitempty"` // "FerretDB" where the wire protocol is served by another product
	Identity  string    `json:"identity,omitempty"` // system identifier where one exists
	Role      string    `json:"role,omitempty"`     // primary, standby, standalone
	Durable   bool      `json:"durable"`            // false where an acknowledged write may be lost by a crash
	Position  string    `json:"position,omitempty"` // log position where one exists
	Started   time.Time `json:"started,omitzero"`
	Abilities []string  `json:"abilities,omitempty"`
}

// Family is a set of types whose values have one encoding.
type Family string

// The families. A column whose type has no binary form of its own is Other: text under pinned settings.
const (
	Integer   Family = "integer"
	Float     Family = "float"
	Numeric   Family = "numeric"
	Boolean   Family = "boolean"
	Text      Family = "text"
	Bytes     Family = "bytes"
	Timestamp Family = "timestamp"
	Interval  Family = "interval"
	JSONText  Family = "json"
	JSONB     Family = "jsonb"
	UUID      Family = "uuid"
	Enum      Family = "enum"
	Array     Family = "array"
	Document  Family = "document" // a whole BSON document
	Other     Family = "other"
)

// Name names a relation. Schema is "" where the engine has none.
type Name struct {
	Database string `json:"database"`
	Schema   string `json:"schema,omitempty"`
	Relation string `json:"relation"`
}

// String returns the name as people write it.
func (n Name) String() string {
	s := n.Relation
	if n.Schema != "" {
		s = n.Schema + "." + s
	}
	if n.Database != "" {
		s = n.Database + "." + s
	}
	return s
}

// Column is one column of a relation.
type Column struct {
	Name   string `json:"name"`
	Type   string `json:"type"` // as the engine spells it; belongs to the schema
	Family Family `json:"family"`
}

// Relation is something with rows.
type Relation struct {
	Name      Name     `json:"name"`
	Columns   []Column `json:"columns"`
	Key       []string `json:"key,omitempty"`       // columns of the key; empty: a row is its own identity
	KeyUnique bool     `json:"keyUnique,omitempty"` // false where Key is empty
	Rows      int64    `json:"rows"`                // an estimate
	Bytes     int64    `json:"bytes"`
	HighWater int64    `json:"highWater,omitempty"` // max(rowid) or the like: a copy must reach it
	Skip      string   `json:"skip,omitempty"`      // why its rows cannot be read, "" if they can
}

// Object is anything else that has a definition: an index, a constraint, a sequence, a role, a setting. Attributes are
// in normal form, so that two versions of an engine that mean the same write the same.
type Object struct {
	Kind       string            `json:"kind"`
	Name       string            `json:"name"`
	Attributes map[string]string `json:"attributes"`
}

// Catalog is everything there is on a server, in normal form, sorted by name.
type Catalog struct {
	Info      Info       `json:"info"`
	Databases []string   `json:"databases"`
	Relations []Relation `json:"relations"`
	Objects   []Object   `json:"objects"`
	// NotComparable lists what cannot be compared on this server, with the reason: the verdict is inconclusive unless
	// the contract names it.
	NotComparable []Finding `json:"notComparable,omitempty"`
}

// Projection is what is read of a relation: the columns in this order, the key first resolved by name. It is the same
// for both sides of a comparison.
type Projection struct {
	Columns []Column // in the order of Row.Values
	Key     []int    // indexes into Columns; empty: the row is its own identity
}

// Row is one row in canonical form. It is valid until the callback returns.
//
// Values are parallel to the projection's columns; each is type- and NULL-tagged canonical bytes as design-data
// describes, equal for equal values whatever the version or width of type. Key is the length-prefixed concatenation of
// the key's values, by value (the server calls 1, 1L and 1.0 one key); nil where the projection has no key. For the
// Document family there is one value: the raw BSON document.
type Row struct {
	Key    []byte
	Values [][]byte
}

// Field is one named value of a row, for reports. Number is set where a difference can be computed (integers, floats,
// timestamps in microseconds).
type Field struct {
	Path   string   `json:"path"`
	Type   string   `json:"type"`
	Text   string   `json:"text"`
	Number *float64 `json:"-"`
	Canon  []byte   `json:"-"`
}

// Range is a part of a relation's rows. The zero Part of a range is the whole relation.
type Range struct {
	Relation Relation
	Part     any // the engine's own
}

// View reads rows. Scans and fetches may run at the same time, each called from a goroutine of its own.
type View interface {
	// Live reports that there is no snapshot: rows may move between scans.
	Live() bool
	// Ranges cuts the relation into at most n disjoint parts that cover it; one where nothing is pushed down.
	Ranges(ctx context.Context, r Relation, n int) ([]Range, error)
	// Scan calls each with every row of the range once, in no order, and returns how many rows the server said it sent.
	Scan(ctx context.Context, r Range, p *Projection, each func(Row) error) (serverRows int64, err error)
	// Fetch calls each with the rows of these keys (Row.Key); a key that has no row is left out.
	Fetch(ctx context.Context, r Relation, p *Projection, keys [][]byte, each func(Row) error) error
	// Fields takes a row apart for the report, in the order of columns or of the document.
	Fields(r Relation, p *Projection, row Row) ([]Field, error)
	Close() error
}

// Quiescer is an Engine that can hold writers for a copy. The hold ends at maxHold, when the lease is released, and when
// the process that took it dies.
type Quiescer interface {
	Quiesce(ctx context.Context, q QuiesceRequest) (Lease, error)
}

// QuiesceRequest says what is to be held. Atomic tells that the cut will be atomic over all dirs.
type QuiesceRequest struct {
	ID      string
	URL     URL
	Dirs    []string // the live volume directories
	Atomic  bool
	MaxHold time.Duration
}

// Lease is a hold on writers.
type Lease interface {
	// Census is what a copy cut now must hold, taken without a scan while writers are held.
	Census() Catalog
	// Level is what a copy cut under this lease is worth: application, recoverable, assembled (package volume's words).
	Level() string
	// Lost is closed when the hold is gone before Release.
	Lost() <-chan struct{}
	// Release lets writers go on and returns what must still be put into the copy.
	Release(ctx context.Context) (Assembly, error)
}

// Assembly finishes a copy that the engine's own backup mode began: files to write and files to copy from the live
// volumes after the release, then to remove. It is empty where the cut was all.
type Assembly struct {
	// Finish is called with the copy's directories, parallel to the request's.
	Finish func(ctx context.Context, dirs []string) error
	Notes  []string
}

// Fencer is a Server that can refuse writes by itself.
type Fencer interface {
	Fence(ctx context.Context, id string) error
	InFlight(ctx context.Context) (int, error)
	Unfence(ctx context.Context, id string) error
}

// Kind of an at-risk figure.
type AtRiskKind string

// The kinds of at-risk figures; a budget accepts exact and at_most only.
const (
	Exact   AtRiskKind = "exact"
	AtMost  AtRiskKind = "at_most"
	NetRows AtRiskKind = "net_rows"
)

// AtRisk is how many committed writes a restore would discard.
type AtRisk struct {
	Value  int64      `json:"value"`
	Kind   AtRiskKind `json:"kind"`
	Source string     `json:"source"`
}

// Log is an Engine whose log of writes can be counted. It is pinned while the server runs and read once it was stopped cleanly.
type Log interface {
	// Pin keeps the server's log from now on, under an id, and returns the position. Again with the same id the log is kept from
	// the first time on, and the position is the newer one.
	Pin(ctx context.Context, id string, u URL) (position string, err error)
	// Unpin ends that. An id that pins nothing is no error.
	Unpin(ctx context.Context, id string, u URL) error
	// Countable says why AtRisk would not count, as far as that can be told before: dirs are those of a server that may run, none
	// where only the programs of its image are at hand.
	Countable(ctx context.Context, dirs []string) error
	// AtRisk counts the commits after the position in the directories of a server that does not run. It fails, and says why,
	// where the log does not tell, so that nothing is counted as too little.
	AtRisk(ctx context.Context, dirs []string, from string) (AtRisk, error)
}

// Querier is a Server that runs one read-only query for an invariant and returns its single value as text. A query that
// returns none or several is an error of kind invalid. The query is in the engine's own language: SQL, or a MongoDB
// command as JSON with "$db" naming the database.
type Querier interface {
	Query(ctx context.Context, query string) (string, error)
}

// Renderer is a View that renders a row as JSON from which it can be written again: canonical extended JSON of a
// document, the text forms of an SQL row's columns by name.
type Renderer interface {
	Render(r Relation, p *Projection, row Row) (json.RawMessage, error)
}

// Preflighter is an Engine that can tell which privilege is missing, and prints the GRANTs that give it.
type Preflighter interface {
	Preflight(ctx context.Context, u URL) ([]Finding, error)
	Grants(role string) string
}
