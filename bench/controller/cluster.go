package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"
)

// cluster is the administrator's way into the cluster.
type cluster struct {
	config *rest.Config
	dynamic.Interface
}

func connect(kubeconfig string) (cluster, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return cluster{}, err
	}
	config.QPS, config.UserAgent = -1, "bench"
	client, err := dynamic.NewForConfig(config)
	return cluster{config, client}, err
}

func resource(group, version, name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: name}
}

// make creates what a text says. What has no namespace leaves it empty.
func (c cluster) make(ctx context.Context, of schema.GroupVersionResource, namespace, text string, sub ...string) (*unstructured.Unstructured, error) {
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		return nil, err
	}
	return c.Resource(of).Namespace(namespace).Create(ctx, o, metav1.CreateOptions{}, sub...)
}

func namespace(side string) string { return "bench-" + side }

// user is the account of a side's controller, by which the audit log tells it from everybody else.
func user(side string) string {
	return "system:serviceaccount:" + namespace(side) + ":controller"
}

// account makes a side's namespace and an account that may do everything, as a pod would have one, and returns its
// kubeconfig.
func (c cluster) account(ctx context.Context, side, dir string) (string, error) {
	ns := namespace(side)
	accounts := resource("", "v1", "serviceaccounts")
	if _, err := c.make(ctx, resource("", "v1", "namespaces"), "", "{apiVersion: v1, kind: Namespace, metadata: {name: "+ns+"}}"); err != nil {
		return "", err
	}
	if _, err := c.make(ctx, accounts, ns, "{apiVersion: v1, kind: ServiceAccount, metadata: {name: controller}}"); err != nil {
		return "", err
	}
	_, err := c.make(ctx, bindings(), "", `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: `+ns+`},
		roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin},
		subjects: [{kind: ServiceAccount, namespace: `+ns+`, name: controller}]}`)
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", err
	}
	made, err := c.make(ctx, accounts, ns, "{apiVersion: authentication.k8s.io/v1, kind: TokenRequest, metadata: {name: controller}, spec: {expirationSeconds: 21600}}", "token")
	if err != nil {
		return "", err
	}
	token, _, _ := unstructured.NestedString(made.Object, "status", "token")
	path := filepath.Join(dir, side+".kubeconfig")
	return path, clientcmd.WriteToFile(api.Config{
		Clusters:       map[string]*api.Cluster{"c": {Server: c.config.Host, CertificateAuthority: c.config.CAFile, CertificateAuthorityData: c.config.CAData}},
		AuthInfos:      map[string]*api.AuthInfo{"u": {Token: token}},
		Contexts:       map[string]*api.Context{"x": {Cluster: "c", AuthInfo: "u", Namespace: ns}},
		CurrentContext: "x",
	}, path)
}

func bindings() schema.GroupVersionResource {
	return resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings")
}

// remove takes a side's namespace away, with all that is in it.
func (c cluster) remove(ctx context.Context, side string) error {
	ns := namespace(side)
	err := c.Resource(bindings()).Delete(ctx, ns, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	in := c.Resource(resource("", "v1", "namespaces"))
	err = in.Delete(ctx, ns, metav1.DeleteOptions{})
	for err == nil {
		if err = pass(ctx, time.Second); err == nil {
			_, err = in.Get(ctx, ns, metav1.GetOptions{})
		}
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// define applies files of definitions and waits until the API server serves their kinds.
func (c cluster) define(ctx context.Context, pattern string) error {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		return fmt.Errorf("there are no definitions %s", pattern)
	}
	in := c.Resource(resource("apiextensions.k8s.io", "v1", "customresourcedefinitions"))
	for _, path := range files {
		body, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(body, &o.Object); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if o.GetKind() != "CustomResourceDefinition" {
			continue
		}
		if _, err := in.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: "bench", Force: true}); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for served := false; !served; {
			live, err := in.Get(ctx, o.GetName(), metav1.GetOptions{})
			if err != nil {
				return err
			}
			conditions, _, _ := unstructured.NestedSlice(live.Object, "status", "conditions")
			for _, v := range conditions {
				m, _ := v.(map[string]any)
				served = served || m["type"] == "Established" && m["status"] == "True"
			}
			if err := pass(ctx, 100*time.Millisecond); err != nil {
				return err
			}
		}
	}
	return nil
}

