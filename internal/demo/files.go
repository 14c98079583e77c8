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

// The images. What each means on this machine stands in sluice.yaml; in a cluster they are images.
const (
	oldDatabase   = "ferretdb:1.17"
	newDatabase   = "ferretdb:1.24"
	shop1         = "shop:1"
	shop2Faulty   = "shop:2-rc1"
	shop2         = "shop:2"
	goodMigration = "shop-migration:2"
	badMigration  = "shop-migration:2-rc1"
)

// writeConfig writes sluice.yaml.
func (st *stage) writeConfig() error {
	c := st.site.config()
	c["metricProviders"] = map[string]any{"prometheus": map[string]any{"url": st.prometheusURL}}
	body, err := yaml.Marshal(c)
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
	w := st.site.words()
	return []byte(strings.NewReplacer("$(DIR)", st.o.Dir, "$(DATABASE)", r.database, "$(SHOP)", r.shop, "$(MIGRATION)", r.migration,
		"$(SEED)", fmt.Sprint(st.o.Seed), "$(ORDERS)", fmt.Sprint(st.o.Orders),
		"$(STAGING)", w.staging, "$(PRODUCTION)", w.production, "$(REQUESTS)", w.requests).Replace(string(body))), nil
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

// objects returns the objects of some of the files, for the release that runs before the first delivery.
func (st *stage) objects(names ...string) ([]manifest.Object, error) {
	var all []manifest.Object
	for _, name := range names {
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
func (st *stage) ledgerFile() string   { return filepath.Join(st.o.Dir, "ledger") }
func (st *stage) requestsFile() string { return filepath.Join(st.o.Dir, "requests") }
