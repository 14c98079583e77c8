package deployfile

import "strings"

// fileOf is the whole file.
func fileOf(f *File) value {
	return object("file", "A deploy file: what is delivered where, in which order, behind which gates.", func(o *fields) {
		f.Version, f.Kind = "v1", "kubernetes"
		o.key("version", textOf(&f.Version), "Version of the dialect: v1.")
		kind := o.key("kind", oneOf(&f.Kind, "kubernetes", "lambda"), "What is deployed to: kubernetes.")
		app := o.key("application", textOf(&f.Application), "What is delivered. One delivery of an application runs at a time.")
		o.key("description", opaque(&f.Description), "Shown with the delivery.")
		o.key("context", dictionary(&f.Context), "Values for {{context.…}}; --add-context is stronger, and so is a step's own context.")
		o.old("metadata", "it is for tools that make the file")
		targets := o.key("targets", named(&f.Targets, target), "The environments, by name.").required()
		manifests := o.key("manifests", listOrOne(&f.Manifests, manifestOf), "The Kubernetes objects that are deployed.")
		o.key("strategies", named(&f.Strategies, strategy), "How a new version takes over, by name.")
		o.key("analysis", analysisConfig(&f.Analysis), "Metric queries for the steps `analysis`.")
		o.key("webhooks", listOf(&f.Webhooks, webhook), "HTTP calls for the steps `runWebhook`.")
		o.key("trafficManagement", trafficManagement(&f.TrafficManagement), "What shifts the traffic of targets.")
		o.key("deploymentConfig", deploymentConfig(&f.DeploymentConfig), "Limits of the delivery.")
		o.key("data", data(&f.Data), "The databases, and what is checked about them.")
		artifacts := o.key("artifacts", listOf(new([]struct{}), artifact), "Lambda functions; out of scope.").unoffered()
		options := o.key("providerOptions", providerOptions(), "Options of Lambda functions; out of scope.").unoffered()
		for _, k := range []string{"files", "contextOverrides", "targetFilters", "sourceControl"} {
			o.old(k, "the command line adds it when it sends the file")
		}
		o.check(func(r *reader) {
			for _, k := range []*field{kind, artifacts, options} {
				if k.seen() && (k != kind || f.Kind == "lambda") {
					r.outOfScope(k.at)
					return
				}
			}
			if !app.seen() {
				r.warnf(o.at, "add `application: …`", "the file names no application; `deploy start` then needs -n")
			}
			if targets.seen() && (targets.node.kind == mapping || targets.node.kind == list) && len(targets.node.pairs)+len(targets.node.items) == 0 {
				r.errorf(targets.at, "add a target by its name", "targets is empty")
			}
			if !manifests.seen() {
				r.warnf(o.at, "add `manifests: [{path: …}]`", "the file has no manifests; it deploys nothing")
			}
		})
	})
}

func target(name string, at Pos, t *Target) value {
	v := object("target", "An environment: an account, a namespace, a strategy, and gates.", func(o *fields) {
		var role, region string
		o.key("account", textOf(&t.Account), "The cluster: a name in the configuration. --account is stronger.")
		o.key("namespace", textOf(&t.Namespace), "In place of every manifest's own namespace.")
		o.key("strategy", refersTo(&t.Strategy, strategyNames, ": the Deployments of this target would be replaced at once"),
			"A name in `strategies`.")
		o.key("constraints", constraints(t), "What must have passed before the target is deployed, and after it.")
		o.key("deployAsIamRole", textOf(&role), "Lambda only.").unoffered()
		o.key("region", textOf(&region), "Lambda only.").unoffered()
	})
	return value{schema: v.schema, read: func(r *reader, n *node) {
		t.Name, t.Pos = name, at
		r.declare(targetNames, name, at)
		v.read(r, n)
	}}
}

func constraints(t *Target) value {
	return object("constraints", "What must have passed before the target is deployed, and after it.", func(o *fields) {
		o.key("dependsOn", references(&t.DependsOn, targetNames, ""), "Targets that must have succeeded, with their afterDeployment.")
		o.key("beforeDeployment", steps(&t.BeforeDeployment, before), "Steps that all start together; all must pass.")
		o.key("afterDeployment", steps(&t.AfterDeployment, after),
			"Steps that all start together once the target is deployed. A failure stops its dependants.")
	})
}

func manifestOf(m *Manifest) value {
	return object("manifest", "A file, a directory or a text with Kubernetes objects.", func(o *fields) {
		path := o.key("path", textOf(&m.Path), "A file, a directory (read with all below it), a kustomization, a Helm chart or a URL.")
		inline := o.key("inline", opaque(&m.Inline), "The objects themselves.")
		targets := o.key("targets", references(&m.Targets, manifestTargets, ": nothing goes there"), "Targets that get these objects; all with none named.")
		o.check(func(r *reader) {
			m.Pos = o.at
			if path.seen() == inline.seen() {
				r.errorf(o.at, "write either `path: …` or `inline: |`", "a manifest has a path or is inline")
			}
			if targets.seen() && targets.node.kind == list && len(targets.node.items) == 0 {
				r.errorf(targets.at, "leave targets away to mean all targets", "this manifest goes to no target")
			}
		})
	}).instead("write `- path: %s`")
}

