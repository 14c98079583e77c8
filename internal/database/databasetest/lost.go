package databasetest

import (
	"context"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// RowsLost compares two databases of which the target has a row more, as its last, and loses the last rows of each scan
// on the way from the server. That must not pass, and would without the server's count.
func RowsLost(t *testing.T, o fingerprint.Options) {
	t.Helper()
	for role, side := range []*fingerprint.Side{&o.Source, &o.Target} {
		v, err := side.Server.View(t.Context())
		if err != nil {
			t.Fatalf("a view of the %s: %v", fingerprint.Role(role), err)
		}
		defer v.Close()
		side.View = losing{v}
	}
	r, err := fingerprint.Compare(t.Context(), o)
	if r.Verdict != fingerprint.Unknown || !strings.Contains(r.Reason, "the server counted") {
		t.Errorf("rows were lost, and the verdict is %s: %s (%v)", r.Verdict, r.Reason, err)
	}
	for _, part := range fingerprint.Parts() {
		r, err := fingerprint.CompareWithout(t.Context(), o, part)
		want := fingerprint.Unknown
		if part == fingerprint.PartCount {
			want = fingerprint.Equal
		}
		if r.Verdict != want {
			t.Errorf("rows were lost, and without %s the verdict is %s, want %s: %s (%v)", part, r.Verdict, want, r.Reason, err)
		}
	}
}

// losing gives the first rows of each scan only, whatever the server says.
type losing struct{ database.View }

const lostAfter = 100

func (l losing) Scan(ctx context.Context, r database.Range, p *database.Projection, each func(database.Row) error) (int64, error) {
	n := 0
	return l.View.Scan(ctx, r, p, func(row database.Row) error {
		if n++; n > lostAfter {
			return nil
		}
		return each(row)
	})
}