// stages tells how far objects are.
type stages struct {
	mu    sync.Mutex
	at    map[string]map[string]time.Time // stage → name → when it was seen first
	moved chan struct{}
}

// follow watches the objects of a kind in a namespace until ctx ends. stage names the stages that an object has reached.
func (c cluster) follow(ctx context.Context, kind schema.GroupVersionResource, namespace string, stage func(*unstructured.Unstructured) []string) *stages {
	s := &stages{at: map[string]map[string]time.Time{}, moved: make(chan struct{}, 1)}
	in := c.Resource(kind).Namespace(namespace)
	i := cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return in.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return in.Watch(ctx, o)
		},
	}, &unstructured.Unstructured{}, 0, cache.Indexers{})
	told := func(v any) {
		o, ok := v.(*unstructured.Unstructured)
		if !ok {
			return
		}
		now := time.Now()
		s.mu.Lock()
		for _, name := range stage(o) {
			if s.at[name] == nil {
				s.at[name] = map[string]time.Time{}
			}
			if _, known := s.at[name][o.GetName()]; !known {
				s.at[name][o.GetName()] = now
			}
		}
		s.mu.Unlock()
		select {
		case s.moved <- struct{}{}:
		default:
		}
	}
	_, _ = i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: told, UpdateFunc: func(_, v any) { told(v) }})
	go i.RunWithContext(ctx)
	return s
}

// stageWithin is how long all objects together may take to a stage.
const stageWithin = 10 * time.Minute

// all waits until so many objects have reached a stage and returns when each did.
func (s *stages) all(ctx context.Context, stage string, count int) (map[string]time.Time, error) {
	limited, cancel := context.WithTimeout(ctx, stageWithin)
	defer cancel()
	for {
		s.mu.Lock()
		at := maps.Clone(s.at[stage])
		n := len(at)
		s.mu.Unlock()
		if n >= count {
			return at, nil
		}
		select {
		case <-s.moved:
		case <-limited.Done():
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, fmt.Errorf("%d of %d are at %q after %s", n, count, stage, stageWithin)
		}
	}
}

// program is a controller that was started.
type program struct {
	cmd *exec.Cmd
	log *os.File
}

// start starts a program whose output goes to a file.
func start(dir, side, path string, args ...string) (*program, error) {
	log, err := os.Create(filepath.Join(dir, side+".log"))
	if err != nil {
		return nil, err
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, args...) //nolint:noctx // it outlives a context, so that what it holds can be removed
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.Env = append(os.Environ(), "POD_NAMESPACE="+namespace(side)) // what a pod is told
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return &program{cmd: cmd, log: log}, cmd.Start()
}

// stop ends a program, which may be nil.
func (p *program) stop() {
	if p == nil {
		return
	}
	defer p.log.Close()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	ended := make(chan struct{})
	go func() {
		_ = p.cmd.Wait() // how it ends when it is told to is no matter here
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-ended
	}
}

// memory is what a program has resident, and the most that it ever had.
func (p *program) memory() (now, peak int64, err error) {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0, errors.Join(errors.New("the controller has ended"), err, p.tail())
	}
	value := func(key string) int64 {
		_, after, _ := strings.Cut(string(body), key+":")
		n, _ := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
		return n << 10
	}
	return value("VmRSS"), value("VmHWM"), nil
}

func (p *program) tail() error {
	body, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err
	}
	return errors.New(string(body[max(0, len(body)-2000):]))
}
