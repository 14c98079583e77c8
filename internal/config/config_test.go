package config

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/sluice-cd/sluice/internal/fault"
)

var update = flag.Bool("update", false, "write the golden files")

func parse(t *testing.T, body string) *Config {
	t.Helper()
	c, err := Parse("/etc/sluice/sluice.yaml", []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParse(t *testing.T) {
	t.Setenv("SLUICE_COMPANIONS", "/opt/companions")
	c := parse(t, `
# Everything at once.
accounts:
  laptop: {kind: local, directory: state/laptop}
  elsewhere: {directory: /var/lib/elsewhere}
  cluster01:
    kind: kubernetes
    context: prod
    kubeconfig: kube/config
    adopt: [helm]
    copyAs: system:serviceaccount:sluice-system:sluice-copier
    restoreAs: somebody
    stream: 203.0.113.7
    jobs:
      image: registry.example.org/sluice:1
      limits: {cpu: 500m, memory: 512Mi}
      tolerations: [{key: dedicated, operator: Equal, value: databases, effect: NoSchedule}]
      parallelism: 8
metricProviders:
  plain: {url: "http://127.0.0.1:9090"}
  guarded:
    kind: prometheus
    url: https://prometheus.example.org/prefix
    user: sluice
    password: {file: prometheus.password}
  token: {url: "http://p:9090", bearer: {env: PROM_TOKEN}}
secrets:
  mongo-user: {env: MONGO_USER}
  "mongo-password": {file: /run/secrets/mongo}
images:
  mongo:6.0.1: ["${SLUICE_COMPANIONS}/ferretdb-a", --listen, "${SLUICE_COMPANIONS}"]
  shop: ./bin/shop
  shell: [sh, -c, "echo ${HOME}"]
server:
  listen: 127.0.0.1:8080
  externalURL: https://sluice.example.org/
  socketGroup: deployers
roles:
  alice: [dba, owner]
  bob: dba
`)
	want := &Config{
		Path: "/etc/sluice/sluice.yaml",
		Accounts: map[string]Account{
			"laptop":    {Name: "laptop", Kind: Local, Directory: "/etc/sluice/state/laptop"},
			"elsewhere": {Name: "elsewhere", Kind: Local, Directory: "/var/lib/elsewhere"},
			"cluster01": {Name: "cluster01", Kind: Kubernetes, Context: "prod", Kubeconfig: "/etc/sluice/kube/config", Adopt: []string{"helm"},
				CopyAs: "system:serviceaccount:sluice-system:sluice-copier", RestoreAs: "somebody", Stream: "203.0.113.7",
				Jobs: Jobs{Image: "registry.example.org/sluice:1",
					Limits:      corev1.ResourceList{"cpu": resource.MustParse("500m"), "memory": resource.MustParse("512Mi")},
					Tolerations: []corev1.Toleration{{Key: "dedicated", Operator: "Equal", Value: "databases", Effect: "NoSchedule"}}, Parallelism: 8}},
		},
		MetricProviders: map[string]MetricProvider{
			"plain": {Name: "plain", Kind: Prometheus, URL: "http://127.0.0.1:9090"},
			"guarded": {Name: "guarded", Kind: Prometheus, URL: "https://prometheus.example.org/prefix", User: "sluice",
				Password: &Source{File: "/etc/sluice/prometheus.password"}},
			"token": {Name: "token", Kind: Prometheus, URL: "http://p:9090", Bearer: &Source{Env: "PROM_TOKEN"}},
		},
		Secrets: map[string]Source{"mongo-user": {Env: "MONGO_USER"}, "mongo-password": {File: "/run/secrets/mongo"}},
		Images: map[string][]string{
			"mongo:6.0.1": {"/opt/companions/ferretdb-a", "--listen", "/opt/companions"},
			"shop":        {"/etc/sluice/bin/shop"},
			"shell":       {"sh", "-c", "echo ${HOME}"},
		},
		Server: Server{Listen: "127.0.0.1:8080", ExternalURL: "https://sluice.example.org", SocketGroup: "deployers"},
		Roles:  map[string][]string{"alice": {"dba", "owner"}, "bob": {"dba"}},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("read\n%+v\nnot\n%+v", c, want)
	}
}

// Anchors are YAML's way of saying a thing once.
func TestParseAnchors(t *testing.T) {
	c := parse(t, "secrets:\n  a: &s {env: TOKEN}\n  b: *s\n")
	if c.Secrets["a"] != (Source{Env: "TOKEN"}) || c.Secrets["b"] != c.Secrets["a"] {
		t.Errorf("read %+v", c.Secrets)
	}
}

func TestParseNothing(t *testing.T) {
	for _, body := range []string{"", "# nothing yet\n", "---\n", "secrets:\nimages: {}\n"} {
		c := parse(t, body)
		if a, err := c.Account("local"); err != nil || a.Kind != Local {
			t.Errorf("%q: the account local is %+v, %v", body, a, err)
		}
	}
}

// A program that is beside the running one is preferred, so that a copied folder works wherever it is.
func TestCompanionsBesideTheProgram(t *testing.T) {
	t.Setenv("SLUICE_COMPANIONS", "/opt/companions")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := parse(t, `images: {self: "${SLUICE_COMPANIONS}/`+filepath.Base(self)+`"}`)
	if got := c.Images["self"][0]; got != self {
		t.Errorf("the command is %s, not %s", got, self)
	}
}

// Each file of testdata/bad holds a configuration that is refused, and beside it what is said about it.
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no bad files:", err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			body, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse(filepath.Base(f), body)
			if err == nil {
				t.Fatal("it is accepted")
			}
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("the error is of kind %q", fault.KindOf(err))
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Error("the message repeats a secret")
			}
			golden(t, strings.TrimSuffix(f, ".yaml")+".golden", err.Error()+"\n")
		})
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nnot\n%s", path, got, want)
	}
}

