package manifest

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/fault"
)

var update = flag.Bool("update", false, "write the golden files")

// names returns what was read where.
func names(objects []Object) []string {
	var out []string
	for _, o := range objects {
		out = append(out, o.Origin+" "+o.Ref().String())
	}
	return out
}

func parse(t *testing.T, body string) []Object {
	t.Helper()
	objects, err := Parse("m.yaml", []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestParseDocuments(t *testing.T) {
	got := names(parse(t, `# Leading comments, and a document of nothing but comments.
---
# first

apiVersion: v1
kind: ConfigMap
metadata: {name: a, namespace: shop}
data:
  text: |
    ---- no separator
    --- nor this, which is indented
---   # a comment behind the separator
apiVersion: v1
kind: ConfigMap
metadata:
  name: b
...
---
{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
--- {apiVersion: v1, kind: ConfigMap, metadata: {name: d}}
---
%YAML 1.1
---
null
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: e}}
- apiVersion: v1
  kind: ConfigMapList
  items:
  - {apiVersion: v1, kind: ConfigMap, metadata: {name: f}}
---
`))
	want := []string{
		"m.yaml:5 shop/ConfigMap/a", "m.yaml:13 ConfigMap/b", "m.yaml:19 ConfigMap/c", "m.yaml:20 ConfigMap/d",
		"m.yaml:26 items[0] ConfigMap/e", "m.yaml:26 items[1] items[0] ConfigMap/f",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read\n%s\nnot\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Windows line ends and a file without a last newline.
func TestParseLineEnds(t *testing.T) {
	got := names(parse(t, "apiVersion: v1\r\nkind: ConfigMap\r\nmetadata: {name: a}\r\n---\r\napiVersion: v1\r\nkind: ConfigMap\r\nmetadata: {name: b}"))
	if want := []string{"m.yaml:1 ConfigMap/a", "m.yaml:5 ConfigMap/b"}; !reflect.DeepEqual(got, want) {
		t.Errorf("read %q", got)
	}
}

// The Kubernetes libraries panic or refuse where a whole number is a float, and kubectl reads YAML 1.1.
func TestParseNumbers(t *testing.T) {
	o := parse(t, `
apiVersion: v1
kind: X
metadata: {name: x}
spec: {whole: 3, large: 9007199254740993, real: 1.5, octal: 0644, yes: on, text: "3"}
`)[0]
	want := map[string]any{"whole": int64(3), "large": int64(9007199254740993), "real": 1.5, "octal": int64(420), "true": true, "text": "3"}
	if got := o.Object["spec"]; !reflect.DeepEqual(got, want) {
		t.Errorf("read %#v, not %#v", got, want)
	}
	body, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var back Object
	if err := json.Unmarshal(body, &back); err != nil || !reflect.DeepEqual(back, o) {
		t.Errorf("kept and read again it is %#v, %v", back, err)
	}
}

// Each file of testdata/bad holds manifests that are refused, and beside it what is said about them.
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
			objects, err := Parse(filepath.Base(f), body)
			if err == nil || !fault.Is(err, fault.Invalid) || objects != nil {
				t.Fatalf("it gives %d objects and the error %v", len(objects), err)
			}
			path, got := strings.TrimSuffix(f, ".yaml")+".golden", err.Error()+"\n"
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(path)
			if err != nil || got != string(want) {
				t.Errorf("got\n%s\nnot\n%s%v", got, want, err)
			}
		})
	}
}

func write(t *testing.T, path, body string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
}

func configMap(name string) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + "}\n"
}

