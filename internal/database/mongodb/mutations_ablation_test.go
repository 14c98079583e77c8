package mongodb

import (
	"context"
	"slices"
	"testing"

	"github.com/sluice-cd/sluice/internal/database/databasetest"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// blind names the cases that are not reported exactly when a part of the method is taken away: each part is needed, and
// each of these cases can fail.
func blind() map[fingerprint.Part][]string {
	return map[fingerprint.Part][]string{
		fingerprint.PartKey: {"2 all values of two documents swapped", "10 a key changed, the rest equal", "12 ('a','bc') becomes ('ab','c')",
			"18 a key of another type is the same key", "18 a key becomes a decimal, the same key", "23 the case of a key",
			"37 a collection empty"},
		fingerprint.PartSums: {"11 two equal documents under one key changed"},
		fingerprint.PartLengths: {"12 ('a','bc') becomes ('ab','c')", "13 missing becomes null", "13 null becomes missing", "13 '' becomes null",
			"18 a key of another type is the same key", "18 a key becomes a decimal, the same key",
			"21 an empty array becomes null", "26 binary subtype 0 becomes 4", "26 binary subtype 3 becomes 4"},
		fingerprint.PartMultiset: {"9 one missing and another doubled", "11 two documents under one key",
			"11 two equal documents under one key changed"},
		// Sums see every document that is missing or doubled. What the count is for is TestDocumentsLost.
		fingerprint.PartCount: {},
	}
}

// ablate compares the same damaged twins by the real method without one part after another, which is five comparisons more:
// not among the everyday tests.
func (d *damage) ablate(t *testing.T, name string, compare func(fingerprint.Part) *fingerprint.Report) {
	t.Helper()
	if testing.Short() {
		return
	}
	for _, part := range fingerprint.Parts() {
		missed := d.told(t, compare(part)) != d.want.text(t)
		switch want := slices.Contains(blind()[part], name); {
		case missed && !want:
			t.Errorf("%s is missed or told wrongly when the method lacks %s, and is not known to be", name, part)
		case !missed && want:
			t.Errorf("%s is told although the method lacks %s", name, part)
		}
	}
}

// TestDocumentsLost is class 40 once more: what is lost on the way from the server is noticed by the server's count alone.
func TestDocumentsLost(t *testing.T) {
	t.Parallel()
	a, b := started(t, older, 2000), started(t, newer, 2000)
	if err := b.Insert(context.Background(), 3000); err != nil {
		t.Fatal(err)
	}
	source, from := opened(t, a.URL())
	target, to := opened(t, b.URL())
	databasetest.RowsLost(t, fingerprint.Options{Source: fingerprint.Side{Server: source}, Target: fingerprint.Side{Server: target},
		Plan: planOf(t, from, to), Seed: fingerprint.NewSeed(), SpillDir: t.TempDir()})
}
