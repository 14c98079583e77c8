package deployfile

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// canaryOf is a file whose strategy has the given steps, from line 6.
func canaryOf(steps string) string {
	return "application: shop\ntargets: {prod: {account: east, strategy: s}}\nmanifests: [{path: m}]\n" +
		"webhooks: [{name: 'a hook', uriTemplate: 'http://x', disableCallback: true}]\nanalysis: {defaultMetricProviderName: p, queries: [{name: q, queryTemplate: up, lowerLimit: 1}, {name: r, queryTemplate: up, upperLimit: 0}]}\n" +
		"strategies: {s: {canary: {steps: [\n" + steps + "]}}}\n"
}

func firstStep(f *File) any {
	if len(f.Strategies) == 0 || f.Strategies[0].Canary == nil || len(f.Strategies[0].Canary.Steps) == 0 {
		return nil
	}
	s := f.Strategies[0].Canary.Steps[0]
	switch {
	case s.SetWeight != nil:
		return *s.SetWeight
	case s.Pause != nil:
		return *s.Pause
	case s.RunWebhook != nil:
		return *s.RunWebhook
	case s.Analysis != nil:
		return *s.Analysis
	case s.ExposeServices != nil:
		return *s.ExposeServices
	}
	return nil
}

// TestWhereStepsStand is the table of 1.4: which step may stand where.
func TestWhereStepsStand(t *testing.T) {
	steps := map[string]string{
		"setWeight":      "setWeight: {weight: 10}",
		"pause":          "pause: {untilApproved: true}",
		"runWebhook":     "runWebhook: {name: w}",
		"analysis":       "analysis: {queries: [q], interval: 1, units: seconds, numberOfJudgmentRuns: 1}",
		"exposeServices": "exposeServices: {services: [a]}",
	}
	allowed := map[string]string{"setWeight": "canary", "exposeServices": "canary redirect shutdown", "pause": "all", "runWebhook": "all",
		"analysis": "all"}
	places := map[string]string{
		"canary":   "strategies: {s: {canary: {steps: [{%s}]}}}\ntargets: {t: {account: a, strategy: s}}\n",
		"redirect": "strategies: {s: {blueGreen: {redirectTrafficAfter: [{%s}]}}}\ntargets: {t: {account: a, strategy: s}}\n",
		"shutdown": "strategies: {s: {blueGreen: {shutDownOldVersionAfter: [{%s}]}}}\ntargets: {t: {account: a, strategy: s}}\n",
		"before":   "targets: {t: {account: a, constraints: {beforeDeployment: [{%s}]}}}\n",
		"after":    "targets: {t: {account: a, constraints: {afterDeployment: [{%s}]}}}\n",
	}
	const head = "application: x\nmanifests: [{path: m}]\nwebhooks: [{name: w, uriTemplate: 'http://x', disableCallback: true}]\n" +
		"analysis: {queries: [{name: q, queryTemplate: up, lowerLimit: 1, metricProviderName: p}]}\n"
	for name, text := range steps {
		for place, format := range places {
			_, found := Parse("deploy.yaml", fmt.Appendf([]byte(head), format, text))
			may := allowed[name] == "all" || strings.Contains(allowed[name], place)
			if may && len(found) > 0 {
				t.Errorf("%s in %s: %v", name, place, found)
			}
			if !may && (len(found) != 1 || !strings.HasPrefix(found[0].Message, name+" may not stand in ")) {
				t.Errorf("%s in %s should be refused: %v", name, place, found)
			}
		}
	}
}

