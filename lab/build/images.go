package build

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/lab/image"
)

// Images of the lab itself.
const (
	PauseImage   = "lab/pause:1"
	ToolImage    = "lab/tool:1"
	CoreDNSImage = "lab/coredns:1"
)

// base are the images without which no cluster starts.
func base() []string { return []string{PauseImage, ToolImage, CoreDNSImage} }

// recipe is how an image is made.
type recipe struct {
	name string
	// entrypoint begins with the program's path in the image.
	entrypoint []string
	// module and pkg build the program, relative to the repository; where module is empty the program is one of the lab's.
	module, pkg string
	// with are programs of the lab beside it.
	with []string
	// debian are packages below the program.
	debian []string
	// older has the programs of an older PostgreSQL beside those of the packages, which lend it their libraries.
	older bool
	// path comes before the other folders of programs.
	path string
}

// Where an image has the programs of PostgreSQL.
const (
	debianPostgres = "/usr/lib/postgresql/15"
	olderPostgres  = "/usr/local/pgsql"
)

// recipes are all images, by the names that the manifests of the examples and the demo use.
func recipes() []recipe {
	companion := func(name, program string, args ...string) recipe {
		return recipe{name: name, entrypoint: append([]string{"/" + program}, args...), module: "companion/" + program, pkg: "."}
	}
	return []recipe{
		{name: PauseImage, entrypoint: []string{"/tool", "pause"}},
		{name: ToolImage, entrypoint: []string{"/tool"}},
		{name: CoreDNSImage, entrypoint: []string{"/coredns"}},
		{name: "sluice:dev", entrypoint: []string{"/sluice"}, module: ".", pkg: "./cmd/sluice"},
		{name: "lab/podmetrics:1", entrypoint: []string{"/podmetrics"}, module: "lab", pkg: "./podmetrics"},
		{name: "lab/cmd-hook:1", entrypoint: []string{"/cmdhook"}, module: "lab", pkg: "./cmdhook", with: []string{"kubectl"}},
		{name: "lab/testgateway:1", entrypoint: []string{"/testgateway"}, module: "lab", pkg: "./testgateway"},
		companion("ferretdb:1.17", "ferretdb-a"),
		companion("ferretdb:1.24", "ferretdb-b"),
		companion("shop:1", "shop", "web", "--release", "1"),
		companion("shop:2-rc1", "shop", "web", "--release", "2-rc1", "--fail-percent", "40"),
		companion("shop:2", "shop", "web", "--release", "2"),
		companion("shop-migration:2-rc1", "shop", "migrate", "--damage"),
		companion("shop-migration:2", "shop", "migrate"),
		companion("shop-seed:1", "shop", "seed", "--orders", "500"),
		companion("shop-load:1", "shop", "load"),
		companion("shop-check:1", "shop", "check"),
		companion("shop-tests:1", "shop", "test"),
		{name: "postgres:15", entrypoint: []string{"/tool"}, debian: []string{"postgresql-15"}, path: debianPostgres + "/bin:"},
		{name: "postgres:15.10", entrypoint: []string{"/tool"}, debian: []string{"postgresql-15"}, older: true, path: olderPostgres + "/bin:" + debianPostgres + "/bin:"},
		{name: "prometheus:debian", entrypoint: []string{"/usr/bin/prometheus"}, debian: []string{"prometheus"}},
	}
}

// ImageNames are the images that can be built; those of Debian packages only on demand, for they take minutes.
func ImageNames() (quick, debian []string) {
	for _, r := range recipes() {
		if len(r.debian) > 0 {
			debian = append(debian, r.name)
		} else {
			quick = append(quick, r.name)
		}
	}
	return quick, debian
}

