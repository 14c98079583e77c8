// Package build makes the programs and images of the lab, once, into a cache.
//
// Kubernetes and its companions come from one go.mod, so that each of their packages is compiled once; cold that takes
// about ten minutes of CPU. The result is kept under a key of everything that it was made from.
package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Programs is a directory of finished programs.
type Programs struct {
	dir string
}

// Path is where a program is.
func (p Programs) Path(name string) string { return filepath.Join(p.dir, "bin", name) }

// Definitions are the files that define the resources of snapshots.
func (p Programs) Definitions() ([]string, error) {
	return filepath.Glob(filepath.Join(p.dir, "crd", "*.yaml"))
}

// Builder builds in one source tree into one cache.
type Builder struct {
	// Source is the directory of the lab's go.mod.
	Source string
	// Cache holds programs and images of all versions.
	Cache string
	// Out is told what is being built.
	Out io.Writer
}

const (
	module     = "github.com/sluice-cd/sluice/lab"
	kubernetes = "v1.36.1"
	snapshots  = "github.com/kubernetes-csi/external-snapshotter/client/v8"
	// keep is how many builds stay in the cache: this one and those of other branches.
	keep = 3
)

// New finds the source tree around a directory, and the user's cache; LAB_CACHE names another one.
func New(dir string, out io.Writer) (*Builder, error) {
	source, err := findSource(dir)
	if err != nil {
		return nil, err
	}
	cache := os.Getenv("LAB_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("no directory for the cache (%w): name one in LAB_CACHE", err)
		}
		cache = filepath.Join(user, "sluice-lab")
	}
	return &Builder{Source: source, Cache: cache, Out: out}, nil
}

// findSource goes up from a directory to the lab's go.mod, or from the repository's root down to it.
func findSource(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		for _, candidate := range []string{at, filepath.Join(at, "lab")} {
			b, err := os.ReadFile(filepath.Join(candidate, "go.mod"))
			if err == nil && strings.HasPrefix(string(b), "module "+module+"\n") {
				return candidate, nil
			}
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("the lab is built from its sources, and %s is not inside the repository: start it there", dir)
		}
	}
}

// links are the names by which kubeall is called.
func links() []string {
	return []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"}
}

// target is one program to build.
type target struct{ name, pkg, flags string }

func targets() []target {
	version := "-s -w"
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		minor := strings.Split(kubernetes, ".")[1]
		// Without these the server calls itself by a placeholder that clients cannot parse.
		version += fmt.Sprintf(" -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=1 -X %[1]s.gitMinor=%[3]s -X %[1]s.gitTreeState=clean"+
			" -X %[1]s.gitCommit=0000000 -X %[1]s.buildDate=2026-01-01T00:00:00Z", pkg, kubernetes, minor)
	}
	const csi = "github.com/kubernetes-csi/"
	return []target{
		{"kubeall", "./programs/kubeall", version},
		{"coredns", "./programs/coredns", "-s -w"},
		{"cowcsi", "./programs/cowcsi", "-s -w"},
		{"tool", "./programs/tool", "-s -w"},
		{"csi-provisioner", csi + "external-provisioner/v6/cmd/csi-provisioner", "-s -w"},
		{"csi-snapshotter", csi + "external-snapshotter/v8/cmd/csi-snapshotter", "-s -w"},
		{"snapshot-controller", csi + "external-snapshotter/v8/cmd/snapshot-controller", "-s -w"},
	}
}

// Programs returns the finished programs, and builds them if this version is not in the cache.
func (b *Builder) Programs(ctx context.Context) (Programs, error) {
	key, err := b.key()
	if err != nil {
		return Programs{}, err
	}
	dir, err := b.once(ctx, "programs", key, func(dir string) error {
		fmt.Fprintf(b.Out, "building Kubernetes %s and what belongs to it into %s (once; about ten minutes of CPU)\n", kubernetes, b.Cache)
		return b.fill(ctx, dir)
	})
	return Programs{dir}, err
}

// NetworkPolicies returns the program that enforces NetworkPolicies, and builds it if this version is not in the cache. It is
// a module of its own, because not every lab needs it.
func (b *Builder) NetworkPolicies(ctx context.Context) (string, error) {
	const name = "networkpolicies"
	module := filepath.Join(b.Source, name)
	key, err := key(module, ".")
	if err != nil {
		return "", err
	}
	dir, err := b.once(ctx, name, key, func(dir string) error {
		fmt.Fprintf(b.Out, "building what enforces NetworkPolicies into %s (once)\n", b.Cache)
		return b.goBuild(ctx, module, filepath.Join(dir, name), ".", "-s -w")
	})
	return filepath.Join(dir, name), err
}

