package fingerprint

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// Report is what a comparison found. Its JSON names are stable.
type Report struct {
	Verdict     Verdict            `json:"verdict"`
	Reason      string             `json:"reason,omitempty"` // one sentence; why it could not be told, or what differs
	Source      SideReport         `json:"source"`
	Target      SideReport         `json:"target"`
	Seed        string             `json:"seed"` // digests
	Plan        string             `json:"plan"`
	Tables      []TableReport      `json:"tables"`
	Schema      []database.Finding `json:"schema,omitempty"`
	Expected    []database.Finding `json:"expected,omitempty"` // differences of the schema that the contract names
	Coverage    Coverage           `json:"coverage"`
	NotCompared []NotCompared      `json:"notCompared,omitempty"`
	Started     time.Time          `json:"started"`
	Cost        Cost               `json:"cost"`
}

// SideReport is what was compared.
type SideReport struct {
	Info   database.Info `json:"info"`
	Live   bool          `json:"live"`             // there was no snapshot: rows could move between scans
	Reused bool          `json:"reused,omitempty"` // a fingerprint made earlier was used instead of a scan
	Rows   int64         `json:"rows"`
	Bytes  int64         `json:"bytes"` // of canonical values
}

// Coverage says how much was compared.
type Coverage struct {
	Relations   int `json:"relations"`
	Objects     int `json:"objects"`
	NotCompared int `json:"notCompared"` // unexpectedly
}

// Cost is what the comparison took.
type Cost struct {
	Seconds       float64 `json:"seconds"`
	RowsPerSecond float64 `json:"rowsPerSecond"` // of all scans of both sides
	RowsScanned   int64   `json:"rowsScanned"`
	SpillBytes    int64   `json:"spillBytes"`
	Passes        int     `json:"passes"` // scans of the table that took most
}

// TableReport is what was found in one table.
type TableReport struct {
	Name          database.Name `json:"name"`
	Verdict       Verdict       `json:"verdict"`
	Key           []string      `json:"key,omitempty"`
	Note          string        `json:"note,omitempty"`
	Doubt         string        `json:"doubt,omitempty"` // why nothing can be said about it; the note has it, too
	SourceRows    int64         `json:"sourceRows"`
	TargetRows    int64         `json:"targetRows"`
	SourceRoot    string        `json:"sourceRoot"`
	TargetRoot    string        `json:"targetRoot"`
	Passes        int           `json:"-"` // how many scans a side; a matter of cost, not of what was found
	Missing       int64         `json:"missing"`
	Extra         int64         `json:"extra"`
	Changed       int64         `json:"changed"`
	Duplicate     int64         `json:"duplicate"`
	KeyChanged    int64         `json:"keyChanged"`
	KeyRespelled  int64         `json:"keyRespelled"`
	NotClassified int64         `json:"notClassified,omitempty"`
	AtLeast       bool          `json:"atLeast,omitempty"` // NotClassified counts buckets, there may be more rows
	Columns       []string      `json:"columns,omitempty"` // columns whose sums differ
	Classes       []ClassReport `json:"classes,omitempty"`
}

// took says how long it took, whose rows and passes are there already.
func (r *Report) took(d time.Duration) {
	if r.Cost.Seconds = d.Seconds(); r.Cost.Seconds > 0 {
		r.Cost.RowsPerSecond = float64(r.Cost.RowsScanned) / r.Cost.Seconds
	}
}

// conclude writes the verdict. What is certain goes before what is not: a difference is one even where other tables could
// not be compared.
func (r *Report) conclude(err error) {
	r.Verdict, r.Reason = Unknown, ""
	r.Coverage.Relations, r.Coverage.NotCompared = len(r.Tables), 0
	var uncovered, doubts []string
	for _, n := range r.NotCompared {
		if !n.Expected {
			r.Coverage.NotCompared++
			uncovered = append(uncovered, n.Object+" ("+n.Reason+")")
		}
	}
	different := 0
	for i := range r.Tables {
		if r.Tables[i].Verdict == Different {
			different++
		}
		if d := r.Tables[i].Doubt; d != "" {
			doubts = append(doubts, d)
		}
	}
	switch {
	case err != nil:
		r.Reason = err.Error()
	case different+len(r.Schema) > 0:
		r.Verdict = Different
		r.Reason = fmt.Sprintf("%d of %d tables differ, and %d differences of the schema were found", different, len(r.Tables), len(r.Schema))
		if len(doubts) > 0 {
			r.Reason += "; besides, " + strings.Join(doubts, "; ")
		}
	case len(doubts) > 0:
		r.Reason = strings.Join(doubts, "; ")
	case len(uncovered) > 0:
		r.Reason = "not everything could be compared, and the contract does not name it: " + firstFew(uncovered)
	case len(r.Tables) == 0 || r.Source.Rows+r.Target.Rows == 0:
		r.Reason = "there is nothing to compare: neither side has a row; check the names of the databases"
	default:
		r.Verdict = Equal
	}
}

