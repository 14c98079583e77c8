package deployfile

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

func data(d *Data) value {
	return object("data", "The databases of the application, and what is checked about them.", func(o *fields) {
		o.key("databases", listOf(&d.Databases, database), "Databases that are copied, verified and upgraded.")
		o.key("contracts", listOf(&d.Contracts, contract), "The differences that a change is expected to make.")
		o.key("checks", listOf(&d.Checks, check), "Invariants as queries, run on both twins.")
		o.key("masks", listOf(&d.Masks, mask), "Rules that make a copy safe to look at.")
		o.key("jobs", listOf(&d.Jobs, job), "Tests that run as Jobs.")
	})
}

var workloadName = regexp.MustCompile(`(?i)^(statefulset|deployment)/[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

// Unenforced is written where copies may reach production.
const Unenforced = "unenforced"

func database(d *Database) value {
	return object("database", "A database that is copied, verified and upgraded.", func(o *fields) {
		o.key("name", declares(&d.Name, databaseNames), "Its name.").required()
		o.key("engine", oneOf(&d.Engine, "mongodb|mongo", "postgres|postgresql", "mysql|mariadb"), "mongodb, postgres or mysql.").required()
		o.key("target", refersTo(&d.Target, targetNames, ""), "Where the live one runs.").required()
		workload := o.key("workload", textOf(&d.Workload), "statefulset/NAME: its claims are what is copied.").required()
		connection := o.key("connection", templateOf(&d.Connection, inConnection), "Its URL; the host is a Service of the workload.").required()
		after := o.key("markAfter", textOf(&d.MarkAfter), "A workload whose own start migrates.")
		o.key("quarantine", oneOf(&d.Quarantine, Unenforced), "unenforced accepts in writing that the network of a cluster does not keep copies from reaching production.")
		o.key("sidecars", listOf(&d.Sidecars, textOf), "Init and side containers that copies run, too; without it they run the first container alone.")
		o.key("upgrade", upgrade(&d.Upgrade), "How it is upgraded in production.")
		o.check(func(r *reader) {
			d.Pos = o.at
			for _, w := range []*field{workload, after} {
				if w.seen() && w.node.kind == text && !strings.Contains(w.node.text, "{{") && !workloadName.MatchString(w.node.text) {
					r.errorf(w.node.at, "write `statefulset/NAME`", "%s %q is not statefulset/NAME or deployment/NAME", w.name, w.node.text)
				}
			}
			if connection.seen() && d.Connection != "" {
				r.checkConnection(connection.node, d)
			}
		})
	})
}

// checkConnection refuses a connection that does not go to a Service: a check of a twin must never reach production by
// mistake.
func (r *reader) checkConnection(n *node, d *Database) {
	schemes := map[string][]string{"mongodb": {"mongodb"}, "postgres": {"postgres", "postgresql"}, "mysql": {"mysql"}}[d.Engine]
	scheme, rest, ok := strings.Cut(d.Connection, "://")
	if !ok {
		if !strings.HasPrefix(strings.TrimSpace(d.Connection), "{{") {
			r.errorf(n.at, "write `mongodb://NAME:27017/` or `postgres://NAME:5432/DATABASE`", "the connection is not a URL")
		}
		return
	}
	if len(schemes) > 0 && !slices.Contains(schemes, strings.ToLower(scheme)) {
		r.errorf(n.at, fmt.Sprintf("begin it with `%s://`", schemes[0]), "the connection of a %s database begins with %s://", d.Engine, scheme)
		return
	}
	authority, _, _ := strings.Cut(rest, "/")
	user, hosts, found := cutLast(authority, "@")
	if !found {
		hosts, user = authority, ""
	}
	if _, password, ok := strings.Cut(user, ":"); ok && password != "" && !strings.Contains(password, "{{") {
		r.warnf(n.at, "put it into the configuration and write {{secrets.NAME}}", "a password stands in the connection of database %s", d.Name)
	}
	if hosts == "" {
		r.errorf(n.at, fmt.Sprintf("name the Service of %s as the host", d.Workload), "the connection names no host")
		return
	}
	for _, h := range strings.Split(hosts, ",") {
		if literalAddress(h) {
			r.errorf(r.locate(h, n), fmt.Sprintf("name the Service of %s instead, so that a check of a twin cannot reach production", d.Workload),
				"the connection of database %s goes to the literal address %s", d.Name, h)
		}
	}
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// literalAddress reports whether host[:port] is an address and not the name of a Service.
func literalAddress(s string) bool {
	host := s
	if h, _, err := net.SplitHostPort(s); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

func upgrade(u *Upgrade) value {
	return object("upgrade", "How a database is upgraded in production.", func(o *fields) {
		o.key("deadline", duration(&u.Deadline), "How long writers may be held; then the old version comes back. 10 minutes.")
		o.key("bake", duration(&u.Bake), "How long the old volumes are kept afterwards.")
		o.key("maxLost", whole(&u.MaxLost, 0, 1<<53), "How many writes a restore of the checkpoint may discard without asking; 0.")
		o.key("contract", refersTo(&u.Contract, contractNames, ""), "What the upgrade is expected to change.")
		o.key("strategy", refersTo(&u.Strategy, strategyNames, ": its members would take the new version without a gate between them"),
			"A canary in `strategies`, for a workload of more than one replica: a weight is the share of its members that have the new version.")
	})
}

func contract(c *Contract) value {
	return object("contract", "The differences that a change is expected to make; any other fails the gate.", func(o *fields) {
		o.key("name", declares(&c.Name, contractNames), "Its name.").required()
		o.key("describe", opaque(&c.Describe), "What the change does, for people.").alias("description")
		o.key("exclude", listOf(&c.Exclude, textOf),
			"What is not compared: database.schema.table or database.schema.table.column, with * for any one part.")
		var more []*field
		for _, k := range []struct{ name, doc string }{
			{"schema", "Objects that appear, disappear or change. Not built yet."},
			{"values", "Columns whose values change, and how. Not built yet."},
			{"rows", "Tables whose rows become more or fewer. Not built yet."},
		} {
			more = append(more, o.key(k.name, anything(), k.doc))
		}
		o.check(func(*reader) {
			c.Pos = o.at
			for _, k := range more {
				if k.seen() {
					c.Other = append(c.Other, k.name)
				}
			}
		})
	})
}

func check(c *Check) value {
	return object("check", "An invariant: a query that gives the same on both twins, or a given value.", func(o *fields) {
		o.key("name", declares(&c.Name, checkNames), "Its name.").required()
		o.key("database", refersTo(&c.Database, databaseNames, ""), "The database; every one if none is named.")
		o.key("query", opaque(&c.Query), "The query, in the engine's own language.").required()
		o.key("equals", optional(&c.Equals, textOf), "What it must give on both twins.")
		o.check(func(*reader) { c.Pos = o.at })
	})
}

func mask(m *Mask) value {
	return object("mask", "Rules that make a copy safe to look at. Not built yet.", func(o *fields) {
		o.key("name", declares(&m.Name, maskNames), "Its name.").required()
		o.key("rules", anything(), "What is masked, and how.")
		o.check(func(*reader) { m.Pos = o.at })
	})
}

func job(j *Job) value {
	return object("job", "A test that runs as a Job.", func(o *fields) {
		o.key("name", declares(&j.Name, jobNames), "Its name.").required()
		path := o.key("path", textOf(&j.Path), "A file that holds the Job.")
		inline := o.key("inline", opaque(&j.Inline), "The Job itself.")
		o.check(func(r *reader) {
			j.Pos = o.at
			if path.seen() == inline.seen() {
				r.errorf(o.at, "write either `path: …` or `inline: |`", "a job has a path or is inline")
			}
		})
	})
}

func copyData(c *CopyData) value {
	return object("copyData", "Takes one copy of the running database and makes twins of it in this target.", func(o *fields) {
		o.key("database", refersTo(&c.Database, databaseNames, ""), "A name in data.databases.").required()
		o.key("replace", boolOf(&c.Replace), "Bind claims to the copy that Sluice did not make; their files are kept.")
		o.key("maxHold", duration(&c.MaxHold), "How long writers may be held for the copy.")
		o.key("timeout", duration(&c.Timeout), "How long the step may take.")
	})
}

func verifyData(v *VerifyData) value {
	return object("verifyData", "Compares control with the mark: every row and the schema.", func(o *fields) {
		o.key("database", refersTo(&v.Database, databaseNames, ""), "A name in data.databases.").required()
		o.key("contract", refersTo(&v.Contract, contractNames, ""), "What is expected to differ.")
		o.key("timeout", duration(&v.Timeout), "How long the step may take.")
	})
}

func rehearseRollback(v *RehearseRollback) value {
	return object("rehearseRollback", "Walks the ways back on a copy, and so opens or closes them for production.", func(o *fields) {
		o.key("database", refersTo(&v.Database, databaseNames, ""), "A name in data.databases.").required()
		o.key("require", boolOf(&v.Require), "A way back that is closed fails the gate.")
		o.key("jobs", references(&v.Jobs, jobNames, ""), "Jobs of data.jobs that test the application; all with none named.")
		o.key("timeout", duration(&v.Timeout), "How long the step may take.")
	})
}

func checkpointData(v *CheckpointData) value {
	return object("checkpointData", "Keeps a copy of the running database.", func(o *fields) {
		o.key("database", refersTo(&v.Database, databaseNames, ""), "A name in data.databases.").required()
		o.key("name", textOf(&v.Name), "The checkpoint's name.").required()
		o.key("ttl", duration(&v.TTL), "How long it is kept.")
	})
}

func restoreData(v *RestoreData) value {
	return object("restoreData", "Restores a checkpoint.", func(o *fields) {
		o.key("database", refersTo(&v.Database, databaseNames, ""), "A name in data.databases.").required()
		o.key("checkpoint", textOf(&v.Checkpoint), "The checkpoint's name.").required()
		o.key("maxLost", whole(&v.MaxLost, 0, 1<<53), "How many writes may be discarded without asking; 0.")
	})
}

func maskData(v *MaskData) value {
	return object("maskData", "Makes a copy safe to look at. Not built yet.", func(o *fields) {
		o.key("database", refersTo(&v.Database, databaseNames, ""), "A name in data.databases.").required()
		o.key("mask", refersTo(&v.Mask, maskNames, ""), "A name in data.masks.").required()
	})
}

func runJob(v *RunJob) value {
	return object("runJob", "Runs a Job of data.jobs in the target.", func(o *fields) {
		o.key("name", refersTo(&v.Name, jobNames, ""), "A name in data.jobs.").required()
		o.key("timeout", duration(&v.Timeout), "How long it may take.")
	})
}

func waitFor(v *WaitFor) value {
	return object("waitFor", "Waits until an object of the target is ready.", func(o *fields) {
		o.key("kind", oneOf(&v.Kind, "Deployment", "StatefulSet", "Job", "Service", "PersistentVolumeClaim", "ConfigMap", "Secret"), "Its kind.").required()
		o.key("name", textOf(&v.Name), "Its name.").required()
		o.key("timeout", duration(&v.Timeout), "How long it may take.")
	})
}
