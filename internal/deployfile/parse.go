package deployfile

import (
	"slices"
	"strings"
)

// Parse reads a deploy file. What is wrong or doubtful is in the findings; a file with errors is returned as far as it
// could be read. Parse returns for any bytes.
func Parse(path string, body []byte) (*File, Findings) {
	f := &File{Path: path, Version: "v1", Kind: "kubernetes"}
	root, found := parseSource(body)
	r := &reader{found: found, lines: splitLines(body)}
	switch {
	case root == nil && len(found) == 0:
		r.errorf(Pos{1, 1}, "write at least `application`, `targets` and `manifests`", "the file is empty")
	case root == nil:
	case root.kind != mapping:
		r.errorf(root.at, "write at least `application`, `targets` and `manifests`", "a deploy file is a mapping, not %s", root.kind)
	default:
		fileOf(f).read(r, root)
		f.Substitutions = r.secrets
		if f.Kind != "lambda" {
			r.resolve(f)
			r.checkCycles(f)
			r.checkQueries(f)
			r.checkCopies(f)
		}
	}
	return f, r.found.sorted()
}

// checkCycles refuses targets that wait for themselves.
func (r *reader) checkCycles(f *File) {
	byName := map[string]Target{}
	for _, t := range f.Targets {
		byName[t.Name] = t
	}
	done := map[string]bool{}
	var visit func(t Target, trail []string) bool
	visit = func(t Target, trail []string) bool {
		if i := slices.Index(trail, t.Name); i >= 0 {
			cycle := append(slices.Clone(trail[i:]), t.Name)
			at := byName[trail[len(trail)-1]].Pos
			r.errorf(at, "remove one of these dependencies", "targets wait for each other: %s", strings.Join(cycle, " → "))
			return true
		}
		if done[t.Name] {
			return false
		}
		done[t.Name] = true
		for _, d := range t.DependsOn {
			if next, ok := byName[d]; ok && visit(next, append(trail, t.Name)) {
				return true
			}
		}
		return false
	}
	for _, t := range f.Targets {
		visit(t, nil)
	}
}

// checkCopies refuses steps that use twins in a target that has none.
func (r *reader) checkCopies(f *File) {
	for _, t := range f.Targets {
		copied := map[string]bool{}
		eachStep(t.BeforeDeployment, func(s Step) {
			if s.CopyData != nil {
				copied[s.CopyData.Database] = true
			}
		})
		used := func(s Step) {
			database := ""
			switch {
			case s.VerifyData != nil:
				database = s.VerifyData.Database
			case s.RehearseRollback != nil:
				database = s.RehearseRollback.Database
			}
			if database != "" && !copied[database] {
				r.errorf(s.Pos, "add `- copyData: {database: "+database+"}` to its beforeDeployment", "target %s has no copy of database %s", t.Name, database)
			}
		}
		eachStep(t.AfterDeployment, used)
		for _, s := range f.Strategies {
			if s.Name == t.Strategy {
				s.eachStep(used)
			}
		}
	}
}

// eachStep visits steps and those in their sequences.
func eachStep(all []Step, visit func(Step)) {
	for _, s := range all {
		visit(s)
		eachStep(s.Sequence, visit)
	}
}

func (s Strategy) eachStep(visit func(Step)) {
	if s.Canary != nil {
		eachStep(s.Canary.Steps, visit)
	}
	if s.BlueGreen != nil {
		eachStep(s.BlueGreen.RedirectTrafficAfter, visit)
		eachStep(s.BlueGreen.ShutDownOldVersionAfter, visit)
	}
}

// eachStep visits every step of the file.
func (f *File) eachStep(visit func(Step)) {
	for _, t := range f.Targets {
		eachStep(t.BeforeDeployment, visit)
		eachStep(t.AfterDeployment, visit)
	}
	for _, s := range f.Strategies {
		s.eachStep(visit)
	}
}
