package local

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// expansion turns a pod template into the command, environment and files of one process.
type expansion struct {
	n         *node
	r         *record
	namespace string
	pod       string // its name
	template  corev1.PodTemplateSpec
}

// hash names what a pod of this record is made of; a pod of another hash is replaced.
func (r *record) hash(t corev1.PodTemplateSpec) string {
	body, _ := json.Marshal([]any{t.Spec, t.Labels, r.Env, r.Annotate, r.Quarantine, r.Claims})
	return fmt.Sprintf("%x", sha256.Sum256(body))[:8]
}

// spec makes the pod. What is refused is a pod that cannot start; the reason stands in refused.
func (x *expansion) spec(track platform.Track, owner string) (podSpec, error) {
	var s podSpec
	if len(x.template.Spec.Containers) == 0 {
		return s, fault.Newf(fault.Invalid, "%s: %s has no container", x.r.Object.Origin, x.r.Object.Ref())
	}
	c := x.template.Spec.Containers[0]
	dir := filepath.Join(x.n.dir, "pods", x.namespace, x.pod)
	s = podSpec{name: x.namespace + "/" + x.pod, owner: owner, hash: x.r.hash(x.template), track: track, container: c, dir: dir,
		labels: x.template.Labels, logFile: filepath.Join(x.n.dir, "logs", x.namespace, x.pod+".log"), grace: 30 * time.Second,
		address: x.n.state.address(x.n.dir, "pod/"+x.namespace+"/"+x.pod), revision: x.r.Annotate["deploy.armory.io/replica-set-name"]}
	if g := x.template.Spec.TerminationGracePeriodSeconds; g != nil {
		s.grace = time.Duration(*g) * time.Second
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return s, err
	}
	mounts, err := x.mounts(c, dir)
	if err != nil {
		return s, err
	}
	env, err := x.env(c, s)
	if err != nil {
		return s, err
	}
	fix := func(v string) string { return x.n.hosts(x.namespace, remount(expand(v, env), mounts)) }
	for k, v := range env {
		env[k] = fix(v)
	}
	for path, to := range mounts {
		env["SLUICE_MOUNT_"+envName(path)] = to
	}
	if s.argv, err = x.command(c); err != nil {
		return s, err
	}
	for i, a := range s.argv {
		s.argv[i] = fix(a)
	}
	env[markNode], env[markPod], env[markHash] = x.n.dir, s.name, s.hash
	for _, k := range slices.Sorted(maps.Keys(env)) {
		s.env = append(s.env, k+"="+env[k])
	}
	s.cred = x.credential(c)
	if s.cred != nil {
		for _, d := range append(slices.Collect(maps.Values(mounts)), dir) {
			_ = os.Chown(d, int(s.cred.Uid), int(s.cred.Gid))
		}
	}
	return s, nil
}

func (x *expansion) credential(c corev1.Container) *syscall.Credential {
	var user *int64
	if p := x.template.Spec.SecurityContext; p != nil {
		user = p.RunAsUser
	}
	if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
		user = c.SecurityContext.RunAsUser
	}
	if user == nil || os.Geteuid() != 0 || *user == 0 {
		return nil
	}
	return &syscall.Credential{Uid: uint32(*user), Gid: uint32(*user)}
}

// command is what the container runs: its own command, or what the image is mapped to.
func (x *expansion) command(c corev1.Container) ([]string, error) {
	argv := slices.Clone(c.Command)
	if len(argv) == 0 {
		argv = slices.Clone(x.n.image(c.Image))
	}
	if len(argv) == 0 {
		return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "%s: container %s of %s has no command, and image %q is not mapped to one",
			x.r.Object.Origin, c.Name, x.r.Object.Ref(), c.Image), "add command: to the container, or map the image under images: in sluice.yaml")
	}
	argv = append(argv, c.Args...)
	if q := x.r.Quarantine; q != nil {
		argv = append(argv, q.Args...)
	}
	return argv, nil
}

// image returns the command that an image is mapped to: by its whole name, else without its tag.
func (n *node) image(name string) []string {
	if c, ok := n.state.Images[name]; ok {
		return c
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return n.state.Images[name[:i]]
	}
	return nil
}

