package cli

import (
	"net"
	"slices"
	"testing"
	"time"
)

func TestAProbeTellsWhatStaysReachable(t *testing.T) {
	open, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	shut, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closing, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	shut.Close()
	go func() {
		// The policy comes into force after the first attempt.
		if c, err := closing.Accept(); err == nil {
			closing.Close()
			c.Close()
		}
	}()
	all := []string{open.Addr().String(), shut.Addr().String(), closing.Addr().String()}
	if got := reach(t.Context(), all, 1200*time.Millisecond, time.Second); !slices.Equal(got, all[:1]) {
		t.Errorf("reached %v, want %v", got, all[:1])
	}
}
