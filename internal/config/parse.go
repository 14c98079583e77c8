package config

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Parse reads a configuration. Relative paths in it are relative to its folder. The error names everything that is wrong,
// one line each, with file, line and column.
func Parse(path string, body []byte) (*Config, error) {
	full, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	c := Default()
	c.Path = path
	r := &reader{path: path, folder: filepath.Dir(full)}
	root := r.document(body)
	r.keys(root, "sluice.yaml", map[string]func(ast.Node){
		"accounts": func(n ast.Node) {
			c.Accounts = map[string]Account{}
			r.entries(n, "accounts", func(name string, n ast.Node) { c.Accounts[name] = r.account(name, n) })
		},
		"metricProviders": func(n ast.Node) {
			r.entries(n, "metricProviders", func(name string, n ast.Node) { c.MetricProviders[name] = r.provider(name, n) })
		},
		"secrets": func(n ast.Node) {
			r.entries(n, "secrets", func(name string, n ast.Node) { c.Secrets[name] = r.source(n, "secret "+name) })
		},
		"images": func(n ast.Node) {
			r.entries(n, "images", func(name string, n ast.Node) { c.Images[name] = r.command(n, "image "+name) })
		},
		"server":     func(n ast.Node) { c.Server = r.server(n) },
		"controller": func(n ast.Node) { c.Controller = r.controller(n) },
		"roles": func(n ast.Node) {
			r.entries(n, "roles", func(user string, n ast.Node) { c.Roles[user] = r.list(n, "the roles of "+user) })
		},
		"notifications": func(n ast.Node) { r.wrong(n, "", "notifications are not built yet") },
	})
	if err := r.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func (r *reader) controller(n ast.Node) Controller {
	c := Controller{Namespace: "sluice"}
	r.keys(n, "controller", map[string]func(ast.Node){
		"account":   func(n ast.Node) { c.Account = r.text(n, "account") },
		"namespace": func(n ast.Node) { c.Namespace = r.text(n, "namespace") },
	})
	if c.Account == "" {
		r.wrong(n, "write account: and the name of the cluster that it runs in", "controller names no account")
	}
	return c
}

func (r *reader) account(name string, n ast.Node) Account {
	a := Account{Name: name}
	var directory, context, kubeconfig, adopt, jobs, copyAs, restoreAs, stream ast.Node
	ok := r.keys(n, "account "+name, map[string]func(ast.Node){
		"kind":       func(n ast.Node) { a.Kind = r.oneOf(n, "kind", Local, Kubernetes) },
		"directory":  func(n ast.Node) { directory, a.Directory = n, r.file(n, "directory") },
		"context":    func(n ast.Node) { context, a.Context = n, r.text(n, "context") },
		"kubeconfig": func(n ast.Node) { kubeconfig, a.Kubeconfig = n, r.file(n, "kubeconfig") },
		"adopt":      func(n ast.Node) { adopt, a.Adopt = n, r.list(n, "adopt") },
		"jobs":       func(n ast.Node) { jobs, a.Jobs = n, r.jobs(name, n) },
		"copyAs":     func(n ast.Node) { copyAs, a.CopyAs = n, r.text(n, "copyAs") },
		"restoreAs":  func(n ast.Node) { restoreAs, a.RestoreAs = n, r.text(n, "restoreAs") },
		"stream":     func(n ast.Node) { stream, a.Stream = n, r.host(n, "stream") },
	})
	if a.Kind == "" {
		switch {
		case context != nil, kubeconfig != nil:
			a.Kind = Kubernetes
		case directory != nil:
			a.Kind = Local
		case ok:
			r.wrong(n, "write kind: local or kind: kubernetes", "account %s has no kind", name)
		}
	}
	if a.Kind == Kubernetes && directory != nil {
		r.wrong(directory, "", "account %s is a Kubernetes cluster and has no directory", name)
	}
	for _, k := range []ast.Node{context, kubeconfig, adopt, jobs, copyAs, restoreAs, stream} {
		if a.Kind == Local && k != nil {
			r.wrong(k, "", "account %s is local: only a Kubernetes cluster has context, kubeconfig, adopt, jobs, copyAs, restoreAs and stream", name)
		}
	}
	return a
}

// host reads a host without a port.
func (r *reader) host(n ast.Node, what string) string {
	h := r.text(n, what)
	if h == "" || strings.ContainsAny(h, "/ ") || strings.Contains(h, ":") && net.ParseIP(h) == nil {
		r.wrong(n, "write the name or the address of a host, without a port, or "+LoadBalancer, "%s is %q", what, h)
	}
	return h
}

// jobs reads how Sluice's own pods run.
func (r *reader) jobs(account string, n ast.Node) Jobs {
	var j Jobs
	r.keys(n, "jobs of account "+account, map[string]func(ast.Node){
		"image": func(n ast.Node) { j.Image = r.text(n, "image") },
		"limits": func(n ast.Node) {
			j.Limits = corev1.ResourceList{}
			r.entries(n, "limits", func(name string, n ast.Node) {
				q, err := resource.ParseQuantity(r.text(n, name))
				if err != nil {
					r.wrong(n, "write 500m for half a CPU, 512Mi for memory", "%s is no quantity", name)
				}
				j.Limits[corev1.ResourceName(name)] = q
			})
		},
		"parallelism": func(n ast.Node) {
			var err error
			if j.Parallelism, err = strconv.Atoi(r.text(n, "parallelism")); err != nil || j.Parallelism < 1 {
				r.wrong(n, "write a number from 1 on, which is how many pods read a large database at a time", "parallelism is no such number")
			}
		},
		"tolerations": func(n ast.Node) {
			s, ok := r.resolve(n).(*ast.SequenceNode)
			if !ok {
				r.wrong(n, "write a list, as pods have it", "tolerations is %s, not a list", kindOf(n))
				return
			}
			for _, v := range s.Values {
				j.Tolerations = append(j.Tolerations, r.toleration(v))
			}
		},
	})
	return j
}

func (r *reader) toleration(n ast.Node) corev1.Toleration {
	var t corev1.Toleration
	r.keys(n, "toleration", map[string]func(ast.Node){
		"key":      func(n ast.Node) { t.Key = r.text(n, "key") },
		"operator": func(n ast.Node) { t.Operator = corev1.TolerationOperator(r.oneOf(n, "operator", "Equal", "Exists")) },
		"value":    func(n ast.Node) { t.Value = r.text(n, "value") },
		"effect": func(n ast.Node) {
			t.Effect = corev1.TaintEffect(r.oneOf(n, "effect", "NoSchedule", "PreferNoSchedule", "NoExecute"))
		},
	})
	return t
}

func (r *reader) provider(name string, n ast.Node) MetricProvider {
	p := MetricProvider{Name: name, Kind: Prometheus}
	secret := func(to **Source, what string) func(ast.Node) {
		return func(n ast.Node) {
			s := r.source(n, "the "+what+" of metric provider "+name)
			*to = &s
		}
	}
	ok := r.keys(n, "metric provider "+name, map[string]func(ast.Node){
		"kind":     func(n ast.Node) { p.Kind = r.oneOf(n, "kind", Prometheus) },
		"url":      func(n ast.Node) { p.URL = r.url(n, "url") },
		"user":     func(n ast.Node) { p.User = r.text(n, "user") },
		"password": secret(&p.Password, "password"),
		"bearer":   secret(&p.Bearer, "bearer"),
	})
	switch {
	case !ok:
	case p.URL == "":
		r.wrong(n, "write url: http://HOST:PORT", "metric provider %s has no url", name)
	case p.Password != nil && p.Bearer != nil:
		r.wrong(n, "", "metric provider %s has a password and a bearer: it can use one of them", name)
	case (p.User == "") != (p.Password == nil):
		r.wrong(n, "", "metric provider %s has one of user and password: both are needed", name)
	}
	return p
}

// source reads where a secret is. A secret that stands here itself is refused without being repeated.
func (r *reader) source(n ast.Node, what string) Source {
	var s Source
	switch r.resolve(n).(type) {
	case *ast.AliasNode:
		r.wrong(n, "", "%s is an alias of nothing", what)
		return s
	case ast.ScalarNode:
		r.wrong(n, "write {env: NAME} or {file: PATH}", "%s must not stand here itself", what)
		return s
	}
	ok := r.keys(n, what, map[string]func(ast.Node){
		"env":  func(n ast.Node) { s.Env = r.text(n, "env") },
		"file": func(n ast.Node) { s.File = r.file(n, "file") },
	})
	if ok && (s.Env == "") == (s.File == "") {
		r.wrong(n, "write {env: NAME} or {file: PATH}", "%s needs exactly one of env and file", what)
	}
	return s
}

func (r *reader) server(n ast.Node) Server {
	var s Server
	r.keys(n, "server", map[string]func(ast.Node){
		"listen": func(n ast.Node) {
			s.Listen = r.text(n, "listen")
			if _, _, err := net.SplitHostPort(s.Listen); err != nil {
				r.wrong(n, "write HOST:PORT, such as 127.0.0.1:8080", "listen is %q", s.Listen)
			}
		},
		"socketGroup": func(n ast.Node) { s.SocketGroup = r.text(n, "socketGroup") },
		"externalURL": func(n ast.Node) { s.ExternalURL = strings.TrimRight(r.url(n, "externalURL"), "/") },
	})
	return s
}

func (r *reader) url(n ast.Node, what string) string {
	v := r.text(n, what)
	u, err := url.Parse(v)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		// The value is not repeated: it may hold a password.
		r.wrong(n, "write http://HOST:PORT", "%s is not an HTTP address", what)
	case u.User != nil:
		r.wrong(n, "write user: and password: {env: NAME} beside it", "%s holds credentials", what)
	}
	return v
}

// companions stands in commands for the folder of the programs that come with Sluice.
const companions = "${SLUICE_COMPANIONS}"

// command reads the command that an image means on this machine.
func (r *reader) command(n ast.Node, what string) []string {
	before := len(r.found)
	list := r.list(n, what)
	for i, arg := range list {
		if rest, ok := strings.CutPrefix(arg, companions); ok {
			list[i] = Companion(rest)
		} else if i == 0 && strings.ContainsRune(arg, filepath.Separator) {
			list[i] = r.absolute(arg)
		}
	}
	if len(list) == 0 && len(r.found) == before {
		r.wrong(n, "write [PROGRAM, ARGUMENT…]", "%s has no command", what)
	}
	return list
}

// Companion returns where a program of the companions is, which is named with a leading /: beside this program, else where
// $SLUICE_COMPANIONS says.
func Companion(rest string) string {
	var beside string
	if self, err := os.Executable(); err == nil {
		beside = filepath.Dir(self) + rest
		if i, err := os.Stat(beside); err == nil && !i.IsDir() {
			return beside
		}
	}
	if dir := os.Getenv("SLUICE_COMPANIONS"); dir != "" {
		return dir + rest
	}
	return beside
}