func TestWeights(t *testing.T) { // 1.4 setWeight
	run(t, []row{
		{"weight", canaryOf("{setWeight: {weight: 25}}"), firstStep, SetWeight{25}, nil},
		{"a float without a fraction", canaryOf("{setWeight: {weight: 25.0}}"), firstStep, SetWeight{25}, nil},
		{"in short", canaryOf("{setWeight: 10}"), firstStep, SetWeight{10}, []string{"7:13 warning: setWeight is written in short"}},
		{"beside", canaryOf("{setWeight: null, weight: 40}"), firstStep, SetWeight{40}, []string{"7:19 warning: weight stands beside setWeight"}},
		{"out of range", canaryOf("{setWeight: {weight: 101}}"), nil, nil, []string{"7:22 error: between 0 and 100"}},
		{"out of range in short", canaryOf("{setWeight: -1}"), nil, nil, []string{"7:13 error: between 0 and 100"}},
		{"falling", canaryOf("{setWeight: {weight: 50}}, {setWeight: {weight: 20}}"), nil, nil, []string{"7:28 warning: falls from 50 to 20"}},
		{"100 at the end", canaryOf("{setWeight: {weight: 100}}"), firstStep, SetWeight{100}, nil},
		{"one key per item", canaryOf("{setWeight: {weight: 50}, pause: {duration: 1, unit: hours}}"), nil, nil,
			[]string{"7:27 error: this one is setWeight already"}},
	})
}

func TestPauses(t *testing.T) { // 1.4 pause
	run(t, []row{
		{"timed", canaryOf("{pause: {duration: 30, unit: seconds}}"), firstStep, Pause{Duration: 30 * time.Second}, nil},
		{"timed, in upper case", canaryOf("{pause: {duration: 2, unit: HOURS}}"), firstStep, Pause{Duration: 2 * time.Hour}, nil},
		{"timed, untilApproved false beside", canaryOf("{pause: {duration: 1, unit: minutes, untilApproved: false}}"),
			firstStep, Pause{Duration: time.Minute}, nil},
		{"duration without unit", canaryOf("{pause: {duration: 1}}"), nil, nil, []string{"7:10 error: a duration needs its unit"}},
		{"unit none, the wire's default", canaryOf("{pause: {duration: 1, unit: NONE}}"), nil, nil, []string{"7:23 error: a duration needs its unit"}},
		{"unit without duration", canaryOf("{pause: {unit: hours}}"), nil, nil, []string{"7:10 error: a unit needs its duration"}},
		{"units that the old schema let pass", canaryOf("{pause: {duration: 1, unit: xxminutesyy}}"), nil, nil,
			[]string{"7:29 error: not one of seconds, minutes, hours, days"}},
		{"both", canaryOf("{pause: {duration: 1, unit: hours, untilApproved: true}}"), nil, nil,
			[]string{"7:10 error: either lasts a time or waits for approval"}},
		{"neither", canaryOf("{pause: {}}"), nil, nil, []string{"7:2 error: neither how long"}},
		{"approval", canaryOf("{pause: {untilApproved: true}}"), firstStep, Pause{UntilApproved: true}, nil},
		{"roles", canaryOf("{pause: {untilApproved: true, requiresRoles: [a, b c]}}"),
			firstStep, Pause{UntilApproved: true, RequiresRoles: []string{"a", "b c"}}, nil},
		{"roles []", canaryOf("{pause: {untilApproved: true, requiresRoles: []}}"), firstStep, Pause{UntilApproved: true},
			[]string{"7:31 note: no role is named"}},
		{"roles beside", canaryOf("{pause: {untilApproved: true}, requiresRoles: [a]}"),
			firstStep, Pause{UntilApproved: true, RequiresRoles: []string{"a"}},
			[]string{"7:32 warning: requiresRoles stands beside the pause"}},
		{"expiration", canaryOf("{pause: {untilApproved: true, approvalExpiration: {duration: 24, unit: hours}}}"), firstStep,
			Pause{UntilApproved: true, ApprovalExpiration: 24 * time.Hour}, nil},
		{"roles inside of the expiration", canaryOf("{pause: {untilApproved: true, approvalExpiration: {duration: 1, unit: hours, requiresRoles: [a]}}}"),
			firstStep,
			Pause{UntilApproved: true, RequiresRoles: []string{"a"}, ApprovalExpiration: time.Hour}, []string{"7:78 warning: inside of approvalExpiration"}},
		{"approvalDuration", canaryOf("{pause: {untilApproved: true, approvalDuration: {duration: 1, unit: hours}}}"), firstStep,
			Pause{UntilApproved: true, ApprovalExpiration: time.Hour}, []string{"7:31 note: old spelling of approvalExpiration"}},
		{"roles without approval", canaryOf("{pause: {duration: 1, unit: hours, requiresRoles: [a]}}"), nil, nil,
			[]string{"7:36 warning: means nothing in a pause"}},
	})
}

