package data

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/step"
)

// again is how often members are asked that tell nobody when they have caught up, or that may not be ended yet.
const again = 500 * time.Millisecond

// replica is a replicated database with what is needed to talk to its members one by one.
type replica struct {
	base
	a       plan.MembersArgs
	c       step.Call
	p       place
	roller  platform.Roller
	members platform.Members
	roler   database.Roler
	ref     manifest.Ref
}

func (b base) replica(c step.Call) (replica, error) {
	r := replica{base: b, c: c}
	var err error
	if r.a, err = args[plan.MembersArgs](c.Args); err != nil {
		return r, err
	}
	pf, err := b.ports.Platform(r.a.Database.Account)
	if err != nil {
		return r, err
	}
	r.p = place{Platform: pf, account: r.a.Database.Account}
	if r.roller, err = optional[platform.Roller](r.p, "give a StatefulSet its new version one member after another"); err != nil {
		return r, err
	}
	if r.members, err = optional[platform.Members](r.p, "tell the members of a StatefulSet apart"); err != nil {
		return r, err
	}
	r.roler, err = b.roler(r.a.Database)
	r.ref = r.a.Database.Workload
	r.ref.Namespace = r.a.Database.Namespace
	return r, err
}

// roler returns the engine of a replicated database.
func (b base) roler(db plan.Database) (database.Roler, error) {
	engine, err := b.ports.Engine(db.Engine)
	if err != nil {
		return nil, err
	}
	r, ok := engine.(database.Roler)
	if !ok {
		return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "database %s: the members of a %s database do not tell Sluice which one is the primary: not built yet", db.Name, db.Engine),
			"run it with one replica, or deploy it in a file without data.databases, where a StatefulSet is applied as it is")
	}
	return r, nil
}

// handsOver returns how the engine hands the part of the primary over, if it can.
func handsOver(r database.Roler) (database.Stepdown, bool) {
	s, ok := r.(database.Stepdown)
	return s, ok
}

// url returns how to reach one member.
func (r replica) url(member string) (database.URL, error) {
	u, service, err := r.service(r.a.Database)
	if err != nil {
		return u, err
	}
	ref := manifest.Ref{Kind: "Service", Namespace: r.a.Database.Namespace, Name: service}
	u.Dial = only(service, func(ctx context.Context, port string) (net.Conn, error) {
		return r.members.DialMember(ctx, ref, member, port)
	})
	return u, nil
}

// host is the name under which a member is known to the others.
func (r replica) host(member string) (string, error) {
	service, err := headless(r.a.Workload)
	return member + "." + service, err
}

func headless(workload manifest.Object) (string, error) {
	spec, _ := workload.Object["spec"].(map[string]any)
	name, _ := spec["serviceName"].(string)
	if name == "" {
		return "", fault.WithRemedy(fault.Newf(fault.Invalid, "%s: %s has no serviceName, so its members have no names for each other", workload.Origin, workload.Ref()),
			"set spec.serviceName to a headless Service")
	}
	return name, nil
}

// ask asks one member for its role.
func (r replica) ask(ctx context.Context, member string) (database.Member, error) {
	u, err := r.url(member)
	if err != nil {
		return database.Member{}, err
	}
	m, err := r.roler.Member(ctx, u)
	if err != nil {
		return m, fmt.Errorf("member %s of database %s: %w", member, r.a.Database.Name, err)
	}
	return m, nil
}

// roles asks every member, and returns what they say in the order of the ordinals, with the index of the primary, -1 where
// there is none.
func (r replica) roles(ctx context.Context, all []platform.Member) ([]database.Member, int, error) {
	primary := -1
	var out []database.Member
	for i, m := range all {
		role, err := r.ask(ctx, m.Name)
		if err != nil {
			return nil, -1, err
		}
		if role.Primary && primary >= 0 {
			return nil, -1, fault.WithRemedy(fault.Newf(fault.Invalid, "database %s has two primaries, %s and %s", r.a.Database.Name, all[primary].Name, m.Name),
				"make one of them follow the other; Sluice touches neither")
		}
		if role.Primary {
			primary = i
		}
		out = append(out, role)
	}
	return out, primary, nil
}

