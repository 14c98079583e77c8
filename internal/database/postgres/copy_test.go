package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
)

// copyStream writes rows of two texts as COPY does, with an extension in the header; nil is NULL.
func copyStream(rows [][2][]byte) []byte {
	b := append([]byte(copySignature), 0, 0, 0, 0, 0, 0, 0, 3, 'e', 'x', 't')
	for _, r := range rows {
		b = binary.BigEndian.AppendUint16(b, 2)
		for _, v := range r {
			if v == nil {
				b = binary.BigEndian.AppendUint32(b, 0xffffffff)
				continue
			}
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
		}
	}
	return append(b, 0xff, 0xff)
}

func textReader(each func(database.Row) error) *copyReader {
	c, _ := bySend("textsend")
	return &copyReader{codecs: []codec{c, c}, key: []int{0}, each: each}
}

// TestCopyReader cuts one stream at all places: messages of the server need not end where rows do.
func TestCopyReader(t *testing.T) {
	rows := [][2][]byte{{[]byte("a"), []byte("")}, {[]byte(""), nil}, {bytes.Repeat([]byte("x"), 300), []byte("y")}, {[]byte("b"), []byte("z")}}
	stream := copyStream(rows)
	for size := 1; size <= len(stream); size++ {
		var got []string
		r := textReader(func(row database.Row) error {
			got = append(got, fmt.Sprintf("%x %x %x", row.Key, row.Values[0], row.Values[1]))
			return nil
		})
		for at := 0; at < len(stream); at += size {
			part := stream[at:min(at+size, len(stream))]
			if n, err := r.Write(part); err != nil || n != len(part) {
				t.Fatalf("parts of %d: %d, %v", size, n, err)
			}
		}
		if !r.complete || len(got) != len(rows) {
			t.Fatalf("parts of %d gave %d rows, complete %v", size, len(got), r.complete)
		}
		for i, row := range rows {
			key, second := database.AppendText(nil, row[0]), database.AppendNull(nil)
			if row[1] != nil {
				second = database.AppendText(nil, row[1])
			}
			if want := fmt.Sprintf("%x %x %x", database.AppendKey(nil, key), key, second); got[i] != want {
				t.Errorf("parts of %d: row %d is %s, want %s", size, i, got[i], want)
			}
		}
	}
}

// TestCopyReaderRefuses feeds it what is no answer to the query.
func TestCopyReaderRefuses(t *testing.T) {
	stream := copyStream([][2][]byte{{[]byte("a"), []byte("b")}})
	ignore := func(database.Row) error { return nil }
	cut := textReader(ignore)
	if _, err := cut.Write(stream[:len(stream)-2]); err != nil || cut.complete {
		t.Errorf("a stream without its end: complete %v, %v", cut.complete, err)
	}
	if _, err := textReader(ignore).Write([]byte("PGCOPX\n\377\r\n\000\000\000\000\000\000\000\000\000")); !errors.Is(err, errWire) {
		t.Errorf("another signature: %v", err)
	}
	three := textReader(ignore)
	three.codecs = append(three.codecs, other())
	if _, err := three.Write(stream); !errors.Is(err, errWire) {
		t.Errorf("another number of columns: %v", err)
	}
	enough := errors.New("enough")
	if _, err := textReader(func(database.Row) error { return enough }).Write(stream); err == nil || !errors.As(err, new(*passed)) {
		t.Errorf("the caller's error: %v", err)
	}
}

// TestCopyReaderAllocates nothing per row.
func TestCopyReaderAllocates(t *testing.T) {
	stream := copyStream([][2][]byte{{[]byte("some key"), []byte("some value")}})
	head := len(copySignature) + 11
	r := textReader(func(database.Row) error { return nil })
	if _, err := r.Write(stream[:len(stream)-2]); err != nil {
		t.Fatal(err)
	}
	row := stream[head : len(stream)-2]
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := r.Write(row); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per row", n)
	}
}
