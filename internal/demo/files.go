package demo

import (
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/sluice-cd/sluice/internal/manifest"
)

//go:embed files
var files embed.FS

// release is what a commit of the shop's repository ships: the tags of three images.
type release struct {
	database, shop, migration string
}

// The images. What each means on this machine stands in sluice.yaml.
const (
	oldDatabase   = "ferretdb:1.17"
	newDatabase   = "ferretdb:1.24"
	shop1         = "shop:1"
	shop2Faulty   = "shop:2-rc1"
	shop2         = "shop:2"
	goodMigration = "shop-migration:2"
	badMigration  = "shop-migration:2-rc1"
)

// images maps the images to commands.
func (st *stage) images() map[string][]string {
	shop := st.programs["shop"]
	return map[string][]string{
		oldDatabase:    {st.programs["ferretdb-a"]},
		newDatabase:    {st.programs["ferretdb-b"]},
		shop1:          {shop, "web", "--release", "1"},
		shop2Faulty:    {shop, "web", "--release", "2-rc1", "--fail-percent", "40"},
		shop2:          {shop, "web", "--release", "2"},
		goodMigration:  {shop, "migrate"},
		badMigration:   {shop, "migrate", "--damage", "--orders", fmt.Sprint(st.o.Orders), "--injected", st.injectedFile()},
		"shop-tests:1": {shop, "test"},
	}
}

// writeConfig writes sluice.yaml.
func (st *stage) writeConfig() error {
	body, err := yaml.Marshal(map[string]any{
		"accounts":        map[string]any{account: map[string]any{"kind": "local", "directory": st.nodeDir()}},
		"metricProviders": map[string]any{"prometheus": map[string]any{"url": st.prometheusURL}},
		"images":          st.images(),
	})
	if err != nil {
		return err
	}
	return os.WriteFile(st.configFile(), body, 0o600)
}

// write writes one of the files with what it leaves open filled in.
func (st *stage) write(name, to string, r release) error {
	body, err := st.filled(name, r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	return os.WriteFile(to, body, 0o600)
}

func (st *stage) filled(name string, r release) ([]byte, error) {
	body, err := files.ReadFile("files/" + name)
	if err != nil {
		return nil, err
	}
	return []byte(strings.NewReplacer("$(DIR)", st.o.Dir, "$(DATABASE)", r.database, "$(SHOP)", r.shop, "$(MIGRATION)", r.migration, "$(SEED)", fmt.Sprint(st.o.Seed)).Replace(string(body))), nil
}

// checkOut puts the manifests of a release where the deploy file looks for them, as checking out a commit does.
func (st *stage) checkOut(r release) error {
	for _, name := range []string{"database.yaml", "shop.yaml", "migration.yaml"} {
		if err := st.write(name, filepath.Join(st.o.Dir, "manifests", name), r); err != nil {
			return err
		}
	}
	return nil
}

// production returns the objects that run before the first delivery.
func (st *stage) production() ([]manifest.Object, error) {
	var all []manifest.Object
	for _, name := range []string{"database.yaml", "shop.yaml"} {
		body, err := st.filled(name, release{database: oldDatabase, shop: shop1})
		if err != nil {
			return nil, err
		}
		objects, err := manifest.Parse(name, body)
		if err != nil {
			return nil, err
		}
		all = append(all, objects...)
	}
	return all, nil
}

func (st *stage) deployFile() string   { return filepath.Join(st.o.Dir, "deploy.yaml") }
func (st *stage) configFile() string   { return filepath.Join(st.o.Dir, "sluice.yaml") }
func (st *stage) dataDir() string      { return filepath.Join(st.o.Dir, "data") }
func (st *stage) nodeDir() string      { return filepath.Join(st.o.Dir, "node") }
func (st *stage) ledgerFile() string   { return filepath.Join(st.o.Dir, "ledger") }
func (st *stage) requestsFile() string { return filepath.Join(st.o.Dir, "requests") }
func (st *stage) injectedFile() string { return filepath.Join(st.o.Dir, "injected") }
