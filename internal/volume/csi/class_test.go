package csi

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/internal/fault"
)

// withClasses is a cluster that has storage classes and nothing else.
func withClasses(t *testing.T, classes ...string) cluster {
	t.Helper()
	fakeServer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/apis/storage.k8s.io/v1/storageclasses" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"apiVersion": "storage.k8s.io/v1", "kind": "StorageClassList", "metadata": {}, "items": [`+strings.Join(classes, ",")+`]}`)
	}))
	t.Cleanup(fakeServer.Close)
	client, err := dynamic.NewForConfig(&rest.Config{Host: fakeServer.URL})
	if err != nil {
		t.Fatal(err)
	}
	return cluster{account: "prod", client: client}
}

func classOf(name, driver, policy, binding string, usual bool) string {
	return fmt.Sprintf(`{"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": %q, "annotations": {"storageclass.kubernetes.io/is-default-class": "%t"}},
		"provisioner": %q, "reclaimPolicy": %q, "volumeBindingMode": %q}`, name, usual, driver, policy, binding)
}

func TestTheCloneThatIsStreamedGoesWithItsClaim(t *testing.T) {
	const ebs, zfs, now, late = "ebs", "zfs", "Immediate", "WaitForFirstConsumer"
	for name, c := range map[string]struct {
		classes []string
		want    string
		late    bool
	}{
		"the source's own":       {[]string{classOf("gold", ebs, "Delete", now, false), classOf("usual", ebs, "Delete", now, true)}, "gold", false},
		"the source's retains":   {[]string{classOf("gold", ebs, "Retain", now, true), classOf("z", zfs, "Delete", now, true), classOf("other", ebs, "Delete", late, false)}, "other", true},
		"the default of several": {[]string{classOf("gold", ebs, "Retain", now, false), classOf("a", ebs, "Delete", now, false), classOf("b", ebs, "Delete", now, true)}, "b", false},
		"none":                   {[]string{classOf("gold", ebs, "Retain", now, true), classOf("z", zfs, "Delete", now, true)}, "", false},
		"several":                {[]string{classOf("a", ebs, "Delete", now, false), classOf("b", ebs, "Delete", now, false)}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			got, late, err := withClasses(t, c.classes...).passingClass(t.Context(), shape{Driver: ebs, Class: "gold"})
			if got != c.want || late != c.late {
				t.Errorf("class %q, late %t: %v", got, late, err)
			}
			if c.want == "" && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "with reclaimPolicy: Delete")) {
				t.Error(err)
			}
		})
	}
}