// mounts makes the volumes and returns which directory stands for each mount path.
func (x *expansion) mounts(c corev1.Container, dir string) (map[string]string, error) {
	at := map[string]string{}
	for _, m := range c.VolumeMounts {
		from, err := x.volume(m.Name, dir)
		if err != nil {
			return nil, err
		}
		at[strings.TrimRight(m.MountPath, "/")] = filepath.Join(from, m.SubPath)
		if err := os.MkdirAll(at[strings.TrimRight(m.MountPath, "/")], 0o755); err != nil && m.SubPath == "" {
			return nil, err
		}
	}
	return at, nil
}

func (x *expansion) volume(name, dir string) (string, error) {
	for _, v := range x.template.Spec.Volumes {
		if v.Name != name {
			continue
		}
		own := filepath.Join(dir, "volumes", name)
		switch {
		case v.PersistentVolumeClaim != nil:
			return x.n.claim(x.namespace, x.claimName(v.PersistentVolumeClaim.ClaimName))
		case v.ConfigMap != nil:
			return own, x.files("ConfigMap", v.ConfigMap.Name, own)
		case v.Secret != nil:
			return own, x.files("Secret", v.Secret.SecretName, own)
		case v.EmptyDir != nil:
			return own, os.MkdirAll(own, 0o755)
		}
		return "", fault.Newf(fault.Invalid, "%s: volume %s of %s is of a kind that processes cannot have", x.r.Object.Origin, name, x.r.Object.Ref())
	}
	// A StatefulSet's claim template.
	return x.n.claim(x.namespace, x.claimName(name+"-"+x.pod))
}

func (x *expansion) claimName(claim string) string {
	if other, ok := x.r.Claims[claim]; ok {
		return other
	}
	return claim
}

// claim returns the directory behind a claim, and makes one for a claim that has none.
func (n *node) claim(namespace, name string) (string, error) {
	k := namespace + "/" + name
	if d, ok := n.state.Claims[k]; ok {
		return d, nil
	}
	d := filepath.Join(n.dir, "volumes", namespace, name)
	if err := os.MkdirAll(d, 0o755); err != nil {
		return "", err
	}
	n.state.Claims[k] = d
	return d, n.state.save(n.dir)
}

// values returns the keys of a ConfigMap or a Secret.
func (x *expansion) values(kind, name string) (map[string]string, error) {
	r, ok := x.n.state.Objects[key(manifest.Ref{Kind: kind, Namespace: x.namespace, Name: name})]
	if !ok {
		return nil, fault.Newf(fault.NotFound, "%s: %s names %s %s, which does not exist in namespace %s", x.r.Object.Origin, x.r.Object.Ref(), kind, name, x.namespace)
	}
	out := map[string]string{}
	if kind == "ConfigMap" {
		var c corev1.ConfigMap
		if err := r.Object.Into(&c); err != nil {
			return nil, err
		}
		return c.Data, nil
	}
	data, _ := r.Object.Object["data"].(map[string]any)
	for k, v := range data {
		b, err := base64.StdEncoding.DecodeString(fmt.Sprint(v))
		if err != nil {
			return nil, fault.Newf(fault.Invalid, "%s: key %s of %s is not base64", r.Object.Origin, k, r.Object.Ref())
		}
		out[k] = string(b)
	}
	plain, _ := r.Object.Object["stringData"].(map[string]any)
	for k, v := range plain {
		out[k] = fmt.Sprint(v)
	}
	return out, nil
}