func strategy(name string, at Pos, s *Strategy) value {
	v := object("strategy",
		"How a new version of Deployments takes over: canary or blueGreen. With neither it replaces the old one at once.", func(o *fields) {
			c := o.key("canary", optional(&s.Canary, canary), "Step by step.").orEmpty()
			bg := o.key("blueGreen", optional(&s.BlueGreen, blueGreen), "All at once, beside the old version.").alias("blue-green").orEmpty()
			o.check(func(r *reader) {
				if c.seen() && bg.seen() {
					r.errorf(bg.at, "make two strategies of it", "a strategy is either canary or blueGreen")
				}
			})
		})
	return value{schema: v.schema, read: func(r *reader, n *node) {
		s.Name, s.Pos = name, at
		r.declare(strategyNames, name, at)
		r.strategy = name
		v.read(r, n)
		r.strategy = ""
	}}
}

func canary(c *Canary) value {
	return object("canary", "Steps one after another; after the last one all traffic goes to the new version.", func(o *fields) {
		list := o.key("steps", steps(&c.Steps, inCanary), "The steps, in order.")
		o.check(func(r *reader) {
			if !list.seen() {
				r.notef(o.at, "", "a canary without steps goes to 100 %% at once")
			}
			r.checkWeights(c.Steps)
		})
	})
}

// checkWeights warns of a canary that gives traffic back.
func (r *reader) checkWeights(all []Step) {
	last := -1
	for _, s := range all {
		if s.SetWeight == nil {
			continue
		}
		if s.SetWeight.Weight < last {
			r.warnf(s.Pos, "let the weights rise", "the weight falls from %d to %d", last, s.SetWeight.Weight)
		}
		last = s.SetWeight.Weight
	}
}

func blueGreen(b *BlueGreen) value {
	return object("blueGreen", "The new version starts beside the old one, takes all traffic at once, and then the old one ends.", func(o *fields) {
		o.key("redirectTrafficAfter", stepsOrOld(&b.RedirectTrafficAfter), "Steps that all start together; traffic moves when all have passed.")
		o.key("shutDownOldVersionAfter", stepsOrOld(&b.ShutDownOldVersionAfter),
			"Steps that all start together; the old version ends when all have passed.").
			alias("shutdownOldVersionAfter")
		o.key("activeService", textOf(&b.ActiveService), "The Service that carries the traffic. Also in trafficManagement.kubernetes.")
		o.key("previewService", textOf(&b.PreviewService), "A Service that reaches the new version before traffic moves.")
		o.old("activeRootUrl", "no version of the dialect since 2022 has it")
		o.old("previewRootUrl", "no version of the dialect since 2022 has it")
	})
}

// stepsOrOld is a list of steps, or one below `steps`, as early files have it.
func stepsOrOld(dst *[]Step) value {
	now := steps(dst, inBlueGreen)
	old := object("stepsBelow", "Old spelling: the list itself belongs here.", func(o *fields) {
		o.key("steps", now, "The steps.").required()
	})
	return value{
		read: func(r *reader, n *node) {
			if n.kind != mapping {
				now.read(r, n)
				return
			}
			r.notef(n.key, "write the list itself, without `steps:`", "%s with `steps` below it is an old spelling", n.label)
			old.read(r, n)
		},
		schema: func(d defs) schema {
			below := old.schema(d)
			below["deprecated"] = true
			return schema{"anyOf": []schema{now.schema(d), below}}
		},
	}
}

func deploymentConfig(c *DeploymentConfig) value {
	return object("deploymentConfig", "Limits of the delivery.", func(o *fields) {
		timeout := o.key("timeout", duration(&c.Timeout), "How long pods may take to become ready; 30 minutes.")
		keep := o.key("keepDeploymentObject", boolOf(&c.KeepDeploymentObject), "Keep the Deployment object itself.")
		o.key("ifDeploymentInProgress", inProgress(c), "What happens while a delivery of the application runs.")
		o.check(func(r *reader) {
			if keep.seen() && !c.KeepDeploymentObject {
				r.notef(keep.at, "", "Sluice keeps the Deployment object in any case")
			}
			if timeout.seen() && c.Timeout > 0 && c.Timeout.Minutes() < 1 {
				r.warnf(timeout.at, "give a minute or more", "%s is short for pods to become ready", c.Timeout.String())
			}
		})
	})
}

func inProgress(c *DeploymentConfig) value {
	return object("ifDeploymentInProgress", "What happens while a delivery of the application runs.", func(o *fields) {
		o.key("strategy", oneOf(&c.IfDeploymentInProgress, "reject", "enqueueOne"),
			"reject: the new delivery is refused. enqueueOne: it waits, in place of any other that waits.")
		o.check(func(*reader) { c.IfDeploymentInProgress = strings.ToLower(c.IfDeploymentInProgress) })
	})
}

func (r *reader) outOfScope(at Pos) {
	r.errorf(at, "deploy the functions with another tool; Sluice delivers to Kubernetes and to local processes", "AWS Lambda is out of scope")
}

func artifact(*struct{}) value {
	return object("artifact", "A Lambda function; out of scope.", func(o *fields) {
		var s string
		o.key("functionName", textOf(&s), "Lambda only.")
		o.key("path", textOf(&s), "Lambda only.")
		o.key("type", textOf(&s), "Lambda only.")
	})
}

func providerOptions() value {
	return object("providerOptions", "Options of Lambda functions; out of scope.", func(o *fields) {
		o.key("lambda", listOf(new([]struct{}), func(*struct{}) value {
			return object("lambdaOptions", "Options of a Lambda function; out of scope.", func(o *fields) {
				var s string
				for _, k := range []string{"target", "name", "runAsIamRole", "handler", "runtime"} {
					o.key(k, textOf(&s), "Lambda only.")
				}
			})
		}), "Lambda only.")
	})
}
