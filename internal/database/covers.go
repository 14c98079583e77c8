package database

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The classes of what a copy lacks.
const (
	LacksIdentity = "other identity" // it is not a copy of this server
	LacksPosition = "position"       // its log ends before the cut
	LacksDatabase = "database missing"
	LacksRelation = "relation missing"
	LacksRows     = "rows missing" // its high-water mark is below the census
	LacksObject   = "object missing"
)

// Covers tells what a copy lacks of what the census says that it must hold. It compares by what is known without a
// scan, so it finds a copy that was cut short (a volume left out, a log not replayed), not one whose values were changed:
// that is what fingerprints are for.
//
// A copy may hold more, because it is cut after the census was taken. Kinds of objects that a quarantine takes away, and
// settings, which say how a server was started and not what it holds, are not asked for.
func Covers(census, have Catalog) []Finding {
	var lacks []Finding
	add := func(class, object, format string, args ...any) {
		lacks = append(lacks, Finding{Object: object, Class: class, Message: fmt.Sprintf(format, args...)})
	}
	if census.Info.Identity != "" && have.Info.Identity != census.Info.Identity {
		add(LacksIdentity, "server", "its identity is %q, the source's is %q", have.Info.Identity, census.Info.Identity)
	}
	if before(have.Info.Position, census.Info.Position) {
		add(LacksPosition, "server", "its log ends at %s, the source was at %s", have.Info.Position, census.Info.Position)
	}
	for _, d := range census.Databases {
		if !slices.Contains(have.Databases, d) {
			add(LacksDatabase, "database "+d, "is not in the copy")
		}
	}
	there := map[Name]Relation{}
	for _, r := range have.Relations {
		there[r.Name] = r
	}
	for _, r := range census.Relations {
		copied, ok := there[r.Name]
		switch {
		case !ok:
			add(LacksRelation, "relation "+r.Name.String(), "is not in the copy")
		case copied.HighWater < r.HighWater:
			add(LacksRows, "relation "+r.Name.String(), "ends at %d, the source was at %d", copied.HighWater, r.HighWater)
		}
	}
	type key struct{ kind, name string }
	objects := map[key]bool{}
	for _, o := range have.Objects {
		objects[key{o.Kind, o.Name}] = true
	}
	for _, o := range census.Objects {
		if !passing(o.Kind) && !objects[key{o.Kind, o.Name}] {
			add(LacksObject, o.Kind+" "+o.Name, "is not in the copy")
		}
	}
	return lacks
}

// The kinds of objects that belong to a server as it runs, not to its data. A copy need not have them.
const (
	KindSetting             = "setting"
	KindReplicationSlot     = "replication slot"
	KindPreparedTransaction = "prepared transaction"
)

func passing(kind string) bool {
	return kind == KindSetting || kind == KindReplicationSlot || kind == KindPreparedTransaction
}

// before tells whether log position a lies before b. Positions are numbers, or pairs of hexadecimal numbers with a slash
// between them, as PostgreSQL writes them; what is neither cannot be compared and is never before.
func before(a, b string) bool {
	if b == "" {
		return false
	}
	x, okX := position(a)
	y, okY := position(b)
	if !okY {
		return false
	}
	return !okX || slices.Compare(x[:], y[:]) < 0
}

func position(s string) (p [2]uint64, ok bool) {
	high, low, pair := strings.Cut(s, "/")
	if !pair {
		n, err := strconv.ParseUint(s, 10, 64)
		return [2]uint64{0, n}, err == nil
	}
	h, errHigh := strconv.ParseUint(high, 16, 32)
	l, errLow := strconv.ParseUint(low, 16, 32)
	return [2]uint64{h, l}, errHigh == nil && errLow == nil
}
