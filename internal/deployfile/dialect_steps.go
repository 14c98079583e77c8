package deployfile

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// place is where a list of steps stands; not every step may stand everywhere.
type place string

const (
	before      place = "beforeStep"
	after       place = "afterStep"
	inCanary    place = "canaryStep"
	inBlueGreen place = "blueGreenStep"
	inSequence  place = "canarySequenceStep" // a sequence among the steps of a canary, where no weight is looked for
)

// nested is the place of a sequence's steps.
func (p place) nested() place {
	if p == inCanary {
		return inSequence
	}
	return p
}

func steps(dst *[]Step, in place) value {
	return listOf(dst, func(s *Step) value { return step(s, in).instead("write `- %s: {…}`") })
}

// misplaced says why a step may not stand at a place, "" where it may.
func (p place) misplaced(step string) string {
	allowed := map[string][]place{
		"setWeight":        {inCanary},
		"exposeServices":   {inCanary, inSequence, inBlueGreen},
		"copyData":         {before},
		"maskData":         {before},
		"verifyData":       {after, inCanary, inSequence, inBlueGreen},
		"rehearseRollback": {after, inCanary, inSequence, inBlueGreen},
	}
	places, limited := allowed[step]
	if !limited || slices.Contains(places, p) {
		return ""
	}
	where := map[place]string{before: "beforeDeployment", after: "afterDeployment", inCanary: "the steps of a canary",
		inBlueGreen: "the lists of blueGreen", inSequence: "a sequence"}
	var names []string
	for _, q := range places {
		if q != inSequence {
			names = append(names, where[q])
		}
	}
	return fmt.Sprintf("%s may not stand in %s; it belongs in %s", step, where[p], strings.Join(names, " or "))
}

func step(s *Step, in place) value {
	return object(string(in), "One step: exactly one key says what it does.", func(o *fields) {
		o.what = "step"
		var kinds []*field
		kind := func(name string, v value, doc string) {
			kinds = append(kinds, o.key(name, v, doc).unless(in.misplaced(name)).orEmpty())
		}
		weight := optional(&s.SetWeight, setWeight).orScalar(value{
			read:   func(r *reader, n *node) { s.SetWeight = &SetWeight{}; whole(&s.SetWeight.Weight, 0, 100).read(r, n) },
			schema: whole(new(int), 0, 100).schema,
		}, "write `setWeight: {weight: %s}`")
		kind("setWeight", weight, "Gives the new version a share of the traffic.")
		kind("pause", optional(&s.Pause, pause), "Waits for a time, or for a person.")
		kind("runWebhook", optional(&s.RunWebhook, runWebhook), "Calls a webhook.")
		kind("analysis", optional(&s.Analysis, analysis), "Judges metrics.")
		kind("exposeServices", optional(&s.ExposeServices, exposeServices), "Gives Services a temporary address.")
		kind("copyData", optional(&s.CopyData, copyData), "Makes twins of a database in this target.")
		kind("verifyData", optional(&s.VerifyData, verifyData), "Compares the twins.")
		kind("rehearseRollback", optional(&s.RehearseRollback, rehearseRollback), "Walks the ways back on a copy.")
		kind("checkpointData", optional(&s.CheckpointData, checkpointData), "Keeps a copy of the running database.")
		kind("restoreData", optional(&s.RestoreData, restoreData), "Restores a checkpoint.")
		kind("maskData", optional(&s.MaskData, maskData), "Makes a copy safe to look at.")
		kind("runJob", optional(&s.RunJob, runJob), "Runs a Job of data.jobs in the target.")
		kind("waitFor", optional(&s.WaitFor, waitFor), "Waits until an object of the target is ready.")
		kinds = append(kinds, o.key("sequence", steps(&s.Sequence, in.nested()), "Steps one after another, as one item of a list that runs in parallel."))
		siblings(o, s)
		o.check(func(r *reader) {
			s.Pos = o.at
			r.oneKind(o, kinds)
		})
	})
}