func TestLoadSearches(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	home := filepath.Join(dir, "home")
	t.Setenv("XDG_CONFIG_HOME", home)
	t.Setenv("SLUICE_CONFIG", "")
	write := func(path, user string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("roles: {"+user+": [owner]}\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	load := func(explicit, wantUser, wantPath string) {
		t.Helper()
		c, err := Load(explicit)
		if err != nil {
			t.Fatal(err)
		}
		if c.Path != wantPath || wantUser != "" && !reflect.DeepEqual(c.RolesOf(wantUser), []string{Owner}) {
			t.Errorf("loaded %q with roles %v, not %q with %s", c.Path, c.Roles, wantPath, wantUser)
		}
	}
	load("", "", "")
	write(filepath.Join(home, "sluice", "sluice.yaml"), "fromhome")
	load("", "fromhome", filepath.Join(home, "sluice", "sluice.yaml"))
	write("sluice.yaml", "fromhere")
	load("", "fromhere", "sluice.yaml")
	write("other/env.yaml", "fromenv")
	t.Setenv("SLUICE_CONFIG", "other/env.yaml")
	load("", "fromenv", "other/env.yaml")
	write("other/flag.yaml", "fromflag")
	load("other/flag.yaml", "fromflag", "other/flag.yaml")
}

func TestLoadNamedMustExist(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("SLUICE_CONFIG", "missing.yaml")
	for _, explicit := range []string{"", "also-missing.yaml"} {
		if _, err := Load(explicit); !fault.Is(err, fault.NotFound) {
			t.Errorf("Load(%q) is %v", explicit, err)
		}
	}
}

func TestSecret(t *testing.T) {
	dir := t.TempDir()
	write := func(name, body string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	t.Setenv("SLUICE_TEST_SECRET", "from the environment")
	t.Setenv("SLUICE_TEST_EMPTY", "")
	c := Default()
	c.Secrets = map[string]Source{
		"env":       {Env: "SLUICE_TEST_SECRET"},
		"file":      {File: write("secret", "from a file\r\n")},
		"unset":     {Env: "SLUICE_TEST_NOT_SET"},
		"empty":     {Env: "SLUICE_TEST_EMPTY"},
		"emptyfile": {File: write("empty", "\n")},
		"nofile":    {File: filepath.Join(dir, "nofile")},
	}
	for name, want := range map[string]string{"env": "from the environment", "file": "from a file"} {
		if got, err := c.Secret(name); err != nil || got != want {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
	for name, want := range map[string]string{
		"unset":     "secret unset: environment variable SLUICE_TEST_NOT_SET is not set",
		"empty":     "secret empty: environment variable SLUICE_TEST_EMPTY is empty",
		"emptyfile": "secret emptyfile: file " + filepath.Join(dir, "empty") + " is empty",
		"nofile":    "secret nofile: read the file of the secret",
		"fil":       `there is no secret named "fil" (did you mean file?`,
		"quite":     `there is no secret named "quite" (configured are empty, emptyfile, env, file, nofile, unset: add it under secrets: in sluice.yaml`,
	} {
		if _, err := c.Secret(name); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, not %s", name, err, want)
		}
	}
}

func TestLookups(t *testing.T) {
	c := parse(t, `
accounts: {here: {kind: local}, cluster01: {kind: kubernetes, context: c}}
metricProviders: {prod-prometheus: {url: "http://p:9090"}}
`)
	if a, err := c.Account("cluster01"); err != nil || a.Context != "c" {
		t.Error("a cluster:", a, err)
	}
	if _, err := c.Account("her"); err == nil || !strings.Contains(err.Error(), "did you mean here?") {
		t.Error("a misspelt account:", err)
	}
	if _, err := c.Account("local"); !fault.Is(err, fault.NotFound) {
		t.Error("the default account beside configured ones:", err)
	}
	if p, err := c.MetricProvider(""); err != nil || p.Name != "prod-prometheus" {
		t.Error("the only provider:", p, err)
	}
	if _, err := c.MetricProvider("prod-promethus"); err == nil || !strings.Contains(err.Error(), "did you mean prod-prometheus?") {
		t.Error("a misspelt provider:", err)
	}
	if _, err := Default().MetricProvider(""); err == nil || !strings.Contains(err.Error(), "none is configured: add it under metricProviders:") {
		t.Error("no provider:", err)
	}
}

func TestClosest(t *testing.T) {
	words := []string{"accounts", "images", "metricProviders", "roles", "secrets", "server"}
	for word, want := range map[string]string{"acounts": "accounts", "metricproviders": "metricProviders", "Secret": "secrets", "rolls": "roles", "x": "", "whatever": ""} {
		if got := closest(word, words); got != want {
			t.Errorf("%s is taken for %q, not %q", word, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/bad/*.yaml")
	for _, name := range files {
		if body, err := os.ReadFile(name); err == nil {
			f.Add(body)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := Parse("sluice.yaml", body)
		if (c == nil) != (err != nil) {
			t.Errorf("a configuration and an error: %v, %v", c, err)
		}
	})
}

// TestWhoHasWhoseSnapshots: one account with a storage of its own is apart from all others, and must be reached by what is streamed.
func TestWhoHasWhoseSnapshots(t *testing.T) {
	c := parse(t, `
accounts:
  a: {kind: kubernetes, context: a}
  b: {kind: kubernetes, context: b}
  own: {kind: kubernetes, context: c, stream: nodes.example.org}
  cloud: {kind: kubernetes, context: d, stream: loadBalancer}
`)
	for _, x := range []struct {
		from, to, why string
		reached       bool
	}{{"a", "b", "", true}, {"own", "own", "", true}, {"a", "own", "account own has a storage of its own", true}, {"own", "a", "account own has a storage of its own", false},
		{"own", "cloud", "account cloud has a storage of its own", true}} {
		if why, err := c.Apart(x.from, x.to), c.Streamed(x.from, x.to); why != x.why || (err == nil) != x.reached {
			t.Errorf("from %s to %s: %q, %v", x.from, x.to, why, err)
		}
	}
	for _, wrong := range []string{"10.0.0.1:30000", "https://host", "''"} {
		if _, err := Parse("x", []byte("accounts: {a: {kind: kubernetes, stream: "+wrong+"}}")); err == nil {
			t.Errorf("stream %s is taken", wrong)
		}
	}
}
