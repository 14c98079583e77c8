package postgres

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/database/databasetest"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// blind names the planted damages that are not reported exactly when a part of the method is taken away: each part is
// needed, and each of these cases can fail.
func blind() map[fingerprint.Part][]string {
	return map[fingerprint.Part][]string{
		fingerprint.PartKey: {"2 values of two rows swapped", "2 all values of two rows swapped", "4 one column rotated over all rows",
			"10 a key changed, the rest equal", "12 columns of a key shifted", "23 case of a key under a blind collation",
			"29 an enum's label renamed"},
		fingerprint.PartSums:    {"11 two equal rows under one unique key changed"},
		fingerprint.PartLengths: {"12 columns of a key shifted", "13 NULL, 'NULL' and ''", "14 delimiter and NULL shift between columns"},
		fingerprint.PartMultiset: {"8 keyless 1 to 2", "8 keyless 1 to 3", "8 keyless 2 to 0", "9 one missing and another doubled",
			"11 two rows under one unique key", "11 two equal rows under one unique key changed"},
		// Sums see every row that is missing or doubled. What the count is for is TestRowsLost.
		fingerprint.PartCount: {},
	}
}

// ablations compares the same damaged databases by the real method without one part after another, which is five comparisons
// more: not among the everyday tests.
func ablations(t *testing.T, s *instance, list []damage) {
	t.Helper()
	if testing.Short() {
		return
	}
	for _, part := range fingerprint.Parts() {
		report, differences := compareDatabases(t, s, "control", "target", func(ctx context.Context, o fingerprint.Options) (*fingerprint.Report, error) {
			return fingerprint.CompareWithout(ctx, o, part)
		})
		found, missed := see(t, report, differences), []string{}
		for i := range list {
			if len(list[i].wrong(found)) > 0 {
				missed = append(missed, list[i].name)
			}
		}
		t.Logf("without %s %d of %d classes are missed or told wrongly: %s", part, len(missed), len(list), strings.Join(missed, "; "))
		if want := blind()[part]; !slices.Equal(missed, want) {
			t.Errorf("without %s the suite fails on %q, want %q", part, missed, want)
		}
	}
}

// TestRowsLost is class 40 once more: what is lost on the way from the server is noticed by the server's count alone.
func TestRowsLost(t *testing.T) {
	s := twoDatabases(t)
	s.exec(t, "target", fillOrders("orders", damageRows+10, damageRows+10))
	o, err := sides(t, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	databasetest.RowsLost(t, o)
}
