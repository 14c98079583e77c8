package template

import (
	"slices"
	"testing"
)

func TestRender(t *testing.T) {
	values := map[string]string{"armory.callbackUri": "http://x/c", "secrets.prod-token": "a&b<c>", "armory.preview.potato-facts-internal": "p", "empty": ""}
	lookup := func(n string) (string, bool) { v, ok := values[n]; return v, ok }
	for _, c := range []struct {
		in, want string
		unknown  []string
	}{
		{"no tag", "no tag", nil},
		{"{{armory.callbackUri}}/callback", "http://x/c/callback", nil},
		{"{{ armory.callbackUri }}", "http://x/c", nil},
		{"{{\tarmory.callbackUri\t}}", "http://x/c", nil},
		{"Bearer {{secrets.prod-token}}", "Bearer a&b<c>", nil},
		{"{{{secrets.prod-token}}}{{&secrets.prod-token}}", "a&b<c>a&b<c>", nil},
		{"{{armory.preview.potato-facts-internal}}", "p", nil},
		{"{{TF_WS_ID}} {{TF_WS_ID}} {{x}}", "  ", []string{"TF_WS_ID", "x"}},
		{"{{empty}}|", "|", nil},
		{"${armory.deploymentId}", "${armory.deploymentId}", nil},
		{`{"a": {"b": 1}}`, `{"a": {"b": 1}}`, nil},
		{"{{never closed", "{{never closed", nil},
		{"", "", nil},
	} {
		got, unknown := Render(c.in, lookup)
		if got != c.want || !slices.Equal(unknown, c.unknown) {
			t.Errorf("Render(%q) = %q, %v; want %q, %v", c.in, got, unknown, c.want, c.unknown)
		}
	}
}

func FuzzRender(f *testing.F) {
	for _, s := range []string{"{{a}}", "{{{a}}}", "{{", "}}{{", "{{a}", "{{{a}}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		Render(s, func(string) (string, bool) { return "v", true })
	})
}