func (x *expansion) files(kind, name, dir string) error {
	values, err := x.values(kind, name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for k, v := range values {
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(k)), []byte(v), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// env is the environment of the process: nothing is inherited but PATH and HOME.
func (x *expansion) env(c corev1.Container, s podSpec) (map[string]string, error) {
	env := map[string]string{"PATH": os.Getenv("PATH"), "HOME": s.dir, "POD_IP": s.address, "HOSTNAME": x.pod}
	for k, r := range x.n.state.Objects {
		if r.Object.GetKind() == "Service" && r.Object.GetNamespace() == x.namespace {
			name := envName(r.Object.GetName())
			env[name+"_SERVICE_HOST"] = x.n.state.address(x.n.dir, k)
			if ports := servicePorts(r.Object); len(ports) > 0 {
				env[name+"_SERVICE_PORT"] = strconv.Itoa(ports[0].listen)
			}
		}
	}
	for _, e := range c.EnvFrom {
		kind, name := "ConfigMap", ""
		if e.SecretRef != nil {
			kind, name = "Secret", e.SecretRef.Name
		} else if e.ConfigMapRef != nil {
			name = e.ConfigMapRef.Name
		}
		values, err := x.values(kind, name)
		if err != nil {
			return nil, err
		}
		for k, v := range values {
			env[e.Prefix+k] = v
		}
	}
	for _, e := range c.Env {
		v, err := x.value(e, s)
		if err != nil {
			return nil, err
		}
		env[e.Name] = expand(v, env)
	}
	maps.Copy(env, x.r.Env)
	if q := x.r.Quarantine; q != nil {
		maps.Copy(env, q.Env)
	}
	return env, nil
}

func (x *expansion) value(e corev1.EnvVar, s podSpec) (string, error) {
	f := e.ValueFrom
	switch {
	case f == nil:
		return e.Value, nil
	case f.FieldRef != nil:
		switch f.FieldRef.FieldPath {
		case "status.podIP":
			return s.address, nil
		case "metadata.name":
			return x.pod, nil
		case "metadata.namespace":
			return x.namespace, nil
		}
		return "", fault.Newf(fault.Invalid, "%s: env %s of %s: field %s is not known here", x.r.Object.Origin, e.Name, x.r.Object.Ref(), f.FieldRef.FieldPath)
	case f.ConfigMapKeyRef != nil:
		v, err := x.values("ConfigMap", f.ConfigMapKeyRef.Name)
		return v[f.ConfigMapKeyRef.Key], err
	case f.SecretKeyRef != nil:
		v, err := x.values("Secret", f.SecretKeyRef.Name)
		return v[f.SecretKeyRef.Key], err
	}
	return "", nil
}

var variable = regexp.MustCompile(`\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)`)

// expand replaces $(NAME) as Kubernetes does: what is not known stays, $$(NAME) is $(NAME).
func expand(s string, env map[string]string) string {
	const escaped = "\x00"
	s = strings.ReplaceAll(s, "$$(", escaped)
	s = variable.ReplaceAllStringFunc(s, func(m string) string {
		if v, ok := env[m[2:len(m)-1]]; ok {
			return v
		}
		return m
	})
	return strings.ReplaceAll(s, escaped, "$(")
}

// remount replaces mount paths by the directories that stand for them, longest first, where they are whole paths.
func remount(s string, mounts map[string]string) string {
	paths := slices.SortedFunc(maps.Keys(mounts), func(a, b string) int { return len(b) - len(a) })
	for _, p := range paths {
		re := regexp.MustCompile(`(^|[=:,\s"'])` + regexp.QuoteMeta(p) + `($|[/:,\s"'])`)
		s = re.ReplaceAllStringFunc(s, func(m string) string { return strings.Replace(m, p, mounts[p], 1) })
	}
	return s
}

func envName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r - 32
		}
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.Trim(s, "/"))
}

// hosts replaces the names of Services by their addresses, where a name stands as a host: before a port, or after // or @.
func (n *node) hosts(namespace, s string) string {
	for k, r := range n.state.Objects {
		if r.Object.GetKind() != "Service" || !strings.Contains(s, r.Object.GetName()) {
			continue
		}
		ns := r.Object.GetNamespace()
		optional := ""
		if ns == namespace {
			optional = "?"
		}
		re := regexp.MustCompile(`(^|[^\w.-])` + regexp.QuoteMeta(r.Object.GetName()) +
			`((?:\.` + regexp.QuoteMeta(ns) + `(?:\.svc(?:\.cluster\.local)?)?)` + optional + `)(:\d+)?($|[^\w.-])`)
		s = re.ReplaceAllStringFunc(s, func(m string) string {
			g := re.FindStringSubmatch(m)
			if g[3] == "" && g[1] != "@" && g[1] != "/" {
				return m
			}
			port := g[3]
			for _, p := range servicePorts(r.Object) {
				if port == ":"+strconv.Itoa(p.port) {
					port = ":" + strconv.Itoa(p.listen)
				}
			}
			return g[1] + n.state.address(n.dir, k) + port + g[4]
		})
	}
	return s
}