func TestLoadFolder(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "m/b.yaml", configMap("b"))
	write(t, "m/a.yml", configMap("a"))
	write(t, "m/deep/er/c.yaml", configMap("c"))
	write(t, "m/README.md", "not one")
	write(t, "m/values.json", "{}")
	if err := os.Symlink("m", "link"); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"m", "m/", "link"} {
		objects, err := Load(folder, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		f := filepath.Clean(folder)
		want := []string{f + "/a.yml:1 ConfigMap/a", f + "/b.yaml:1 ConfigMap/b", f + "/deep/er/c.yaml:1 ConfigMap/c"}
		if got := names(objects); !reflect.DeepEqual(got, want) {
			t.Errorf("%s holds %q", folder, got)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "kustomized/kustomization.yaml", "resources: []\n")
	write(t, "kustomized/a.yaml", configMap("a"))
	write(t, "charts/shop/Chart.yaml", "name: shop\n")
	write(t, "empty/README.md", "nothing")
	write(t, "both/a.yaml", "kind: A\n")
	write(t, "both/b.yaml", "kind: B\n")
	for path, want := range map[string]struct {
		kind fault.Kind
		text string
	}{
		"kustomized":                  {fault.Invalid, "nothing renders here"},
		"charts":                      {fault.Invalid, "charts/shop is a Helm chart inside of a folder of manifests (name it with a path of its own)"},
		"https://example.org/m.yaml":  {fault.Invalid, "nothing is fetched over https"},
		"s3://bucket/m.yaml":          {fault.Invalid, "nothing is fetched over s3"},
		"empty":                       {fault.NotFound, "folder empty holds no .yaml or .yml file"},
		"missing.yaml":                {fault.NotFound, "missing.yaml does not exist"},
		"both":                        {fault.Invalid, "both/a.yaml:1: A has no apiVersion\nboth/b.yaml:1: B has no apiVersion"},
		"kustomized/a.yaml/below.yml": {"", "not a directory"},
	} {
		_, err := Load(path, "shop", func(string, string) ([]Rendered, error) {
			return nil, fault.Newf(fault.Invalid, "nothing renders here")
		})
		if err == nil || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v, not %s", path, err, want.text)
		}
		if path != "both" && fault.KindOf(err) != want.kind {
			t.Errorf("%s: the kind is %q", path, fault.KindOf(err))
		}
	}
}

// What a renderer makes is read with the names of its files, for the namespace that it is meant for.
func TestLoadRendered(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "chart/Chart.yaml", "name: shop\n")
	body := configMap("a")
	render := func(folder, namespace string) ([]Rendered, error) {
		if folder != "chart" || namespace != "shop" {
			t.Errorf("rendered is %s for %s", folder, namespace)
		}
		return []Rendered{{"chart/crds/d.yaml", configMap("d")}, {"chart/templates/a.yaml", body}}, nil
	}
	objects, err := Load("chart", "shop", render)
	if want := []string{"chart/crds/d.yaml (rendered):1 ConfigMap/d", "chart/templates/a.yaml (rendered):1 ConfigMap/a"}; err != nil || !reflect.DeepEqual(names(objects), want) {
		t.Errorf("it holds %q, %v", names(objects), err)
	}
	body = "kind: A\n"
	if _, err := Load("chart", "shop", render); err == nil || !strings.Contains(err.Error(), "chart/templates/a.yaml (rendered):1: A has no apiVersion") {
		t.Errorf("what was made is wrong: %v", err)
	}
}

// Relative paths lead to the workspace first, then to the folder of the deploy file; one with a leading / that does not
// exist was written for a workspace.
func TestFind(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write(t, "m/both.yaml", "")
	write(t, "deploy/m/both.yaml", "")
	write(t, "deploy/m/one.yaml", "")
	for _, c := range []struct {
		path, found string
		others      []string
	}{
		{"m/both.yaml", "m/both.yaml", []string{"deploy/m/both.yaml"}},
		{"m/one.yaml", "deploy/m/one.yaml", nil},
		{"/m/one.yaml", "deploy/m/one.yaml", nil},
		{"m/", "m", []string{"deploy/m"}},
		{filepath.Join(dir, "m/both.yaml"), filepath.Join(dir, "m/both.yaml"), nil},
	} {
		found, others, err := Find(c.path, ".", "deploy")
		if err != nil || found != c.found || !slices.Equal(others, c.others) {
			t.Errorf("%s is %s, %v, %v", c.path, found, others, err)
		}
	}
	if _, others, err := Find("m/both.yaml", ".", dir); err != nil || len(others) > 0 {
		t.Error("one folder by two names is one place:", others, err)
	}
	if _, _, err := Find("m/none.yaml", ".", "deploy"); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "neither in . nor in deploy") {
		t.Error("a missing one:", err)
	}
	if _, _, err := Find("http://x/y.yaml", "."); !fault.Is(err, fault.Invalid) {
		t.Error("a URL:", err)
	}
}

func object(kind, name string) Object {
	var o Object
	o.Object = map[string]any{"apiVersion": "v1", "kind": kind, "metadata": map[string]any{"name": name}}
	o.Origin = kind + "-" + name
	return o
}

