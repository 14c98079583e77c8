package local

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

const within = 30 * time.Second

// parse reads manifests.
func parse(t *testing.T, text string) []manifest.Object {
	t.Helper()
	var out []manifest.Object
	for _, doc := range strings.Split(text, "\n---\n") {
		o := manifest.Object{Origin: "app.yaml:3"}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatal(err)
		}
		out = append(out, o)
	}
	return out
}

func (p *Platform) put(t *testing.T, key, text string) []platform.Change {
	t.Helper()
	c, err := p.Apply(t.Context(), key, parse(t, text), platform.Options{Namespace: "n", Delivery: "d"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ref(kind, name string) manifest.Ref { return manifest.Ref{Kind: kind, Namespace: "n", Name: name} }

func (p *Platform) until(t *testing.T, r manifest.Ref, what string, ok func(platform.State) bool) platform.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	states, err := p.Watch(ctx, []manifest.Ref{r})
	if err != nil {
		t.Fatal(err)
	}
	var last platform.State
	for s := range states {
		if last = s; ok(s) {
			return s
		}
	}
	t.Fatalf("%s is not %s: %+v", r, what, last)
	return last
}

func isReady(s platform.State) bool   { return s.Ready }
func hasFailed(s platform.State) bool { return s.Failed }
func isGone(s platform.State) bool    { return !s.Exists }

func (p *Platform) logsOf(t *testing.T, r manifest.Ref) string {
	t.Helper()
	var b strings.Builder
	if err := p.Logs(t.Context(), r, 100, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// pods returns the pods' processes by name.
func (p *Platform) pods(t *testing.T) map[string]int {
	t.Helper()
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	running, err := (&node{dir: p.c.Dir, boot: boot}).running()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for name, i := range running {
		out[name] = i.PID
	}
	return out
}

func (p *Platform) killNode(t *testing.T) {
	t.Helper()
	pid, err := p.PID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// script makes a workload of a shell script.
func script(kind, name, body, more string) string {
	spec := ""
	switch kind {
	case "Job":
		spec = "backoffLimit: 0\n"
	case "Deployment":
		spec = "replicas: 1\n"
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: %s
metadata: {name: %s}
spec:
  %s
  template:
    metadata: {labels: {app: %s}}
    spec:
      terminationGracePeriodSeconds: 3
      containers:
      - name: c
        command: [/bin/sh, -c, %q]
%s`, kind, name, spec, name, body, more)
}

const web = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: program
        env: [{name: SLUICE_TEST_PROGRAM, value: http}, {name: VERSION, value: %q}]
        readinessProbe: {httpGet: {path: /, port: 8080}}`

func TestInitContainers(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", script("Deployment", "app", "echo main; exec sleep 1000", `
      initContainers:
      - {name: one, command: [/bin/sh, -c, "echo first; test -e again || { touch again; exit 1; }"]}
      - {name: two, command: [/bin/sh, -c, "echo second"]}`))
	app := ref("Deployment", "app")
	p.until(t, app, "ready", isReady)
	if got := strings.Fields(p.logsOf(t, app)); !strings.HasSuffix(strings.Join(got, " "), "first first second main") {
		t.Errorf("they ran as %v", got)
	}
}

func TestInitContainerFails(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", script("Deployment", "app", "exec sleep 1000", `
      initContainers: [{name: one, command: [/bin/sh, -c, "echo no luck; exit 7"]}]`))
	s := p.until(t, ref("Deployment", "app"), "failed", hasFailed)
	if !strings.Contains(s.Message, "no luck") || !strings.Contains(s.Message, "exit code 7") {
		t.Errorf("%+v", s)
	}
}

// TestRefused: what a process cannot be is refused by name, and nothing of the same call is kept.
func TestRefused(t *testing.T) {
	t.Parallel()
	p := connect(t)
	for name, x := range map[string]struct{ text, says string }{
		"no command":        {strings.Replace(script("Deployment", "x", "", ""), "command: [/bin/sh, -c, \"\"]", "image: nobody/knows:1", 1), "map the image under images:"},
		"two containers":    {script("Deployment", "x", "true", "      - {name: sidecar, image: program}"), "2 containers in a pod (c, sidecar)"},
		"a sidecar":         {script("Deployment", "x", "true", "      initContainers: [{name: s, image: program, restartPolicy: Always}]"), "the sidecar s"},
		"a host path":       {script("Deployment", "x", "true", "      volumes: [{name: v, hostPath: {path: /etc}}]"), "volume v"},
		"a gRPC probe":      {script("Deployment", "x", "true", "        readinessProbe: {grpc: {port: 1}}"), "readiness probe of container c"},
		"a postStart hook":  {script("Deployment", "x", "true", "        lifecycle: {postStart: {exec: {command: [a]}}}"), "postStart"},
		"an unknown field":  {script("Deployment", "x", "true", "        env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]"), "env A"},
		"an ExternalName":   {"apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {type: ExternalName, externalName: example.com}", "ExternalName"},
		"UDP":               {"apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 53, protocol: UDP}]}", "UDP port 53"},
		"many completions":  {strings.Replace(script("Job", "x", "true", ""), "backoffLimit: 0", "completions: 3", 1), "completions 3"},
		"an unknown kind":   {"apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: x}", "cannot run a DaemonSet"},
		"what is no number": {strings.Replace(script("Deployment", "x", "true", ""), "replicas: 1", "replicas: many", 1), "app.yaml:3"},
	} {
		before := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: first}\n---\n"
		_, err := p.Apply(t.Context(), name, parse(t, before+x.text), platform.Options{Namespace: "n"})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), x.says) || !strings.Contains(err.Error(), "app.yaml:3") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := p.Get(t.Context(), ref("ConfigMap", "first")); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: half of the call was kept: %v", name, err)
		}
	}
}

func TestProbes(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", script("Deployment", "app", "sleep 0.3; echo up > /data/up; exec sleep 1000", `
        volumeMounts: [{name: v, mountPath: /data}]
        startupProbe: {exec: {command: [/bin/sh, -c, "grep up /data/up"]}, periodSeconds: 1}
        readinessProbe: {exec: {command: [test, -e, /data/go]}, periodSeconds: 1, failureThreshold: 1}
        livenessProbe: {exec: {command: [/bin/sh, -c, "! test -e /data/sick"]}, periodSeconds: 1, failureThreshold: 1}
      volumes: [{name: v, emptyDir: {}}]`))
	app := ref("Deployment", "app")
	p.until(t, app, "started", func(s platform.State) bool { return strings.Contains(s.Message, "readiness") })
	volumes, err := filepath.Glob(filepath.Join(p.c.Dir, "pods", "n", "app-*", "volumes", "v"))
	if err != nil || len(volumes) != 1 {
		t.Fatal(volumes, err)
	}
	file := func(name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(volumes[0], name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file("go")
	p.until(t, app, "ready", isReady)
	before := p.pods(t)
	if err := os.Remove(filepath.Join(volumes[0], "go")); err != nil {
		t.Fatal(err)
	}
	p.until(t, app, "no longer ready", func(s platform.State) bool { return !s.Ready })
	file("go")
	p.until(t, app, "ready again", isReady)
	if after := p.pods(t); !maps.Equal(before, after) {
		t.Errorf("an unready pod was started again: %v, %v", before, after)
	}
	file("sick")
	p.until(t, app, "ended", func(s platform.State) bool { return !s.Ready })
	if err := os.Remove(filepath.Join(volumes[0], "sick")); err != nil {
		t.Fatal(err)
	}
	p.until(t, app, "ready after the restart", isReady)
	if after := p.pods(t); maps.Equal(before, after) {
		t.Errorf("a sick pod was not started again: %v", after)
	}
}

// TestEndsByItself: a program without a probe that ends at once is never taken for one that serves.
func TestEndsByItself(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", script("Deployment", "app", "echo oh no; exit 4", ""))
	p.until(t, ref("Deployment", "app"), "failed", func(s platform.State) bool {
		if s.Ready {
			t.Error("it was ready")
		}
		return s.Failed && s.Reason == "CrashLoopBackOff" && strings.Contains(s.Message, "oh no")
	})
}

// TestStopping: the hook comes first, then the signal, then nothing more.
func TestStopping(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", script("Deployment", "app", "trap 'echo told; exit 0' TERM; echo up; while :; do sleep 0.05; done", `
        lifecycle: {preStop: {exec: {command: [/bin/sh, -c, "echo hook >> $HOOK"]}}}
        env: [{name: HOOK, value: /h/hook}]
        volumeMounts: [{name: h, mountPath: /h}]
      volumes: [{name: h, persistentVolumeClaim: {claimName: hooks}}]`))
	app := ref("Deployment", "app")
	p.until(t, app, "ready", isReady)
	if err := p.Delete(t.Context(), "x", "d", []manifest.Ref{app}); err != nil {
		t.Fatal(err)
	}
	p.until(t, app, "gone", isGone)
	if got := p.logsOf(t, app); !strings.Contains(got, "up\n") || !strings.Contains(got, "told") {
		t.Errorf("logs %q", got)
	}
	if body, err := os.ReadFile(filepath.Join(p.c.Dir, "volumes", "n", "hooks", "hook")); err != nil || string(body) != "hook\n" {
		t.Errorf("the hook: %q, %v", body, err)
	}
}

// TestGrace: what does not listen is ended by force.
func TestGrace(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", strings.Replace(script("Deployment", "app", "trap '' TERM; while :; do sleep 0.05; done", ""), "PeriodSeconds: 3", "PeriodSeconds: 1", 1))
	app := ref("Deployment", "app")
	p.until(t, app, "ready", isReady)
	begun := time.Now()
	if err := p.Delete(t.Context(), "x", "d", []manifest.Ref{app}); err != nil {
		t.Fatal(err)
	}
	p.until(t, app, "gone", isGone)
	if took := time.Since(begun); took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("with a grace of 1 s it took %s", took)
	}
}

func TestJobDeadline(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", strings.Replace(script("Job", "j", "echo slow; exec sleep 1000", ""), "backoffLimit: 0", "backoffLimit: 0\n  activeDeadlineSeconds: 1", 1))
	s := p.until(t, ref("Job", "j"), "failed", hasFailed)
	if s.Reason != "DeadlineExceeded" || !strings.Contains(s.Message, "slow") {
		t.Errorf("%+v", s)
	}
}

// TestEnvironment: the variables of a pod, as Kubernetes writes them.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", `
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {COLOUR: blue, raw: "$(COLOUR)"}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {word: sesame}
---
apiVersion: v1
kind: Service
metadata: {name: my-db}
spec: {ports: [{port: 443}]}
---`+script("Job", "j", "env; cat /etc/app/word; echo; ls /etc/app; echo $0 $1", `
        args: ["my-db:443", "http://my-db/x"]
        envFrom: [{configMapRef: {name: c}, prefix: P_}, {secretRef: {name: absent, optional: true}}]
        env:
        - {name: A, value: one}
        - {name: B, value: "$(A) two $(NOBODY) $$(A)"}
        - {name: WORD, valueFrom: {secretKeyRef: {name: s, key: word}}}
        - {name: MAYBE, valueFrom: {configMapKeyRef: {name: c, key: absent, optional: true}}}
        - {name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: URL, value: "postgres://my-db:443/x?host=my-db"}
        - {name: HOSTS, value: "my-db:443,my-db:443,not-my-db:443"}
        - {name: PATHS, value: "/my-db:/srv/my-db:file:///my-db/x"}
        volumeMounts: [{name: v, mountPath: /etc/app}]
      volumes: [{name: v, secret: {secretName: s}}]`))
	p.until(t, ref("Job", "j"), "complete", isReady)
	at, err := p.Address(t.Context(), ref("Service", "my-db"), "")
	if err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(at)
	got := p.logsOf(t, ref("Job", "j"))
	for _, want := range []string{"A=one", "B=one two $(NOBODY) $(A)", "P_COLOUR=blue", "P_raw=$(COLOUR)", "WORD=sesame", "MAYBE=", "ME=j-0", "MY_DB_SERVICE_HOST=" + host,
		"MY_DB_SERVICE_PORT=" + port, "URL=postgres://" + at + "/x?host=my-db", "PATHS=/my-db:/srv/my-db:file:///my-db/x",
		"HOSTS=" + at + "," + at + ",not-my-db:443", at + " http://" + host + "/x", "\nsesame\n", "\nword\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if os.Getenv("USER") != "" && strings.Contains(got, "\nUSER=") {
		t.Error("the node's own environment was inherited")
	}
}

// TestLaterConfigMap: a pod that lacks something starts when it is there.
func TestLaterConfigMap(t *testing.T) {
	t.Parallel()
	p := connect(t)
	p.put(t, "a", script("Deployment", "app", "echo $V; exec sleep 1000", `
        env: [{name: V, valueFrom: {configMapKeyRef: {name: later, key: v}}}]`))
	app := ref("Deployment", "app")
	s := p.until(t, app, "refused", hasFailed)
	if s.Reason != "CannotStart" || !strings.Contains(s.Message, "ConfigMap later") {
		t.Errorf("%+v", s)
	}
	p.put(t, "b", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: later}\ndata: {v: here it is}")
	p.until(t, app, "ready", isReady)
	if got := p.logsOf(t, app); !strings.Contains(got, "here it is") {
		t.Error(got)
	}
}

// TestAnotherUser runs a pod as another user, who can read its Secret and write its claim, and nobody else's.
func TestAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run pods as other users; everybody else's run as themselves")
	}
	name := os.Getenv("SLUICE_TEST_USER")
	if name == "" {
		name = "sluice-test"
	}
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("the tests need a user to run servers as: useradd --system %s (%v)", name, err)
	}
	t.Parallel()
	p := connect(t)
	if err := os.Chmod(p.c.Dir, 0o711); err != nil {
		t.Fatal(err)
	}
	job := script("Job", "j", "id -u; id -g; cat /s/word; touch /d/mine; ls -ld /d; cat "+p.c.Dir+"/state.json || echo closed", `
        volumeMounts: [{name: s, mountPath: /s}, {name: d, mountPath: /d}]
        securityContext: {runAsUser: `+u.Uid+`}
      volumes: [{name: s, secret: {secretName: s}}, {name: d, persistentVolumeClaim: {claimName: d}}]`)
	p.put(t, "a", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {word: sesame}\n---"+job)
	j := ref("Job", "j")
	p.until(t, j, "complete", isReady)
	got := p.logsOf(t, j)
	if !strings.Contains(got, u.Uid+"\n"+u.Gid+"\nsesame") || !strings.Contains(got, "closed") {
		t.Error(got)
	}
	if err := os.Chmod(p.c.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p.put(t, "b", strings.ReplaceAll(job, "name: j", "name: k"))
	s := p.until(t, ref("Job", "k"), "refused", hasFailed)
	if !strings.Contains(s.Message, "cannot pass through "+p.c.Dir) {
		t.Errorf("%+v", s)
	}
}

// TestOneAtATime: the pods of a StatefulSet are replaced one after another, from the last; one always serves.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	p := connect(t)
	set := strings.NewReplacer("Deployment", "StatefulSet").Replace(fmt.Sprintf(web, 3, "one"))
	p.put(t, "a", set)
	s := ref("StatefulSet", "web")
	p.until(t, s, "ready", isReady)
	least := 3
	p.put(t, "b", strings.ReplaceAll(set, `"one"`, `"two"`))
	p.until(t, s, "on the new version", func(s platform.State) bool {
		least = min(least, s.Replicas)
		return s.Ready
	})
	if least != 2 {
		t.Errorf("at one time only %d of 3 pods served", least)
	}
	if got := p.answer(t); !strings.HasPrefix(got, "two") {
		t.Error(got)
	}
}

// TestRecreate: the old pod has ended before the new one starts.
func TestRecreate(t *testing.T) {
	t.Parallel()
	p := connect(t)
	app := strings.Replace(script("Deployment", "app", "mkdir /d/lock || exit 1; trap 'rmdir /d/lock; exit' TERM; echo VERSION; while :; do sleep 0.05; done", `
        volumeMounts: [{name: d, mountPath: /d}]
      volumes: [{name: d, persistentVolumeClaim: {claimName: d}}]`), "replicas: 1", "replicas: 1\n  strategy: {type: Recreate}", 1)
	p.put(t, "a", app)
	r := ref("Deployment", "app")
	p.until(t, r, "ready", isReady)
	p.put(t, "b", strings.Replace(app, "VERSION", "NEXT", 1))
	p.until(t, r, "on the new version", func(s platform.State) bool {
		if strings.Contains(s.Message, "exit code") {
			t.Errorf("two pods met: %s", s.Message)
		}
		return s.Ready
	})
	if got := p.logsOf(t, r); !strings.Contains(got, "NEXT") {
		t.Error(got)
	}
}

func TestRemount(t *testing.T) {
	mounts := map[string]string{"/data": "/v/1", "/data/db": "/v/2"}
	for in, want := range map[string]string{"/data": "/v/1", "--dir=/data/x": "--dir=/v/1/x", "/data/db/f /data": "/v/2/f /v/1", "/database": "/database",
		"/srv/data": "/srv/data", "ls /data;cat '/data'|x>/data/y": "ls /v/1;cat '/v/1'|x>/v/1/y", "file:/data/db,/data": "file:/v/2,/v/1", "http://data/x": "http://data/x"} {
		if got := remount(in, mounts); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
}

func TestConfine(t *testing.T) {
	for in, want := range map[string]string{"0.0.0.0": "127.1.2.3", "0.0.0.0:80": "127.1.2.3:80", "--listen=0.0.0.0:80,x": "--listen=127.1.2.3:80,x",
		"http://0.0.0.0:80/": "http://127.1.2.3:80/", "0.0.0.0/0": "0.0.0.0/0", "10.0.0.0:80": "10.0.0.0:80", "0.0.0.0.5": "0.0.0.0.5", "v0.0.0.0": "v0.0.0.0"} {
		if got := confine(in, "127.1.2.3"); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
}

func TestRememberedKeys(t *testing.T) {
	s := newState()
	long := time.Now().Add(-2 * rememberedFor)
	for i := range rememberedDeliveries {
		k := "old" + strconv.Itoa(i) + "/step/1"
		s.Done[k], s.Changes[k] = true, nil
		s.remember(k, long)
	}
	if len(s.Done) != rememberedDeliveries {
		t.Errorf("%d keys are left too early", len(s.Done))
	}
	s.Done["new/step/1"] = true
	s.remember("new/step/1", time.Now())
	if len(s.Done) != 1 || len(s.Changes) != 0 || len(s.Used) != 1 {
		t.Errorf("left: %d, %d, %d", len(s.Done), len(s.Changes), len(s.Used))
	}
}

func TestAddresses(t *testing.T) {
	s := newState()
	seen := map[string]bool{}
	for i := range addresses {
		a := s.address("/x", strconv.Itoa(i))
		if seen[a] || net.ParseIP(a) == nil || strings.HasSuffix(a, ".0") || strings.HasSuffix(a, ".255") {
			t.Fatalf("address %d is %s", i, a)
		}
		seen[a] = true
	}
	free := s.Addresses["7"]
	s.release("7")
	if got := s.address("/x", "another"); got != free {
		t.Errorf("got %s, free is %s", got, free)
	}
	if got := s.address("/x", "8"); got != s.Addresses["8"] {
		t.Error("a name has changed its address")
	}
}
