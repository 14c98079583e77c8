package delivery_test

import (
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/delivery"
)

const (
	oneTarget = `
		target s
		s/before/1
		s/before/2
		s/deploy/1 < s/before/1 s/before/2
		s/deploy/2 < s/deploy/1
		s/after/1 < s/deploy/2
		s/after/2 < s/deploy/2`
	twoTargets = `
		target s
		target p < s
		s/deploy/1
		s/after/1 < s/deploy/1
		p/before/1 < s/after/1
		p/deploy/1 < p/before/1`
	parallelTargets = `
		target s
		target a < s
		target b < s
		s/deploy/1
		a/deploy/1 < s/deploy/1
		a/deploy/2 < a/deploy/1
		b/deploy/1 < s/deploy/1
		b/deploy/2 < b/deploy/1`
	canary = `
		target p
		p/deploy/start
		p/deploy/w10 kind=setWeight < p/deploy/start
		p/deploy/judge kind=analysis < p/deploy/w10
		p/deploy/w50 kind=setWeight < p/deploy/judge
		p/deploy/ok kind=approval < p/deploy/w50
		p/deploy/promote kind=promote < p/deploy/ok`
	fencedDB = `
		target p
		p/deploy/db
		p/deploy/open kind=openDatabase < p/deploy/db
		p/deploy/app < p/deploy/open`
	watched = `
		target p
		p/deploy/1
		p/deploy/watch background kind=analysis < p/deploy/1
		p/deploy/2 < p/deploy/1
		p/after/1 < p/deploy/2`
	approval = `
		target p
		p/deploy/1
		p/deploy/ok kind=approval roles=dba,lead < p/deploy/1`
)

// rule is one rule of how deliveries go.
type rule struct {
	name   string
	graph  string
	script string
	end    string // state and targets; "" where the script says it all
	reason string // a part of it
}

func check(t *testing.T, rules []rule) {
	t.Helper()
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			m := newMachine(t, graphOf(t, r.graph))
			m.play(r.script)
			if r.end != "" && m.ended() != r.end {
				t.Errorf("got %s (%s), want %s", m.ended(), m.s.Reason, r.end)
			}
			if !strings.Contains(m.s.Reason, r.reason) {
				t.Errorf("the reason is %q, want %q in it", m.s.Reason, r.reason)
			}
		})
	}
}

func TestOrder(t *testing.T) {
	check(t, []rule{
		{"lists run in parallel, phases one after another", oneTarget, `
			start -> run s/before/1, run s/before/2
			pass s/before/2 -> run s/before/1
			pass s/before/1 -> run s/deploy/1
			pass s/deploy/1 -> run s/deploy/2
			pass s/deploy/2 -> run s/after/1, run s/after/2
			pass s/after/1 -> run s/after/2
			pass s/after/2 -> clean s/after/2
			clean -> s/after/2, s/after/1, s/deploy/2, s/deploy/1, s/before/2, s/before/1`,
			"Succeeded s=Succeeded", "every step passed"},
		{"a dependant waits for the steps after its dependency", twoTargets, `
			start -> run s/deploy/1
			pass s/deploy/1 -> run s/after/1
			pass s/after/1 -> run p/before/1
			pass p/before/1 -> run p/deploy/1`, "Running s=Succeeded p=Running", ""},
		{"targets with the same dependency run in parallel", parallelTargets, `
			start -> run s/deploy/1
			pass s/deploy/1 -> run a/deploy/1, run b/deploy/1
			pass a/deploy/1 -> run a/deploy/2, run b/deploy/1`, "Running s=Succeeded a=Running b=Running", ""},
		{"a dependant waits for a check in the background that a person decides on", `
			target s
			target p < s
			s/deploy/1
			s/deploy/watch background
			p/deploy/1 < s/deploy/1`, `
			start -> run s/deploy/1, run s/deploy/watch
			ask-fail s/deploy/watch -> run s/deploy/1
			pass s/deploy/1 ->
			approve s/deploy/watch -> run p/deploy/1`, "Running s=Succeeded p=Running", ""},
		{"an empty target passes its dependencies on", `
			target s
			target empty < s
			target p < empty
			s/deploy/1
			p/deploy/1`, `
			start -> run s/deploy/1
			pass s/deploy/1 -> run p/deploy/1`, "Running s=Succeeded empty=Succeeded p=Running", ""},
	})
}

