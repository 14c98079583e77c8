package postgres

import (
	"bytes"
	"encoding/binary"

	"github.com/sluice-cd/sluice/internal/database"
)

// copySignature begins every answer in COPY's binary form; flags and the length of an extension follow.
const copySignature = "PGCOPY\n\377\r\n\000"

// copyReader takes COPY's binary form apart as it arrives. It allocates nothing per row.
type copyReader struct {
	codecs []codec
	key    []int
	each   func(database.Row) error

	pending  []byte // the begin of what was not yet complete
	begun    bool
	complete bool // the trailer was seen
	stopped  error
	wire     [][]byte
	row      database.Row
}

// Write implements io.Writer.
func (r *copyReader) Write(b []byte) (int, error) {
	n := len(b)
	if len(r.pending) > 0 {
		r.pending = append(r.pending, b...)
		b = r.pending
	}
	rest, err := r.parse(b)
	if err != nil {
		r.stopped = err
		return 0, err
	}
	r.pending = append(r.pending[:0], rest...)
	return n, nil
}

// parse gives every complete row and returns what remains.
func (r *copyReader) parse(b []byte) ([]byte, error) {
	if !r.begun {
		const head = len(copySignature) + 8
		if len(b) < head {
			return b, nil
		}
		if !bytes.HasPrefix(b, []byte(copySignature)) {
			return nil, errWire
		}
		extension := int(binary.BigEndian.Uint32(b[len(copySignature)+4:]))
		if len(b) < head+extension {
			return b, nil
		}
		b, r.begun = b[head+extension:], true
		r.row.Values = make([][]byte, len(r.codecs))
		r.wire = make([][]byte, len(r.codecs))
	}
	for len(b) >= 2 && !r.complete {
		fields := int16(binary.BigEndian.Uint16(b))
		if fields == -1 {
			r.complete = true
			return b[2:], nil
		}
		if int(fields) != len(r.codecs) {
			return nil, errWire
		}
		rest, ok := r.fields(b[2:])
		if !ok {
			return b, nil
		}
		if err := r.give(); err != nil {
			return nil, err
		}
		b = rest
	}
	return b, nil
}

// fields finds the values of one row; ok is false where they are not all there yet.
func (r *copyReader) fields(b []byte) (rest []byte, ok bool) {
	for j := range r.wire {
		value, next, err := cut(b)
		if err != nil {
			return nil, false
		}
		r.wire[j], b = value, next
	}
	return b, true
}

// give decodes the row and hands it over.
func (r *copyReader) give() error {
	var err error
	for j, w := range r.wire {
		if r.row.Values[j], err = r.codecs[j].value(r.row.Values[j][:0], w); err != nil {
			return err
		}
	}
	r.row.Key = r.row.Key[:0]
	for _, k := range r.key {
		r.row.Key = database.AppendElement(r.row.Key, r.row.Values[k])
	}
	row := r.row
	if len(r.key) == 0 {
		row.Key = nil
	}
	if err := r.each(row); err != nil {
		return &passed{err}
	}
	return nil
}
