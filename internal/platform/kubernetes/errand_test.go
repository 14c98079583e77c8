package kubernetes

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"github.com/sluice-cd/sluice/internal/fault"
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

// TestAJobThatIsHeldIsNotWaitedForEver: its pod is on a node that is away.
func TestAJobThatIsHeldIsNotWaitedForEver(t *testing.T) {
	const job = `{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"namespace": "ns", "name": "errand", "uid": "u", "resourceVersion": "1",
		"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["foregroundDeletion"]}}`
	fakeServer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Query().Has("sendInitialEvents"):
			w.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = io.WriteString(w, `{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Invalid", "code": 422}`)
		case r.URL.Query().Has("watch"):
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case r.URL.Path == "/apis/batch/v1/namespaces/ns/jobs/errand":
			_, _ = io.WriteString(w, job)
		case r.URL.Path == "/apis/batch/v1/namespaces/ns/jobs":
			_, _ = io.WriteString(w, `{"apiVersion": "batch/v1", "kind": "JobList", "metadata": {"resourceVersion": "1"}, "items": [`+job+`]}`)
		case r.URL.Path == "/api/v1/namespaces/ns/pods":
			_, _ = io.WriteString(w, `{"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": []}`)
		default:
			http.NotFound(w, r)
		}
	}))
	defer fakeServer.Close()
	client, err := dynamic.NewForConfig(&rest.Config{Host: fakeServer.URL})
	if err != nil {
		t.Fatal(err)
	}
	batch := []*restmapper.APIGroupResources{{
		Group: metav1.APIGroup{Name: "batch", Versions: []metav1.GroupVersionForDiscovery{{GroupVersion: "batch/v1", Version: "v1"}},
			PreferredVersion: metav1.GroupVersionForDiscovery{GroupVersion: "batch/v1", Version: "v1"}},
		VersionedResources: map[string][]metav1.APIResource{"v1": {{Name: "jobs", Kind: "Job", Namespaced: true}}}}}
	p := &Platform{c: Config{Account: "prod"}, dynamic: client, kinds: &kinds{groups: batch, mapper: restmapper.NewDiscoveryRESTMapper(batch)}, log: slog.Default()}
	err = (&work{p: p, e: platform.Errand{Namespace: "ns"}, name: "errand"}).gone(t.Context(), time.Second)
	if !fault.Is(err, fault.Transient) || !strings.Contains(err.Error(), "Job") || !strings.Contains(err.Error(), "node that is away") {
		t.Errorf("%v", err)
	}
}
