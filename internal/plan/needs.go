package plan

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/template"
)

// Needs names what a delivery needs of the configuration. It is checked before anything begins: what is missing in the
// last step should not be found out after hours.
type Needs struct {
	Accounts  []string
	Providers []string // of metrics; "" is the only one there is
	Secrets   []string
}

// Needs returns what the graph needs, each list sorted.
func (g Graph) Needs() (Needs, error) {
	var n Needs
	for _, t := range g.Targets {
		n.account(t.Account)
	}
	for _, node := range g.Nodes {
		if err := n.node(node); err != nil {
			return n, fault.Newf(fault.Invalid, "the arguments of step %s cannot be read: %w", node.Path, err)
		}
	}
	for _, list := range []*[]string{&n.Accounts, &n.Providers, &n.Secrets} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return n, nil
}

func (n *Needs) account(name string) {
	if name != "" {
		n.Accounts = append(n.Accounts, name)
	}
}

func (n *Needs) node(node Node) error {
	switch node.Kind {
	case KindWebhook:
		var a WebhookArgs
		if err := json.Unmarshal(node.Args, &a); err != nil {
			return err
		}
		n.account(a.Agent)
		n.templates(a.URI, a.Body)
		for _, h := range a.Headers {
			n.templates(h.Value)
		}
	case KindAnalysis:
		var a AnalysisArgs
		if err := json.Unmarshal(node.Args, &a); err != nil {
			return err
		}
		for _, q := range a.Queries {
			n.Providers = append(n.Providers, q.Provider)
			n.templates(q.Template)
		}
		if c := a.Counts; c != nil {
			n.Providers = append(n.Providers, c.Provider)
			n.templates(c.CanaryTotal, c.CanaryBad, c.StableTotal, c.StableBad)
		}
	default:
		// All steps that touch data name their database alike.
		var a struct {
			Database Database `json:"database"`
		}
		if err := json.Unmarshal(node.Args, &a); err != nil {
			return err
		}
		n.account(a.Database.Account)
		n.templates(a.Database.Connection)
	}
	return nil
}

// templates collects the secrets that templates name.
func (n *Needs) templates(list ...string) {
	for _, t := range list {
		template.Render(t, func(name string) (string, bool) {
			if s, ok := strings.CutPrefix(name, "secrets."); ok {
				n.Secrets = append(n.Secrets, s)
			}
			return "", true
		})
	}
}
