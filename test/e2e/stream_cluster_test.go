//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// router passes connections from production's pods on to ports of staging's node, as a load balancer between two networks does:
// clusters of the lab do not reach each other. In the middle of connections it lets the test kill something, and passes nothing
// more of that connection: a pod that is killed may go on for some seconds, in which it could send everything.
type router struct {
	t      *testing.T
	listen string // this machine, as production's pods reach it
	node   string // of staging
	mu     sync.Mutex
	open   map[string]bool // ports
	kills  []func()        // what is still to happen, each in the middle of another connection
	sent   []int64         // bytes of each connection to the receiver
}

// killAfter is how many bytes of a connection pass before its kill.
const killAfter = 14 << 20

// follow opens the ports of Sluice's Services of a namespace as they appear.
func (r *router) follow(ctx context.Context, c cluster, namespace string) {
	for ctx.Err() == nil {
		list, err := c.of(namespace, "services").List(ctx, metav1.ListOptions{})
		if err == nil {
			for _, o := range list.Items {
				if ports, ok := o.Object["spec"].(map[string]any)["ports"].([]any); ok && strings.HasPrefix(o.GetName(), "sluice-errand-") && len(ports) > 0 {
					if p, ok := ports[0].(map[string]any)["nodePort"].(int64); ok {
						r.serve(ctx, fmt.Sprint(p))
					}
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (r *router) serve(ctx context.Context, port string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open[port] {
		return
	}
	l, err := net.Listen("tcp", net.JoinHostPort(r.listen, port))
	if err != nil {
		r.t.Error(err)
		return
	}
	r.open[port] = true
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go r.pass(from, net.JoinHostPort(r.node, port))
		}
	}()
}

func (r *router) pass(from net.Conn, address string) {
	defer from.Close()
	to, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return // the receiver has no pod at this moment; the sender tries again
	}
	defer to.Close()
	go func() {
		_, _ = io.Copy(from, to)
		from.Close()
	}()
	r.mu.Lock()
	n := len(r.sent)
	r.sent = append(r.sent, 0)
	r.mu.Unlock()
	buffer := make([]byte, 64<<10)
	for {
		k, err := from.Read(buffer)
		if _, e := to.Write(buffer[:k]); e != nil || err != nil {
			return
		}
		r.mu.Lock()
		r.sent[n] += int64(k)
		var kill func()
		if len(r.kills) > 0 && r.sent[n] >= killAfter {
			kill, r.kills = r.kills[0], r.kills[1:]
		}
		r.mu.Unlock()
		if kill != nil {
			kill()
			_, _ = io.Copy(io.Discard, from)
			return
		}
	}
}

// bytes is how much came on each connection so far.
func (r *router) bytes() []int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.sent)
}

// kill kills the only pod of Sluice's Jobs in a namespace.
func (c cluster) kill(namespace string) {
	now := int64(0)
	for _, name := range c.names(namespace, "pods") {
		if strings.HasPrefix(name, "sluice-errand-") {
			c.t.Logf("killing pod %s/%s of %s", namespace, name, c.name)
			if err := c.of(namespace, "pods").Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
				c.t.Error(err)
			}
			return
		}
	}
	c.t.Errorf("no pod of a stream runs in namespace %s of %s", namespace, c.name)
}

// killServer ends the server with SIGKILL, from any goroutine.
func (k clusters) killServer() {
	var m machine
	out, err := k.command(context.Background(), "server", "status", "-o", "json").Output()
	if err == nil {
		err = json.Unmarshal(out, &m)
	}
	if err == nil {
		err = syscall.Kill(m.Server.PID, syscall.SIGKILL)
	}
	if err != nil {
		k.t.Error(err)
	}
}

// streamed reads from a message how much was streamed.
func streamed(t *testing.T, message string) int64 {
	t.Helper()
	var n int64
	before, _, _ := strings.Cut(message, " MiB streamed")
	if _, err := fmt.Sscan(before[strings.LastIndex(before, " ")+1:], &n); err != nil {
		t.Fatal(err)
	}
	return n << 20
}

