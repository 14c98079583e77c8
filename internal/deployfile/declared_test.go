package deployfile

import (
	"strings"
	"testing"
)

func TestQueries(t *testing.T) { // 1.7
	// The query is in line 6 and used.
	with := func(query string) string {
		return `application: shop
targets: {prod: {account: east, strategy: s}}
manifests: [{path: m}]
strategies: {s: {canary: {steps: [{analysis: {queries: [q], interval: 1, units: seconds, numberOfJudgmentRuns: 1}}]}}}
analysis: {defaultMetricProviderName: p, queries: [
` + query + "]}\n"
	}
	limits := func(f *File) any {
		var out []float64
		for _, l := range []*float64{f.Analysis.Queries[0].LowerLimit, f.Analysis.Queries[0].UpperLimit} {
			if l != nil {
				out = append(out, *l)
			}
		}
		return out
	}
	run(t, []row{
		{"default provider", with("{name: q, queryTemplate: up, upperLimit: 1}"),
			func(f *File) any { return f.Analysis.DefaultMetricProviderName }, "p", nil},
		{"default provider, old spelling", strings.Replace(with("{name: q, queryTemplate: up, upperLimit: 1}"), "defaultMetricProviderName",
			"defaultMetricProvider", 1),
			func(f *File) any { return f.Analysis.DefaultMetricProviderName }, "p", []string{"5:12 note: old spelling of defaultMetricProviderName"}},
		{"no provider at all", strings.Replace(with("{name: q, queryTemplate: up, upperLimit: 1}"), "defaultMetricProviderName: p, ", "", 1), nil, nil,
			[]string{"6:1 error: query q has no metric provider"}},
		{"a provider of its own", strings.Replace(with("{name: q, queryTemplate: up, upperLimit: 1, metricProviderName: x}"),
			"defaultMetricProviderName: p, ", "", 1),
			func(f *File) any { return f.Analysis.Queries[0].MetricProviderName }, "x", nil},
		{"integer limits", with("{name: q, queryTemplate: up, upperLimit: 10000, lowerLimit: 0}"), limits, []float64{0, 10000}, nil},
		{"float limits", with("{name: q, queryTemplate: up, upperLimit: 0.0, lowerLimit: 0.0}"), limits, []float64{0, 0}, nil},
		{"negative limits", with("{name: q, queryTemplate: up, upperLimit: -1.5, lowerLimit: -1e3}"), limits, []float64{-1000, -1.5}, nil},
		{"no limit, used", with("{name: q, queryTemplate: up}"), nil, nil, []string{"6:1 error: no limit"}},
		{"no limit, not used", with("{name: q, queryTemplate: up, upperLimit: 1}, {name: r, queryTemplate: '((broken'}"), nil, nil,
			[]string{"6:46 warning: query r has no limit"}},
		{"limits exchanged", with("{name: q, queryTemplate: up, upperLimit: 1, lowerLimit: 2}"), nil, nil,
			[]string{"6:30 error: upperLimit 1 is below lowerLimit 2"}},
		{"old keys", strings.Replace(with("{name: q, queryTemplate: up, upperLimit: 1, aggregationMethod: avg}"), "queries: [\n",
			"defaultAccount: a, defaultType: t, queries: [\n", 1),
			limits, []float64{1},
			[]string{"5:42 note: defaultAccount is ignored", "5:61 note: defaultType is ignored", "6:45 note: aggregationMethod is ignored"}},
		{"twice, the first one counts", with("{name: q, queryTemplate: up, upperLimit: 1}, {name: q, queryTemplate: up, upperLimit: 2}"), nil, nil,
			[]string{"6:53 warning: a query \"q\" in line 6 already"}},
		{"absence is 0 and passes", with("{name: q, queryTemplate: 'sum(x) OR on() vector(0)', upperLimit: 0}"), nil, nil,
			[]string{"6:34 warning: 0 passes"}},
		{"absence is 0 and fails", with("{name: q, queryTemplate: 'sum(x) or vector(0)', lowerLimit: 1}"), nil, nil, nil},
		{"variables", with("{name: q, queryTemplate: 'x{r=\"{{armory.replicaSetName}}\"}[{{armory.promQlStepInterval}}] {{context.a}} {{armory.endTimeIso8601}}', upperLimit: 1}"), nil, nil, nil},
		{"variables that mean nothing here", with("{name: q, queryTemplate: '{{armory.callbackUri}}', upperLimit: 1}"), nil, nil,
			[]string{"6:27 warning: {{armory.callbackUri}} is not known here"}},
	})
}