// siblings are keys that stand beside a step in real files and belong inside of it.
func siblings(o *fields, s *Step) {
	var roles []string
	var weight int
	r1 := o.key("requiresRoles", listOf(&roles, textOf), "Old spelling: it belongs in `pause`.").unoffered()
	w := o.key("weight", whole(&weight, 0, 100), "Old spelling: it belongs in `setWeight`.").unoffered()
	o.check(func(r *reader) {
		if r1.seen() {
			if s.Pause == nil {
				r.errorf(r1.at, "put it into a pause", "requiresRoles belongs to a pause")
			} else {
				r.warnf(r1.at, "indent it below `pause:`", "requiresRoles stands beside the pause; it is read as a part of it")
				s.Pause.RequiresRoles = append(s.Pause.RequiresRoles, roles...)
			}
		}
		if w.seen() {
			if s.SetWeight == nil {
				r.errorf(w.at, "put it into a setWeight", "weight belongs to a setWeight")
			} else {
				r.warnf(w.at, "indent it below `setWeight:`", "weight stands beside setWeight; it is read as a part of it")
				s.SetWeight.Weight = weight
			}
		}
		if f, _ := o.find("setWeight"); f.seen() && f.node.kind == null && !w.seen() {
			r.errorf(f.at, "add `weight: …`", "setWeight needs weight")
		}
	})
}

func (r *reader) oneKind(o *fields, kinds []*field) {
	var first *field
	for _, k := range kinds {
		if !k.seen() {
			continue
		}
		if first != nil {
			r.errorf(k.at, fmt.Sprintf("put `- ` before %s, or remove one of the two", k.name),
				"one item of a list is one step; this one is %s already", first.name)
		}
		first = k
		if k.name == "sequence" && k.node.kind == list && len(k.node.items) == 0 {
			r.errorf(k.at, "put steps below it", "this sequence is empty")
		}
	}
	if first == nil && !o.complained {
		r.errorf(o.at, "write what it does, for instance `- pause: {untilApproved: true}`", "this step does nothing")
	}
}

func setWeight(w *SetWeight) value {
	return object("setWeight", "Gives the new version a share of the traffic.", func(o *fields) {
		f := o.key("weight", whole(&w.Weight, 0, 100), "Percent.")
		o.check(func(r *reader) {
			if !f.seen() && !o.blank {
				r.errorf(o.at, "add `weight: …`", "setWeight needs weight")
			}
		})
	})
}

// timeKeys declares duration and its unit.
func timeKeys(o *fields, d *time.Duration, unitKey string) (amount, unit *field) {
	var n int64
	var u string
	amount = o.key("duration", whole(&n, 0, math.MaxInt32), "How many units.")
	unit = o.key(unitKey, oneOf(&u, "seconds", "minutes", "hours", "days", "(none)"), "The unit.")
	o.check(func(r *reader) {
		size := unitSize(u)
		switch {
		case o.complained:
		case amount.seen() && !unit.seen():
			r.errorf(amount.at, "add `unit: seconds`, minutes, hours or days", "a duration needs its unit")
		case amount.seen() && u == "none":
			r.errorf(unit.at, "write seconds, minutes, hours or days", "a duration needs its unit")
		case unit.seen() && !amount.seen() && u != "none":
			r.errorf(unit.at, "add `duration: …`", "a unit needs its duration")
		}
		*d = time.Duration(n) * size
	})
	return amount, unit
}

func unitSize(u string) time.Duration {
	return map[string]time.Duration{"seconds": time.Second, "minutes": time.Minute, "hours": time.Hour, "days": 24 * time.Hour}[u]
}

// duration is a length of time.
func duration(d *time.Duration) value {
	v := object("duration", "A length of time.", func(o *fields) {
		amount, unit := timeKeys(o, d, "unit")
		o.check(func(r *reader) {
			if !amount.seen() && !unit.seen() && !o.complained {
				r.errorf(o.at, "write `{duration: 5, unit: minutes}`", "a length of time needs duration and unit")
			}
		})
	})
	return value{schema: v.schema, read: func(r *reader, n *node) {
		if n.kind != mapping {
			r.want(n, "a length of time", inUnits(n.text))
			return
		}
		v.read(r, n)
	}}
}

