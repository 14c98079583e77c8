package e2e

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"syscall"
)

// prometheus starts the companion, which keeps its samples below the site's folder, and returns its address.
func prometheus(s *site, args ...string) string {
	s.t.Helper()
	line := s.begin("prometheus", append([]string{"--listen", "127.0.0.1:0", "--data", s.path("samples")}, args...)...)
	_, at, ok := strings.Cut(line, "listening on ")
	if !ok {
		s.t.Fatalf("the companion prometheus says %q", line)
	}
	return at
}

// begin starts a companion, which runs until the test ends, and returns the first line that it says.
func (s *site) begin(name string, args ...string) string {
	s.t.Helper()
	cmd := exec.Command(companion(s.t, name), args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // it was told to end
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	return strings.TrimSpace(line)
}
