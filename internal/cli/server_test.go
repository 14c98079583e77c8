package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform/local"
	"github.com/sluice-cd/sluice/internal/server"
)

// TestServerScripts runs testdata/server/*.txtar: deliveries on the local platform, carried out by a server that the
// first command starts. Both are ended with the script.
func TestServerScripts(t *testing.T) {
	companions := os.Getenv("SLUICE_COMPANIONS")
	if companions == "" {
		companions = "../../bin"
	}
	companions, err := filepath.Abs(companions)
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/server",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			clean(e)
			e.Setenv("SLUICE_COMPANIONS", companions)
			data := e.Getenv("SLUICE_DATA")
			e.Defer(func() {
				if err := end(data); err != nil {
					t.Error(err)
				}
			})
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name != "companion" {
				return false, fmt.Errorf("condition %q is not known", name)
			}
			_, err := os.Stat(filepath.Join(companions, "ferretdb-b"))
			if err != nil && os.Getenv("CI") != "" {
				return false, err
			}
			return err == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "grab": grab, "eventually": eventually, "insert": insert},
	})
}

// end ends the server of a data directory, and the node of its account.
func end(data string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var errs []error
	client, err := server.Connect(ctx, data)
	if err == nil {
		_, err = client.Stop(ctx)
	}
	if !fault.Is(err, fault.NotFound) {
		errs = append(errs, err)
	}
	node := filepath.Join(data, "accounts", "local")
	if _, err := os.Stat(node); err == nil {
		p, err := local.Connect(ctx, local.Config{Dir: node, Account: "local"})
		if err == nil {
			err = p.Shutdown(ctx)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// grab keeps a part of what the last command printed: grab ID 'deploymentId": "(.*)"'.
func grab(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: grab VARIABLE PATTERN")
	}
	m := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) != 2 {
		ts.Fatalf("%s is not in what was printed", args[1])
	}
	ts.Setenv(args[0], m[1])
}

// eventually runs a command until what it prints matches: eventually PATTERN COMMAND [ARGUMENT…].
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually PATTERN COMMAND [ARGUMENT…]")
	}
	want := regexp.MustCompile(args[0])
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := ts.Exec(args[1], args[2:]...); err == nil && want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-deadline.C:
			ts.Fatalf("%s is not printed; the last that was is\n%s", args[0], ts.ReadFile("stdout"))
		case <-tick.C:
		}
	}
}

// service dials a Service of the script's local account, whatever the address.
type service struct {
	platform *local.Platform
	ref      manifest.Ref
}

// DialContext implements options.ContextDialer.
func (s service) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	return s.platform.Dial(ctx, s.ref, "")
}

// insert writes a document into a database that runs in the script's local account: insert NAMESPACE SERVICE DATABASE.
func insert(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: insert NAMESPACE SERVICE DATABASE")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	p, err := local.Connect(ctx, local.Config{Dir: filepath.Join(ts.Getenv("SLUICE_DATA"), "accounts", "local"), Account: "local"})
	ts.Check(err)
	to := service{p, manifest.Ref{Kind: "Service", Namespace: args[0], Name: args[1]}}
	c, err := mongo.Connect(options.Client().ApplyURI("mongodb://" + args[1] + "/").SetDialer(to))
	ts.Check(err)
	_, err = c.Database(args[2]).Collection("orders").InsertOne(ctx, bson.D{{Key: "_id", Value: 1}})
	ts.Check(errors.Join(err, c.Disconnect(ctx)))
}