func TestOrder(t *testing.T) {
	in := []Object{
		object("MongoDBCommunity", "custom"), object("Job", "j"), object("Deployment", "web"), object("StatefulSet", "db"), object("Service", "web"),
		object("Ingress", "i"), object("PersistentVolumeClaim", "p"), object("Secret", "s"), object("ConfigMap", "c"), object("RoleBinding", "rb"),
		object("Role", "r"), object("ServiceAccount", "sa"), object("CustomResourceDefinition", "crd"), object("Service", "db"), object("Namespace", "n"),
	}
	before := names(in)
	var got []string
	for _, o := range Order(in) {
		got = append(got, o.Ref().String())
	}
	want := []string{
		"Namespace/n", "CustomResourceDefinition/crd", "ServiceAccount/sa", "Role/r", "RoleBinding/rb", "Secret/s", "ConfigMap/c",
		"PersistentVolumeClaim/p", "Service/web", "Service/db", "Deployment/web", "StatefulSet/db", "Job/j", "MongoDBCommunity/custom", "Ingress/i",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the order is %q", got)
	}
	if !reflect.DeepEqual(names(in), before) {
		t.Error("the given objects were moved")
	}
}

func TestUnique(t *testing.T) {
	a, b := object("ConfigMap", "a"), object("ConfigMap", "a")
	b.SetNamespace("other")
	if err := Unique([]Object{a, b, object("Secret", "a"), object("ConfigMap", "b")}, ""); err != nil {
		t.Error("different objects:", err)
	}
	for _, objects := range [][]Object{{a, a}, {a, b}} {
		err := Unique(objects, "all in this one")
		if err == nil || !strings.Contains(err.Error(), "is declared at ConfigMap-a already") {
			t.Error("equal objects:", err)
		}
	}
}

func TestMountsAndSelects(t *testing.T) {
	objects := parse(t, `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  template:
    metadata: {labels: {app: db, tier: data}}
    spec:
      volumes:
      - {name: d, persistentVolumeClaim: {claimName: data}}
      - {name: c, configMap: {name: settings}}
      - {name: s, secret: {secretName: tls}}
      - name: p
        projected:
          sources: [{serviceAccountToken: {path: token}}, {configMap: {name: kube-root-ca.crt}}, {configMap: {name: tuning}}, {secret: {name: license}}, {secret: {name: tls}}]
      initContainers:
      - {name: i, envFrom: [{configMapRef: {name: init}}]}
      containers:
      - name: m
        envFrom: [{secretRef: {name: password}}, {configMapRef: {name: settings}}]
        env:
        - {name: A, value: plain}
        - {name: B, valueFrom: {secretKeyRef: {name: keys, key: k}}}
        - {name: C, valueFrom: {configMapKeyRef: {name: more, key: k}}}
---
{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {selector: {app: db}}}
---
{apiVersion: v1, kind: Service, metadata: {name: other}, spec: {selector: {app: web}}}
---
{apiVersion: v1, kind: Service, metadata: {name: bare}, spec: {}}
`)
	template, ok, err := objects[0].PodTemplate()
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	want := []Ref{{"PersistentVolumeClaim", "", "data"}, {"ConfigMap", "", "settings"}, {"Secret", "", "tls"}, {"ConfigMap", "", "tuning"}, {"Secret", "", "license"},
		{"ConfigMap", "", "init"}, {"Secret", "", "password"}, {"Secret", "", "keys"}, {"ConfigMap", "", "more"}}
	if got := Mounts(template.Spec); !reflect.DeepEqual(got, want) {
		t.Errorf("it mounts %v", got)
	}
	for i, want := range map[int]bool{0: false, 1: true, 2: false, 3: false} {
		if got := objects[i].Selects(template.Labels); got != want {
			t.Errorf("%s selects the pods: %v", objects[i].Ref(), got)
		}
	}
	if _, ok, err := objects[1].PodTemplate(); ok || err != nil {
		t.Error("a Service makes pods:", ok, err)
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
		objects, err := Parse("m.yaml", body)
		if err != nil && objects != nil {
			t.Error("objects and an error")
		}
		for _, o := range objects {
			if o.GetKind() == "" || o.GetName() == "" || o.Origin == "" {
				t.Errorf("an object without kind, name or origin: %v", o)
			}
		}
	})
}
