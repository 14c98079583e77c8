//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// call is a line of an API server's audit log.
type call struct {
	Verb, Stage, UserAgent string
	RequestURI             string
	User                   struct{ Username string }
	Acted                  *struct{ Username string }                              `json:"impersonatedUser"`
	On                     struct{ Resource, Subresource, Namespace, Name string } `json:"objectRef"`
	Said                   struct{ Code int }                                      `json:"responseStatus"`
	At                     time.Time                                               `json:"requestReceivedTimestamp"`
}

// as is who is acted for.
func (c call) as() string {
	if c.Acted != nil {
		return c.Acted.Username
	}
	return c.User.Username
}

// read is in the line of a call that changes nothing.
var read = regexp.MustCompile(`"verb":"(get|list|watch)"`)

// sluices reports whether Sluice has asked; the cluster's own programs go by the administrator's name, too.
func (c call) sluices() bool { return strings.HasPrefix(c.UserAgent, "sluice") }

// did reports whether the cluster has done what it was asked for.
func (c call) did() bool { return c.Said.Code/100 == 2 && !strings.Contains(c.RequestURI, "dryRun=") }

// calls reads what a cluster was asked to change from an instant on. Clusters of the lab keep their log beside their
// kubeconfig.
func (c cluster) calls(t *testing.T, since time.Time) (all []call) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(filepath.Dir(c.file), "..", "log", "audit*.log"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the cluster keeps no audit log beside its kubeconfig, as clusters of the lab do: %v", err)
	}
	for _, file := range files {
		if i, err := os.Stat(file); err != nil || i.ModTime().Before(since) {
			continue
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var k call
			if read.MatchString(lines.Text()) || json.Unmarshal(lines.Bytes(), &k) != nil {
				continue
			}
			if k.Stage == "ResponseComplete" && k.At.After(since) {
				all = append(all, k)
			}
		}
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}
