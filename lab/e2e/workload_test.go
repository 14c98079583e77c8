//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/lab/kube"
	"github.com/sluice-cd/sluice/lab/labtest"
)

const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: lab/tool:1
        args: [http, %s]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`

// call asks a web server until it answers, and returns what it said.
func call(t *testing.T, method, url, body string) string {
	t.Helper()
	var said string
	labtest.Eventually(t, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		b, err := io.ReadAll(answer.Body)
		if err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", answer.Status, b)
		}
		said = string(b)
		return err
	})
	return said
}

func TestServiceByAddressAndName(t *testing.T) {
	for name, c := range map[string]*kube.Client{"prod": clusters.Prod, "staging": clusters.Staging} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := labtest.Namespace(t, c)
			labtest.Apply(t, c, n, fmt.Sprintf(web, "of-"+name))
			labtest.Wait(t, c, kube.Ref{APIVersion: "apps/v1", Kind: "Deployment", Namespace: n, Name: "web"}, kube.Condition("Available"))
			service, err := c.CoreV1().Services(n).Get(t.Context(), "web", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if said := call(t, http.MethodGet, "http://"+service.Spec.ClusterIP, ""); !strings.HasPrefix(said, "web-") || !strings.HasSuffix(said, " of-"+name+"\n") {
				t.Errorf("the Service answered %q from outside", said)
			}
			said := labtest.Run(t, c, n, "inside", `{restartPolicy: OnFailure, containers: [{name: c, image: "lab/tool:1", args: [get, "http://web.`+n+`.svc.cluster.local/"]}]}`)
			if !strings.HasSuffix(said, " of-"+name+"\n") {
				t.Errorf("the Service answered %q by its name", said)
			}
		})
	}
}

func TestClustersDoNotReachEachOther(t *testing.T) {
	if clusters.Lab == nil {
		t.Skip("existing clusters are used: how they are connected is theirs to say")
	}
	there := labtest.Namespace(t, clusters.Staging)
	labtest.Apply(t, clusters.Staging, there, fmt.Sprintf(web, "staging"))
	labtest.Wait(t, clusters.Staging, kube.Ref{APIVersion: "apps/v1", Kind: "Deployment", Namespace: there, Name: "web"}, kube.Condition("Available"))
	pods, err := clusters.Staging.CoreV1().Pods(there).List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + pods.Items[0].Status.PodIP + ":8080/"
	// The machine reaches the pod, so that what follows is not the pod's fault.
	call(t, http.MethodGet, url, "")
	n := labtest.Namespace(t, clusters.Prod)
	labtest.Apply(t, clusters.Prod, n, `{apiVersion: v1, kind: Pod, metadata: {name: over}, spec: {restartPolicy: Never, containers: [{name: c, image: "lab/tool:1", args: [get, "`+url+`"]}]}}`)
	labtest.Wait(t, clusters.Prod, kube.Ref{APIVersion: "v1", Kind: "Pod", Namespace: n, Name: "over"}, kube.Field("Failed", "status", "phase"))
}
