package kubernetes

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
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

func TestAnEndOfAStreamReachesNothingElse(t *testing.T) {
	policy := func(e platform.Errand) networkingv1.NetworkPolicySpec {
		return (&work{p: &Platform{config: &rest.Config{Host: "https://10.0.0.1:7443"}}, e: e, name: "errand"}).policy(nil).Spec
	}
	ports := func(all []networkingv1.NetworkPolicyPort) string {
		text := ""
		for _, p := range all {
			text += fmt.Sprintf("%s %s,", *p.Protocol, p.Port)
		}
		return text
	}
	send, receive := policy(platform.Errand{Dials: []int{31000, 8443}}), policy(platform.Errand{Listens: 8443})
	for what, c := range map[string][2]string{
		"the API":           {ports(send.Egress[0].Ports), "TCP 443,TCP 6443,TCP 7443,"},
		"the receiver":      {ports(send.Egress[1].Ports), "UDP 53,TCP 53,TCP 31000,TCP 8443,"},
		"who may come":      {ports(receive.Ingress[0].Ports), "TCP 8443,"},
		"what is told":      {ports(receive.Egress[0].Ports), "TCP 443,TCP 6443,TCP 7443,"},
		"how many rules":    {fmt.Sprint(len(send.Egress), len(send.Ingress), len(receive.Egress), len(receive.Ingress)), "2 0 1 1"},
		"what is held back": {fmt.Sprint(send.PolicyTypes, receive.PolicyTypes), "[Egress Ingress] [Egress Ingress]"},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: %q, want %q", what, c[0], c[1])
		}
	}
}
