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
	Meshes    []string // accounts whose traffic a mesh shares out
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
	for _, list := range []*[]string{&n.Accounts, &n.Meshes, &n.Providers, &n.Secrets} {
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
	case KindStartCanary:
		var a ApplyArgs
		if err := json.Unmarshal(node.Args, &a); err != nil {
			return err
		}
		if len(a.Meshes) > 0 {
			n.Meshes = append(n.Meshes, a.Account)
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

// Databases returns the databases that the graph's steps touch, each once.
func (g Graph) Databases() ([]Database, error) {
	var out []Database
	seen := map[Site]map[string]bool{}
	for _, node := range g.Nodes {
		var a struct {
			Database Database `json:"database"`
		}
		if err := json.Unmarshal(node.Args, &a); err != nil {
			return nil, fault.Newf(fault.Invalid, "the arguments of step %s cannot be read: %w", node.Path, err)
		}
		at := Site{a.Database.Account, a.Database.Namespace}
		if a.Database.Name == "" || seen[at][a.Database.Name] {
			continue
		}
		if seen[at] == nil {
			seen[at] = map[string]bool{}
		}
		seen[at][a.Database.Name] = true
		out = append(out, a.Database)
	}
	return out, nil
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
