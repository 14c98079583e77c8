package fingerprint

import (
	"crypto/md5"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
)

// The checksums used elsewhere, over the text of the columns. They are here to be shown at work on the same damage.

// xorCRC is BIT_XOR(CRC32(CONCAT_WS('#', columns, ISNULL bits))) with the row count beside it.
func xorCRC(rows [][][]byte) (sum uint64) {
	for _, r := range rows {
		var parts []string
		bits := ""
		for _, v := range r {
			if database.IsNull(v) {
				bits += "1"
				continue
			}
			bits += "0"
			parts = append(parts, database.TextOf(v))
		}
		sum ^= uint64(crc32.ChecksumIEEE([]byte(strings.Join(append(parts, bits), "#"))))
	}
	return sum | uint64(len(rows))<<32
}

// sumMD5 is sum(md5(concat(coalesce(column, ”) …))).
func sumMD5(rows [][][]byte) (sum uint64) {
	for _, r := range rows {
		var b strings.Builder
		for _, v := range r {
			if !database.IsNull(v) {
				b.WriteString(database.TextOf(v))
			}
		}
		digest := md5.Sum([]byte(b.String()))
		sum += binary.BigEndian.Uint64(digest[:])
	}
	return sum
}

// TestOtherChecksums prints which of the planted classes the checksums used elsewhere do not see.
func TestOtherChecksums(t *testing.T) {
	missed := map[string][]string{}
	damages := slices.Concat(rowDamages(), compositeDamages(), valueDamages())
	planted := 0
	for i := range damages {
		d := &damages[i]
		a, b := d.fakes()
		if len(d.want) == 0 {
			continue
		}
		planted++
		rows := func(f *fake) (out [][][]byte) {
			for _, r := range f.rows["shop.orders"] {
				out = append(out, r.Values)
			}
			return out
		}
		if xorCRC(rows(a)) == xorCRC(rows(b)) {
			missed["BIT_XOR(CRC32)"] = append(missed["BIT_XOR(CRC32)"], d.name)
		}
		if sumMD5(rows(a)) == sumMD5(rows(b)) {
			missed["sum(md5(concat))"] = append(missed["sum(md5(concat))"], d.name)
		}
	}
	for name, list := range missed {
		t.Logf("%s misses %d of %d classes: %s", name, len(list), planted, strings.Join(list, "; "))
	}
	if !slices.Contains(missed["BIT_XOR(CRC32)"], "2 values of two rows swapped") {
		t.Error("XOR of CRCs is known not to see values that change places; the comparison is not fair")
	}
	if !slices.Contains(missed["sum(md5(concat))"], "13 NULL to empty") {
		t.Error("a sum over joined text is known not to see NULL; the comparison is not fair")
	}
}

// BenchmarkManyTables shows what a table costs that has hardly a row.
func BenchmarkManyTables(b *testing.B) {
	x, y := newFake(), newFake()
	for i := range 200 {
		x.table(strings.Repeat("t", i+1), []string{"id"}, orderColumns(), orders(10))
		y.table(strings.Repeat("t", i+1), []string{"id"}, orderColumns(), orders(10))
	}
	for b.Loop() {
		if r := verify(b, x, y, nil); r.Verdict != Equal {
			b.Fatal(r.Reason)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/200/float64(b.N), "ms/table")
}