func TestHooksAndServices(t *testing.T) { // 1.4 runWebhook, exposeServices
	run(t, []row{
		{"name with a space, context", canaryOf("{runWebhook: {name: a hook, context: {n: 1, s: x}}}"), firstStep,
			RunWebhook{Name: "a hook", Context: map[string]string{"n": "1", "s": "x"}}, nil},
		{"not declared", canaryOf("{runWebhook: {name: a hok}}"), nil, nil, []string{"7:21 error: no webhook named \"a hok\""}},
		{"services first of all, several", canaryOf("{exposeServices: {services: [a, b]}}"), firstStep, ExposeServices{Services: []string{"a", "b"}}, nil},
		{"ttl", canaryOf("{exposeServices: {services: [a], ttl: {duration: 10, unit: minutes}}}"), firstStep,
			ExposeServices{Services: []string{"a"}, TTL: 10 * time.Minute}, nil},
		{"ttl too short", canaryOf("{exposeServices: {services: [a], ttl: {duration: 59, unit: seconds}}}"), nil, nil,
			[]string{"7:34 error: between a minute and 24 hours"}},
		{"ttl too long", canaryOf("{exposeServices: {services: [a], ttl: {duration: 25, unit: hours}}}"), nil, nil,
			[]string{"7:34 error: between a minute and 24 hours"}},
		{"no service", canaryOf("{exposeServices: {services: []}}"), nil, nil, []string{"7:19 error: no Service is named"}},
	})
}

func TestAnalysisSteps(t *testing.T) { // 1.4 and 1.7 analysis
	run(t, []row{
		{"all keys", canaryOf("{analysis: {queries: [q, r], interval: 7, units: seconds, numberOfJudgmentRuns: 3, rollBackMode: manual, rollForwardMode: Automatic,\n" +
			"lookbackMethod: GROWING, abortOnFailedJudgment: true, metricProviderName: m, context: {a: b}}}"), firstStep,
			Analysis{Queries: []string{"q", "r"}, Interval: 7 * time.Second, NumberOfJudgmentRuns: 3, RollBackMode: "manual", RollForwardMode: "automatic",
				LookbackMethod: "growing", AbortOnFailedJudgment: true, MetricProviderName: "m", Context: map[string]string{"a": "b"}}, nil},
		{"modes absent", canaryOf("{analysis: {queries: [q], interval: 1, units: minutes, numberOfJudgmentRuns: 1}}"), firstStep,
			Analysis{Queries: []string{"q"}, Interval: time.Minute, NumberOfJudgmentRuns: 1}, nil},
		{"unit for units", canaryOf("{analysis: {queries: [q], interval: 1, unit: minutes, numberOfJudgmentRuns: 1}}"), firstStep,
			Analysis{Queries: []string{"q"}, Interval: time.Minute, NumberOfJudgmentRuns: 1}, []string{"7:40 note: old spelling of units"}},
		{"lookback unset", canaryOf("{analysis: {queries: [q], interval: 1, units: hours, numberOfJudgmentRuns: 1, lookbackMethod: UNSET}}"), firstStep,
			Analysis{Queries: []string{"q"}, Interval: time.Hour, NumberOfJudgmentRuns: 1}, []string{"7:79 note: it is sliding"}},
		{"query that is not declared", canaryOf("{analysis: {queries: [qq], interval: 1, units: hours, numberOfJudgmentRuns: 1}}"), nil, nil,
			[]string{"7:23 error: no query named \"qq\""}},
		{"no query", canaryOf("{analysis: {queries: [], interval: 1, units: hours, numberOfJudgmentRuns: 1}}"), nil, nil,
			[]string{"7:13 error: has no query"}},
		{"interval 0", canaryOf("{analysis: {queries: [q], interval: 0, units: hours, numberOfJudgmentRuns: 1}}"), nil, nil,
			[]string{"7:37 error: interval is 0"}},
		{"no runs", canaryOf("{analysis: {queries: [q], interval: 1, units: hours}}"), nil, nil, []string{"7:2 error: needs numberOfJudgmentRuns"}},
		{"our own keys", canaryOf("{analysis: {interval: 1, units: seconds, numberOfJudgmentRuns: 9, background: true, onInconclusive: rollback, initialDelay: {duration: 5, unit: seconds},\n" +
			"counts: {canaryTotal: a, canaryBad: b, stableTotal: c, stableBad: d, alpha: 0.01, margin: 2, minRequests: 40}}}"), firstStep,
			Analysis{Interval: time.Second, NumberOfJudgmentRuns: 9, Background: true, OnInconclusive: "rollback", InitialDelay: 5 * time.Second,
				Counts: &Counts{"a", "b", "c", "d", 0.01, 2, 40}}, nil},
	})
}