func TestFailureScope(t *testing.T) {
	check(t, []rule{
		{"before: nothing is deployed and nothing undone; an open approval beside it is ended", `
			target s
			target p < s
			s/before/hook
			s/before/ok kind=approval
			s/deploy/1 < s/before/hook s/before/ok
			p/deploy/1 < s/deploy/1`, `
			start -> run s/before/hook, run s/before/ok
			wait s/before/ok 0s approve/s/before/ok -> run s/before/hook
			fail s/before/hook -> clean s/before/ok
			clean -> s/before/ok, s/before/hook`, "Failed s=Failed p=Cancelled", "s was not changed; p was not deployed"},
		{"before: a step in flight is ended first", oneTarget, `
			start -> run s/before/1, run s/before/2
			fail s/before/1 -> stop s/before/2
			stopped s/before/2 -> clean s/before/2`, "Failed s=Failed", ""},
		{"deploy: what was begun is undone, last first", canary, `
			start -> run p/deploy/start
			pass p/deploy/start -> run p/deploy/w10
			pass p/deploy/w10 -> run p/deploy/judge
			fail p/deploy/judge -> undo p/deploy/judge
			pass p/deploy/judge -> undo p/deploy/w10
			pass p/deploy/w10 -> undo p/deploy/start
			pass p/deploy/start -> clean p/deploy/judge
			clean -> p/deploy/judge, p/deploy/w10, p/deploy/start`, "Failed p=RolledBack", "what the delivery changed in p is taken back"},
		{"deploy: the steps before it are not undone", oneTarget, `
			start -> run s/before/1, run s/before/2
			pass s/before/1 & pass s/before/2 -> run s/deploy/1
			fail s/deploy/1 -> undo s/deploy/1
			pass s/deploy/1 -> clean s/deploy/1`, "Failed s=RolledBack", ""},
		{"deploy: a parallel step is ended before anything is undone", `
			target s
			s/deploy/1
			s/deploy/2
			s/deploy/3 < s/deploy/1 s/deploy/2`, `
			start -> run s/deploy/1, run s/deploy/2
			fail s/deploy/1 -> stop s/deploy/2
			pass s/deploy/2 -> undo s/deploy/2
			pass s/deploy/2 -> undo s/deploy/1
			pass s/deploy/1 -> clean s/deploy/2`, "Failed s=RolledBack", ""},
		{"deploy: a parallel target goes on, an earlier one stays", parallelTargets, `
			start -> run s/deploy/1
			pass s/deploy/1 -> run a/deploy/1, run b/deploy/1
			fail a/deploy/1 -> undo a/deploy/1, run b/deploy/1
			pass b/deploy/1 -> undo a/deploy/1, run b/deploy/2
			pass a/deploy/1 -> run b/deploy/2
			pass b/deploy/2 -> clean b/deploy/2`, "Failed s=Succeeded a=RolledBack b=Succeeded", ""},
		{"after: nothing is undone, dependants are cancelled", twoTargets, `
			start -> run s/deploy/1
			pass s/deploy/1 -> run s/after/1
			fail s/after/1 -> clean s/after/1
			clean -> s/after/1, s/deploy/1`, "Failed s=Failed p=Cancelled", "s keeps the new version; p was not deployed"},
		{"a dependant of a dependant is cancelled, an empty one between them too", `
			target s
			target empty < s
			target p < empty
			s/deploy/1
			p/deploy/1`, `
			start -> run s/deploy/1
			fail s/deploy/1 -> undo s/deploy/1
			pass s/deploy/1 -> clean s/deploy/1`, "Failed s=RolledBack empty=Cancelled p=Cancelled", ""},
		{"an undo that fails is retried", canary, `
			start -> run p/deploy/start
			fail p/deploy/start -> undo p/deploy/start
			transient p/deploy/start ->
			tick 1s -> undo p/deploy/start
			broken p/deploy/start ->
			refused rollback p -> conflict
			retry -> undo p/deploy/start
			pass p/deploy/start -> clean p/deploy/start`, "Failed p=RolledBack", "is taken back"},
		{"an undo that fails is acknowledged, and cannot be retried then", canary, `
			start -> run p/deploy/start
			pass p/deploy/start -> run p/deploy/w10
			fail p/deploy/w10 -> undo p/deploy/w10
			broken p/deploy/w10 ->
			acknowledge -> clean p/deploy/w10
			refused retry -> conflict
			refused acknowledge -> conflict
			clean -> p/deploy/w10, p/deploy/start`, "Failed p=Failed", "between two versions"},
		{"every broken undo is retried", `
			target a
			target b
			a/deploy/1
			b/deploy/1`, `
			start -> run a/deploy/1, run b/deploy/1
			fail a/deploy/1 & fail b/deploy/1 -> undo a/deploy/1, undo b/deploy/1
			broken a/deploy/1 & broken b/deploy/1 ->
			retry b/deploy/1 -> undo b/deploy/1
			broken b/deploy/1 ->
			retry -> undo a/deploy/1, undo b/deploy/1`, "RollingBack a=RollingBack b=RollingBack", ""},
		{"an undo that asks is given the acknowledgement", canary, `
			start -> run p/deploy/start
			refused acknowledge -> conflict
			fail p/deploy/start -> undo p/deploy/start
			wait p/deploy/start 24h p/deploy/start ->
			acknowledge p/deploy/start value=5 -> undo p/deploy/start
			pass p/deploy/start -> clean p/deploy/start`, "Failed p=RolledBack", ""},
		{"a person stays on the new version where its undo asks", fencedDB, `
			start -> run p/deploy/db
			pass p/deploy/db -> run p/deploy/open
			pass p/deploy/open -> run p/deploy/app
			refused stay -> conflict
			fail p/deploy/app -> undo p/deploy/app
			refused stay p/deploy/app -> conflict
			pass p/deploy/app -> undo p/deploy/open
			wait p/deploy/open 24h p/deploy/open ->
			stay reason=x -> undo p/deploy/open
			keep p/deploy/open db stays by ann -> undo p/deploy/db
			pass p/deploy/db -> clean p/deploy/app
			refused stay -> conflict`, "Failed p=Failed", "failed; db stays by ann; what else the delivery changed in p is taken back"},
		{"a person stays where the count before a restore fails, and its delivery has failed even where it was cancelled", fencedDB, `
			start -> run p/deploy/db
			pass p/deploy/db -> run p/deploy/open
			pass p/deploy/open -> run p/deploy/app
			cancel & stopped p/deploy/app -> undo p/deploy/app
			pass p/deploy/app -> undo p/deploy/open
			broken p/deploy/open ->
			stay p/deploy/open -> undo p/deploy/open
			keep p/deploy/open db stays -> undo p/deploy/db
			pass p/deploy/db -> clean p/deploy/app`, "Failed p=Failed", "db stays"},
		{"an acknowledgement that comes before the undo waits is not lost", canary, `
			start -> run p/deploy/start
			fail p/deploy/start -> undo p/deploy/start
			acknowledge p/deploy/start -> undo p/deploy/start
			wait p/deploy/start 24h p/deploy/start -> undo p/deploy/start
			pass p/deploy/start -> clean p/deploy/start`, "", ""},
		{"an undo that waits is entered again at its deadline", canary, `
			start -> run p/deploy/start
			fail p/deploy/start -> undo p/deploy/start
			wait p/deploy/start 24h p/deploy/start ->
			tick 24h -> undo p/deploy/start`, "RollingBack p=RollingBack", ""},
	})
}

