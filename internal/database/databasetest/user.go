package databasetest

import (
	"errors"
	"os"
	"os/user"
	"strconv"
	"syscall"
	"testing"
)

// User is the ordinary user that servers run as where the tests run as root: SLUICE_TEST_USER, else sluice-test. It is nil
// where the tests run as an ordinary user.
func User(t testing.TB) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	name := os.Getenv("SLUICE_TEST_USER")
	if name == "" {
		name = "sluice-test"
	}
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("servers do not run as root, and there is no user %s: %v", name, err)
	}
	uid, errUID := strconv.Atoi(u.Uid)
	gid, errGID := strconv.Atoi(u.Gid)
	if err := errors.Join(errUID, errGID); err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}