func TestWebhooks(t *testing.T) { // 1.8
	with := func(hook string) string { return base + "webhooks:\n" + hook }
	hook := func(f *File) any { return f.Webhooks[0] }
	at := Pos{6, 5}
	run(t, []row{
		{"everything", with("  - name: a b\n    method: get\n    uriTemplate: 'http://x/{{ armory.deploymentId }}'\n    networkMode: remoteNetworkAgent\n    agentIdentifier: other\n    headers:\n" +
			"      - {key: Authorization, value: 'Bearer {{secrets.prod-token}}'}\n    bodyTemplate:\n      inline: '{{armory.callbackUri}}/callback'\n    retryCount: 3\n"), hook,
			Webhook{Pos: at, Name: "a b", Method: "GET", URI: "http://x/{{ armory.deploymentId }}", NetworkMode: "remotenetworkagent", AgentIdentifier: "other",
				Headers: []Header{{"Authorization", "Bearer {{secrets.prod-token}}"}}, Body: "{{armory.callbackUri}}/callback", RetryCount: 3}, nil},
		{"as little as possible", with("  - name: a\n    uriTemplate: '{{secrets.slackwebhookURL}}'\n    disableCallback: true\n"), hook,
			Webhook{Pos: at, Name: "a", URI: "{{secrets.slackwebhookURL}}", NetworkMode: "direct", DisableCallback: true}, nil},
		{"networkMode in any case", with("  - {name: a, uriTemplate: x, networkMode: DIRECT, disableCallback: true}\n"),
			func(f *File) any { return f.Webhooks[0].NetworkMode }, "direct", nil},
		{"an agent that is not used", with("  - {name: a, uriTemplate: x, agentIdentifier: b, disableCallback: true}\n"), nil, nil,
			[]string{"6:31 warning: means nothing with networkMode direct"}},
		{"the body is opaque", with("  - name: a\n    uriTemplate: x{{armory.callbackUri}}\n    bodyTemplate:\n      inline: >-\n        {\"a\": [1 2\n        # not JSON, and not a comment\n"), func(f *File) any { return f.Webhooks[0].Body },
			"{\"a\": [1 2 # not JSON, and not a comment", nil},
		{"a body in a file", with("  - {name: a, uriTemplate: x, bodyTemplate: {path: body.json}}\n"),
			func(f *File) any { return f.Webhooks[0].BodyPath }, "body.json", nil},
		{"the callback in a header", with("  - {name: a, uriTemplate: x, headers: [{key: K, value: '{{\tarmory.callbackUri}}'}]}\n"), nil, nil, nil},
		{"the callback in the address", with("  - {name: a, uriTemplate: 'http://j/build?url={{armory.callbackUri}}/callback', method: POST}\n"),
			nil, nil, nil},
		{"a callback that is never handed out", with("  - {name: a, uriTemplate: x, bodyTemplate: {inline: y}}\n"), nil, nil,
			[]string{"6:5 warning: webhook a waits 24 hours"}},
		{"twice, the first one counts", with("  - {name: a, uriTemplate: x, disableCallback: true}\n  - {name: a, uriTemplate: y, disableCallback: true}\n"), hook,
			Webhook{Pos: at, Name: "a", URI: "x", NetworkMode: "direct", DisableCallback: true},
			[]string{"7:12 warning: a webhook \"a\" in line 6 already; the first one counts"}},
		{"variables without a prefix", with("  - {name: a, uriTemplate: 'x{{TF_WS_ID}}', disableCallback: true}\n"), nil, nil,
			[]string{"6:30 warning: {{TF_WS_ID}} is not known"}},
		{"variables of another product", with("  - {name: a, uriTemplate: 'x{{armory.pipelineId}}', disableCallback: true}\n"), nil, nil,
			[]string{"6:30 warning: {{armory.pipelineId}} is not known here"}},
		{"previews", with("  - {name: a, uriTemplate: 'x{{armory.preview.potato-facts-internal}}', disableCallback: true}\n"), nil, nil, nil},
		{"the spelling before 2022", with("  - {name: a, uriTemplate: 'x${armory.deploymentId}', disableCallback: true}\n"), nil, nil,
			[]string{"6:30 warning: ended in 2022"}},
		{"an empty body", with("  - {name: a, uriTemplate: x, disableCallback: true, bodyTemplate: {inline: ''}, headers: []}\n"),
			func(f *File) any { return f.Webhooks[0].Body }, "", nil},
	})
}

