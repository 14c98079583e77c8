// Command cowcsi is a small CSI driver for the lab's one-node clusters.
//
// A volume is one sparse file of exactly the requested size, holding an ext4 of its own, on a file system that shares
// blocks between files (btrfs, or xfs with reflinks). So sizes are real: a full volume answers "no space left". A
// snapshot is a clone of the file, cut in one atomic step in a few milliseconds while the volume is being written; it
// holds what a cloud's disk snapshot would hold: what reached the disk, to be recovered by the journal.
//
// It registers itself with the kubelet, so that no registrar runs beside it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "cowcsi:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("cowcsi", flag.ContinueOnError)
	name := flags.String("name", "cow.csi.sluice.dev", "name of the driver")
	dir := flags.String("pool", "", "directory of volumes and snapshots; drivers of several clusters may share it")
	node := flags.String("node", "", "name of the node")
	socket := flags.String("socket", "", "path of the CSI socket")
	plugins := flags.String("plugins", "", "the kubelet's directory plugins_registry")
	if err := flags.Parse(args); err != nil {
		return err
	}
	for flag, value := range map[string]string{"--pool": *dir, "--node": *node, "--socket": *socket, "--plugins": *plugins} {
		if value == "" {
			return fmt.Errorf("give %s", flag)
		}
	}
	p, err := openPool(*dir)
	if err != nil {
		return err
	}
	d := &driver{name: *name, node: *node, pool: p}
	driving := grpc.NewServer(grpc.UnaryInterceptor(logged))
	csi.RegisterIdentityServer(driving, d)
	csi.RegisterControllerServer(driving, d)
	csi.RegisterNodeServer(driving, d)
	registering := grpc.NewServer()
	register(registering, registrar{name: *name, endpoint: *socket})

	ended := make(chan error, 2)
	servers := []struct {
		server *grpc.Server
		path   string
	}{{driving, *socket}, {registering, filepath.Join(*plugins, *name+"-reg.sock")}}
	for _, s := range servers {
		l, err := listen(ctx, s.path)
		if err != nil {
			return err
		}
		go func() { ended <- s.server.Serve(l) }()
	}
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	driving.GracefulStop()
	registering.Stop()
	return err
}

// listen takes over a socket that an earlier run left behind.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return new(net.ListenConfig).Listen(ctx, "unix", path)
}

// logged writes every call that changed something, or failed, to the log.
func logged(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	answer, err := handle(ctx, request)
	switch method := filepath.Base(info.FullMethod); {
	case err != nil:
		log.Printf("%s %v: %v", method, request, err)
	case method != "Probe" && method != "NodeGetVolumeStats":
		log.Printf("%s %v", method, request)
	}
	return answer, err
}
