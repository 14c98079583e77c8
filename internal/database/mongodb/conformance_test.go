package mongodb

import (
	"testing"

	"github.com/sluice-cd/sluice/internal/database/databasetest"
)

func TestConformanceOld(t *testing.T) {
	t.Parallel()
	databasetest.Run(t, harness{older})
}

func TestConformanceNew(t *testing.T) {
	t.Parallel()
	databasetest.Run(t, harness{newer})
}