func TestTrafficManagement(t *testing.T) { // 1.9
	with := func(s string) string { return base + "trafficManagement: " + s + "\n" }
	first := func(f *File) any { return f.TrafficManagement[0] }
	const note = "note: needs a mesh"
	run(t, []row{
		{"smi with defaults", with("[{smi: [{rootServiceName: web}]}]"), first,
			TrafficManagement{Pos: Pos{5, 21}, SMI: []SMI{{"web", "web-canary", "web"}}}, []string{"5:22 " + note}},
		{"smi with everything, targets", with("[{targets: [prod], smi: [{rootServiceName: web, canaryServiceName: c, trafficSplitName: t}]}]"), first,
			TrafficManagement{Pos: Pos{5, 21}, Targets: []string{"prod"}, SMI: []SMI{{"web", "c", "t"}}}, []string{"5:39 " + note}},
		{"a map, and smi as a map", with("{smi: {rootServiceName: web}}"),
			first, TrafficManagement{Pos: Pos{5, 1}, SMI: []SMI{{"web", "web-canary", "web"}}}, []string{"5:21 " + note}},
		{"istio", with("[{istio: [{virtualService: {name: v, httpRouteName: r}, destinationRule: {name: d, activeSubsetName: a, canarySubsetName: c}}]}]"),
			first,
			TrafficManagement{Pos: Pos{5, 21}, Istio: []Istio{{"v", "r", "d", "a", "c"}}}, []string{"5:22 " + note}},
		{"istio without a destinationRule", with("[{istio: [{virtualService: {name: v}}]}]"),
			first, TrafficManagement{Pos: Pos{5, 21}, Istio: []Istio{{VirtualService: "v"}}},
			[]string{"5:22 " + note}},
		{"kubernetes, several pairs", with("[{kubernetes: [{activeService: a, previewService: p}, {activeService: b}]}]"), first,
			TrafficManagement{Pos: Pos{5, 21}, Kubernetes: []ServicePair{{"a", "p"}, {"b", ""}}}, nil},
		{"the preview in an item of its own", with("[{kubernetes: [{activeService: a}, {previewService: p}]}]"), first,
			TrafficManagement{Pos: Pos{5, 21}, Kubernetes: []ServicePair{{"a", "p"}}}, []string{"5:55 warning: read as a part of the one before"}},
		{"the preview alone", with("[{kubernetes: [{previewService: p}]}]"), nil, nil, []string{"5:35 error: without activeService"}},
		{"unknown targets", with("[{targets: [x], kubernetes: [{activeService: a}]}]"), nil, nil,
			[]string{"5:32 warning: no target named \"x\": nothing is shifted there"}},
		{"twice for one target", with("[{targets: [prod], kubernetes: [{activeService: a}]}, {targets: [prod], kubernetes: [{activeService: b}]}]"),
			nil, nil,
			[]string{"5:74 warning: the later one counts"}},
		{"nothing", with("[{targets: [prod]}]"), nil, nil, []string{"5:21 error: says nothing about traffic"}},
	})
}

// TestYAML is what YAML itself allows.
func TestYAML(t *testing.T) {
	account := func(f *File) any { return f.Targets[0].Account }
	run(t, []row{
		{"CRLF and blanks at the end", strings.ReplaceAll("application: x \nmanifests: [{path: m}]\ntargets:\n  a:\n    account: b  \n    acount: c\n",
			"\n", "\r\n"), account, "b",
			[]string{"6:5 error: no key \"acount\""}},
		{"a byte order mark", "\ufeffapplication: x\nmanifests: [{path: m}]\ntargets: {a: {account: b}}\n", account, "b", nil},
		{"anchors, aliases and merge keys",
			"application: x\nmanifests: [{path: m}]\ntargets:\n  a: &t\n    account: b\n    namespace: n\n  c:\n    <<: *t\n    namespace: o\n",
			func(f *File) any { return f.Targets[1].Account + f.Targets[1].Namespace }, "bo", nil},
		{"an alias that nothing declares", "application: x\nmanifests: [{path: m}]\ntargets: {a: *t}\n", nil, nil,
			[]string{"3:14 error: no anchor named \"t\""}},
		{"a comment, a directive, a document start and an end",
			"%YAML 1.2\n# c\n---\napplication: x # y\nmanifests: [{path: m}]\ntargets: {a: {account: b}}\n...\n", account, "b", nil},
		{"a second document", "application: x\nmanifests: [{path: m}]\ntargets: {a: {account: b}}\n---\nkind: lambda\n", account, "b",
			[]string{"4:1 warning: only the first document"}},
		{"tags", "application: !!str 5\nmanifests: [{path: m}]\ntargets: {a: {account: b}}\n", func(f *File) any { return f.Application }, "5", nil},
		{"columns after wide characters", "application: x\nmanifests: [{path: m}]\ntargets: {ünï: {account: b, acount: c}}\n", account, "b",
			[]string{"3:29 error: no key"}},
	})
}
