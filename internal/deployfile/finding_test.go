package deployfile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestWrite(t *testing.T) {
	long := strings.Repeat("x", 200)
	for _, c := range []struct {
		name, body string
		at         Pos
		want       string
	}{
		{"a caret below the place", "a: b\nc: d\n", Pos{2, 4}, "f:2:4: error: m\n  c: d\n     ^\n  suggestion: s\n"},
		{"a tab stays a tab", "\tc: d", Pos{1, 5}, "f:1:5: error: m\n  \tc: d\n  \t   ^\n  suggestion: s\n"},
		{"wide characters", "ünï: d", Pos{1, 6}, "f:1:6: error: m\n  ünï: d\n       ^\n  suggestion: s\n"},
		{"line ends of other systems", "a: b\r\nc: d\r\n", Pos{2, 1}, "f:2:1: error: m\n  c: d\n  ^\n  suggestion: s\n"},
		{"what would move the cursor", "a\x1b[2Jb", Pos{1, 1}, "f:1:1: error: m\n  a\ufffd[2Jb\n  ^\n  suggestion: s\n"},
		{"a long line is cut", long + "y" + long, Pos{1, 201},
			"f:1:201: error: m\n  " + long[:80] + "y" + long[:59] + "\n  " + strings.Repeat(" ", 80) + "^\n  suggestion: s\n"},
		{"a place after the end", "a", Pos{1, 9}, "f:1:9: error: m\n  a\n   ^\n  suggestion: s\n"},
		{"a line that is not there", "a", Pos{7, 1}, "f:7:1: error: m\n  suggestion: s\n"},
		{"no password, the caret before it", "u: pg://me:secret@h/ x", Pos{1, 4}, "f:1:4: error: m\n  u: pg://me:***@h/ x\n     ^\n  suggestion: s\n"},
		{"no password, the caret behind it", "u: pg://me:secret@h/ x", Pos{1, 19},
			"f:1:19: error: m\n  u: pg://me:***@h/ x\n                 ^\n  suggestion: s\n"},
		{"no password, the caret on it", "u: pg://me:secret@h/ x", Pos{1, 14},
			"f:1:14: error: m\n  u: pg://me:***@h/ x\n             ^\n  suggestion: s\n"},
	} {
		var out bytes.Buffer
		f := Findings{{Severity: Error, Pos: c.at, Message: "m", Suggestion: "s"}}
		if err := f.Write(&out, "f", []byte(c.body)); err != nil || out.String() != c.want {
			t.Errorf("%s: %v\n%q\n%q", c.name, err, out.String(), c.want)
		}
	}
}

func TestFindingsAsJSON(t *testing.T) {
	body, err := json.Marshal(Findings{{Severity: Warning, Pos: Pos{3, 4}, Message: "m"}})
	if want := `[{"severity":"warning","line":3,"column":4,"message":"m"}]`; err != nil || string(body) != want {
		t.Errorf("%s, %v; want %s", body, err, want)
	}
}

func TestHasErrors(t *testing.T) {
	if (Findings{{Severity: Warning}, {Severity: Note}}).HasErrors() {
		t.Error("warnings and notes do not refuse a file")
	}
	if !(Findings{{Severity: Warning}, {Severity: Error}}).HasErrors() {
		t.Error("an error refuses a file")
	}
}

func TestMessagesHoldNoPassword(t *testing.T) {
	for _, file := range []string{
		"targets: {p: {account: a}}\nwebhooks: [{name: a, uriTemplate: x, method: 'http://me:hunter2@h'}]\n",
		"a: http://me:hunter2@h: x\n",
		"webhooks:\n  - uriTemplate: {{x}}http://me:hunter2@h\n",
		"targets: 'http://me:hunter2@h'\n",
	} {
		_, found := Parse("deploy.yaml", []byte(file))
		var out bytes.Buffer
		if err := found.Write(&out, "deploy.yaml", []byte(file)); err != nil || len(found) == 0 {
			t.Fatal(err, found)
		}
		if strings.Contains(out.String(), "hunter2") || strings.Contains(fmt.Sprint(found), "hunter2") {
			t.Errorf("a password is shown:\n%s", out.String())
		}
	}
}

func TestUnbuilt(t *testing.T) {
	const file = base + `context: {a: '{{secrets.not-looked-into}}'}
data:
  databases:
    - {name: a, engine: mariadb, target: prod, workload: statefulset/a, connection: 'mysql://a/'}
  contracts:
    - {name: c, schema: {added: [t]}, values: [], rows: 5}
  masks:
    - {name: m}
webhooks:
  - {name: w, uriTemplate: 'x{{secrets.fine}}', disableCallback: true, networkMode: remoteNetworkAgent, agentIdentifier: '{{secrets.agent}}'}
`
	f, found := Parse("deploy.yaml", []byte(file))
	compareFindings(t, found, nil)
	compareFindings(t, Unbuilt(f), []string{
		"8:7 error: needs the engine mysql, not built yet",
		"10:7 error: needs contracts with schema, not built yet", "10:7 error: needs contracts with values", "10:7 error: needs contracts with rows",
		"12:7 error: needs masking, not built yet",
		"14:123 error: needs a secret in agentIdentifier, not built yet",
	})
	if f, _ := Parse("deploy.yaml", []byte(base)); len(Unbuilt(f)) > 0 {
		t.Error("a plain file needs nothing that is not built:", Unbuilt(f))
	}
}

// TestHostile are small files that would keep the YAML library busy for minutes or take all memory.
func TestHostile(t *testing.T) {
	for name, body := range map[string]string{
		"brackets":          strings.Repeat("[", 200_000),
		"brackets in lines": strings.Repeat("[ #]\n", 80_000),
		"mappings":          strings.Repeat("{a: ", 100_000),
		"dashes":            strings.Repeat("- ", 200_000),
		"question marks":    strings.Repeat("? ", 200_000),
		"anchors":           strings.Repeat("&a ", 100_000),
		"too many bytes":    "description: " + strings.Repeat("x", maxBytes),
		"unknown keys":      "targets: {\n" + strings.Repeat("x: {y: [z, {}]},\n", 2000) + "}\n",
		"templates":         "webhooks:\n" + strings.Repeat("  - uriTemplate: {{x}}\n", 2000),
		"tags":              "webhooks:\n  - {name: a, uriTemplate: '" + manyTags(20_000) + "'}\n",
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			_, found := Parse("deploy.yaml", []byte(body))
			if took := time.Since(began); took > 5*patience {
				t.Errorf("it took %s", took)
			}
			if !found.HasErrors() || len(found) > maxFindings {
				t.Errorf("%d findings; errors: %v", len(found), found.HasErrors())
			}
		})
	}
}

func manyTags(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "{{x%d}}", i)
	}
	return b.String()
}
