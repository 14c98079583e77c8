package fingerprint

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/internal/database"
)

// The classes of findings about schemas.
const (
	ClassDatabaseMissing   = "database missing"
	ClassDatabaseExtra     = "database extra"
	ClassRelationMissing   = "relation missing"
	ClassRelationExtra     = "relation extra"
	ClassRelationRespelled = "relation respelled" // the names differ only in case
	ClassColumnMissing     = "column missing"
	ClassColumnExtra       = "column extra"
	ClassColumnType        = "column type"
	ClassKeyColumns        = "key columns" // the sides have different keys
	ClassObjectMissing     = "object missing"
	ClassObjectExtra       = "object extra"
	ClassObjectChanged     = "object changed" // an attribute of an index, constraint, sequence, role … differs
)

// databases compares the lists of databases.
func (m *planner) databases(a, b database.Catalog) {
	for _, d := range a.Databases {
		if !slices.Contains(b.Databases, m.target(database.Name{Database: d}).Database) {
			m.finding(database.Finding{Object: "database " + d, Class: ClassDatabaseMissing, Message: "is not on the target"}, m.named("database "+d))
		}
	}
	for _, d := range b.Databases {
		if !slices.ContainsFunc(a.Databases, func(x string) bool { return m.target(database.Name{Database: x}).Database == d }) {
			m.finding(database.Finding{Object: "database " + d, Class: ClassDatabaseExtra, Message: "is on the target only"}, m.named("database "+d))
		}
	}
}

func (m *planner) named(object string) bool {
	return m.object(object, "")
}

// object reports whether the contract names an object, or one attribute of it.
func (m *planner) object(name, attribute string) bool {
	for _, e := range m.o.Contract {
		if e.Object == "" {
			continue
		}
		if ok, err := path.Match(e.Object, name); !ok || err != nil {
			continue
		}
		if e.Attribute == "" {
			return true
		}
		if ok, err := path.Match(e.Attribute, attribute); ok && err == nil && attribute != "" {
			return true
		}
	}
	return false
}

type objectKey struct{ kind, name string }

func (k objectKey) String() string { return k.kind + " " + k.name }

// objects compares what has a definition but no rows, attribute by attribute.
func (m *planner) objects(a, b []database.Object) {
	if len(m.o.Tables) > 0 {
		// Objects name no relation in a form that could be selected by: they are left out together, and it is said.
		m.skip("all objects without rows", "only tables were selected", true)
		return
	}
	target := map[objectKey]database.Object{}
	for _, o := range b {
		target[objectKey{o.Kind, o.Name}] = o
	}
	seen := map[objectKey]bool{}
	for _, o := range a {
		k := objectKey{o.Kind, o.Name}
		seen[k] = true
		other, ok := target[k]
		if !ok {
			m.finding(database.Finding{Object: k.String(), Class: ClassObjectMissing, Message: "is not on the target"}, m.named(k.String()))
			continue
		}
		m.plan.Objects++
		m.attributes(k, o.Attributes, other.Attributes)
	}
	for _, o := range b {
		if k := (objectKey{o.Kind, o.Name}); !seen[k] {
			m.finding(database.Finding{Object: k.String(), Class: ClassObjectExtra, Message: "is on the target only"}, m.named(k.String()))
		}
	}
}

// attributes compares one object. One finding names all attributes that differ; those the contract names stand apart.
func (m *planner) attributes(k objectKey, a, b map[string]string) {
	names := slices.Sorted(maps.Keys(a))
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var plain, expected []string
	for _, name := range names {
		x, inA := a[name]
		y, inB := b[name]
		if x == y && inA == inB {
			continue
		}
		text := fmt.Sprintf("%s is %s, was %s", name, attributeText(y, inB), attributeText(x, inA))
		if m.object(k.String(), name) {
			expected = append(expected, text)
		} else {
			plain = append(plain, text)
		}
	}
	if len(plain) > 0 {
		m.finding(database.Finding{Object: k.String(), Class: ClassObjectChanged, Message: strings.Join(plain, "; ")}, false)
	}
	if len(expected) > 0 {
		m.finding(database.Finding{Object: k.String(), Class: ClassObjectChanged, Message: strings.Join(expected, "; ")}, true)
	}
}

func attributeText(s string, there bool) string {
	if !there {
		return "absent"
	}
	return fmt.Sprintf("%q", s)
}

// notComparable lists what the catalogs say cannot be compared.
func (m *planner) notComparable(a, b database.Catalog) {
	for _, f := range slices.Concat(a.NotComparable, b.NotComparable) {
		m.skip(f.Object, f.Message, m.named(f.Object))
	}
}
