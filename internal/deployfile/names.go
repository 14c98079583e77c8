package deployfile

// names is a kind of things that are declared by name and referred to by name.
type names string

// The kinds of names.
const (
	targetNames     names = "target"
	manifestTargets names = "target of manifests" // targets, too, but old files name ones that are gone
	strategyNames   names = "strategy"
	queryNames      names = "query"
	webhookNames    names = "webhook"
	databaseNames   names = "database"
	contractNames   names = "contract"
	checkNames      names = "check"
	maskNames       names = "mask"
	jobNames        names = "job"
)

// rules say how names of a kind are spoken of, where they are declared, and how bad it is to declare one twice or to use
// one that is not declared. Where old files really do that, without harm, it is a warning.
type rules struct {
	what, section  string
	twice, missing Severity
}

func (n names) rules() rules {
	switch n {
	case targetNames:
		return rules{"target", "targets", Error, Error}
	case manifestTargets:
		return rules{"target", "targets", Error, Warning}
	case strategyNames:
		return rules{"strategy", "strategies", Error, Warning}
	case queryNames:
		return rules{"query", "analysis.queries", Warning, Error}
	case webhookNames:
		return rules{"webhook", "webhooks", Warning, Error}
	case databaseNames, contractNames, checkNames, maskNames, jobNames:
	}
	return rules{string(n), "data." + string(n) + "s", Error, Error}
}

// naming is one place where a name stands.
type naming struct {
	rules
	name     string
	at       Pos
	strategy string // in which strategy it is used
	effect   string // what a missing one means, for warnings
}

// declares is the name of a thing.
func declares(dst *string, of names) value {
	v := textOf(dst)
	return value{schema: v.schema, read: func(r *reader, n *node) {
		if v.read(r, n); *dst != "" {
			r.declare(of, *dst, n.at)
		}
	}}
}

func (r *reader) declare(of names, name string, at Pos) {
	r.declared = append(r.declared, naming{rules: of.rules(), name: name, at: at})
}

// refersTo is the name of a thing that is declared elsewhere. The effect says what comes of it if it is not, where that
// is a warning only.
func refersTo(dst *string, of names, effect string) value {
	v := textOf(dst)
	return value{schema: v.schema, read: func(r *reader, n *node) {
		if v.read(r, n); *dst != "" {
			r.used = append(r.used, naming{rules: of.rules(), name: *dst, at: n.at, strategy: r.strategy, effect: effect})
		}
	}}
}

// references is refersTo for the items of a list.
func references(dst *[]string, of names, effect string) value {
	return listOf(dst, func(s *string) value { return refersTo(s, of, effect) })
}

// resolve compares the names that are used with those that are declared.
func (r *reader) resolve(f *File) {
	known := map[string][]string{} // section → names
	first := map[string]Pos{}      // section/name
	for _, d := range r.declared {
		id := d.section + "/" + d.name
		if p, twice := first[id]; twice {
			effect := ""
			if d.twice != Error {
				effect = "; the first one counts"
			}
			r.add(d.twice, d.at, "rename one of them", "there is a %s %q in line %d already%s", d.what, d.name, p.Line, effect)
			continue
		}
		first[id] = d.at
		known[d.section] = append(known[d.section], d.name)
	}
	used := f.usedStrategies()
	for _, u := range r.used {
		if _, ok := first[u.section+"/"+u.name]; ok || r.full() {
			continue
		}
		severity, effect := u.missing, u.effect
		if u.strategy != "" && !used[u.strategy] {
			severity, effect = Warning, ", but no target uses this strategy"
		}
		suggestion := didYouMean(u.name, known[u.section])
		if suggestion == "" {
			suggestion = "declare it under " + u.section
		}
		r.add(severity, u.at, suggestion, "there is no %s named %q%s", u.what, u.name, effect)
	}
}

// usedStrategies are the strategies that a target has. The others may hold anything; real files have left-overs.
func (f *File) usedStrategies() map[string]bool {
	used := map[string]bool{}
	for _, t := range f.Targets {
		used[t.Strategy] = true
	}
	return used
}
