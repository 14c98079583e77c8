package mongodb

import (
	"testing"

	"github.com/sluice-cd/sluice/internal/database/databasetest"
)

func TestConformanceOld(t *testing.T) {
	if testing.Short() {
		t.Skip("the everyday tests hold the newer version to the suite; make test runs both")
	}
	t.Parallel()
	databasetest.Run(t, harness{older})
}

func TestConformanceNew(t *testing.T) {
	t.Parallel()
	databasetest.Run(t, harness{newer})
}
