package deployfile

import (
	"slices"
	"strings"
)

func webhook(w *Webhook) value {
	return object("webhook",
		"An HTTP call. Unless disableCallback is set, it has succeeded when the one who was called has called back.", func(o *fields) {
			w.NetworkMode = "direct"
			o.key("name", declares(&w.Name, webhookNames), "Its name.").required()
			o.key("method", oneOf(&w.Method, "POST", "GET", "PUT", "PATCH", "DELETE", "HEAD"), "The HTTP method; POST.")
			o.key("uriTemplate", templateOf(&w.URI, inWebhook), "The address.").required()
			o.key("networkMode", oneOf(&w.NetworkMode, "direct", "remoteNetworkAgent"), "direct, or through an agent inside of a cluster.")
			agent := o.key("agentIdentifier", textOf(&w.AgentIdentifier), "The agent; by default the one of the target's account.")
			o.key("headers", listOf(&w.Headers, header), "Headers of the request.")
			body := o.key("bodyTemplate", bodyTemplate(w), "The body; it is never looked into.")
			o.key("retryCount", whole(&w.RetryCount, 0, 1000), "How often the request itself is tried again.")
			o.key("disableCallback", boolOf(&w.DisableCallback), "Do not wait for a callback: a 2xx answer is success.")
			o.check(func(r *reader) {
				w.Pos, w.NetworkMode = o.at, strings.ToLower(w.NetworkMode)
				if agent.seen() && w.NetworkMode == "direct" {
					r.warnf(agent.at, "add `networkMode: remoteNetworkAgent`", "agentIdentifier means nothing with networkMode direct")
				}
				if !w.DisableCallback && !w.handsOutCallback() && !o.complained && !(body.seen() && w.BodyPath != "") {
					r.warnf(o.at, "hand {{armory.callbackUri}} out in the body, a header or the address, or set `disableCallback: true`",
						"webhook %s waits 24 hours for a callback, but tells nobody where to call", w.Name)
				}
			})
		})
}

func (w *Webhook) handsOutCallback() bool {
	has := func(s string) bool {
		return slices.ContainsFunc(variables(s), func(v variable) bool { return v.name == "armory.callbackUri" })
	}
	return has(w.URI) || has(w.Body) || slices.ContainsFunc(w.Headers, func(h Header) bool { return has(h.Value) })
}

func header(h *Header) value {
	return object("header", "A header of the request.", func(o *fields) {
		o.key("key", textOf(&h.Key), "Its name.").required()
		o.key("value", templateOf(&h.Value, inWebhook), "Its value.").required()
	})
}

func bodyTemplate(w *Webhook) value {
	return object("bodyTemplate", "The body of the request.", func(o *fields) {
		inline := o.key("inline", templateOf(&w.Body, inWebhook), "The body itself.")
		path := o.key("path", textOf(&w.BodyPath), "A file that holds it.")
		o.check(func(r *reader) {
			if inline.seen() && path.seen() {
				r.errorf(path.at, "remove one of the two", "a body is either inline or in a file")
			}
		})
	})
}

// trafficManagement is a list of entries, or a single one.
func trafficManagement(dst *[]TrafficManagement) value {
	all := listOrOne(dst, traffic)
	return value{schema: all.schema, read: func(r *reader, n *node) {
		all.read(r, n)
		r.checkTraffic(*dst)
	}}
}

func traffic(t *TrafficManagement) value {
	return object("trafficManagement", "What shifts the traffic of some targets: all with none named.", func(o *fields) {
		o.key("targets", references(&t.Targets, manifestTargets, ": nothing is shifted there"), "Targets; all with none named.")
		split := o.key("smi", listOrOne(&t.SMI, smi), "TrafficSplits of a service mesh, for canary.")
		virtual := o.key("istio", listOrOne(&t.Istio, istio), "VirtualServices of Istio, for canary.")
		pairs := o.key("kubernetes", listOrOne(&t.Kubernetes, servicePair), "Services, for blueGreen.")
		alias := o.key("alias", listOrOne(new([]struct{}), functionAlias), "Lambda functions; out of scope.")
		o.check(func(r *reader) {
			t.Pos = o.at
			t.Kubernetes = r.joinPairs(t.Kubernetes, pairs)
			for _, m := range []*field{split, virtual} {
				if m.seen() && !o.complained {
					r.notef(m.at, "", "%s needs a mesh: on a local account, where every Service shifts its traffic itself, it is refused", m.name)
				}
			}
			if alias.seen() {
				r.outOfScope(alias.at)
			}
			if len(t.SMI)+len(t.Istio)+len(t.Kubernetes) == 0 && !alias.seen() && !pairs.seen() && !o.complained {
				r.errorf(o.at, "add smi, istio or kubernetes", "this entry says nothing about traffic")
			}
		})
	})
}

