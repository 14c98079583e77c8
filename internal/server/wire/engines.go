package wire

import (
	"maps"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/database/mongodb"
	"github.com/sluice-cd/sluice/internal/database/postgres"
	"github.com/sluice-cd/sluice/internal/fault"
)

// QuiesceHelper is the hidden command that holds the writers of a database while another process copies its files.
const QuiesceHelper = "quiesce-helper"

// Engines returns every database engine that is built, by the name that deploy files use. self is the command of this
// program.
func Engines(self []string) map[string]database.Engine {
	return map[string]database.Engine{
		"mongodb":  mongodb.New(mongodb.Options{HelperCommand: slices.Concat(self, []string{QuiesceHelper})}),
		"postgres": postgres.New(),
	}
}

func engineOf(all map[string]database.Engine) func(string) (database.Engine, error) {
	return func(name string) (database.Engine, error) {
		e, ok := all[name]
		if !ok {
			return nil, fault.Newf(fault.NotFound, "database engine %q is not built yet; there are %s", name, strings.Join(slices.Sorted(maps.Keys(all)), " and "))
		}
		return e, nil
	}
}
