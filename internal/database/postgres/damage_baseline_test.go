package postgres

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// method is another way to compare two tables: a checksum used elsewhere. Each is known to miss a class, which shows that
// the comparison is fair.
type method struct {
	name   string
	misses string
	new    func() (add func(row [][]byte), sum func() string)
}

func methods() []method {
	return []method{
		{"BIT_XOR(CRC32(CONCAT_WS)) and the count", "2 values of two rows swapped", func() (func([][]byte), func() string) {
			var x uint32
			n := 0
			return func(row [][]byte) { x, n = x^crc32.ChecksumIEEE(joined(row)), n+1 }, func() string { return fmt.Sprint(x, n) }
		}},
		{"sum(md5(concat))", "14 delimiter and NULL shift between columns", func() (func([][]byte), func() string) {
			return summing(func(row [][]byte) []byte { return slices.Concat(row...) })
		}},
	}
}

// summing adds hashes up.
func summing(write func([][]byte) []byte) (func([][]byte), func() string) {
	var x uint64
	return func(row [][]byte) { x += hashed(write(row)) }, func() string { return fmt.Sprint(x) }
}

func hashed(b []byte) uint64 {
	digest := md5.Sum(b)
	return binary.BigEndian.Uint64(digest[:])
}

// joined writes a row as CONCAT_WS('#', columns, bits of NULL).
func joined(row [][]byte) []byte {
	var parts [][]byte
	var bits []byte
	for _, v := range row {
		if v == nil {
			bits = append(bits, '1')
			continue
		}
		bits = append(bits, '0')
		parts = append(parts, v)
	}
	return bytes.Join(append(parts, bits), []byte("#"))
}

// rowsOf reads a table as a plain client does, its columns by name.
func rowsOf(t *testing.T, s *instance, db, table string) (rows [][][]byte) {
	t.Helper()
	c, err := pgx.Connect(context.Background(), s.url(db))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	list, err := c.Query(context.Background(),
		"SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attname", table)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(list, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	r := c.PgConn().ExecParams(context.Background(), "SELECT "+strings.Join(names, ", ")+" FROM ONLY "+table, nil, nil, nil, nil)
	for r.NextRow() {
		row := make([][]byte, len(names))
		for j, v := range r.Values() {
			row[j] = slices.Clone(v)
		}
		rows = append(rows, row)
	}
	if _, err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return rows
}

// otherMethods prints which of the planted classes of rows they do not see.
func otherMethods(t *testing.T, s *instance, list []damage) {
	t.Helper()
	all, missed, planted := methods(), map[string][]string{}, 0
	for _, d := range list {
		seen, differs := make([]bool, len(all)), false
		for table, want := range d.want {
			if len(want) == 0 {
				continue
			}
			differs = true
			a, b := rowsOf(t, s, "control", table), rowsOf(t, s, "target", table)
			for i, m := range all {
				seen[i] = seen[i] || total(m, a) != total(m, b)
			}
		}
		if !differs {
			continue
		}
		planted++
		for i, m := range all {
			if !seen[i] {
				missed[m.name] = append(missed[m.name], d.name)
			}
		}
	}
	for _, m := range all {
		t.Logf("%s misses %d of %d classes of rows: %s", m.name, len(missed[m.name]), planted, strings.Join(missed[m.name], "; "))
		if !slices.Contains(missed[m.name], m.misses) {
			t.Errorf("%s is known not to see %q; the comparison is not fair", m.name, m.misses)
		}
	}
}

func total(m method, rows [][][]byte) string {
	add, sum := m.new()
	for _, r := range rows {
		add(r)
	}
	return sum()
}
