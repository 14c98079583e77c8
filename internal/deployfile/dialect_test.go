package deployfile

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// row is one row of the dialect: what is written, what it is read as, and every finding about it, as
// "line:column severity: part of the message".
type row struct {
	name  string
	file  string
	get   func(f *File) any
	want  any
	finds []string
}

// base is a file with nothing to complain about; the rows go below it, from line 5.
const base = `application: shop
targets: {prod: {account: east, strategy: rolling}}
manifests: [{path: m.yaml}]
strategies: {rolling: {canary: {steps: [{setWeight: {weight: 100}}]}}}
`

// noTargets is base without targets, for rows that write them.
const noTargets = `application: shop
manifests: [{path: m.yaml}]


`

func run(t *testing.T, rows []row) {
	t.Helper()
	for _, c := range rows {
		t.Run(c.name, func(t *testing.T) {
			t.Helper()
			f, found := Parse("deploy.yaml", []byte(c.file))
			if c.get != nil {
				if got := c.get(f); !reflect.DeepEqual(got, c.want) {
					t.Errorf("read as %#v, want %#v", got, c.want)
				}
			}
			compareFindings(t, found, c.finds)
		})
	}
}

func compareFindings(t *testing.T, found Findings, want []string) {
	t.Helper()
	for i, x := range found {
		got := fmt.Sprintf("%d:%d %s: %s", x.Line, x.Column, x.Severity, x.Message)
		if i >= len(want) {
			t.Errorf("not expected: %s", got)
			continue
		}
		place, part, _ := strings.Cut(want[i], ": ")
		if !strings.HasPrefix(got, place+": ") || !strings.Contains(x.Message, part) {
			t.Errorf("got  %s\nwant %s", got, want[i])
		}
	}
	if len(found) < len(want) {
		t.Errorf("missing: %s", strings.Join(want[len(found):], "\n"))
	}
}

func TestTopLevel(t *testing.T) { // 1.1
	run(t, []row{
		{"version absent", base, func(f *File) any { return f.Version }, "v1", nil},
		{"version is free text", base + "version: apps/v1\n", func(f *File) any { return f.Version }, "apps/v1", nil},
		{"kind absent", base, func(f *File) any { return f.Kind }, "kubernetes", nil},
		{"kind in any case", base + "kind: Kubernetes\n", func(f *File) any { return f.Kind }, "kubernetes", nil},
		{"application with spaces", strings.Replace(base, "shop", "Potato Facts (EU)", 1),
			func(f *File) any { return f.Application }, "Potato Facts (EU)", nil},
		{"application absent, -n gives it", strings.Replace(base, "application: shop", "version: v1", 1), func(f *File) any { return f.Application }, "",
			[]string{"1:1 warning: no application"}},
		{"description", base + "description: |\n  two\n  {{lines}}\n", func(f *File) any { return f.Description }, "two\n{{lines}}\n", nil},
		{"context", base + "context: {region: eu, retries: 3, on: true, none: null}\n", func(f *File) any { return f.Context },
			map[string]string{"region": "eu", "retries": "3", "on": "true", "none": ""}, nil},
		{"metadata", base + "metadata: {name: x, labels: {a: b}}\n", nil, nil, []string{"5:1 note: metadata is ignored"}},
		{"names of targets", noTargets + "targets:\n  \"Migrate Prod DB To Staging\": {account: a}\n  prod-eu (blue-green): {account: b}\n  'it''s': {account: c}\n",
			func(f *File) any { return []string{f.Targets[0].Name, f.Targets[1].Name, f.Targets[2].Name} },
			[]string{"Migrate Prod DB To Staging", "prod-eu (blue-green)", "it's"}, nil},
		{"targets as a list", noTargets + "targets:\n  - name: a\n    account: x\n  - {name: b, account: y, constraints: {dependsOn: [a]}}\n",
			func(f *File) any { return []string{f.Targets[0].Name, f.Targets[1].Account, f.Targets[1].DependsOn[0]} }, []string{"a", "y", "a"}, nil},
		{"targets: at least one", noTargets + "targets: {}\n", nil, nil, []string{"5:1 error: targets is empty"}},
		{"targets missing", noTargets, nil, nil, []string{"1:1 error: needs targets"}},
		{"manifests missing", "application: shop\ntargets: {prod: {account: east}}\n", nil, nil, []string{"1:1 warning: no manifests"}},
		{"strategies: several, unused ones with dangling references", strings.Replace(base, "strategies: {", "strategies: {unused: {canary: {steps: [{runWebhook: {name: nowhere}}, {analysis: {queries: [none], interval: 1, units: seconds, numberOfJudgmentRuns: 1}}]}}, ", 1),
			func(f *File) any { return f.Strategies[0].Name }, "unused",
			[]string{"4:60 warning: no webhook named \"nowhere\", but no target uses this strategy", "4:93 warning: no query named \"none\", but no target"}},
		{"wire-only keys", base + "files: {a: [b]}\ncontextOverrides: {}\ntargetFilters: [{includeTarget: x}]\nsourceControl: {type: github}\n", nil, nil,
			[]string{"5:1 note: files is ignored", "6:1 note: contextOverrides is ignored", "7:1 note: targetFilters is ignored",
				"8:1 note: sourceControl is ignored"}},
	})
}