// whole waits until every other member is ready and follows, so that one may be taken away. It reports a primary's index.
func (r replica) whole(ctx context.Context, but int) (all []platform.Member, primary int, err error) {
	reason := ""
	err = r.until(ctx, func(ctx context.Context) (bool, error) {
		if all, err = r.members.Members(ctx, r.ref); err != nil {
			return false, err
		}
		for i, m := range all {
			if i != but && !m.Ready {
				reason = m.Name + " is not ready"
				return false, nil
			}
		}
		asked := all
		if but >= 0 && !all[but].Ready {
			asked = append(append([]platform.Member{}, all[:but]...), all[but+1:]...)
		}
		roles, at, err := r.roles(ctx, asked)
		if fault.Is(err, fault.Transient) {
			reason = err.Error()
			return false, nil
		}
		if err != nil {
			return false, err
		}
		primary = -1
		for i, m := range asked {
			if at == i {
				primary = indexOf(all, m.Name)
			} else if roles[i].Source == "" && m.Name != name(all, but) {
				reason = m.Name + " does not follow anybody at the moment"
				return false, nil
			}
		}
		return true, nil
	}, func() string { return reason })
	return all, primary, err
}

func name(all []platform.Member, i int) string {
	if i < 0 {
		return ""
	}
	return all[i].Name
}

func indexOf(all []platform.Member, name string) int {
	for i, m := range all {
		if m.Name == name {
			return i
		}
	}
	return -1
}

// until asks again and again, for at most the step's timeout: members tell nobody when they have caught up.
func (r replica) until(ctx context.Context, is func(context.Context) (bool, error), reason func() string) error {
	within, cancel := context.WithTimeout(ctx, r.a.Timeout)
	defer cancel()
	tick := time.NewTicker(again)
	defer tick.Stop()
	told := ""
	for {
		ok, err := is(within)
		if within.Err() != nil && ctx.Err() == nil {
			return fault.Newf(fault.Invalid, "database %s is not whole after %s: %s", r.a.Database.Name, r.a.Timeout, reason())
		}
		if ok || err != nil {
			return err
		}
		if why := reason(); why != told {
			told = why
			r.c.Progress("pausing: %s", why)
		}
		select {
		case <-within.Done():
		case <-tick.C:
		}
	}
}

// arrives waits until there is a pod of a member that satisfies is. A new version that cannot start is an error at once.
func (r replica) arrives(ctx context.Context, i int, what string, is func(platform.Member) bool) error {
	var broken error
	err := step.Await(ctx, r.p, r.a.Timeout, what, []manifest.Ref{r.ref}, func(platform.State) bool {
		all, err := r.members.Members(ctx, r.ref)
		broken = err
		return err != nil || i < len(all) && is(all[i])
	})
	if broken != nil {
		return broken
	}
	return err
}

// restart ends the pod of a member and waits until another one is ready. Where a budget does not allow it, it waits.
func (r replica) restart(ctx context.Context, i int, m platform.Member) error {
	if err := r.allowed(ctx, func(ctx context.Context) error { return r.members.Restart(ctx, r.c.Key+"/restart/"+m.ID, r.ref, m) }); err != nil {
		return err
	}
	return r.arrives(ctx, i, "ready again", func(n platform.Member) bool { return n.ID != "" && n.ID != m.ID && n.Ready })
}

// allowed does what a budget for disruptions may forbid for a while.
func (r replica) allowed(ctx context.Context, do func(context.Context) error) error {
	var why error
	return r.until(ctx, func(ctx context.Context) (bool, error) {
		if why = do(ctx); fault.Is(why, fault.Conflict) {
			return false, nil
		}
		return why == nil, why
	}, func() string { return why.Error() })
}

// names lists members for people.
func names(all []platform.Member) string {
	var out []string
	for _, m := range all {
		out = append(out, m.Name)
	}
	return strings.Join(out, ", ")
}
