// Package fingerprint digests the content of databases and tells exactly where two of them differ.
//
// Both catalogs and the contract make a Plan before anything is scanned. Each table becomes 65,536 buckets, chosen by
// the hash of the key, with a count and a 128-bit sum of row hashes, and an invertible Bloom table keyed by the row, from
// which the keys of a few thousand differing rows are read without a second scan. Where more differ, the hashes of the
// differing buckets are spilled to files and merged partition by partition. Only differing rows are read in full; they
// get a class per column and, where all moved by the same amount, a pattern.
//
// The hash is xxh3 with seeds drawn once per verification. It is no PRF: the error bound, below the number of buckets
// times 2^-128, holds for damage, not for an adversary who knows the seed.
package fingerprint

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/sluice-cd/sluice/internal/fault"
)

// Verdict is what a comparison says.
type Verdict string

// The verdicts. Unknown is never a pass: Report.Reason says why it could not be told.
const (
	Equal     Verdict = "equal"
	Different Verdict = "different"
	Unknown   Verdict = "unknown"
)

// Role is the side of a comparison.
type Role int

// The sides: old and new are the values of Source and of Target.
const (
	Source Role = iota
	Target
)

// String names the side.
func (r Role) String() string {
	if r == Source {
		return "source"
	}
	return "target"
}

// Seed is drawn once per verification, given to both sides and kept over a restart.
type Seed [16]byte

// NewSeed draws a seed.
func NewSeed() Seed {
	var s Seed
	// rand.Read never returns an error and always fills the slice.
	_, _ = rand.Read(s[:])
	return s
}

// ParseSeed reads a seed as String wrote it.
func ParseSeed(text string) (Seed, error) {
	var s Seed
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(s) {
		return s, fault.Newf(fault.Invalid, "a seed is 32 hexadecimal digits, not %q", text)
	}
	copy(s[:], b)
	return s, nil
}

// String returns the seed in hexadecimal, for the journal.
func (s Seed) String() string { return hex.EncodeToString(s[:]) }

// Digest names the seed in reports and fingerprints without telling it.
func (s Seed) Digest() string {
	sum := sha256.Sum256(append([]byte("sluice seed\x00"), s[:]...))
	return fmt.Sprintf("sha256:%x", sum)
}

// derive makes the seed of one hash: per table and purpose.
func (s Seed) derive(table, purpose string) uint64 {
	h := sha256.New()
	h.Write(s[:])
	fmt.Fprintf(h, "%d:%s%d:%s", len(table), table, len(purpose), purpose)
	return binary.BigEndian.Uint64(h.Sum(nil))
}

// doubt is why nothing can be said about the databases. Compare turns it into the verdict Unknown.
type doubt struct{ reason string }

func (d *doubt) Error() string { return d.reason }

func doubtf(format string, args ...any) error { return &doubt{fmt.Sprintf(format, args...)} }