func hostOf(t *testing.T, kubeconfig string) (server *url.URL) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err == nil {
		server, err = url.Parse(config.Host)
	}
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// TestADatabaseIsStreamedToAnotherCluster copies a running database to a cluster that is said to have a storage of its own, while
// a client goes on writing; the pods of both ends, and then Sluice itself, are killed in the middle of it. The copy is the database that production had,
// and is verified against the upgraded one; what had arrived before a kill is not sent again.
func TestADatabaseIsStreamedToAnotherCluster(t *testing.T) {
	k := newClusters(t)
	ns := k.namespace()
	here, err := facing(hostOf(t, k.prod.file).String())
	if err != nil {
		t.Fatal(err)
	}
	k.write("sluice.yaml", fmt.Sprintf(`
accounts:
  prod: {kind: kubernetes, kubeconfig: %s, jobs: {image: "sluice:dev", limits: {memory: 512Mi}}}
  staging: {kind: kubernetes, kubeconfig: %s, stream: %s, jobs: {image: "sluice:dev", limits: {memory: 512Mi}}}
`, k.prod.file, k.staging.file, here))
	k.install(mongoAt("1.17"))
	orders := k.orders(k.prod, ns)
	const ballast = 48 << 20
	for i := range ballast >> 20 {
		body := make([]byte, 1<<20)
		if _, err := rand.Read(body); err != nil {
			t.Fatal(err)
		}
		if _, err := orders.Database().Collection("ballast").InsertOne(undated{t.Context()}, bson.D{{Key: "_id", Value: int32(i)}, {Key: "body", Value: bson.Binary{Data: body}}}); err != nil {
			t.Fatal(err)
		}
	}
	w := write(t, orders, 1)
	w.wait(k.site, 300)
	if t.Failed() {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	died := make(chan struct{})
	r := &router{t: t, listen: here, node: hostOf(t, k.staging.file).Hostname(), open: map[string]bool{}, kills: []func(){
		func() { k.prod.kill(ns + "-stream") },
		func() { k.staging.kill(ns + "-base") },
		func() { defer close(died); k.killServer() },
	}}
	go r.follow(ctx, k.staging, ns+"-base")
	w.stall()
	id := k.copies(mongoAt("1.24"), "", ", afterDeployment: [{verifyData: {database: orders}}]")
	watch := k.command(ctx, "deploy", "watch", id)
	var said bytes.Buffer
	watch.Stdout, watch.Stderr = &said, &said
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-died:
	case <-time.After(k.wait):
		t.Fatalf("it does not come to the death of the server; bytes of each connection: %v\n%s", r.bytes(), k.status(id))
	}
	_ = watch.Wait() // its server is dead; the next command starts another one, which goes on
	d := k.ended(id, "SUCCEEDED")
	copied := d.step("staging/before/1-copyData")
	r.mu.Lock()
	defer r.mu.Unlock()
	measured(t, "copied in %s; production's longest write stall %s; bytes of each connection: %v", copied.Ended.Sub(copied.Started), w.stall(), r.sent)
	t.Log(&said)
	says(t, copied.Message, "recoverable-consistent", "csi snapshot", " MiB streamed and recovered in ")
	says(t, said.String(), "staging/before/1-copyData: streamed ")
	w.holds(t, k.orders(k.staging, ns), copied.Started)
	all := int64(0)
	for _, n := range r.sent {
		all += n
	}
	if len(r.sent) < 4 {
		t.Fatalf("there were %d connections in spite of three kills", len(r.sent))
	}
	// What was on the way at a kill is sent again: what the buffers of the connection held.
	if most := streamed(t, copied.Message) + int64(len(r.sent))*5<<20; all > most {
		t.Errorf("%d bytes were sent, want at most %d: what was there was sent again", all, most)
	}
	for c, at := range map[string][]string{"prod": {ns + "-stream"}, "staging": {ns + "-base", ns}} {
		in := k.prod
		if c == "staging" {
			in = k.staging
		}
		for _, namespace := range at {
			for _, resource := range []string{"jobs.batch", "secrets", "services"} {
				for _, name := range in.names(namespace, resource) {
					if strings.HasPrefix(name, "sluice-errand-") {
						t.Errorf("left in %s: %s %s/%s", c, resource, namespace, name)
					}
				}
			}
		}
	}
	for _, resource := range []string{"persistentvolumeclaims", "volumesnapshots.snapshot.storage.k8s.io"} {
		if left := k.prod.names(ns+"-stream", resource); len(left) > 0 {
			t.Errorf("left of what was streamed: %v", left)
		}
	}
	w.end()
}
