package wire

import (
	"maps"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// Engines returns every database engine that is built, by the name that deploy files use. self is the command of this
// program.
func Engines(self []string) map[string]database.Engine {
	return map[string]database.Engine{}
}

func engineOf(all map[string]database.Engine) func(string) (database.Engine, error) {
	return func(name string) (database.Engine, error) {
		e, ok := all[name]
		if !ok {
			return nil, fault.Newf(fault.NotFound, "database engine %q is not built yet; there are %s", name, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
		}
		return e, nil
	}
}