// inUnits says how a duration in another notation is written here.
func inUnits(s string) string {
	const example = "write `{duration: 5, unit: minutes}`"
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second {
		return example
	}
	for _, u := range []string{"hours", "minutes", "seconds"} {
		if d%unitSize(u) == 0 {
			return fmt.Sprintf("write `{duration: %d, unit: %s}`", d/unitSize(u), u)
		}
	}
	return example
}

func pause(p *Pause) value {
	return object("pause", "Waits for a time, or for a person.", func(o *fields) {
		amount, unit := timeKeys(o, &p.Duration, "unit")
		o.key("untilApproved", boolOf(&p.UntilApproved), "Waits for a person.")
		roles := o.key("requiresRoles", listOf(&p.RequiresRoles, textOf), "Any one of these roles may approve.")
		expires := o.key("approvalExpiration", approvalExpiration(p),
			"How long to wait for the approval; then the target is rolled back, or not deployed.").
			alias("approvalDuration")
		o.check(func(r *reader) {
			switch {
			case p.UntilApproved && amount.seen():
				r.errorf(amount.at, "make two steps of it; for a limit write approvalExpiration", "a pause either lasts a time or waits for approval")
			case p.UntilApproved && unit.seen():
				r.errorf(unit.at, "remove it", "a pause that waits for approval has no unit")
			case !p.UntilApproved && !amount.seen() && !unit.seen() && !o.complained:
				r.errorf(o.at, "add `duration: 10` and `unit: seconds`, or `untilApproved: true`",
					"this pause says neither how long it lasts nor that it waits for approval")
			case !p.UntilApproved && roles.seen() && len(p.RequiresRoles) > 0:
				r.warnf(roles.at, "add `untilApproved: true` if a person must approve", "requiresRoles means nothing in a pause that ends by itself")
			}
			if !p.UntilApproved && expires.seen() && !o.complained {
				r.warnf(expires.at, "add `untilApproved: true` if a person must approve", "approvalExpiration means nothing in a pause that ends by itself")
			}
			if roles.seen() && roles.node.kind == list && len(roles.node.items) == 0 {
				r.notef(roles.at, "", "no role is named, so everybody who may decide on deliveries may approve")
			}
		})
	})
}

func approvalExpiration(p *Pause) value {
	v := object("approvalExpiration", "How long to wait for an approval.", func(o *fields) {
		amount, _ := timeKeys(o, &p.ApprovalExpiration, "unit")
		roles := o.key("requiresRoles", listOf(&p.RequiresRoles, textOf), "Old spelling: it belongs in the pause itself.")
		o.check(func(r *reader) {
			if roles.seen() {
				r.warnf(roles.at, "indent it like approvalExpiration", "requiresRoles stands inside of approvalExpiration; it is read as a part of the pause")
			}
			if !amount.seen() && !o.complained {
				r.errorf(o.at, "write `{duration: 24, unit: hours}`", "approvalExpiration needs duration and unit")
			}
		})
	})
	return value{schema: v.schema, read: func(r *reader, n *node) {
		if n.kind != mapping {
			r.want(n, "a length of time", inUnits(n.text))
			return
		}
		v.read(r, n)
	}}
}

func runWebhook(w *RunWebhook) value {
	return object("runWebhook", "Calls a webhook that is declared in `webhooks`.", func(o *fields) {
		o.key("name", refersTo(&w.Name, webhookNames, ""), "Its name.").required()
		o.key("context", dictionary(&w.Context), "Values for {{context.…}}, stronger than the file's.")
	})
}

func exposeServices(e *ExposeServices) value {
	return object("exposeServices", "Gives Services a temporary address, {{armory.preview.NAME}}.", func(o *fields) {
		services := o.key("services", listOf(&e.Services, textOf), "Services of the target's namespace.").required()
		ttl := o.key("ttl", duration(&e.TTL), "How long, between a minute and a day; 5 minutes.")
		o.check(func(r *reader) {
			if services.seen() && services.node.kind == list && len(services.node.items) == 0 {
				r.errorf(services.at, "name a Service", "no Service is named")
			}
			if ttl.seen() && ttl.node.kind == mapping && (e.TTL < time.Minute || e.TTL > 24*time.Hour) && !o.complained {
				r.errorf(ttl.at, "write `{duration: 5, unit: minutes}`", "a Service can be exposed between a minute and 24 hours")
			}
		})
	})
}