func firstFew(list []string) string {
	if len(list) > 3 {
		return strings.Join(list[:3], ", ") + fmt.Sprintf(" and %d more", len(list)-3)
	}
	return strings.Join(list, ", ")
}

// Differences is how many rows differ.
func (t *TableReport) Differences() int64 {
	return t.Missing + t.Extra + t.Changed + t.Duplicate + t.KeyChanged + t.KeyRespelled
}

// ClassReport counts one class in one column; Column is "" for the classes of whole rows, and for a document's own order.
type ClassReport struct {
	Class    string    `json:"class"`
	Column   string    `json:"column,omitempty"`
	Count    int64     `json:"count"`
	Pattern  *Pattern  `json:"pattern,omitempty"`
	Examples []Example `json:"examples"`
}

// Pattern is what the numbers of a class have in common: the least and the largest of new - old. It is constant where
// they are equal, which is what systematic damage looks like.
type Pattern struct {
	Constant bool   `json:"constant"`
	Min      string `json:"min"`
	Max      string `json:"max"`
	Text     string `json:"text"` // "+1h0m0s", "+3"
}

// Example is one differing row. The examples of a class are those with the smallest keys.
type Example struct {
	Key          string  `json:"key,omitempty"`
	NewKey       string  `json:"newKey,omitempty"` // where the key itself changed
	Old          *Value  `json:"old,omitempty"`
	New          *Value  `json:"new,omitempty"`
	Row          []Value `json:"row,omitempty"` // of a row that one side lacks
	SourceCopies int     `json:"sourceCopies,omitempty"`
	TargetCopies int     `json:"targetCopies,omitempty"`

	order []byte
}

// Value is a value as people read it. Long ones are cut around the place where they differ.
type Value struct {
	Path string `json:"path,omitempty"`
	Type string `json:"type,omitempty"`
	Text string `json:"text"`
}

// Difference is one line of Options.Differences.
type Difference struct {
	Relation     database.Name `json:"relation"`
	Class        string        `json:"class"` // missing, extra, changed, duplicate, key changed, key respelled
	Key          string        `json:"key,omitempty"`
	NewKey       string        `json:"newKey,omitempty"`
	Changes      []FieldChange `json:"changes,omitempty"`
	Row          []Value       `json:"row,omitempty"`
	SourceCopies int           `json:"sourceCopies,omitempty"`
	TargetCopies int           `json:"targetCopies,omitempty"`
}

// FieldChange is one differing value of a changed row.
type FieldChange struct {
	Path  string `json:"path"`
	Class string `json:"class"`
	Old   *Value `json:"old,omitempty"`
	New   *Value `json:"new,omitempty"`
}

// RowDifference is a differing row as it was read: Old of the source and New of the target, nil where the side has none.
// Count is how many copies of it the side has more. It is valid until the callback returns.
type RowDifference struct {
	Relation database.Name
	Class    string // as in Difference
	Count    int64
	Old, New *database.Row

	table *Table
	views [2]database.View
}

// Render returns the row of one side as JSON from which it can be written again, nil where the side has none.
func (d RowDifference) Render(r Role) (json.RawMessage, error) {
	row := [2]*database.Row{d.Old, d.New}[r]
	if row == nil {
		return nil, nil
	}
	v, ok := d.views[r].(database.Renderer)
	if !ok {
		return nil, fault.Newf(fault.Invalid, "the engine of the %s cannot export rows", r)
	}
	side := &d.table.sides[r]
	return v.Render(side.relation, &side.projection, *row)
}

// ClassChanged is the class of a changed row in Difference and RowDifference; in a report its columns have classes.
const ClassChanged = "changed"
