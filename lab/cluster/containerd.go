package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"text/template"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-cd/sluice/lab/build"
)

// cniPlugins is where Debian keeps the network plugins.
const cniPlugins = "/usr/lib/cni"

const containerdConfig = `version = 2
root = "{{.Dir}}/containerd/root"
state = "{{.Dir}}/containerd/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.opt",
]
[grpc]
  address = "{{.Socket}}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{.Pause}}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  # Else every cluster leaves mounts in /run/netns.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{{.Plugins}}"
    conf_dir = "{{.Dir}}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = false
`

// bridge connects the pods of a node.
const bridge = "cni0"

const cniConfig = `{"cniVersion": "0.4.0", "name": "{{.Namespace}}", "plugins": [
  {"type": "bridge", "bridge": "{{.Bridge}}", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "{{.Dir}}/cni/addresses", "ranges": [[{"subnet": "{{.Pods}}"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`

func (c *Cluster) containerdSocket() string { return c.path("containerd", "c.sock") }

// startContainerd starts the container runtime and gives it the images.
func (c *Cluster) startContainerd(ctx context.Context) error {
	values := map[string]any{
		"Dir": c.dir(), "Socket": c.containerdSocket(), "Pause": build.PauseImage, "Plugins": cniPlugins,
		"Namespace": c.slot.namespace(), "Pods": c.slot.pods(), "Bridge": bridge,
	}
	if err := writeTemplate(c.path("containerd", "config.toml"), containerdConfig, values); err != nil {
		return err
	}
	if err := writeTemplate(c.path("cni", "10-bridge.conflist"), cniConfig, values); err != nil {
		return err
	}
	if err := c.run(ctx, "containerd", "containerd", "-c", c.path("containerd", "config.toml")); err != nil {
		return err
	}
	err := c.until(ctx, "containerd answers", []string{"containerd"}, func(ctx context.Context) error {
		if _, err := os.Stat(c.containerdSocket()); err != nil {
			return err
		}
		_, err := c.ctr(ctx, "version")
		return err
	})
	if err != nil {
		return err
	}
	imports, ctx := errgroup.WithContext(ctx)
	imports.SetLimit(2)
	for _, path := range c.images {
		imports.Go(func() error { return c.importImage(ctx, path) })
	}
	return imports.Wait()
}

// importImage gives an archive's images to the cluster.
func (c *Cluster) importImage(ctx context.Context, path string) error {
	out, err := c.ctr(ctx, "-n", "k8s.io", "images", "import", path)
	if err != nil {
		return fmt.Errorf("import %s: %w: %s", path, err, out)
	}
	return nil
}

// Import builds images and gives them to the cluster while it runs.
func (c *Cluster) Import(ctx context.Context, names ...string) error {
	programs, err := c.lab.Builder.Programs(ctx)
	if err != nil {
		return err
	}
	paths, err := c.lab.Builder.Images(ctx, programs, names)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := c.importImage(ctx, path); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) ctr(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "ctr", append([]string{"-a", c.containerdSocket()}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// fillTemplate puts values into a text.
func fillTemplate(text string, values any) (string, error) {
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = t.Execute(&b, values)
	return b.String(), err
}

func writeTemplate(path, text string, values any) error {
	filled, err := fillTemplate(text, values)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(filled), 0o644)
}