func TestTargets(t *testing.T) { // 1.2
	first := func(f *File) any { return f.Targets[0] }
	run(t, []row{
		{"account, namespace, strategy", noTargets + "targets:\n  p: {account: a, namespace: n, strategy: s}\nstrategies: {s: {}}\n", first,
			Target{Pos: Pos{6, 3}, Name: "p", Account: "a", Namespace: "n", Strategy: "s"}, nil},
		{"account null or absent", noTargets + "targets:\n  p: {account: null}\n  q:\n",
			func(f *File) any { return []string{f.Targets[0].Account, f.Targets[1].Name} },
			[]string{"", "q"}, nil},
		{"namespace empty", noTargets + "targets: {p: {account: a, namespace: ''}}\n", func(f *File) any { return f.Targets[0].Namespace }, "", nil},
		{"strategy unknown", noTargets + "targets: {p: {account: a, strategy: roling}}\nstrategies: {rolling: {}}\n", nil, nil,
			[]string{"5:37 warning: no strategy named \"roling\": the Deployments"}},
		{"strategy absent", noTargets + "targets: {p: {account: a}}\n", func(f *File) any { return f.Targets[0].Strategy }, "", nil},
		{"constraints null", noTargets + "targets: {p: {account: a, constraints: null}}\n",
			func(f *File) any { return f.Targets[0].DependsOn == nil }, true, nil},
		{"lambda keys", noTargets + "targets: {p: {account: a, deployAsIamRole: 'arn:x', region: us-east-1}}\n", nil, nil, nil},
		{"two targets in one place", noTargets + "targets: {p: {account: a, namespace: n}, q: {account: a, namespace: n}}\n",
			func(f *File) any { return len(f.Targets) }, 2, nil},
		{"a secret in a field", noTargets + "targets: {p: {account: '{{secrets.cluster}}'}}\n", func(f *File) any { return f.Substitutions[0] },
			Substitution{Pos{5, 25}, "account", "cluster"}, nil},
	})
}

func TestConstraints(t *testing.T) { // 1.3
	const two = noTargets + "targets:\n  a: {account: x}\n  b:\n    account: y\n    constraints: "
	b := func(f *File) any { return f.Targets[1].DependsOn }
	run(t, []row{
		{"dependsOn", two + "{dependsOn: [a]}\n", b, []string{"a"}, nil},
		{"dependsOn []", two + "{dependsOn: []}\n", b, []string(nil), nil},
		{"dependsOn null", two + "{dependsOn: null, beforeDeployment: null, afterDeployment: []}\n", b, []string(nil), nil},
		{"dependsOn nothing that exists", two + "{dependsOn: [aa]}\n", b, []string{"aa"}, []string{"9:31 error: no target named \"aa\""}},
		{"dependsOn itself", two + "{dependsOn: [b]}\n", b, []string{"b"}, []string{"7:3 error: targets wait for each other: b → b"}},
		{"before and after take pause, runWebhook and analysis", base[:strings.Index(base, "targets")] + `manifests: [{path: m}]
webhooks: [{name: w, uriTemplate: 'http://x', disableCallback: true}]
analysis: {defaultMetricProviderName: p, queries: [{name: q, queryTemplate: up, lowerLimit: 1}]}
targets:
  a:
    account: x
    constraints:
      beforeDeployment:
        - pause: {untilApproved: true}
        - runWebhook: {name: w}
        - analysis: {queries: [q], interval: 1, units: seconds, numberOfJudgmentRuns: 2}
      afterDeployment:
        - pause: {duration: 1, unit: minutes}
        - runWebhook: {name: w}
        - analysis: {queries: [q], interval: 1, units: seconds, numberOfJudgmentRuns: 2}
`, func(f *File) any {
			s := f.Targets[0]
			return []any{s.BeforeDeployment[0].Pause.UntilApproved, s.BeforeDeployment[1].RunWebhook.Name, s.BeforeDeployment[2].Analysis.Queries,
				s.AfterDeployment[0].Pause.Duration, s.AfterDeployment[1].RunWebhook.Name, s.AfterDeployment[2].Analysis.NumberOfJudgmentRuns}
		}, []any{true, "w", []string{"q"}, time.Minute, "w", 2}, nil},
	})
}

