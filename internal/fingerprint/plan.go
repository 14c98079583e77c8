package fingerprint

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// Exclusion is one thing that the contract expects to differ. Relation, Object and Attribute may be patterns (*, ?).
type Exclusion struct {
	Relation  string `json:"relation,omitempty"`  // orders, public.orders or shop.public.orders
	Column    string `json:"column,omitempty"`    // a column, or a path inside documents; "" is the whole relation
	Object    string `json:"object,omitempty"`    // "index orders_by_day", or what a catalog lists as not comparable
	Attribute string `json:"attribute,omitempty"` // of the object; "" is the whole object
	Reason    string `json:"reason,omitempty"`
}

// PlanOptions narrow a comparison.
type PlanOptions struct {
	Contract  []Exclusion
	Tables    []string          // compare only these relations; patterns
	Exclude   []string          // but not these
	Databases map[string]string // source's name to target's, where two databases of different names are compared
}

// NotCompared is something the comparison leaves out. Expected ones are named by the contract or were left out on
// request; any other makes the verdict unknown.
type NotCompared struct {
	Object   string `json:"object"`
	Reason   string `json:"reason"`
	Expected bool   `json:"expected"`
}

// Column is a planned column. The families differ where a column's type was changed to one of another family.
type Column struct {
	Name   string          `json:"name"`
	Source database.Family `json:"source"`
	Target database.Family `json:"target"`
}

// Table is a relation whose rows are compared.
type Table struct {
	Name    database.Name `json:"name"`
	Columns []Column      `json:"columns"`
	Key     []int         `json:"key,omitempty"`   // indexes into Columns; empty: a row is its own identity
	Paths   []string      `json:"paths,omitempty"` // excluded paths inside documents
	Keyless string        `json:"-"`               // why there is no key

	sides [2]tableSide
}

type tableSide struct {
	relation   database.Relation
	projection database.Projection
}

// document reports whether rows are whole documents.
func (t *Table) document() bool {
	return len(t.Columns) == 1 && t.Columns[0].Source == database.Document
}

// keyNames returns the key's columns; nil without a key.
func (t *Table) keyNames() []string {
	var names []string
	for _, k := range t.Key {
		names = append(names, t.Columns[k].Name)
	}
	return names
}

// Plan says what is compared and how, before anything is scanned.
type Plan struct {
	Tables      []Table            `json:"tables"`
	Findings    []database.Finding `json:"findings,omitempty"` // differences of the schema
	Expected    []database.Finding `json:"expected,omitempty"` // those of them that the contract names
	NotCompared []NotCompared      `json:"notCompared,omitempty"`
	Objects     int                `json:"objects"` // how many objects both catalogs have and were compared

	infos [2]database.Info
	whole string // the digest of the plan that this is a share of
}

// Digest names what enters the hashes. Fingerprints made under plans of different digests are refused, not compared.
func (p *Plan) Digest() string {
	if p.whole != "" {
		return p.whole
	}
	// Marshalling strings, numbers and slices of them never fails.
	b, _ := json.Marshal(p.Tables)
	return fmt.Sprintf("sha256:%x", sha256.Sum256(b))
}

// NewPlan pairs what the two catalogs hold. a is the source, b the target.
func NewPlan(a, b database.Catalog, o PlanOptions) (*Plan, error) {
	for _, pattern := range slices.Concat(o.Tables, o.Exclude) {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fault.Newf(fault.Invalid, "the pattern %q of a table is malformed: write * and ? for what may vary", pattern)
		}
	}
	for _, e := range o.Contract {
		for _, pattern := range []string{e.Relation, e.Object, e.Attribute} {
			if _, err := path.Match(pattern, ""); err != nil {
				return nil, fault.Newf(fault.Invalid, "the pattern %q of the contract is malformed: write * and ? for what may vary", pattern)
			}
		}
	}
	m := &planner{o: o, plan: &Plan{infos: [2]database.Info{a.Info, b.Info}}}
	m.databases(a, b)
	m.relations(a, b)
	m.objects(a.Objects, b.Objects)
	m.notComparable(a, b)
	for _, pattern := range o.Tables {
		if !m.matched[pattern] {
			return nil, fault.Newf(fault.NotFound, "no relation of either side matches %q", pattern)
		}
	}
	return m.plan, nil
}

