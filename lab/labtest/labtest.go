// Package labtest gives tests two clusters: production and staging. They are the lab's own, started once for a package
// and taken down after it, or existing ones where LAB_KUBECONFIG and LAB_KUBECONFIG_STAGING name them.
package labtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/lab/build"
	"github.com/sluice-cd/sluice/lab/cluster"
	"github.com/sluice-cd/sluice/lab/kube"
)

// Clusters are what tests work on.
type Clusters struct {
	Prod, Staging *kube.Client
	// Lab is nil where the clusters are not ours.
	Lab *cluster.Lab
}

// Dir is where the clusters of tests live, beside those that a person started. Test runs in one directory wait for each
// other; with another LAB_DIR they run side by side.
func Dir() string { return cluster.DefaultDir() + "-test" }

// Open makes a lab in a directory of its own.
func Open(dir string, out io.Writer) (*cluster.Lab, error) {
	here, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	b, err := build.New(here, out)
	if err != nil {
		return nil, err
	}
	return cluster.New(dir, b, out)
}

// Main is for a package's TestMain: it brings two clusters up, hands them over, runs the tests, takes the clusters down
// and looks whether anything is left. What an earlier run left behind is removed first.
func Main(m *testing.M, use func(Clusters)) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Getenv("LAB_KUBECONFIG") != "" {
		c, err := existing()
		if err != nil {
			fmt.Fprintln(os.Stderr, "labtest:", err)
			return 1
		}
		use(c)
		return m.Run()
	}
	l, err := Open(Dir(), os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "labtest:", err)
		return 1
	}
	code, err := run(ctx, m, l, use)
	if err != nil {
		fmt.Fprintln(os.Stderr, "labtest:", err)
		return max(code, 1)
	}
	return code
}

func existing() (Clusters, error) {
	prod, err := kube.Open(os.Getenv("LAB_KUBECONFIG"))
	if err != nil {
		return Clusters{}, err
	}
	path := os.Getenv("LAB_KUBECONFIG_STAGING")
	if path == "" {
		return Clusters{}, errors.New("LAB_KUBECONFIG is set: name the second cluster's kubeconfig in LAB_KUBECONFIG_STAGING")
	}
	staging, err := kube.Open(path)
	return Clusters{Prod: prod, Staging: staging}, err
}

func run(ctx context.Context, m *testing.M, l *cluster.Lab, use func(Clusters)) (code int, err error) {
	// Packages are tested side by side, but their clusters have the same names.
	release, err := l.Hold(ctx)
	if err != nil {
		return 1, err
	}
	defer release()
	if err := l.Clean(ctx); err != nil {
		return 1, err
	}
	defer func() {
		cleaning, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, l.Clean(cleaning), l.NothingLeft())
	}()
	clusters := Clusters{Lab: l}
	images, _ := build.ImageNames()
	starts, both := errgroup.WithContext(ctx)
	for name, client := range map[string]**kube.Client{"prod": &clusters.Prod, "staging": &clusters.Staging} {
		starts.Go(func() error {
			c, err := l.Up(both, name, cluster.Options{Images: images})
			if err != nil {
				return err
			}
			*client, err = c.Client()
			return err
		})
	}
	if err := starts.Wait(); err != nil {
		return 1, err
	}
	use(clusters)
	return m.Run(), nil
}

// Namespace makes a fresh namespace that goes with the test. A failed test first tells what happened in it.
func Namespace(t *testing.T, c *kube.Client) string {
	t.Helper()
	n, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			describe(ctx, t, c, n.Name)
		}
		if err := c.CoreV1().Namespaces().Delete(ctx, n.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	// Pods are refused until their account exists.
	Wait(t, c, kube.Ref{APIVersion: "v1", Kind: "ServiceAccount", Namespace: n.Name, Name: "default"}, kube.Exists)
	return n.Name
}

// describe writes the namespace's pods and events into the test's log.
func describe(ctx context.Context, t *testing.T, c *kube.Client, namespace string) {
	pods, err := c.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Log(err)
		return
	}
	for _, p := range pods.Items {
		log, err := c.Logs(ctx, namespace, p.Name, "")
		t.Logf("pod %s is %s %s; its log (%v):\n%s", p.Name, p.Status.Phase, p.Status.Message, err, log)
	}
	events, err := c.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Log(err)
		return
	}
	for _, e := range events.Items {
		t.Logf("event: %s %s: %s: %s", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
	}
}