// once returns the directory of a key, and has it filled if it is not in the cache.
func (b *Builder) once(ctx context.Context, kind, key string, fill func(dir string) error) (string, error) {
	all := filepath.Join(b.Cache, kind)
	if err := os.MkdirAll(all, 0o755); err != nil {
		return "", err
	}
	dir := filepath.Join(all, key)
	unlock, err := lock(ctx, filepath.Join(all, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		now := time.Now()
		// The time says which builds are in use, for prune.
		return dir, os.Chtimes(dir, now, now)
	}
	begun, err := os.MkdirTemp(all, ".begun-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(begun)
	if err := fill(begun); err != nil {
		return "", err
	}
	if err := os.Rename(begun, dir); err != nil {
		return "", err
	}
	return dir, prune(all)
}

// fill builds everything into a fresh directory.
func (b *Builder) fill(ctx context.Context, dir string) error {
	for _, t := range targets() {
		if err := b.goBuild(ctx, b.Source, filepath.Join(dir, "bin", t.name), t.pkg, t.flags); err != nil {
			return err
		}
	}
	for _, name := range links() {
		if err := os.Symlink("kubeall", filepath.Join(dir, "bin", name)); err != nil {
			return err
		}
	}
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", snapshots)
	list.Dir = b.Source
	out, err := list.Output()
	if err != nil {
		return fmt.Errorf("find the definitions of snapshots: %w", err)
	}
	return copyDefinitions(filepath.Join(strings.TrimSpace(string(out)), "config", "crd"), filepath.Join(dir, "crd"))
}

// copyDefinitions takes the definitions of volume snapshots; those of group snapshots belong to another API.
func copyDefinitions(from, to string) error {
	files, err := filepath.Glob(filepath.Join(from, "snapshot.storage.k8s.io_*.yaml"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("no definitions of snapshots in %s", from)
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(f)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// goBuild builds one program. CGO is off for all of them: a setting of its own for some would compile everything twice,
// and what goes into images must be static.
func (b *Builder) goBuild(ctx context.Context, dir, to, pkg, flags string) error {
	start := time.Now()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", to, pkg)
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	// An interrupted build ends with its compilers.
	build.Cancel = func() error { return build.Process.Signal(os.Interrupt) }
	build.WaitDelay = 10 * time.Second
	out, err := build.CombinedOutput()
	if err != nil {
		return fmt.Errorf("build %s in %s: %w\n%s", pkg, dir, err, tail(string(out), 30))
	}
	if took := time.Since(start); took > 3*time.Second {
		fmt.Fprintf(b.Out, "  %s (%.0f s)\n", filepath.Base(to), took.Seconds())
	}
	return nil
}

// key is a hash of everything that the programs are made from.
func (b *Builder) key() (string, error) {
	return key(b.Source, "programs", targets(), links(), snapshots)
}

// key is a hash of a module's go.mod and go.sum, of its sources below a folder, and of what else decides.
func key(module, below string, more ...any) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, append([]any{runtime.Version(), runtime.GOOS, runtime.GOARCH}, more...)...)
	files := []string{filepath.Join(module, "go.mod"), filepath.Join(module, "go.sum")}
	err := filepath.WalkDir(filepath.Join(module, below), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && filepath.Ext(path) == ".go" && !strings.HasSuffix(path, "_test.go") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %x\n", strings.TrimPrefix(f, module), sha256.Sum256(content))
	}
	return fmt.Sprintf("%x", h.Sum(nil))[:16], nil
}

// prune deletes builds that were not used for longest, and what was cut off.
func prune(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type aged struct {
		path string
		used time.Time
	}
	var builds []aged
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() {
			continue
		}
		builds = append(builds, aged{filepath.Join(dir, e.Name()), info.ModTime()})
	}
	slices.SortFunc(builds, func(a, b aged) int { return b.used.Compare(a.used) })
	var failed []error
	for _, b := range builds[min(keep, len(builds)):] {
		failed = append(failed, os.RemoveAll(b.path))
	}
	return errors.Join(failed...)
}

// lock waits for a file's lock, which ends with the process whatever ends it.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	// The kernel tells nobody that a lock is free unless they wait in the call, which no context can end.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("another build holds %s: %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}

// tail is the last lines of an output.
func tail(s string, lines int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
