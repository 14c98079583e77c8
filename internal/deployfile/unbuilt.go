package deployfile

// Unbuilt names what a deploy file asks for that no code does yet. Such a file is valid, and a delivery of it is refused:
// nothing is accepted and then silently skipped.
func Unbuilt(f *File) Findings {
	var out Findings
	add := func(at Pos, what string) {
		out = append(out, Finding{Severity: Error, Pos: at, Message: "needs " + what + ", not built yet"})
	}
	f.eachStep(func(s Step) {
		switch {
		case s.MaskData != nil:
			add(s.Pos, "masking")
		case s.RestoreData != nil:
			add(s.Pos, "restoring a checkpoint as a step")
		}
	})
	for _, d := range f.Data.Databases {
		if d.Engine == "mysql" {
			add(d.Pos, "the engine mysql")
		}
		if d.Upgrade.MaxLost > 0 && d.Engine != "postgres" {
			// A budget accepts counts of writes only, and without a log a restore is counted by fingerprints: net rows.
			add(d.Pos, "a budget for lost writes (upgrade.maxLost) of engine "+d.Engine+", which has no log that counts writes")
		}
	}
	for _, c := range f.Data.Contracts {
		for _, k := range c.Other {
			add(c.Pos, "contracts with "+k)
		}
	}
	for _, m := range f.Data.Masks {
		add(m.Pos, "masking")
	}
	for _, s := range f.Substitutions {
		add(s.Pos, "a secret in "+s.Field)
	}
	return out.sorted()
}