// joinPairs merges a preview Service that stands in an item of its own into the item before it, as a tutorial has it.
func (r *reader) joinPairs(pairs []ServicePair, f *field) []ServicePair {
	var out []ServicePair
	for i, p := range pairs {
		if p.ActiveService != "" || p.PreviewService == "" {
			out = append(out, p)
			continue
		}
		at := f.at
		if f.node.kind == list && i < len(f.node.items) {
			at = f.node.items[i].at
		}
		if len(out) == 0 {
			r.errorf(at, "add `activeService: …`", "previewService stands without activeService")
			continue
		}
		r.warnf(at, "write it into the item of its activeService", "previewService stands in an item of its own; it is read as a part of the one before")
		out[len(out)-1].PreviewService = p.PreviewService
	}
	return out
}

// checkTraffic warns where two entries shift the same target the same way: the later one counts.
func (r *reader) checkTraffic(all []TrafficManagement) {
	type slot struct{ target, how string }
	first := map[slot]Pos{}
	for _, t := range all {
		targets := t.Targets
		if len(targets) == 0 {
			targets = []string{""}
		}
		for _, name := range targets {
			for how, n := range map[string]int{"smi": len(t.SMI), "istio": len(t.Istio), "kubernetes": len(t.Kubernetes)} {
				if n == 0 {
					continue
				}
				s := slot{name, how}
				if at, twice := first[s]; twice {
					who := "all targets"
					if name != "" {
						who = "target " + name
					}
					r.warnf(t.Pos, "", "the %s of %s is in line %d already; the later one counts", how, who, at.Line)
				}
				first[s] = t.Pos
			}
		}
	}
}

func smi(s *SMI) value {
	return object("smi", "A TrafficSplit.", func(o *fields) {
		o.key("rootServiceName", textOf(&s.RootServiceName), "The Service that clients call.").required()
		o.key("canaryServiceName", textOf(&s.CanaryServiceName), "The Service of the new version; <root>-canary.")
		o.key("trafficSplitName", textOf(&s.TrafficSplitName), "The TrafficSplit; named like the root Service.")
		o.check(func(*reader) {
			if s.RootServiceName != "" && s.CanaryServiceName == "" {
				s.CanaryServiceName = s.RootServiceName + "-canary"
			}
			if s.TrafficSplitName == "" {
				s.TrafficSplitName = s.RootServiceName
			}
		})
	})
}

func istio(i *Istio) value {
	return object("istio", "A VirtualService with its DestinationRule.", func(o *fields) {
		o.key("virtualService", object("virtualService", "A VirtualService.", func(o *fields) {
			o.key("name", textOf(&i.VirtualService), "Its name.").required()
			o.key("httpRouteName", textOf(&i.HTTPRouteName), "The route whose weights are set, where there are several.")
		}), "The VirtualService.").required()
		o.key("destinationRule", object("destinationRule", "A DestinationRule.", func(o *fields) {
			o.key("name", textOf(&i.DestinationRule), "Its name.")
			o.key("activeSubsetName", textOf(&i.ActiveSubsetName), "The subset of the running version.")
			o.key("canarySubsetName", textOf(&i.CanarySubsetName), "The subset of the new version.")
		}), "The DestinationRule.")
	})
}

func servicePair(p *ServicePair) value {
	return object("servicePair", "An active Service with its preview Service.", func(o *fields) {
		active := o.key("activeService", textOf(&p.ActiveService), "The Service that carries the traffic.")
		preview := o.key("previewService", textOf(&p.PreviewService), "A Service that reaches the new version before traffic moves.")
		o.check(func(r *reader) {
			if strings.TrimSpace(p.ActiveService) == "" && !preview.seen() && !active.seen() {
				r.errorf(o.at, "add `activeService: …`", "kubernetes needs activeService")
			}
		})
	})
}

func functionAlias(*struct{}) value {
	return object("functionAlias", "An alias of a Lambda function; out of scope.", func(o *fields) {
		var s string
		o.key("functionName", textOf(&s), "Lambda only.").alias("function")
		o.key("aliasName", textOf(&s), "Lambda only.")
	})
}
