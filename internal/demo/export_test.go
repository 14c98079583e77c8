package demo

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/plan"
)

// Gate starts one production and has the gate in staging judge a damaging migration per seed. Compile must make
// deliveries that stop short of production. each is told whether what was reported is exactly what was done.
func Gate(ctx context.Context, o Options, seeds []uint64, each func(seed uint64, rows int, err error)) (err error) {
	programs, err := o.companions()
	if err != nil {
		return err
	}
	o.complete()
	o.Out = io.Discard
	st := newStage(o, programs, &view{out: o.Out})
	defer func() { err = errors.Join(err, st.stop(context.WithoutCancel(ctx))) }()
	if err := st.start(ctx); err != nil {
		return err
	}
	for _, seed := range seeds {
		st.o.Seed = seed
		rows, err := st.gate(ctx)
		each(seed, rows, err)
	}
	return nil
}

func (st *stage) gate(ctx context.Context) (int, error) {
	if err := st.checkOut(release{database: newDatabase, shop: shop2, migration: badMigration}); err != nil {
		return 0, err
	}
	spec, err := st.o.Compile(st.deployFile())
	if err != nil {
		return 0, err
	}
	r := result{}
	if err := st.deliver(ctx, spec, &r); err != nil {
		return 0, err
	}
	n, s := r.node(plan.KindVerifyData, "staging")
	if s.Verdict != delivery.Fail {
		return 0, fmt.Errorf("the verification is %q: %s", s.Verdict, s.Message)
	}
	all, err := reported(st.reportFile(spec.ID, n.Path))
	if err != nil {
		return 0, err
	}
	done, err := st.injected(ctx)
	if err != nil {
		return 0, err
	}
	return len(all), sameSet(all, done)
}
