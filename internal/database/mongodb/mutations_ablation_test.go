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
		fingerprint.PartKey:      {},
		fingerprint.PartSums:     {},
		fingerprint.PartLengths:  {},
		fingerprint.PartMultiset: {},
		// Sums see every document that is missing or doubled. What the count is for is TestDocumentsLost.
		fingerprint.PartCount: {},
	}
}

// ablate compares the same damaged twins by the real method without one part after another.
func (d *damage) ablate(t *testing.T, name string, compare func(fingerprint.Part) *fingerprint.Report) {
	t.Helper()
	for _, part := range fingerprint.Parts() {
		missed := d.told(t, compare(part)) != d.want.text(t)
		switch want := slices.Contains(blind()[part], name); {
		case missed && !want:
			t.Errorf("ABLATE %s\t%s: missed without it, and is not known to be", part, name)
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
