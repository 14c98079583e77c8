package server

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/plan"
	"github.com/sluice-cd/sluice/internal/store"
)

func TestRights(t *testing.T) {
	for _, c := range []struct {
		roles      []string
		needsOwner bool
		refusal    string // "" is none
	}{
		{nil, false, "eve has no role here and may do nothing"},
		{nil, true, "eve has no role here and may do nothing"},
		{[]string{"dba"}, false, ""},
		{[]string{"dba"}, true, "eve has the roles dba, which may look at deliveries and decide approvals; this needs the role owner"},
		{[]string{"owner"}, true, ""},
		{[]string{"dba", "owner"}, true, ""},
	} {
		err := permitted(identity{user: "eve", has: c.roles}, c.needsOwner)
		switch {
		case c.refusal == "" && err != nil:
			t.Errorf("%v: %v", c, err)
		case c.refusal != "" && (!fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), c.refusal)):
			t.Errorf("%v: %v", c, err)
		}
	}
}

// TestShown: who is no owner sees no manifest, and so no Secret, but what an approval asks for.
func TestShown(t *testing.T) {
	secret := json.RawMessage(`{"password":"hunter2"}`)
	d := store.Delivery{
		Spec: delivery.Spec{ID: "d", File: "hunter2", Graph: plan.Graph{Nodes: []plan.Node{
			{Path: "a", Kind: plan.KindApply, Args: secret}, {Path: "b", Kind: plan.KindApproval, Args: json.RawMessage(`{"roles":["dba"]}`)}}}},
		Status: delivery.Status{Nodes: map[string]delivery.NodeStatus{"a": {Saved: secret, Message: "3 objects are ready"}}},
	}
	as := func(roles ...string) string {
		body, err := json.Marshal(shown(context.WithValue(t.Context(), callerKey{}, identity{user: "eve", has: roles}), d))
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	if got := as("dba"); strings.Contains(got, "hunter2") || !strings.Contains(got, "dba") || !strings.Contains(got, "3 objects are ready") {
		t.Errorf("shown is %s", got)
	}
	if got := as("owner"); strings.Count(got, "hunter2") != 3 {
		t.Errorf("an owner is shown %s", got)
	}
}
