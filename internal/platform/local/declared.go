package local

import (
	"context"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
)

// Declared is what an account's node has been told to run, as the node has kept it. It needs no node and starts none.
type Declared struct{ dir string }

var _ platform.DryRunner = Declared{}

// DeclaredIn reads the directory of an account, which need not exist.
func DeclaredIn(dir string) Declared { return Declared{dir} }

// DryRun implements platform.DryRunner.
func (d Declared) DryRun(_ context.Context, objects []manifest.Object, o platform.Options) ([]platform.Difference, error) {
	s, err := loadState(d.dir)
	if err != nil {
		return nil, err
	}
	all, err := put(call{Objects: objects, Options: o})
	if err != nil {
		return nil, err
	}
	var out []platform.Difference
	for _, o := range all {
		v := platform.Difference{Applied: o}
		if r, ok := s.Objects[key(o.Ref())]; ok {
			v.Live = &r.Object
		}
		out = append(out, v)
	}
	return out, nil
}