func TestStrategies(t *testing.T) { // 1.5 and 1.6
	const head = "application: shop\ntargets: {prod: {account: east, strategy: s}}\nmanifests: [{path: m}]\n"
	bg := func(f *File) any { return f.Strategies[0].BlueGreen }
	five := func(in string) []Step {
		return []Step{{Pos: Pos{4, strings.Index(in, "{pause") + 1}, Pause: &Pause{Duration: 5 * time.Second}}}
	}
	const now = "strategies: {s: {blueGreen: {redirectTrafficAfter: [{pause: {duration: 5, unit: seconds}}], activeService: a, previewService: p}}}\n"
	const old = "strategies: {s: {blue-green: {shutdownOldVersionAfter: [{pause: {duration: 5, unit: seconds}}]}}}\n"
	const below = "strategies: {s: {blueGreen: {redirectTrafficAfter: {steps: [{pause: {duration: 5, unit: seconds}}]}}}}\n"
	run(t, []row{
		{"canary without steps", head + "strategies: {s: {canary: {steps: []}}}\n", func(f *File) any { return f.Strategies[0].Canary }, &Canary{}, nil},
		{"canary with nothing", head + "strategies: {s: {canary: null}}\n", func(f *File) any { return f.Strategies[0].Canary }, &Canary{},
			[]string{"4:18 note: goes to 100 % at once"}},
		{"a pause first", canaryOf("{pause: {duration: 1, unit: seconds}}, {setWeight: {weight: 1}}"), firstStep, Pause{Duration: time.Second}, nil},
		{"rolling", canaryOf("{setWeight: {weight: 100}}"), firstStep, SetWeight{100}, nil},
		{"blueGreen {}", head + "strategies: {s: {blueGreen: {}}}\n", bg, &BlueGreen{}, nil},
		{"blueGreen with services in the old place", head + now, bg, &BlueGreen{RedirectTrafficAfter: five(now), ActiveService: "a", PreviewService: "p"}, nil},
		{"old spellings", head + old, bg, &BlueGreen{ShutDownOldVersionAfter: five(old)},
			[]string{"4:18 note: blue-green is an old spelling", "4:31 note: shutdownOldVersionAfter is an old spelling"}},
		{"steps below the list", head + below, bg, &BlueGreen{RedirectTrafficAfter: five(below)}, []string{"4:30 note: with `steps` below it is an old spelling"}},
		{"root URLs", head + "strategies: {s: {blueGreen: {activeRootUrl: x, previewRootUrl: y}}}\n", bg, &BlueGreen{},
			[]string{"4:30 note: activeRootUrl is ignored", "4:48 note: previewRootUrl is ignored"}},
		{"both", head + "strategies: {s: {canary: {steps: []}, blueGreen: {}}}\n", nil, nil, []string{"4:39 error: either canary or blueGreen"}},
		{"a list with names", head + "strategies: [{name: s, canary: {steps: []}}]\n", func(f *File) any { return f.Strategies[0].Name }, "s", nil},
	})
}