func TestVerdicts(t *testing.T) {
	inconclusive := func(what string) string {
		return "target p\np/deploy/1\np/deploy/judge inconclusive=" + what + " < p/deploy/1\np/deploy/2 < p/deploy/judge"
	}
	to := "start -> run p/deploy/1\npass p/deploy/1 -> run p/deploy/judge\n"
	check(t, []rule{
		{"inconclusive waits for a person, who goes on", inconclusive("wait"), to + `
			inconclusive p/deploy/judge ->
			approve p/deploy/judge -> run p/deploy/2`, "Running p=Running", ""},
		{"inconclusive waits for a person, who rejects", inconclusive(""), to + `
			inconclusive p/deploy/judge ->
			reject p/deploy/judge -> undo p/deploy/judge`, "RollingBack p=RollingBack", "rejected by ann"},
		{"inconclusive waits 24 h, then rolls back", inconclusive("wait"), to + `
			inconclusive p/deploy/judge ->
			tick 23h59m ->
			tick 1m -> undo p/deploy/judge`, "RollingBack p=RollingBack", "nobody decided within 24h"},
		{"inconclusive rolls back", inconclusive("rollback"), to + `
			inconclusive p/deploy/judge -> undo p/deploy/judge`, "", ""},
		{"inconclusive goes on", inconclusive("continue"), to + `
			inconclusive p/deploy/judge -> run p/deploy/2`, "", ""},
		{"no data is no pass", inconclusive(""), to + `nodata p/deploy/judge ->`, "Running p=Running", ""},
		{"no data rolls back where that is asked for", inconclusive("rollback"), to + `nodata p/deploy/judge -> undo p/deploy/judge`, "", ""},
		{"an error of the check is no failure", inconclusive(""), to + `error p/deploy/judge ->
			approve p/deploy/judge -> run p/deploy/2`, "", ""},
		{"what an error holds is tried again by a person, and counts from the beginning", inconclusive(""), to + `
			broken p/deploy/judge ->
			retry p/deploy/judge -> run p/deploy/judge
			transient p/deploy/judge ->
			tick 1s -> run p/deploy/judge
			pass p/deploy/judge -> run p/deploy/2`, "Running p=Running", ""},
		{"fail rolls back whatever onInconclusive says", inconclusive("continue"), to + `fail p/deploy/judge -> undo p/deploy/judge`, "", ""},
		{"manual: a failure waits, and goes on", inconclusive(""), to + `
			ask-fail p/deploy/judge ->
			approve p/deploy/judge -> run p/deploy/2`, "", ""},
		{"manual: a failure waits, and rolls back after 24 h", inconclusive("continue"), to + `
			ask-fail p/deploy/judge ->
			tick 24h -> undo p/deploy/judge`, "", ""},
		{"manual: a pass waits for ever", inconclusive(""), to + `
			ask-pass p/deploy/judge ->
			tick 1000h ->
			approve p/deploy/judge -> run p/deploy/2`, "", ""},
		{"manual: a pass is rejected", inconclusive(""), to + `
			ask-pass p/deploy/judge ->
			reject p/deploy/judge -> undo p/deploy/judge`, "", ""},
		{"single errors are retried, ever later; the fifth in a row counts", inconclusive("rollback"), to + `
			transient p/deploy/judge ->
			tick 1s -> run p/deploy/judge
			transient p/deploy/judge ->
			tick 1s ->
			tick 1s -> run p/deploy/judge
			transient p/deploy/judge ->
			tick 4s -> run p/deploy/judge
			transient p/deploy/judge ->
			tick 8s -> run p/deploy/judge
			transient p/deploy/judge -> undo p/deploy/judge`, "", "error"},
		{"errors with an answer between them are not in a row", inconclusive("rollback"), to + `
			transient p/deploy/judge ->
			tick 1s -> run p/deploy/judge
			wait p/deploy/judge 10s ->
			tick 10s -> run p/deploy/judge
			transient p/deploy/judge ->
			tick 1s -> run p/deploy/judge
			pass p/deploy/judge -> run p/deploy/2`, "", ""},
		{"a step that waits for nothing is broken", inconclusive("rollback"), to + `wait p/deploy/judge 0s -> undo p/deploy/judge`, "", "waits for nothing"},
		{"an error that will not go away counts at once", inconclusive("rollback"), to + `broken p/deploy/judge -> undo p/deploy/judge`, "", ""},
	})
}

