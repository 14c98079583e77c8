package postgres

import (
	"testing"

	"github.com/sluice-cd/sluice/internal/database/databasetest"
)

func TestConformance(t *testing.T) { databasetest.Run(t, newHarness(t)) }
