package metricstest

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// Prometheus starts the embedded Prometheus, the companion program of this name, until the test ends. It scrapes a URL ten times
// a second. Its own URL is returned.
func Prometheus(t *testing.T, program, scrape string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, "--listen", "127.0.0.1:0", "--data", t.TempDir(), "--scrape", "test="+scrape, "--interval", "100ms")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		t.Fatalf("it did not start: %q %v", line, err)
	}
	return "http://" + address
}
