package wire

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/platform"
)

// TestRenewedCredentials holds that a cluster is connected anew where its kubeconfig has changed, and only then.
func TestRenewedCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	write := func(body string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	token := func(is string) string {
		return fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}],
contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {token: %q}}]}`, is)
	}
	c := &config.Config{Accounts: map[string]config.Account{"prod": {Name: "prod", Kind: config.Kubernetes, Kubeconfig: file}}}
	a := newAccounts(t.Context(), Options{Config: Fixed(c), Log: slog.New(slog.DiscardHandler)})
	use := func() platform.Platform {
		t.Helper()
		p, err := a.platform("prod")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	write(token("first"))
	first := use()
	if use() != first {
		t.Error("a cluster is connected anew although nothing has changed")
	}
	write(token("renewed"))
	renewed := use()
	if renewed == first {
		t.Error("renewed credentials are not used")
	}
	write("half of a fi")
	if use() != renewed {
		t.Error("while a kubeconfig is broken the last one does not hold")
	}
	write(token("and again"))
	if use() == renewed {
		t.Error("a mended kubeconfig is not used")
	}
}
