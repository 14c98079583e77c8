//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// webAt are the manifests of the application that the test binary is, in a cluster on this machine, as an inline of a deploy
// file.
func webAt(t *testing.T, version string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: next}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: lab/tool:1
        command: [/program/%s]
        env: [{name: %s, value: web}, {name: VERSION, value: %q}, {name: LISTEN, value: ":8080"}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: program, mountPath: /program, readOnly: true}]
      volumes: [{name: program, hostPath: {path: %s}}]
`, filepath.Base(self), programEnv, version, filepath.Dir(self)), "\n", "\n      ")
}

// preview writes a deploy file of a version of that application, with a Service of its own before the redirection, which these steps
// come before. Webhook look is told that Service's address; call is told an address to call back.
func (k clusters) preview(hooks *receiver, version, steps string) string {
	k.t.Helper()
	return k.write("deploy-"+version+".yaml", fmt.Sprintf(`
version: v1
kind: kubernetes
application: web
targets:
  prod: {account: prod, namespace: %[1]s, strategy: s}
strategies:
  s:
    blueGreen:
      activeService: web
      previewService: next
      redirectTrafficAfter:
%[2]s
webhooks:
  - {name: look, method: POST, uriTemplate: "%[3]s/look", bodyTemplate: {inline: "{{armory.preview.next}}"}, disableCallback: true}
  - {name: call, method: POST, uriTemplate: "%[3]s/call", headers: [{key: X-Callback, value: "{{armory.callbackUri}}/callback"}]}
manifests:
  - inline: |%[4]s
`, k.namespace(), steps, hooks.URL, webAt(k.t, version)))
}

// TestExposeOnCluster: a canary's preview Service gets an address that a webhook is given, which is answered by the new version
// alone, also by the server that comes after one that was killed, until its time is over.
func TestExposeOnCluster(t *testing.T) {
	k := newClusters(t)
	hooks := newReceiver(t)
	deliver := func(version, steps string) string { return k.start(k.preview(hooks, version, steps)) }
	k.ended(deliver("1", "        []"), "SUCCEEDED")
	id := deliver("2", `        - sequence:
            - exposeServices: {services: [next], ttl: {duration: 90, unit: seconds}}
            - runWebhook: {name: look}
            - pause: {untilApproved: true}`)
	d := k.until(id, "waiting for a person", anyWaits)
	told := hooks.got("/look")
	if len(told) != 1 {
		t.Fatalf("the webhook was sent %d times\n%s", len(told), d)
	}
	at := told[0].body
	version := func() (int, string) { return work(at) }
	if code, text := version(); code != http.StatusOK || !strings.HasPrefix(text, "2 ") {
		t.Errorf("%s answers %d %q", at, code, text)
	}
	k.kill(k.serverPID())
	k.until(id, "waiting for a person", anyWaits) // by another server
	if code, text := version(); code != http.StatusOK || !strings.HasPrefix(text, "2 ") {
		t.Errorf("after the server was killed %s answers %d %q", at, code, text)
	}
	k.eventually("the address is over", func() error {
		if code, text := version(); code != http.StatusGone {
			return fmt.Errorf("%d %q", code, text)
		}
		return nil
	})
	if begun := d.step(stepOf(d, "expose")).Ended; time.Since(begun) < 85*time.Second {
		t.Errorf("it was over %s after it was given", time.Since(begun))
	}
	k.must("deploy", "approve", id)
	k.ended(id, "SUCCEEDED")
}

// work asks that application at an address, and returns its status and what it says, which begins with its version.
func work(at string) (int, string) {
	resp, err := http.Get(at + "/work")
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// serverPID is the process of the site's server.
func (s *site) serverPID() int {
	s.t.Helper()
	var m machine
	if err := json.Unmarshal([]byte(s.must("server", "status", "-o", "json").out), &m); err != nil || m.Server.PID == 0 {
		s.t.Fatalf("server status tells %+v, %v", m, err)
	}
	return m.Server.PID
}

// anyWaits reports whether a step waits for a person.
func anyWaits(d delivery) bool {
	for _, s := range d.Steps {
		if s.Status == "AWAITING_APPROVAL" {
			return true
		}
	}
	return false
}

// stepOf returns the path of the first step whose path holds a word.
func stepOf(d delivery, word string) string {
	for _, s := range d.Steps {
		if strings.Contains(s.Ref, word) {
			return s.Ref
		}
	}
	return ""
}