// planner collects a plan.
type planner struct {
	o       PlanOptions
	plan    *Plan
	matched map[string]bool // patterns of o.Tables that matched something
}

// finding records a difference of the schema, as expected where the contract names it.
func (m *planner) finding(f database.Finding, expected bool) {
	if expected {
		m.plan.Expected = append(m.plan.Expected, f)
		return
	}
	m.plan.Findings = append(m.plan.Findings, f)
}

func (m *planner) skip(object, reason string, expected bool) {
	n := NotCompared{object, reason, expected}
	if !slices.Contains(m.plan.NotCompared, n) {
		m.plan.NotCompared = append(m.plan.NotCompared, n)
	}
}

// target returns the name under which the target has a relation of the source.
func (m *planner) target(n database.Name) database.Name {
	if other, ok := m.o.Databases[n.Database]; ok {
		n.Database = other
	}
	return n
}

// matches tells whether a pattern names a relation, with or without schema and database.
func matches(pattern string, n database.Name) bool {
	for _, name := range []string{n.String(), database.Name{Schema: n.Schema, Relation: n.Relation}.String(), n.Relation} {
		if ok, err := path.Match(pattern, name); ok && err == nil {
			return true
		}
	}
	return false
}

// selected tells whether a relation is compared, and if not, why.
func (m *planner) selected(n database.Name) (reason string, ok bool) {
	chosen := len(m.o.Tables) == 0
	for _, pattern := range m.o.Tables {
		if matches(pattern, n) {
			if m.matched == nil {
				m.matched = map[string]bool{}
			}
			m.matched[pattern], chosen = true, true
		}
	}
	if !chosen {
		return "not among the selected tables", false
	}
	for _, pattern := range m.o.Exclude {
		if matches(pattern, n) {
			return "excluded on request", false
		}
	}
	for _, e := range m.o.Contract {
		if e.Relation != "" && e.Column == "" && e.Object == "" && matches(e.Relation, n) {
			return contractReason(e), false
		}
	}
	return "", true
}

func contractReason(e Exclusion) string {
	if e.Reason == "" {
		return "excluded by the contract"
	}
	return "excluded by the contract: " + e.Reason
}

// excluded returns the contract's entry for a column.
func (m *planner) excluded(n database.Name, column string) (Exclusion, bool) {
	for _, e := range m.o.Contract {
		if e.Column == column && e.Relation != "" && matches(e.Relation, n) {
			return e, true
		}
	}
	return Exclusion{}, false
}

// relations pairs relations by name.
func (m *planner) relations(a, b database.Catalog) {
	target := map[database.Name]database.Relation{}
	for _, r := range b.Relations {
		target[r.Name] = r
	}
	var missing, extra []database.Name
	paired := map[database.Name]bool{}
	for _, r := range a.Relations {
		other, both := target[m.target(r.Name)]
		paired[m.target(r.Name)] = both
		if reason, ok := m.selected(r.Name); !ok {
			m.skip("relation "+r.Name.String(), reason, true)
			continue
		}
		if !both {
			missing = append(missing, r.Name)
			continue
		}
		m.pair(r, other)
	}
	for _, r := range b.Relations {
		if paired[r.Name] {
			continue
		}
		if reason, ok := m.selected(r.Name); !ok {
			m.skip("relation "+r.Name.String(), reason, true)
			continue
		}
		extra = append(extra, r.Name)
	}
	m.oneSided(missing, extra)
}

// oneSided reports relations that one side lacks, and those whose names differ only in case.
func (m *planner) oneSided(missing, extra []database.Name) {
	for _, n := range missing {
		i := slices.IndexFunc(extra, func(x database.Name) bool { return strings.EqualFold(x.String(), m.target(n).String()) })
		if i >= 0 {
			m.finding(database.Finding{Object: "relation " + n.String(), Class: ClassRelationRespelled,
				Message: fmt.Sprintf("is %s on the target: only the case differs", extra[i])}, false)
			extra = slices.Delete(extra, i, i+1)
			continue
		}
		m.finding(database.Finding{Object: "relation " + n.String(), Class: ClassRelationMissing, Message: "is not on the target"}, false)
	}
	for _, n := range extra {
		m.finding(database.Finding{Object: "relation " + n.String(), Class: ClassRelationExtra, Message: "is on the target only"}, false)
	}
}

