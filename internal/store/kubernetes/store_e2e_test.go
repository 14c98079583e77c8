//go:build e2e

package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/api/v1alpha1"
	"github.com/sluice-cd/sluice/internal/platform/kubernetes"
	"github.com/sluice-cd/sluice/internal/store"
	"github.com/sluice-cd/sluice/internal/store/storetest"
)

// The tests of this file and its neighbours run on the cluster that LAB_KUBECONFIG names.

func credentials(t *testing.T) *rest.Config {
	t.Helper()
	kubeconfig := os.Getenv("LAB_KUBECONFIG")
	if kubeconfig == "" {
		t.Fatal("LAB_KUBECONFIG names no cluster: make lab-up starts one")
	}
	config, err := kubernetes.Credentials(kubernetes.Config{Account: "lab", Kubeconfig: kubeconfig})
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	return config
}

// TestMain installs the definitions, as whoever installs a controller does.
func TestMain(m *testing.M) {
	out, err := exec.Command("kubectl", "--kubeconfig", os.Getenv("LAB_KUBECONFIG"), "apply", "--server-side", "--force-conflicts", "-f", "../../../config/crd").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "the definitions cannot be installed: %v\n%s", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var spaces atomic.Int64

// space makes a namespace that goes with the test.
func space(t *testing.T, config *rest.Config) string {
	t.Helper()
	name := fmt.Sprintf("sluice-store-%d-%d", os.Getpid(), spaces.Add(1))
	c, err := newClient(config, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := create(t.Context(), c, "namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		in, err := newClient(config, name)
		if err != nil {
			t.Fatal(err)
		}
		all, err := list[v1alpha1.DeliveryList](ctx, in, deliveries, metav1.ListOptions{})
		if err != nil {
			t.Error(err)
			return
		}
		for _, d := range all.Items {
			if len(d.Finalizers) > 0 {
				if _, err := merge[v1alpha1.Delivery](ctx, in, deliveries, d.Name, []byte(`{"metadata":{"finalizers":null}}`)); err != nil {
					t.Error(err)
				}
			}
		}
		if err := c.remove(ctx, "namespaces", name, ""); err != nil {
			t.Error(err)
		}
	})
	return name
}

func opened(t *testing.T, config *rest.Config, namespace string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Credentials: config, Namespace: namespace, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestConformance(t *testing.T) {
	config := credentials(t)
	storetest.Run(t, func(t *testing.T) storetest.Full { return opened(t, config, space(t, config)) })
}

// people reach a new namespace under the names that they give.
func people(t *testing.T) users {
	t.Helper()
	config := credentials(t)
	namespace := space(t, config)
	return func(user string) Config {
		as := rest.CopyConfig(config)
		if user != "controller" {
			as.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:masters"}}
		}
		return Config{Credentials: as, Namespace: namespace, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	}
}

func TestRefusedApprovalOnCluster(t *testing.T) { refusedApprovals(t, people) }

// TestLargeOnCluster keeps states and a journal that are in Secrets.
func TestLargeOnCluster(t *testing.T) {
	config := credentials(t)
	s := opened(t, config, space(t, config))
	if _, err := s.Create(t.Context(), asking(t, "d")); err != nil {
		t.Fatal(err)
	}
	for at := store.Revision(1); at < 4; at++ {
		st, records := large(t, fmt.Sprint(at))
		if _, err := s.Swap(t.Context(), "d", at, st, records); err != nil {
			t.Fatal(err)
		}
		d, err := s.Load(t.Context(), "d")
		if err != nil || d.Status.Cancel != st.Cancel {
			t.Fatalf("a large state is read as %q (%v)", d.Status.Reason, err)
		}
	}
	if all, err := s.Journal(t.Context(), "d"); err != nil || len(all) != 4 || all[3].Path != "3" {
		t.Errorf("the journal has %d records (%v)", len(all), err)
	}
}