func TestBackground(t *testing.T) {
	check(t, []rule{
		{"it holds nothing up and ends with its phase", watched, `
			start -> run p/deploy/1
			pass p/deploy/1 -> run p/deploy/watch, run p/deploy/2
			pass p/deploy/2 -> stop p/deploy/watch
			stopped p/deploy/watch -> run p/after/1
			pass p/after/1 -> clean p/after/1`, "Succeeded p=Succeeded", ""},
		{"its failure fails the target at once", watched, `
			start -> run p/deploy/1
			pass p/deploy/1 -> run p/deploy/watch, run p/deploy/2
			fail p/deploy/watch -> stop p/deploy/2
			stopped p/deploy/2 -> undo p/deploy/2
			pass p/deploy/2 -> undo p/deploy/watch
			pass p/deploy/watch -> undo p/deploy/1
			pass p/deploy/1 -> clean p/deploy/2`, "Failed p=RolledBack", ""},
		{"it passes early", watched, `
			start -> run p/deploy/1
			pass p/deploy/1 -> run p/deploy/watch, run p/deploy/2
			pass p/deploy/watch -> run p/deploy/2
			pass p/deploy/2 -> run p/after/1`, "", ""},
		{"it waits between looks and ends with its phase", watched, `
			start -> run p/deploy/1
			pass p/deploy/1 -> run p/deploy/watch, run p/deploy/2
			wait p/deploy/watch 10s -> run p/deploy/2
			pass p/deploy/2 -> run p/after/1`, "", ""},
		{"undecided it keeps its phase open: the target can still go back", watched, `
			start -> run p/deploy/1
			pass p/deploy/1 -> run p/deploy/watch, run p/deploy/2
			nodata p/deploy/watch -> run p/deploy/2
			pass p/deploy/2 ->
			rollback p -> undo p/deploy/2`, "RollingBack p=RollingBack", "rolled back by ann"},
		{"alone in its phase it runs to its end", `
			target p
			p/before/watch background
			p/deploy/1`, `
			start -> run p/before/watch
			pass p/before/watch -> run p/deploy/1`, "", ""},
	})
}

