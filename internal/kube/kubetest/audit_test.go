package kubetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCalls(t *testing.T) {
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "pki", "admin.kubeconfig")
	began := time.Now().Add(-time.Hour).UTC()
	line := func(verb, stage string, code int, uri string, at time.Time) string {
		return fmt.Sprintf(`{"verb":%q,"stage":%q,"requestURI":%q,"user":{"username":"admin"},"impersonatedUser":{"username":"copier"},"objectRef":{"resource":"pods","name":"a"},"responseStatus":{"code":%d},"requestReceivedTimestamp":%q}`,
			verb, stage, uri, code, at.Format(time.RFC3339Nano)) + "\n"
	}
	for name, lines := range map[string]string{
		"audit-1.log": line("delete", "ResponseComplete", 200, "/early", began.Add(-time.Minute)) + line("delete", "ResponseComplete", 200, "/pods/a", began.Add(time.Minute)),
		"audit.log": line("get", "ResponseComplete", 200, "/pods/a", began.Add(time.Minute)) + line("watch", "ResponseStarted", 200, "/pods", began.Add(time.Minute)) +
			line("create", "ResponseComplete", 201, "/pods?dryRun=All", began.Add(time.Minute)) + line("patch", "ResponseComplete", 409, "/pods/a", began.Add(time.Minute)) + `{"verb":"pa`,
	} {
		file := filepath.Join(dir, "log", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for changes, want := range map[bool]string{
		true:  "delete /pods/a did; create /pods?dryRun=All; patch /pods/a",
		false: "delete /pods/a did; get /pods/a did reads; create /pods?dryRun=All; patch /pods/a",
	} {
		var got []string
		for _, c := range Calls(t, kubeconfig, began, changes) {
			what := c.Verb + " " + c.RequestURI
			if c.Did() {
				what += " did"
			}
			if c.Reads() {
				what += " reads"
			}
			if got = append(got, what); c.As() != "copier" || c.On.Resource != "pods" {
				t.Errorf("%+v", c)
			}
		}
		if got := strings.Join(got, "; "); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
