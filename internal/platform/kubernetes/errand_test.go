package kubernetes

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/internal/platform"
)

func TestAJobIsOverWhenItSaysSo(t *testing.T) {
	for name, c := range map[string]struct {
		conditions string
		over       bool
	}{
		"a pod of it finds no node": {`[]`, false},
		"it goes on":                {`[{"type": "Suspended", "status": "False"}, {"type": "Failed", "status": "False"}]`, false},
		"its deadline has passed":   {`[{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]`, true},
	} {
		t.Run(name, func(t *testing.T) {
			fakeServer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/apis/batch/v1/namespaces/ns/jobs/errand" {
					http.NotFound(w, r)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, `{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"namespace": "ns", "name": "errand"}, "status": {"conditions": `+c.conditions+`}}`)
			}))
			defer fakeServer.Close()
			client, err := dynamic.NewForConfig(&rest.Config{Host: fakeServer.URL})
			if err != nil {
				t.Fatal(err)
			}
			w := &work{p: &Platform{dynamic: client}, e: platform.Errand{Namespace: "ns"}, name: "errand"}
			if over := w.over(t.Context()); over != c.over {
				t.Errorf("over: %t, want %t", over, c.over)
			}
		})
	}
}
