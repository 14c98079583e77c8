package demo

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// damage is one difference, as the verification found it or as the damaging migration noted it. Field is "" where the
// whole document is gone.
type damage struct {
	Collection string `json:"collection"`
	ID         string `json:"id"`
	Field      string `json:"field,omitempty"`
}

// found is a difference with what was and what is.
type found struct {
	damage
	old, new, pattern string
}

// reported reads the differences out of a report: a document and a field each.
func reported(file string) ([]found, error) {
	body, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var r fingerprint.Report
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("the report %s: %w", file, err)
	}
	var all []found
	for _, t := range r.Tables {
		for _, k := range t.Classes {
			if int64(len(k.Examples)) != k.Count {
				return nil, fmt.Errorf("the report names %d of %d rows that are %s", len(k.Examples), k.Count, k.Class)
			}
			for _, x := range k.Examples {
				f := found{damage: damage{Collection: t.Name.Relation, ID: plain(x.Key), Field: k.Column}, old: value(x.Old), new: value(x.New)}
				if k.Pattern != nil && k.Pattern.Constant {
					f.pattern = k.Pattern.Text
				}
				if f.Field == "" {
					f.new = k.Class
				}
				all = append(all, f)
			}
		}
	}
	slices.SortFunc(all, func(a, b found) int { return compare(a.damage, b.damage) })
	return all, nil
}

func compare(a, b damage) int {
	return strings.Compare(a.Collection+"\x00"+a.ID+"\x00"+a.Field, b.Collection+"\x00"+b.ID+"\x00"+b.Field)
}

// plain takes a key out of the notation of reports: {_id: "o-1"} or "o-1".
func plain(key string) string {
	if i, j := strings.IndexByte(key, '"'), strings.LastIndexByte(key, '"'); i >= 0 && j > i {
		return key[i+1 : j]
	}
	return key
}

func value(v *fingerprint.Value) string {
	if v == nil {
		return ""
	}
	return fmt.Sprintf("%s (%s)", v.Text, v.Type)
}

// sameSet compares what was found with what was done: exactly that, and nothing else.
func sameSet(all []found, done []damage) error {
	var errs []string
	left := slices.Clone(done)
	for _, f := range all {
		i := slices.Index(left, f.damage)
		if i < 0 {
			errs = append(errs, fmt.Sprintf("%s %s %s was reported and not damaged", f.Collection, f.ID, f.Field))
			continue
		}
		left = slices.Delete(left, i, i+1)
	}
	for _, d := range left {
		errs = append(errs, fmt.Sprintf("%s %s %s was damaged and not reported", d.Collection, d.ID, d.Field))
	}
	if len(errs) > 0 {
		return fmt.Errorf("%s", strings.Join(errs, "; "))
	}
	return nil
}
