package local

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/user"
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
	"github.com/sluice-cd/sluice/internal/volume/reflink"
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
	c := x.template.Spec.Containers[0]
	home := filepath.Join(x.n.dir, "pods", x.namespace, x.pod)
	s := podSpec{name: x.namespace + "/" + x.pod, owner: owner, hash: x.r.hash(x.template), track: track, container: c,
		labels: x.template.Labels, grace: 30 * time.Second, address: x.n.state.address(x.n.dir, "pod/"+x.namespace+"/"+x.pod),
		revision: x.r.Annotate[replicaSetAnnotation]}
	if g := x.template.Spec.TerminationGracePeriodSeconds; g != nil {
		s.grace = time.Duration(*g) * time.Second
	}
	if err := os.MkdirAll(home, 0o755); err != nil {
		return s, err
	}
	var err error
	if s.launch, err = x.launch(c, s, home, true); err != nil {
		return s, err
	}
	for i, c := range x.template.Spec.InitContainers {
		l, err := x.launch(c, s, home, false)
		if err != nil {
			return s, err
		}
		// A successor of the node does not take it for the pod itself.
		l.env = append(l.env, fmt.Sprintf("%s=%s/init-%d", markHash, s.hash, i))
		s.inits = append(s.inits, l)
	}
	return s, nil
}

// launch makes what is executed of a container.
func (x *expansion) launch(c corev1.Container, s podSpec, home string, main bool) (launch, error) {
	l := launch{dir: home, logFile: filepath.Join(x.n.dir, "logs", x.namespace, x.pod+".log")}
	var err error
	if l.cred, err = x.credential(c); err != nil {
		return l, err
	}
	mounts, err := x.mounts(c, home, l.cred)
	if err != nil {
		return l, err
	}
	env, err := x.env(c, s, home)
	if err != nil {
		return l, err
	}
	fix := func(v string) string { return x.n.hosts(x.namespace, confine(remount(v, mounts), s.address)) }
	for k, v := range env {
		env[k] = fix(v)
	}
	for path, to := range mounts {
		env["SLUICE_MOUNT_"+envName(path)] = to
	}
	if l.argv, err = x.command(c, main); err != nil {
		return l, err
	}
	for i, a := range l.argv {
		l.argv[i] = fix(expand(a, env))
	}
	if c.WorkingDir != "" {
		l.dir = remount(c.WorkingDir, mounts)
	}
	env[markNode], env[markPod] = x.n.dir, s.name
	if main {
		env[markHash] = s.hash
	}
	for _, k := range slices.Sorted(maps.Keys(env)) {
		l.env = append(l.env, k+"="+env[k])
	}
	l.inside = func(v string) string { return fix(expand(v, env)) }
	if l.cred == nil {
		return l, nil
	}
	return l, x.hand(l.cred, append(slices.Collect(maps.Values(mounts)), home))
}