func TestManifestsAndConfig(t *testing.T) { // 1.10
	const head = "application: shop\ntargets: {prod: {account: east}}\nmanifests:\n"
	list := func(f *File) any { return f.Manifests }
	run(t, []row{
		{"paths of all forms", head + "  - path: a.yaml\n  - path: dir/\n  - path: ../x\n  - path: /abs\n  - path: https://h/x.yaml\n  - path: s3://b/x\n",
			func(f *File) any {
				var out []string
				for _, m := range f.Manifests {
					out = append(out, m.Path)
				}
				return out
			}, []string{"a.yaml", "dir/", "../x", "/abs", "https://h/x.yaml", "s3://b/x"}, nil},
		{"inline, with templates of its own", head + "  - inline: |\n      kind: A\n      x: {{ .Values }}\n", list,
			[]Manifest{{Pos: Pos{4, 5}, Inline: "kind: A\nx: {{ .Values }}\n"}}, nil},
		{"targets", head + "  - path: a\n    targets: [prod]\n", list, []Manifest{{Pos: Pos{4, 5}, Path: "a", Targets: []string{"prod"}}}, nil},
		{"targets that do not exist", head + "  - path: a\n    targets: [prod, dev]\n", list, []Manifest{{Pos: Pos{4, 5}, Path: "a", Targets: []string{"prod", "dev"}}},
			[]string{"5:21 warning: no target named \"dev\": nothing goes there"}},
		{"targets []", head + "  - path: a\n    targets: []\n", nil, nil, []string{"5:5 error: goes to no target"}},
		{"one without a list", head + "  path: a\n", func(f *File) any { return f.Manifests[0].Path }, "a", nil},
		{"timeout", base + "deploymentConfig: {timeout: {duration: 10, unit: MINUTES}}\n",
			func(f *File) any { return f.DeploymentConfig.Timeout }, 10 * time.Minute, nil},
		{"timeout under a minute", base + "deploymentConfig: {timeout: {duration: 10, unit: seconds}}\n",
			func(f *File) any { return f.DeploymentConfig.Timeout },
			10 * time.Second, []string{"5:20 warning: short for pods"}},
		{"timeout absent", base + "deploymentConfig: {}\n", func(f *File) any { return f.DeploymentConfig }, DeploymentConfig{}, nil},
		{"keepDeploymentObject", base + "deploymentConfig: {keepDeploymentObject: true}\n",
			func(f *File) any { return f.DeploymentConfig.KeepDeploymentObject }, true, nil},
		{"keepDeploymentObject false", base + "deploymentConfig: {keepDeploymentObject: false}\n", nil, nil, []string{"5:20 note: keeps the Deployment"}},
		{"ifDeploymentInProgress reject", base + "deploymentConfig: {ifDeploymentInProgress: {strategy: reject}}\n",
			func(f *File) any { return f.DeploymentConfig.IfDeploymentInProgress }, "reject", nil},
		{"ifDeploymentInProgress enqueueOne", base + "deploymentConfig: {ifDeploymentInProgress: {strategy: enqueueOne}}\n",
			func(f *File) any { return f.DeploymentConfig.IfDeploymentInProgress }, "enqueueone", nil},
		{"no onFailure anywhere", base + "onFailure: {}\n", nil, nil, []string{"5:1 error: the file has no key \"onFailure\""}},
	})
}

func TestLambda(t *testing.T) { // 1.11
	const file = `application: f
kind: lambda
targets: {prod: {account: a, deployAsIamRole: 'arn:aws:iam::1:role/x', region: us-east-1, strategy: s}}
artifacts: [{functionName: f, path: 's3://b/f.zip', type: zipFile}]
providerOptions: {lambda: [{target: prod, name: f, runAsIamRole: 'arn:x', handler: i.h, runtime: nodejs18.x}]}
strategies: {s: {canary: {steps: [{setWeight: {weight: 50}}]}}}
trafficManagement: [{targets: [prod], alias: [{functionName: f, aliasName: live}, {function: g, aliasName: x}]}]
`
	run(t, []row{
		{"kind lambda", file, func(f *File) any { return f.Targets[0].Name }, "prod",
			[]string{"2:1 error: AWS Lambda is out of scope", "7:39 error: AWS Lambda is out of scope", "7:84 note: old spelling of functionName"}},
		{"kind left away", strings.Replace(file, "kind: lambda\n", "manifests: [{path: m}]\n", 1), nil, nil,
			[]string{"4:1 error: AWS Lambda is out of scope", "7:39 error: AWS Lambda", "7:84 note: old spelling"}},
	})
}
