package fingerprint

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/sluice-cd/sluice/internal/database"
)

// Buckets is how many leaves a table has.
const Buckets = 1 << 16

// bucket is a leaf: how many rows, and the sum of their hashes. A sum and never XOR, because XOR cancels exactly the
// systematic changes that upgrades make.
type bucket struct {
	count uint64
	sum   Hash
}

// leaves is the digest of one table on one side.
type leaves struct {
	buckets []bucket
	columns []Hash // Σc_j
	cells   *cells
	rows    int64
	bytes   int64
	keyless bool
	without Part
}

func newLeaves(t *Table, seed Seed, n int, without Part) *leaves {
	return &leaves{
		buckets: make([]bucket, Buckets), columns: make([]Hash, len(t.Columns)), keyless: len(t.Key) == 0,
		cells: newCells(n, seed.derive(t.Name.String(), "cells")), without: without,
	}
}

func bucketOf(key Hash) int { return int(key.Hi >> 48) }

// add takes in a row of which the hasher has just made the hashes.
func (l *leaves) add(h *hasher, key, row Hash, r database.Row) {
	b := &l.buckets[leafOf(key, row, l.without)]
	b.count++
	b.sum = combine(b.sum, row, l.without)
	for j, c := range h.columns {
		l.columns[j] = combine(l.columns[j], c, l.without)
	}
	l.cells.add(row, limbs(r.Key, key, l.keyless))
	l.rows++
	l.bytes += rowBytes(r)
}

func rowBytes(r database.Row) int64 {
	n := len(r.Key)
	for _, v := range r.Values {
		n += len(v)
	}
	return int64(n)
}

func (l *leaves) merge(o *leaves) {
	for i, b := range o.buckets {
		a := &l.buckets[i]
		a.count += b.count
		a.sum = combine(a.sum, b.sum, l.without)
	}
	for j, c := range o.columns {
		l.columns[j] = combine(l.columns[j], c, l.without)
	}
	l.cells.merge(o.cells)
	l.rows += o.rows
	l.bytes += o.bytes
}

// differing returns the buckets that differ between two digests, nil where none does.
func differing(a, b *leaves) []int {
	var out []int
	for i := range a.buckets {
		x, y := a.buckets[i], b.buckets[i]
		if a.without == PartCount {
			x.count, y.count = 0, 0
		}
		if x != y {
			out = append(out, i)
		}
	}
	return out
}

// writeBuckets writes the leaves that are not empty.
func (l *leaves) writeBuckets(w io.Writer) error {
	var record [28]byte
	for i, b := range l.buckets {
		if b == (bucket{}) {
			continue
		}
		binary.BigEndian.PutUint32(record[:], uint32(i))
		binary.BigEndian.PutUint64(record[4:], b.count)
		b.sum.appendTo(record[12:12])
		if _, err := w.Write(record[:]); err != nil {
			return err
		}
	}
	return nil
}

// root is what evidence carries: a digest of the leaves, never the leaves.
func (l *leaves) root() string {
	h := sha256.New()
	// A hash never returns an error.
	_ = l.writeBuckets(h)
	return fmt.Sprintf("sha256:%x", h.Sum(nil))
}