// Images makes the archives of the named images, and of those that every cluster needs, and returns their paths.
// The programs are built from the checkout as it is now; an archive whose program did not change stays.
func (b *Builder) Images(ctx context.Context, programs Programs, names []string) ([]string, error) {
	dir := filepath.Join(b.Cache, "images")
	for _, d := range []string{filepath.Join(dir, "bin"), filepath.Join(dir, "root")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	unlock, err := lock(ctx, filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	known := map[string]recipe{}
	for _, r := range recipes() {
		known[r.name] = r
	}
	var paths []string
	built := map[string]bool{}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(append(base(), names...)))) {
		r, ok := known[name]
		if !ok {
			quick, debian := ImageNames()
			return nil, fmt.Errorf("there is no image %q in the lab: it makes %s", name, strings.Join(append(quick, debian...), ", "))
		}
		path, err := b.image(ctx, dir, programs, r, built)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// image makes one archive. What was built in this call already is in built.
func (b *Builder) image(ctx context.Context, dir string, programs Programs, r recipe, built map[string]bool) (string, error) {
	i := image.Image{Names: []string{r.name}, Entrypoint: r.entrypoint, Env: []string{"PATH=" + r.path + "/:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp"}, Files: map[string]string{}}
	program := strings.TrimPrefix(r.entrypoint[0], "/")
	switch {
	case r.module != "":
		binary := filepath.Join(dir, "bin", program)
		if !built[binary] {
			if err := b.goBuild(ctx, filepath.Join(b.Source, "..", r.module), binary, r.pkg, "-s -w"); err != nil {
				return "", err
			}
			built[binary] = true
		}
		i.Files[r.entrypoint[0]] = binary
	case strings.Contains(program, "/"): // it comes with its Debian package
	default:
		i.Files[r.entrypoint[0]] = programs.Path(program)
	}
	for _, name := range r.with {
		i.Files["/"+name] = programs.Path(name)
	}
	if r.older {
		if err := b.addOlderPostgres(ctx, i.Files); err != nil {
			return "", err
		}
	}
	if len(r.debian) > 0 {
		root, err := b.debian(ctx, filepath.Join(dir, "root"), r.debian)
		if err != nil {
			return "", err
		}
		i.Root = root
	}
	key, err := imageKey(i)
	if err != nil {
		return "", err
	}
	stem := strings.NewReplacer("/", "_", ":", "_").Replace(r.name)
	path := filepath.Join(dir, stem+"-"+key+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := image.Write(path, i); err != nil {
		return "", err
	}
	return path, removeOthers(filepath.Join(dir, stem+"-"+strings.Repeat("?", len(key))+".tar"), path)
}

// addOlderPostgres adds the files of the older PostgreSQL that the project's other tests start from.
func (b *Builder) addOlderPostgres(ctx context.Context, files map[string]string) error {
	top := filepath.Join(b.Source, "..")
	if out, err := exec.CommandContext(ctx, filepath.Join(top, "test", "postgres")).CombinedOutput(); err != nil {
		return fmt.Errorf("fetch the older PostgreSQL by test/postgres, which needs npm: %w\n%s", err, tail(string(out), 20))
	}
	dir := filepath.Join(top, ".cache", "postgres-old")
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files[olderPostgres+strings.TrimPrefix(path, dir)] = path
		return nil
	})
}

// debian makes the tar of a root file system with packages, once.
func (b *Builder) debian(ctx context.Context, dir string, packages []string) (string, error) {
	path := filepath.Join(dir, strings.Join(packages, "+")+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return "", fmt.Errorf("root file systems of Debian are made by mmdebstrap: apt-get install mmdebstrap")
	}
	fmt.Fprintf(b.Out, "making a Debian root file system with %s\n", strings.Join(packages, ", "))
	begun := path + ".begun.tar"
	defer os.Remove(begun)
	bootstrap := exec.CommandContext(ctx, "mmdebstrap", "--quiet", "--variant=essential", "--include="+strings.Join(packages, ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "bookworm", begun)
	if out, err := bootstrap.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mmdebstrap: %w\n%s", err, tail(string(out), 20))
	}
	return path, os.Rename(begun, path)
}

// imageKey is a hash of an image's description and of its files.
func imageKey(i image.Image) (string, error) {
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(i); err != nil {
		return "", err
	}
	for _, name := range slices.Sorted(maps.Keys(i.Files)) {
		content, err := os.ReadFile(i.Files[name])
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%x\n", sha256.Sum256(content))
	}
	if i.Root != "" {
		info, err := os.Stat(i.Root)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(h, info.Size(), info.ModTime())
	}
	return fmt.Sprintf("%x", h.Sum(nil))[:12], nil
}

// removeOthers deletes the archives of earlier versions of an image.
func removeOthers(pattern, except string) error {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f == except {
			continue
		}
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return nil
}
