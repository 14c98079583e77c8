package data_test

import (
	"context"
	"maps"
	"sync"
	"testing"

	"github.com/sluice-cd/sluice/internal/manifest"
	"github.com/sluice-cd/sluice/internal/platform"
	"github.com/sluice-cd/sluice/internal/platform/local"
)

// isolations is the local platform with a fake Isolator, which only notes in which namespaces copies are kept from others.
type isolations struct {
	*local.Platform
	mu   sync.Mutex
	open map[string]bool

	refuses func(objects []manifest.Object) error       // is asked before, nil: nothing is refused
	applied func(ctx context.Context, key string) error // is called when the platform has applied, and may keep the answer from Sluice
}

// Check implements platform.Checker.
func (i *isolations) Check(_ context.Context, objects []manifest.Object, _ platform.Options) error {
	if i.refuses == nil {
		return nil
	}
	return i.refuses(objects)
}

// CheckCanary implements platform.Checker.
func (i *isolations) CheckCanary(ctx context.Context, objects, settings []manifest.Object, o platform.Options) error {
	return i.Check(ctx, append(settings, objects...), o)
}

// Apply implements platform.Platform.
func (i *isolations) Apply(ctx context.Context, key string, objects []manifest.Object, o platform.Options) ([]platform.Change, error) {
	changes, err := i.Platform.Apply(ctx, key, objects, o)
	if err != nil || i.applied == nil {
		return changes, err
	}
	if err := i.applied(ctx, key); err != nil {
		return nil, err
	}
	return changes, nil
}

// Isolate implements platform.Isolator.
func (i *isolations) Isolate(_ context.Context, _ string, of platform.Isolation) ([]string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.open[of.Namespace] = true
	return nil, nil
}

// Release implements platform.Isolator.
func (i *isolations) Release(_ context.Context, namespace, _ string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.open[namespace] {
		i.open[namespace] = false
	}
	return nil
}

// left fails unless all of these namespaces were isolated once and only the one that stays, if any, still is.
func (i *isolations) left(t *testing.T, stay string, gone ...string) {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	want := map[string]bool{}
	if stay != "" {
		want[stay] = true
	}
	for _, n := range gone {
		want[n] = false
	}
	if !maps.Equal(i.open, want) {
		t.Errorf("isolated are %v, want %v", i.open, want)
	}
}