// hand makes directories belong to the user who runs in them, and checks that this user gets there.
func (x *expansion) hand(to *syscall.Credential, dirs []string) error {
	for _, d := range dirs {
		if err := os.Chown(d, int(to.Uid), int(to.Gid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for d := x.n.dir; d != "/"; d = filepath.Dir(d) {
		i, err := os.Stat(d)
		if err != nil {
			return err
		}
		if i.Mode().Perm()&0o001 == 0 {
			return fault.WithRemedy(fault.Newf(fault.Denied, "%s: %s runs as user %d, who cannot pass through %s (%v)", x.r.Object.Origin, x.r.Object.Ref(), to.Uid, d, i.Mode()),
				"keep the account's directory where every user may pass, such as below /var/lib, or chmod o+x %s", d)
		}
	}
	return nil
}

// credential is the user that a container asks for. Only root can become one; everybody else runs pods as themselves.
func (x *expansion) credential(c corev1.Container) (*syscall.Credential, error) {
	var uid, gid *int64
	if p := x.template.Spec.SecurityContext; p != nil {
		uid, gid = p.RunAsUser, p.RunAsGroup
	}
	if s := c.SecurityContext; s != nil {
		if s.RunAsUser != nil {
			uid = s.RunAsUser
		}
		if s.RunAsGroup != nil {
			gid = s.RunAsGroup
		}
	}
	if uid == nil || os.Geteuid() != 0 || *uid == 0 {
		return nil, nil
	}
	cred := &syscall.Credential{Uid: uint32(*uid), Gid: uint32(*uid)}
	if gid != nil {
		cred.Gid = uint32(*gid)
	} else if u, err := user.LookupId(strconv.FormatInt(*uid, 10)); err == nil {
		own, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("the group of user %s: %w", u.Username, err)
		}
		cred.Gid = uint32(own)
	}
	return cred, nil
}

// command is what the container runs: its own command, or what the image is mapped to.
func (x *expansion) command(c corev1.Container, main bool) ([]string, error) {
	argv := slices.Clone(c.Command)
	if len(argv) == 0 {
		argv = slices.Clone(x.n.image(c.Image))
	}
	if len(argv) == 0 {
		return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "%s: container %s of %s has no command, and image %q is not mapped to one",
			x.r.Object.Origin, c.Name, x.r.Object.Ref(), c.Image), "add command: to the container, or map the image under images: in sluice.yaml")
	}
	argv = append(argv, c.Args...)
	if q := x.r.Quarantine; q != nil && main {
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
func (x *expansion) mounts(c corev1.Container, dir string, as *syscall.Credential) (map[string]string, error) {
	at := map[string]string{}
	for _, m := range c.VolumeMounts {
		from, err := x.volume(m.Name, dir, as)
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

func (x *expansion) volume(name, dir string, as *syscall.Credential) (string, error) {
	for _, v := range x.template.Spec.Volumes {
		if v.Name != name {
			continue
		}
		own := filepath.Join(dir, "volumes", name)
		switch {
		case v.PersistentVolumeClaim != nil:
			return x.n.claim(x.namespace, x.claimName(v.PersistentVolumeClaim.ClaimName))
		case v.ConfigMap != nil:
			return own, x.files("ConfigMap", v.ConfigMap.Name, own, as)
		case v.Secret != nil:
			return own, x.files("Secret", v.Secret.SecretName, own, as)
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
	if err := os.MkdirAll(filepath.Dir(d), 0o755); err != nil {
		return "", err
	}
	if err := reflink.MakeVolume(d); err != nil {
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

// files writes the keys of a ConfigMap or a Secret as files that only the pod's user may read, and removes those of keys
// that are gone.
func (x *expansion) files(kind, name, dir string, as *syscall.Credential) error {
	values, err := x.values(kind, name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for k, v := range values {
		path := filepath.Join(dir, filepath.Base(k))
		if err := os.WriteFile(path, []byte(v), 0o600); err != nil {
			return err
		}
		if as != nil {
			if err := os.Chown(path, int(as.Uid), int(as.Gid)); err != nil {
				return err
			}
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range left {
		if _, ok := values[f.Name()]; !ok {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// env is the environment of the process: nothing is inherited but PATH and HOME.
func (x *expansion) env(c corev1.Container, s podSpec, home string) (map[string]string, error) {
	env := map[string]string{"PATH": os.Getenv("PATH"), "HOME": home, "POD_IP": s.address, "HOSTNAME": x.pod}
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
		kind, name, optional := "ConfigMap", "", (*bool)(nil)
		if e.SecretRef != nil {
			kind, name, optional = "Secret", e.SecretRef.Name, e.SecretRef.Optional
		} else if e.ConfigMapRef != nil {
			name, optional = e.ConfigMapRef.Name, e.ConfigMapRef.Optional
		}
		values, err := x.values(kind, name)
		if err != nil && !(optional != nil && *optional && fault.Is(err, fault.NotFound)) {
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
		switch field(f.FieldRef.FieldPath) {
		case "status.podIP", "status.hostIP":
			return s.address, nil
		case "metadata.name":
			return x.pod, nil
		case "metadata.namespace":
			return x.namespace, nil
		}
		return "", fault.Newf(fault.Invalid, "%s: env %s of %s: field %s is not known here", x.r.Object.Origin, e.Name, x.r.Object.Ref(), f.FieldRef.FieldPath)
	case f.ConfigMapKeyRef != nil:
		return x.key("ConfigMap", f.ConfigMapKeyRef.Name, f.ConfigMapKeyRef.Key, f.ConfigMapKeyRef.Optional)
	case f.SecretKeyRef != nil:
		return x.key("Secret", f.SecretKeyRef.Name, f.SecretKeyRef.Key, f.SecretKeyRef.Optional)
	}
	return "", nil
}

// key returns one key of a ConfigMap or a Secret. One that is missing is an error unless it may be.
func (x *expansion) key(kind, name, key string, optional *bool) (string, error) {
	may := optional != nil && *optional
	values, err := x.values(kind, name)
	if may && fault.Is(err, fault.NotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	v, ok := values[key]
	if !ok && !may {
		return "", fault.Newf(fault.NotFound, "%s: %s names key %s of %s %s, which has no such key", x.r.Object.Origin, x.r.Object.Ref(), key, kind, name)
	}
	return v, nil
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

// remount replaces mount paths by the directories that stand for them, longest first, where they are whole paths or lead
// on to one.
func remount(s string, mounts map[string]string) string {
	paths := slices.SortedFunc(maps.Keys(mounts), func(a, b string) int { return len(b) - len(a) })
	part := func(c byte) bool {
		return c == '_' || c == '-' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
	}
	var out strings.Builder
next:
	for i := 0; i < len(s); {
		if s[i] == '/' && (i == 0 || !part(s[i-1]) && s[i-1] != '/') {
			for _, p := range paths {
				rest, ok := strings.CutPrefix(s[i:], p)
				if ok && p != "" && (rest == "" || !part(rest[0])) {
					out.WriteString(mounts[p])
					i += len(p)
					continue next
				}
			}
		}
		out.WriteByte(s[i])
		i++
	}
	return out.String()
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

var everyAddress = regexp.MustCompile(`(^|[^\w.])0\.0\.0\.0($|[^\w./])`)

// confine replaces 0.0.0.0 by the pod's own address: in a pod it means all addresses of the pod, on this machine those of all
// pods.
func confine(s, address string) string {
	return everyAddress.ReplaceAllString(s, "${1}"+address+"${2}")
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
		re := regexp.MustCompile(`(^|[^/]//|[^\w./-])` + regexp.QuoteMeta(r.Object.GetName()) +
			`((?:\.` + regexp.QuoteMeta(ns) + `(?:\.svc(?:\.cluster\.local)?)?)` + optional + `)(:\d+)?($|[^\w.-])`)
		address := func(m string) string {
			g := re.FindStringSubmatch(m)
			if g[3] == "" && g[1] != "@" && !strings.HasSuffix(g[1], "//") {
				return m
			}
			port := g[3]
			for _, p := range servicePorts(r.Object) {
				if port == ":"+strconv.Itoa(p.port) {
					port = ":" + strconv.Itoa(p.listen)
				}
			}
			return g[1] + n.state.address(n.dir, k) + port + g[4]
		}
		// Twice, because of two names with one comma between them the second is met only when the first is gone.
		s = re.ReplaceAllStringFunc(re.ReplaceAllStringFunc(s, address), address)
	}
	return s
}
