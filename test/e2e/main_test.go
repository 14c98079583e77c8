package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// programEnv makes the test binary be the application that is delivered.
const programEnv = "SLUICE_E2E_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		if err := serveWeb(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	dir, err := os.MkdirTemp("", "sluice-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	built.dir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// serveWeb answers with its version and the name of its ReplicaSet; as ill, with 500 to all but the probe.
func serveWeb() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	srv := &http.Server{Addr: os.Getenv("LISTEN"), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if os.Getenv(programEnv) == "ill" && r.URL.Path != "/" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		fmt.Fprintf(w, "%s %s", os.Getenv("VERSION"), os.Getenv("ARMORY_REPLICA_SET_NAME"))
	})}
	defer context.AfterFunc(ctx, func() { _ = srv.Shutdown(context.Background()) })()
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// built is the program under test, made once per run.
var built struct {
	sync.Once
	dir, path string
	err       error
}

// sluiceBinary returns the program under test: that of $SLUICE_BIN, else one that is built now.
func sluiceBinary(t *testing.T) string {
	t.Helper()
	built.Do(func() {
		if built.path = os.Getenv("SLUICE_BIN"); built.path != "" {
			built.path, built.err = filepath.Abs(built.path)
			return
		}
		built.path = filepath.Join(built.dir, "sluice")
		cmd := exec.Command("go", "build", "-o", built.path, "../../cmd/sluice")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build sluice: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

// companions returns the folder of the programs that come with Sluice.
func companions(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("SLUICE_COMPANIONS")
	if dir == "" {
		dir = "../../bin"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// companion returns one of them.
func companion(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(companions(t), name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("companion program %s is missing: run make companions (%v)", name, err)
	}
	return path
}

// long skips what does not belong into the everyday tests.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("SLUICE_LONG") == "" {
		t.Skip("it takes long: set SLUICE_LONG=1, as make test does for what needs no cluster")
	}
}
