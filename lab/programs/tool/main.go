// Command tool is the one program in the lab's own images: the sandbox of every pod, and small servers and clients that
// tests put into pods.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "tool:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	commands := map[string]struct {
		least int
		run   func(args []string) error
	}{
		"pause":  {0, pause},
		"http":   {0, serve},
		"get":    {1, get},
		"lookup": {1, lookup},
		"write":  {2, write},
		"fill":   {1, fill},
		"read":   {1, read},
		"size":   {1, size},
		"sleep":  {1, sleep},
		"exit":   {1, exit},
	}
	if len(args) > 1 {
		if c, ok := commands[args[1]]; ok && len(args) >= 2+c.least {
			return c.run(args[2:])
		}
	}
	return errors.New("use: pause | http [VERSION] | get URL | lookup NAME | write FILE TEXT… | fill FILE | read FILE | size DIR | sleep DURATION | exit CODE")
}

// pause holds a pod's namespaces and buries what its containers leave behind.
func pause([]string) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return nil
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}

// serve answers "HOST VERSION" on every path, and lets tests read and write files of the pod below /file/.
func serve(args []string) error {
	version := strings.Join(args, " ")
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, host, version) })
	mux.HandleFunc("GET /file/", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, strings.TrimPrefix(r.URL.Path, "/file"))
	})
	mux.HandleFunc("PUT /file/", func(w http.ResponseWriter, r *http.Request) {
		if err := store(strings.TrimPrefix(r.URL.Path, "/file"), r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	server := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() {
		// Requests under way end before the pod does; the kubelet's own deadline stands behind this one.
		_ = server.Shutdown(context.WithoutCancel(ctx))
	})
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func get(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(os.Stdout, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", args[0], answer.Status)
	}
	return nil
}

func lookup(args []string) error {
	// The resolver asks again after 5 s: one packet may be lost.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	found, err := new(net.Resolver).LookupHost(ctx, args[0])
	slices.Sort(found)
	fmt.Println(strings.Join(found, " "))
	return err
}

func write(args []string) error {
	return store(args[0], strings.NewReader(strings.Join(args[1:], " ")))
}

// fill writes zeros until the volume is full, and says how many bytes went in.
func fill(args []string) error {
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(f, zeros{})
	fmt.Println(n)
	if errors.Is(err, syscall.ENOSPC) {
		return nil
	}
	return err
}

// zeros is an endless source. Its WriteTo is missing on purpose: io.Copy's plain loop counts what was written.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// store syncs: a snapshot that follows must hold what was acknowledged.
func store(path string, from io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, from); err != nil {
		return err
	}
	return f.Sync()
}

func read(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(os.Stdout, f)
	return err
}

// size prints the bytes of the file system that holds a directory.
func size(args []string) error {
	var s syscall.Statfs_t
	if err := syscall.Statfs(args[0], &s); err != nil {
		return err
	}
	fmt.Println(s.Blocks * uint64(s.Bsize))
	return nil
}

func sleep(args []string) error {
	d, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return nil
}

func exit(args []string) error {
	var code int
	if _, err := fmt.Sscan(args[0], &code); err != nil {
		return err
	}
	os.Exit(code)
	return nil
}