func TestSignals(t *testing.T) {
	check(t, []rule{
		{"approve wakes the step, which decides", approval, `
			start -> run p/deploy/1
			refused approve p/deploy/ok roles=dba -> conflict
			refused approve p/deploy/none -> not found
			pass p/deploy/1 -> run p/deploy/ok
			wait p/deploy/ok 0s approve/p/deploy/ok reject/p/deploy/ok ->
			refused approve p/deploy/ok -> denied
			refused approve p/deploy/ok roles=dev -> denied
			approve p/deploy/ok roles=dev,lead -> run p/deploy/ok
			pass p/deploy/ok -> clean p/deploy/ok
			refused approve p/deploy/ok roles=dba -> conflict`, "Succeeded p=Succeeded", ""},
		{"the owner may always decide", approval, `
			start -> run p/deploy/1
			pass p/deploy/1 -> run p/deploy/ok
			approve p/deploy/ok roles=owner -> run p/deploy/ok
			wait p/deploy/ok 0s approve/p/deploy/ok -> run p/deploy/ok`, "", ""},
		{"a decision that nobody asked for is refused", canary, `
			start -> run p/deploy/start
			refused approve p/deploy/start -> conflict`, "", ""},
		{"a callback that comes before the step waits is not lost", canary, `
			start -> run p/deploy/start
			callback p/deploy/start success=true -> run p/deploy/start
			wait p/deploy/start 24h callback/p/deploy/start -> run p/deploy/start
			pass p/deploy/start -> run p/deploy/w10`, "", ""},
		{"a callback that comes with the return of the step is not lost", canary, `
			start -> run p/deploy/start
			wait p/deploy/start 24h callback/p/deploy/start & callback p/deploy/start success=true -> run p/deploy/start`, "", ""},
		{"a callback does not cut a back-off short, and is not lost in it", canary, `
			start -> run p/deploy/start
			transient p/deploy/start & callback p/deploy/start success=true ->
			tick 1s -> run p/deploy/start
			pass p/deploy/start -> run p/deploy/w10`, "", ""},
		{"a wait ends at its deadline", canary, `
			start -> run p/deploy/start
			wait p/deploy/start 24h callback/p/deploy/start ->
			tick 23h ->
			tick 1h -> run p/deploy/start`, "", ""},
		{"rollback ends what runs and goes back", canary, `
			refused rollback p -> not found
			start -> run p/deploy/start
			pass p/deploy/start -> run p/deploy/w10
			rollback p -> stop p/deploy/w10
			stopped p/deploy/w10 -> undo p/deploy/w10
			refused rollback p -> conflict
			pass p/deploy/w10 -> undo p/deploy/start`, "RollingBack p=RollingBack", "rolled back by ann"},
		{"rollback is refused before the deployment and after it", oneTarget, `
			start -> run s/before/1, run s/before/2
			refused rollback s -> conflict
			refused rollback nowhere -> not found
			pass s/before/1 & pass s/before/2 -> run s/deploy/1
			pass s/deploy/1 -> run s/deploy/2
			pass s/deploy/2 -> run s/after/1, run s/after/2
			refused rollback s -> conflict`, "", ""},
		{"cancel before the deployment: nothing is undone", oneTarget, `
			start -> run s/before/1, run s/before/2
			wait s/before/1 1h -> run s/before/2
			cancel -> stop s/before/2
			stopped s/before/2 -> clean s/before/2`, "Cancelled s=Cancelled", "cancelled by ann"},
		{"cancel under way: the target goes back, the others do not start", parallelTargets, `
			start -> run s/deploy/1
			pass s/deploy/1 -> run a/deploy/1, run b/deploy/1
			pass a/deploy/1 & pass b/deploy/1 -> run a/deploy/2, run b/deploy/2
			cancel -> stop a/deploy/2, stop b/deploy/2
			stopped a/deploy/2 -> undo a/deploy/2, stop b/deploy/2
			stopped b/deploy/2 -> undo a/deploy/2, undo b/deploy/2
			pass a/deploy/2 & pass b/deploy/2 -> undo a/deploy/1, undo b/deploy/1
			pass a/deploy/1 & pass b/deploy/1 -> clean b/deploy/2`, "Cancelled s=Succeeded a=RolledBack b=RolledBack", ""},
		{"cancel after the deployment: the target stays, the steps end", oneTarget, `
			start -> run s/before/1, run s/before/2
			pass s/before/1 & pass s/before/2 -> run s/deploy/1
			pass s/deploy/1 -> run s/deploy/2
			pass s/deploy/2 -> run s/after/1, run s/after/2
			wait s/after/1 1h & wait s/after/2 1h ->
			cancel -> clean s/after/2`, "Cancelled s=Failed", "keeps the new version"},
		{"cancel while a person decides", canary, `
			start -> run p/deploy/start
			nodata p/deploy/start ->
			cancel -> undo p/deploy/start
			pass p/deploy/start -> clean p/deploy/start`, "Cancelled p=RolledBack", "cancelled by ann"},
		{"cancel while paused", twoTargets, `
			start -> run s/deploy/1
			pause -> run s/deploy/1
			pass s/deploy/1 ->
			cancel -> clean s/deploy/1`, "Cancelled s=Failed p=Cancelled", ""},
		{"cancel that comes with the last pass is too late", `
			target s
			s/deploy/1`, `
			start -> run s/deploy/1
			pass s/deploy/1 & cancel -> clean s/deploy/1`, "Succeeded s=Succeeded", ""},
		{"cancel spares the target that has just ended", twoTargets, `
			start -> run s/deploy/1
			pass s/deploy/1 -> run s/after/1
			pass s/after/1 & cancel -> clean s/after/1`, "Cancelled s=Succeeded p=Cancelled", ""},
		{"cancel during a rollback leaves it", canary, `
			start -> run p/deploy/start
			fail p/deploy/start -> undo p/deploy/start
			cancel -> undo p/deploy/start
			pass p/deploy/start -> clean p/deploy/start`, "Failed p=RolledBack", ""},
		{"pause starts nothing new, resume does", oneTarget, `
			start -> run s/before/1, run s/before/2
			pause -> run s/before/1, run s/before/2
			pass s/before/1 & pass s/before/2 ->
			resume -> run s/deploy/1`, "Running s=Running", ""},
		{"paused and failing it still goes back", canary, `
			start -> run p/deploy/start
			pause -> run p/deploy/start
			fail p/deploy/start -> undo p/deploy/start`, "RollingBack p=RollingBack", ""},
		{"promote skips what is left of the canary", canary, `
			start -> run p/deploy/start
			pass p/deploy/start -> run p/deploy/w10
			pass p/deploy/w10 -> run p/deploy/judge
			promote p -> stop p/deploy/judge
			stopped p/deploy/judge -> run p/deploy/promote
			pass p/deploy/promote -> clean p/deploy/promote`, "Succeeded p=Succeeded", ""},
		{"promote skips a verdict that waits for a person", canary, `
			start -> run p/deploy/start
			pass p/deploy/start -> run p/deploy/w10
			pass p/deploy/w10 -> run p/deploy/judge
			nodata p/deploy/judge ->
			promote p -> run p/deploy/promote`, "", ""},
		{"promote does not skip the start of the new version", canary, `
			start -> run p/deploy/start
			promote p -> run p/deploy/start
			pass p/deploy/start -> run p/deploy/promote`, "", ""},
	})
}

