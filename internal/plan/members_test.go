package plan

import (
	"fmt"
	"strings"
	"testing"
)

// replicated is a database of three members, and a file that upgrades it with an upgrade section.
func replicated(upgrade, strategies string) (file, objects string) {
	return `
application: shop
targets:
  production: {account: l, namespace: shop, strategy: s}
manifests: [{path: m}]
strategies:
  s: {canary: {steps: [{setWeight: {weight: 25}}]}}
  ` + strategies + `
data:
  databases:
    - name: orders
      engine: postgres
      target: production
      workload: statefulset/mongo
      connection: postgres://mongo/postgres
      upgrade: ` + upgrade + `
  contracts: [{name: patch, exclude: [shop.sessions]}]
`, web + strings.Replace(mongo, "metadata: {name: mongo}\nspec:\n", "metadata: {name: mongo}\nspec:\n  replicas: 3\n", 1)
}

// TestMembers turns weights into members, and sets the strategy's other steps between them.
func TestMembers(t *testing.T) {
	file, objects := replicated("{strategy: one-by-one}",
		"one-by-one: {canary: {steps: [{setWeight: {weight: 1}}, {pause: {untilApproved: true}}, {setWeight: {weight: 34}}, {pause: {duration: 1, unit: minutes}}]}}")
	g := compile(t, input(t, file, objects))
	var got []string
	for _, n := range g.Nodes {
		line := n.Path
		switch n.Kind {
		case KindStartMembers, KindRollMembers:
			a := args[MembersArgs](t, g, n.Path)
			line += fmt.Sprintf(" %d of %d %v", a.Roll, a.Members, a.Last)
			if a.Workload.GetName() != "mongo" || a.Group != "production/deploy/orders" {
				t.Errorf("%+v", a)
			}
		case KindApply:
			line += " " + refsOf(args[ApplyArgs](t, g, n.Path).Objects)
		}
		got = append(got, line)
	}
	want := `production/deploy/prepare Namespace/shop
production/deploy/orders/prepare ConfigMap/mongo-settings PersistentVolumeClaim/data Service/mongo
production/deploy/orders/start 0 of 3 false
production/deploy/orders/members/1-roll 1 of 3 false
production/deploy/orders/members/2-approval
production/deploy/orders/members/3-roll 2 of 3 false
production/deploy/orders/members/4-pause
production/deploy/orders/promote 3 of 3 true
production/deploy/apply ConfigMap/settings Service/web
production/deploy/start
production/deploy/canary/1-weight
production/deploy/promote`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
	follows(t, g, args[MembersArgs](t, g, "production/deploy/orders/start").Then)
	for i, n := range g.Nodes[1:] {
		if len(n.After) != 1 || n.After[0] != g.Nodes[i].Path {
			t.Errorf("%s waits for %v", n.Path, n.After)
		}
	}
}

// TestMembersRefused names what does not fit.
func TestMembersRefused(t *testing.T) {
	for upgrade, says := range map[string]string{
		"{deadline: {duration: 5, unit: minutes}}": "belong to the upgrade behind a fence",
		"{contract: patch}":                        "belong to the upgrade behind a fence",
		"{strategy: b}":                            "strategy b is no canary",
		"{strategy: none}":                         "names none, which does not exist",
	} {
		file, objects := replicated(upgrade, "b: {blueGreen: {}}")
		if _, err := Compile(input(t, file, objects)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", upgrade, err)
		}
	}
	file, objects := replicated("{strategy: s}", "")
	if _, err := Compile(input(t, file, strings.Replace(objects, "replicas: 3", "replicas: 1", 1))); err == nil || !strings.Contains(err.Error(), "has one replica") {
		t.Errorf("a single instance: %v", err)
	}
}