// pair plans one relation.
func (m *planner) pair(a, b database.Relation) {
	for _, r := range []database.Relation{a, b} {
		if r.Skip != "" {
			named := m.object("relation "+a.Name.String(), "")
			m.skip("relation "+a.Name.String(), r.Skip, named)
			return
		}
	}
	t := Table{Name: a.Name}
	t.sides[Source].relation, t.sides[Target].relation = a, b
	for _, c := range a.Columns {
		i := slices.IndexFunc(b.Columns, func(x database.Column) bool { return x.Name == c.Name })
		e, expected := m.excluded(a.Name, c.Name)
		object := "column " + a.Name.String() + "." + c.Name
		if i < 0 {
			m.finding(database.Finding{Object: object, Class: ClassColumnMissing, Message: "is not on the target"}, expected)
			continue
		}
		if other := b.Columns[i]; c.Type != other.Type || c.Family != other.Family {
			m.finding(database.Finding{Object: object, Class: ClassColumnType, Message: fmt.Sprintf("is %s, was %s", other.Type, c.Type)}, expected)
		}
		if expected {
			m.skip(object, contractReason(e), true)
			continue
		}
		t.Columns = append(t.Columns, Column{c.Name, c.Family, b.Columns[i].Family})
		t.sides[Source].projection.Columns = append(t.sides[Source].projection.Columns, c)
		t.sides[Target].projection.Columns = append(t.sides[Target].projection.Columns, b.Columns[i])
	}
	for _, c := range b.Columns {
		if !slices.ContainsFunc(a.Columns, func(x database.Column) bool { return x.Name == c.Name }) {
			_, expected := m.excluded(a.Name, c.Name)
			m.finding(database.Finding{Object: "column " + a.Name.String() + "." + c.Name, Class: ClassColumnExtra, Message: "is on the target only"}, expected)
		}
	}
	m.key(&t, a, b)
	m.paths(&t)
	m.plan.Tables = append(m.plan.Tables, t)
}

// key chooses the key that both sides have, else none.
func (m *planner) key(t *Table, a, b database.Relation) {
	switch {
	case len(a.Key) == 0 && len(b.Key) == 0:
		t.Keyless = "it has no primary key and no unique index of NOT NULL columns"
	case !slices.Equal(a.Key, b.Key) || a.KeyUnique != b.KeyUnique:
		t.Keyless = fmt.Sprintf("the sides have no key in common (%s; %s)", keyText(a), keyText(b))
		m.finding(database.Finding{Object: "relation " + a.Name.String(), Class: ClassKeyColumns,
			Message: fmt.Sprintf("its key is %s, was %s", keyText(b), keyText(a))}, false)
	case !a.KeyUnique:
		t.Keyless = "its key is not unique"
	default:
		m.keyIndexes(t, a.Key)
	}
	for i := range t.sides {
		t.sides[i].projection.Key = t.Key
	}
}

func keyText(r database.Relation) string {
	if len(r.Key) == 0 {
		return "none"
	}
	return "(" + strings.Join(r.Key, ", ") + ")"
}

func (m *planner) keyIndexes(t *Table, key []string) {
	if t.document() {
		t.Key = []int{0} // the engine cuts the key out of the document
		return
	}
	for _, name := range key {
		i := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == name })
		if i < 0 {
			t.Key, t.Keyless = nil, "column "+name+" of its key is excluded"
			return
		}
		t.Key = append(t.Key, i)
	}
}

// paths collects the excluded paths inside documents.
func (m *planner) paths(t *Table) {
	if !t.document() {
		return
	}
	for _, e := range m.o.Contract {
		if e.Column == "" || e.Relation == "" || !matches(e.Relation, t.Name) || e.Column == t.Columns[0].Name {
			continue
		}
		t.Paths = append(t.Paths, e.Column)
		m.skip("path "+t.Name.String()+"."+e.Column, contractReason(e), true)
	}
}
