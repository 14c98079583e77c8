package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/server"
	"github.com/sluice-cd/sluice/internal/store"
)

// act is one delivery, what it ships, and how it has to end.
type act struct {
	title  string
	ships  release
	why    []string // what a spectator should know before
	short  string   // in the table
	expect func(ctx context.Context, st *stage, r *result) error
}

// result is how an act went.
type result struct {
	act      act
	delivery store.Delivery
	took     time.Duration
	opened   time.Time // when production's database opened on the new version
	back     time.Time // when it began to go back
	traffic  traffic
	checked  checked
	running  release
	ended    string // in the table: stopped, rolled back, promoted
	because  string
	wrong    []error // what is otherwise than it had to be
}

// acts are the three deliveries.
func acts(seed uint64) []act {
	return []act{
		{
			title: "A database upgrade whose migration damages data without a word",
			short: "damaging migration",
			ships: release{database: newDatabase, shop: shop2, migration: badMigration},
			why: []string{
				fmt.Sprintf("FerretDB 1.17 → 1.24 and shop 1 → 2. The migration exits with 0, but has shifted some times by an hour, swapped two e-mails,"+
					" dropped an order and turned a number into text: which ones, the random seed %d has chosen.", seed),
				"What should happen: the gate in staging sees it on a copy of production, and production is never touched.",
			},
			expect: stopped,
		},
		{
			title: "A good upgrade, with a release of the shop that fails some requests",
			short: "failing release",
			ships: release{database: newDatabase, shop: shop2Faulty, migration: goodMigration},
			why: []string{
				"The same upgrade with its migration mended, but shop 2-rc1 cannot take the orders of some customers. Its tests do not know them.",
				"What should happen: the gate passes, production is upgraded behind a fence, the canary's requests fail. Both go back: the shop to its" +
					" old image, the database to its old binary, on the volumes that hold what was ordered meanwhile.",
			},
			expect: rolledBack,
		},
		{
			title: "The good release",
			short: "good release",
			ships: release{database: newDatabase, shop: shop2, migration: goodMigration},
			why: []string{
				"The upgrade and shop 2, with everything mended.",
				"What should happen: every gate passes, and the release stays.",
			},
			expect: promoted,
		},
	}
}

// perform plays one act. The error is of the stage; what ended otherwise than it had to stands in the result.
func (st *stage) perform(ctx context.Context, n int, a act) (result, error) {
	v := st.view
	v.title("Delivery %d of 3: %s", n, a.title)
	for _, w := range a.why {
		v.say("%s", w)
	}
	v.say("")
	if err := st.checkOut(a.ships); err != nil {
		return result{}, err
	}
	spec, err := st.o.Compile(st.deployFile())
	if err != nil {
		return result{}, err
	}
	r := result{act: a}
	began := time.Now()
	if err := st.deliver(ctx, spec, &r); err != nil {
		return r, err
	}
	r.took = time.Since(began)
	v.gap()
	v.progress("reading production with the plain driver, against the ledger")
	if r.running, err = st.running(ctx); err != nil {
		return r, err
	}
	if r.checked, err = st.check(ctx); err != nil {
		return r, err
	}
	if r.traffic, err = st.traffic(ctx); err != nil {
		return r, err
	}
	if err := errors.Join(a.expect(ctx, st, &r), kept(r)); err != nil {
		r.wrong = append(r.wrong, err)
		v.mark(bad, "%v", err)
	}
	st.sumUp(r)
	return r, nil
}

// kept is what holds for every delivery: nothing that the shop acknowledged may be missing or differ.
func kept(r result) error {
	if n := r.checked.lost(); n > 0 {
		return fmt.Errorf("of what the shop acknowledged %d are missing or differ, such as %s", n, append(r.checked.Missing, r.checked.Differing...)[0])
	}
	return nil
}

// deliver hands the delivery to the server, and shows it until it has ended. Nobody is there to decide anything, so a
// step that waits for a person is an error.
func (st *stage) deliver(ctx context.Context, spec delivery.Spec, r *result) error {
	if err := st.server.Start(ctx, spec); err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, st.o.Patience)
	defer cancel()
	var stuck error
	err := st.server.Watch(within, spec.ID, func(e server.Event) {
		switch {
		case e.Progress != nil:
			st.view.progress("%s: %s", e.Progress.Path, e.Progress.Line)
		case e.Delivery != nil:
			r.note(*e.Delivery)
			st.view.changed(r.delivery, *e.Delivery)
			r.delivery = *e.Delivery
			if stuck = waits(r.delivery); stuck != nil {
				cancel()
			}
		}
	})
	if stuck != nil {
		return stuck
	}
	if err != nil && ctx.Err() == nil && within.Err() != nil {
		return fmt.Errorf("the delivery has not ended within %s", st.o.Patience)
	}
	return err
}

// waits returns an error if a step waits for a person.
func waits(d store.Delivery) error {
	for _, n := range d.Spec.Graph.Nodes {
		s := d.Status.Nodes[n.Path]
		if s.Held || s.Phase == delivery.StepUndoFailed || s.Phase == delivery.StepUndoing && len(s.Awaits) > 0 {
			return fmt.Errorf("%s of %s waits for a person: %s", n.Title, n.Target, s.Message)
		}
	}
	return nil
}