// TestTargetOfPromotion holds that a promotion skips steps of the target that is meant and of no other.
func TestTargetOfPromotion(t *testing.T) {
	check(t, []rule{{"of two", `
		target a
		target b
		a/deploy/ok kind=approval
		a/deploy/promote kind=promote < a/deploy/ok
		b/deploy/ok kind=approval
		b/deploy/promote kind=promote < b/deploy/ok`, `
		start -> run a/deploy/ok, run b/deploy/ok
		wait a/deploy/ok 0s x & wait b/deploy/ok 0s x ->
		promote a -> run a/deploy/promote`, "", ""}})
}

// TestOldEntries holds that what an older entry returned is ignored, and that what an ended one still saves is kept for
// its undo.
func TestOldEntries(t *testing.T) {
	m := newMachine(t, graphOf(t, canary))
	m.play("start -> run p/deploy/start")
	old := m.returned("p/deploy/start", delivery.Result{Verdict: delivery.Pass})
	m.play("transient p/deploy/start ->\ntick 1s -> run p/deploy/start")
	m.next(old)
	if m.flight() != "run p/deploy/start" {
		t.Errorf("an older entry's return was taken in: %s", m.flight())
	}
	m.play(`rollback p -> stop p/deploy/start
		saved p/deploy/start {"x":1} -> stop p/deploy/start
		pass p/deploy/start -> undo p/deploy/start`)
	if got := string(m.s.Nodes["p/deploy/start"].Saved); got != `{"x":1}` {
		t.Errorf("saved is %s", got)
	}
}

