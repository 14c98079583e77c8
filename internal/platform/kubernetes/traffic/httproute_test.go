package traffic

import (
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func parsed(t *testing.T, text string) map[string]any {
	t.Helper()
	body, err := yaml.ToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var o map[string]any
	if err := json.Unmarshal(body, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

const route = `
kind: HTTPRoute
spec:
  parentRefs: [{name: gateway}]
  rules:
  - matches: [{path: {value: /}}]
    backendRefs: [{group: "", kind: Service, name: web, port: 80, weight: 1}, {name: old, port: 80, weight: 3}]
  - backendRefs: [{name: api, port: 80}]
  - backendRefs: [{name: web, port: 81}]
  - filters: [{type: RequestRedirect}]
`

func TestHTTPRoute(t *testing.T) {
	first := parsed(t, route)
	got := HTTPRoute(first, Split{Canaries: map[string]string{"web": "web-canary"}, Percent: 10})
	want := parsed(t, `
rules:
- matches: [{path: {value: /}}]
  backendRefs:
  - {group: "", kind: Service, name: web, port: 80, weight: 90}
  - {group: "", kind: Service, name: web-canary, port: 80, weight: 10}
  - {name: old, port: 80, weight: 300}
- backendRefs: [{name: api, port: 80}]
- backendRefs: [{name: web, port: 81, weight: 90}, {name: web-canary, port: 81, weight: 10}]
- filters: [{type: RequestRedirect}]
`)["rules"]
	if !reflect.DeepEqual(any(got), want) {
		t.Errorf("got %v\nnot %v", got, want)
	}
	if !reflect.DeepEqual(first, parsed(t, route)) {
		t.Error("the given route was changed")
	}
	s := Split{Canaries: map[string]string{"web": "web-canary"}}
	if !Ours(first, got, s) || !Ours(first, parsed(t, route)["spec"].(map[string]any)["rules"].([]any), s) {
		t.Error("our own rules are taken for somebody's")
	}
	got[1] = map[string]any{}
	if Ours(first, got, s) {
		t.Error("somebody's rules are taken for ours")
	}
}

// TestLargeWeights: a split asks for none that the Gateway API's definition refuses, and is what it is with small ones.
func TestLargeWeights(t *testing.T) {
	for text, want := range map[string]string{
		"{name: web, weight: 10000}":                                    "[{name: web, weight: 900000}, {name: web-canary, weight: 100000}]",
		"{name: web, weight: 1000000}":                                  "[{name: web, weight: 1000000}, {name: web-canary, weight: 111111}]",
		"{name: web, weight: 1}, {name: old, weight: 1000000}":          "[{name: web, weight: 1}, {name: web-canary, weight: 1}, {name: old, weight: 1000000}]",
		"{name: web, weight: 200000}, {name: web, port: 81, weight: 0}": "[{name: web, weight: 1000000}, {name: web-canary, weight: 111111}, {name: web, port: 81, weight: 0}, {name: web-canary, port: 81, weight: 0}]",
	} {
		first := parsed(t, "kind: HTTPRoute\nspec: {rules: [{backendRefs: ["+text+"]}]}")
		s := Split{Canaries: map[string]string{"web": "web-canary"}, Percent: 10}
		got := HTTPRoute(first, s)
		if want := parsed(t, "rules: [{backendRefs: "+want+"}]")["rules"]; !reflect.DeepEqual(got, want) {
			t.Errorf("%s becomes\n%v, not\n%v", text, got, want)
		}
		if !Ours(first, got, s) {
			t.Errorf("%v is not known again", got)
		}
	}
}

func TestRoutes(t *testing.T) {
	for ref, want := range map[string]bool{
		"{name: web}": true, "{name: web, kind: Service, group: ''}": true, "{name: web, kind: Bucket}": false, "{name: web, group: x.org}": false,
		"{name: web, namespace: other}": false, "{name: api}": false,
	} {
		if got := Routes(parsed(t, "spec: {rules: [{backendRefs: ["+ref+"]}]}"), "web"); got != want {
			t.Errorf("%s: %v", ref, got)
		}
	}
}

func TestAccepted(t *testing.T) {
	const ok = `metadata: {generation: 3, namespace: ns}
spec: {parentRefs: [{name: gateway}]}
status: {parents: [{parentRef: {name: gateway, namespace: ns, kind: Gateway}, conditions: [{type: Accepted, status: "True", observedGeneration: 3}, {type: ResolvedRefs, status: "True", observedGeneration: 3}]}]}`
	for text, want := range map[string]struct {
		ok  bool
		err string
	}{
		ok: {ok: true},
		strings.Replace(ok, "generation: 3", "generation: 4", 1):                                                                                                {},
		strings.Replace(ok, "{type: ResolvedRefs", "{type: Other", 1):                                                                                           {},
		strings.Replace(ok, `ResolvedRefs, status: "True"`, `ResolvedRefs, status: "False", reason: Missing`, 1):                                                {err: "ResolvedRefs is false: Missing"},
		strings.Replace(ok, "parents: [", `parents: [{parentRef: {name: former}, conditions: [{type: Accepted, status: "False", observedGeneration: 3}]}, `, 1): {ok: true},
		strings.Replace(ok, "parentRefs: [{name: gateway}]", "parentRefs: [{name: gateway, sectionName: https}]", 1):                                            {},
		strings.Replace(ok, "conditions: [", `conditions: [{type: Programmed, status: "False", observedGeneration: 1}, `, 1):                                    {ok: true},
		"metadata: {generation: 3}": {},
	} {
		got, err := Accepted(parsed(t, text))
		if got != want.ok || (err != nil) != (want.err != "") || err != nil && !strings.Contains(err.Error(), want.err) {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
}
