package docs_test

import (
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/deployfile"
)

// around says where in a deploy file a snippet belongs that begins with a key, and how deep.
var around = []struct {
	key, before string
	indent      int
}{
	{"contracts:", "targets: {a: {account: local}}\ndata:\n", 2},
	{"afterDeployment:", "targets:\n  staging:\n    account: local\n    constraints:\n      beforeDeployment: [{copyData: {database: orders}}]\n", 6},
	{"- analysis:", "targets: {a: {account: local, strategy: s}}\nanalysis: {defaultMetricProviderName: p}\nstrategies:\n  s:\n    canary:\n      steps:\n", 8},
	{"analysis:", "targets: {a: {account: local, strategy: careful}}\n", 0},
	{"strategies:", "targets: {a: {account: local}}\n", 0},
	{"version:", "", 0},
}

// TestSnippets reads every block of YAML as what it is a part of: its keys must exist. What a part refers to may be
// missing from it.
func TestSnippets(t *testing.T) {
	found := 0
	for _, p := range pages(t) {
		blocks, _ := p.blocks()
		for _, b := range blocks {
			if b.mark != "yaml" {
				continue
			}
			found++
			text := strings.Join(b.text, "\n") + "\n"
			if strings.HasPrefix(text, "accounts:") || strings.HasPrefix(text, "metricProviders:") {
				if _, err := config.Parse("sluice.yaml", []byte(text)); err != nil {
					t.Errorf("%s:%d: %v", p.path, b.line, err)
				}
				continue
			}
			known := false
			for _, a := range around {
				if !strings.HasPrefix(text, a.key) {
					continue
				}
				known = true
				whole := a.before
				for l := range strings.Lines(text) {
					whole += strings.Repeat(" ", a.indent) + l
				}
				keysExist(t, p, b, whole)
				break
			}
			if !known {
				t.Errorf("%s:%d: nobody knows what this block of YAML is a part of", p.path, b.line)
			}
		}
	}
	if found < 5 {
		t.Errorf("only %d blocks of YAML were found", found)
	}
}

func keysExist(t *testing.T, p page, b block, whole string) {
	t.Helper()
	_, findings := deployfile.Parse("deploy.yaml", []byte(whole))
	for _, f := range findings {
		if f.Severity != deployfile.Error || strings.HasPrefix(f.Message, "there is no ") && !strings.HasPrefix(f.Message, "there is no step") {
			continue
		}
		t.Errorf("%s:%d: %s (%s), read as\n%s", p.path, b.line, f.Message, f.Suggestion, whole)
	}
}
