package kubetest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Call is a line of an API server's audit log: one that was answered.
type Call struct {
	Verb, Stage, UserAgent string
	RequestURI             string
	User                   struct{ Username string }
	Acted                  *struct{ Username string }                              `json:"impersonatedUser"`
	On                     struct{ Resource, Subresource, Namespace, Name string } `json:"objectRef"`
	Said                   struct{ Code int }                                      `json:"responseStatus"`
	At                     time.Time                                               `json:"requestReceivedTimestamp"`
}

// As is who is acted for.
func (c Call) As() string {
	if c.Acted != nil {
		return c.Acted.Username
	}
	return c.User.Username
}

// Reads reports whether a call changes nothing.
func (c Call) Reads() bool { return slices.Contains(reading(), c.Verb) }

func reading() []string { return []string{"get", "list", "watch"} }

// Did reports whether the cluster has done what it was asked for.
func (c Call) Did() bool { return c.Said.Code/100 == 2 && !strings.Contains(c.RequestURI, "dryRun=") }

// AuditLogs returns the files of a cluster's audit log. Clusters of the lab keep it beside their kubeconfig; others have none here.
func AuditLogs(t *testing.T, kubeconfig string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(filepath.Dir(kubeconfig), "..", "log", "audit*.log"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Calls reads what a cluster was asked for from an instant on. With changes only, what reads is passed over without being taken
// apart: it is most of the log.
func Calls(t *testing.T, kubeconfig string, since time.Time, changes bool) (all []Call) {
	t.Helper()
	files := AuditLogs(t, kubeconfig)
	if len(files) == 0 {
		t.Fatal("the cluster keeps no audit log beside its kubeconfig, as clusters of the lab do")
	}
	for _, file := range files {
		if i, err := os.Stat(file); err != nil || i.ModTime().Before(since) {
			continue
		}
		all = append(all, callsOf(t, file, since, changes)...)
	}
	return all
}

func callsOf(t *testing.T, file string, since time.Time, changes bool) (all []Call) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		skip := func(verb string) bool { return bytes.Contains(lines.Bytes(), []byte(`"verb":"`+verb+`"`)) }
		var c Call
		if changes && slices.ContainsFunc(reading(), skip) || json.Unmarshal(lines.Bytes(), &c) != nil {
			continue // the last line may not be whole yet
		}
		if c.Stage == "ResponseComplete" && c.At.After(since) {
			all = append(all, c)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}