// note remembers when production's database opened on the new version, and when it began to go back.
func (r *result) note(d store.Delivery) {
	for _, n := range d.Spec.Graph.Nodes {
		s := d.Status.Nodes[n.Path]
		switch {
		case n.Kind == plan.KindOpen && s.Phase == delivery.StepPassed && r.opened.IsZero():
			r.opened = time.Now()
		case n.Kind == plan.KindSwap && s.Phase == delivery.StepUndoing && r.back.IsZero():
			r.back = time.Now()
		}
	}
}

// node returns the first step of a kind, in a target or anywhere.
func (r *result) node(kind, target string) (plan.Node, delivery.NodeStatus) {
	for _, n := range r.delivery.Spec.Graph.Nodes {
		if n.Kind == kind && (target == "" || n.Target == target) {
			return n, r.delivery.Status.Nodes[n.Path]
		}
	}
	return plan.Node{}, delivery.NodeStatus{}
}

func (r *result) ran(want release) error {
	want.migration = ""
	if r.running != want {
		return fmt.Errorf("production runs %s and %s, and should run %s and %s", r.running.database, r.running.shop, want.database, want.shop)
	}
	return nil
}

func (r *result) state(want delivery.State) error {
	if got := r.delivery.Status.State; got != want {
		return fmt.Errorf("the delivery is %s, and should be %s: %s", got, want, r.delivery.Status.Reason)
	}
	return nil
}

// before is what production runs until a release stays.
func before() release { return release{database: oldDatabase, shop: shop1} }

// served is what holds where no faulty release meets a customer: every request was answered as it had to be.
func (r *result) served() error {
	if n := r.traffic.failed(); n > 0 {
		return fmt.Errorf("%d requests failed, such as %s", n, r.traffic.Why)
	}
	return nil
}

// stopped expects that the gate in staging has stopped the delivery and named exactly what was damaged.
func stopped(ctx context.Context, st *stage, r *result) error {
	r.ended = "ended otherwise"
	n, s := r.node(plan.KindVerifyData, "staging")
	if s.Verdict != delivery.Fail {
		return fmt.Errorf("the verification in staging is %q: %s", s.Verdict, s.Message)
	}
	if t := r.delivery.Status.Targets["production"]; t.State != delivery.Cancelled {
		return fmt.Errorf("target production is %s", t.State)
	}
	all, err := reported(st.reportFile(r.delivery.Spec.ID, n.Path))
	if err != nil {
		return err
	}
	st.view.differences(all)
	done, err := st.injected(ctx)
	if err != nil {
		return err
	}
	if err := sameSet(all, done); err != nil {
		return err
	}
	st.view.mark(good, "These are the %d differences that the migration has made, and nothing else: only now its own list was opened to compare.", len(done))
	r.ended, r.because = "stopped at the gate", fmt.Sprintf("%d differences between control and candidate in staging, each of them named; production was not touched", len(all))
	return errors.Join(r.state(delivery.Failed), r.ran(before()), r.served())
}

// rolledBack expects that the canary's failures have taken both back, with what was ordered meanwhile.
func rolledBack(_ context.Context, st *stage, r *result) error {
	r.ended = "ended otherwise"
	_, s := r.node(plan.KindAnalysis, "production")
	if s.Verdict != delivery.Fail {
		return fmt.Errorf("the analysis of the canary is %q: %s", s.Verdict, s.Message)
	}
	if err := errors.Join(r.state(delivery.Failed), r.target("production", delivery.RolledBack), r.ran(before())); err != nil {
		return err
	}
	meanwhile, err := st.acknowledged(r.opened, r.back)
	if err != nil {
		return err
	}
	if meanwhile == 0 {
		return errors.New("nothing was ordered between the opening and the way back")
	}
	st.view.mark(good, "%d orders were acknowledged on the new version before it went back. They are all there, read by the old one.", meanwhile)
	r.ended = "rolled back, both"
	r.because = fmt.Sprintf("%d requests failed, all in the canary; %d orders came back with the database", r.traffic.failed(), meanwhile)
	others := r.traffic.failed() - r.traffic.Failed["2-rc1"]
	if others > 0 {
		return fmt.Errorf("%d requests failed that the faulty release did not answer, such as %s", others, r.traffic.Why)
	}
	return nil
}

func (r *result) target(name string, want delivery.State) error {
	if t := r.delivery.Status.Targets[name]; t.State != want {
		return fmt.Errorf("target %s is %s, and should be %s: %s", name, t.State, want, t.Reason)
	}
	return nil
}

// promoted expects that all gates have passed.
func promoted(_ context.Context, st *stage, r *result) error {
	r.ended = "ended otherwise"
	if err := r.state(delivery.Succeeded); err != nil {
		return err
	}
	r.ended, r.because = "promoted", "every gate passed, and the canary was no worse than stable"
	st.view.evidence(r.delivery)
	return errors.Join(r.ran(release{database: newDatabase, shop: shop2}), r.served())
}

func (st *stage) sumUp(r result) {
	v := st.view
	v.fact("production", "%s and %s", r.running.database, r.running.shop)
	v.fact("customers", "%s requests, %s; the longest wait was %s", grouped(r.traffic.Requests), r.traffic.failures(), rounded(r.traffic.Worst))
	if r.traffic.Reconnected > 0 {
		v.fact("", "%d requests had to be sent again: a connection broke off", r.traffic.Reconnected)
	}
	v.fact("ledger", "%s", r.checked)
}