// TestQueued holds that the reason to wait is gone once a delivery runs, and that one cancelled in the queue starts nothing.
func TestQueued(t *testing.T) {
	m := newMachine(t, graphOf(t, twoTargets))
	m.s = delivery.Status{State: delivery.Queued, Reason: "waits for delivery x"}
	m.play("start -> run s/deploy/1")
	if m.s.Reason != "" || m.s.Started.IsZero() || m.s.State != delivery.Running {
		t.Errorf("%s %q %s", m.s.State, m.s.Reason, m.s.Started)
	}
	m = newMachine(t, graphOf(t, twoTargets))
	m.s = delivery.Status{State: delivery.Queued}
	m.play("cancel ->")
	if m.ended() != "Cancelled s=Cancelled p=Cancelled" || !m.s.Done {
		t.Errorf("%s, done %v", m.ended(), m.s.Done)
	}
}

// TestCandidates holds that what a person may mean is what Check lets through.
func TestCandidates(t *testing.T) {
	m := newMachine(t, graphOf(t, approval))
	m.play("start -> run p/deploy/1\npass p/deploy/1 -> run p/deploy/ok\nwait p/deploy/ok 0s approve/p/deploy/ok ->")
	for kind, want := range map[string]string{delivery.Approve: "p/deploy/ok", delivery.Rollback: "p", delivery.Retry: "", delivery.Acknowledge: ""} {
		if got := strings.Join(delivery.Candidates(m.spec, m.s, kind), " "); got != want {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
	}
	m.play("reject p/deploy/ok roles=dba -> run p/deploy/ok\nfail p/deploy/ok -> undo p/deploy/ok\nbroken p/deploy/ok ->")
	if got := delivery.Candidates(m.spec, m.s, delivery.Retry); len(got) != 1 || got[0] != "p/deploy/ok" {
		t.Errorf("retry: %q", got)
	}
}