func TestDataSteps(t *testing.T) {
	const file = `application: shop
manifests: [{path: m}]
targets:
  staging:
    account: a
    constraints:
      beforeDeployment:
        - copyData: {database: orders, replace: true, maxHold: {duration: 5, unit: seconds}, timeout: {duration: 1, unit: hours}}
      afterDeployment:
        - sequence:
            - verifyData: {database: orders, contract: c, timeout: {duration: 2, unit: hours}}
            - rehearseRollback: {database: orders, require: true, jobs: [j], timeout: {duration: 3, unit: hours}}
            - runJob: {name: j, timeout: {duration: 1, unit: minutes}}
            - waitFor: {kind: statefulset, name: mongo, timeout: {duration: 2, unit: minutes}}
  production:
    account: a
    constraints:
      dependsOn: [staging]
      beforeDeployment:
        - checkpointData: {database: orders, name: before, ttl: {duration: 30, unit: days}}
        - restoreData: {database: orders, checkpoint: before, maxLost: 3}
        - maskData: {database: orders, mask: k}
data:
  databases:
    - {name: orders, engine: MongoDB, target: production, workload: statefulset/mongo, connection: 'mongodb://{{secrets.u}}:{{secrets.p}}@mongo:27017/', markAfter: deployment/web, quarantine: unenforced, sidecars: [exporter],
       upgrade: {deadline: {duration: 5, unit: minutes}, bake: {duration: 1, unit: days}, maxLost: 2, contract: c, strategy: one-by-one}}
  contracts: [{name: c, describe: d, exclude: [a.b]}]
  checks: [{name: totals, database: orders, query: q, equals: 0}]
  masks: [{name: k, rules: [{anything: goes}]}]
  jobs: [{name: j, inline: 'kind: Job'}]
strategies: {one-by-one: {canary: {steps: []}}}
`
	f, found := Parse("deploy.yaml", []byte(file))
	compareFindings(t, found, nil)
	staging, production := f.Targets[0], f.Targets[1]
	zero := "0"
	for _, c := range []struct{ got, want any }{
		{*staging.BeforeDeployment[0].CopyData, CopyData{"orders", true, 5 * time.Second, time.Hour}},
		{*staging.AfterDeployment[0].Sequence[0].VerifyData, VerifyData{"orders", "c", 2 * time.Hour}},
		{*staging.AfterDeployment[0].Sequence[1].RehearseRollback, RehearseRollback{"orders", true, []string{"j"}, 3 * time.Hour}},
		{*staging.AfterDeployment[0].Sequence[2].RunJob, RunJob{"j", time.Minute}},
		{*staging.AfterDeployment[0].Sequence[3].WaitFor, WaitFor{"StatefulSet", "mongo", 2 * time.Minute}},
		{*production.BeforeDeployment[0].CheckpointData, CheckpointData{"orders", "before", 30 * 24 * time.Hour}},
		{*production.BeforeDeployment[1].RestoreData, RestoreData{"orders", "before", 3}},
		{*production.BeforeDeployment[2].MaskData, MaskData{"orders", "k"}},
		{f.Data, Data{
			Databases: []Database{{Pos{25, 7}, "orders", "mongodb", "production", "statefulset/mongo", "mongodb://{{secrets.u}}:{{secrets.p}}@mongo:27017/",
				"deployment/web", Unenforced, []string{"exporter"},
				Upgrade{5 * time.Minute, 24 * time.Hour, 2, "c", "one-by-one"}}},
			Contracts: []Contract{{Pos{27, 15}, "c", "d", []string{"a.b"}, nil}},
			Checks:    []Check{{Pos{28, 12}, "totals", "orders", "q", &zero}},
			Masks:     []Mask{{Pos{29, 11}, "k"}},
			Jobs:      []Job{{Pos{30, 10}, "j", "", "kind: Job"}},
		}},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("got  %#v\nwant %#v", c.got, c.want)
		}
	}
	var unbuilt []string
	for _, u := range Unbuilt(f) {
		unbuilt = append(unbuilt, fmt.Sprintf("%d:%d %s: %s", u.Line, u.Column, u.Severity, u.Message))
	}
	want := []string{"21:11 error: needs restoring a checkpoint as a step, not built yet", "22:11 error: needs masking, not built yet",
		"25:7 error: needs a budget for lost writes (upgrade.maxLost) of engine mongodb, which has no log that counts writes, not built yet", "29:11 error: needs masking, not built yet"}
	if strings.Join(unbuilt, "\n") != strings.Join(want, "\n") {
		t.Errorf("not built: %v", unbuilt)
	}
}
