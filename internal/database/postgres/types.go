package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// codec reads the values of one type. Types that have no form of their own are read as text: cast is then appended to
// the column in the SELECT list.
type codec struct {
	family database.Family
	cast   string
	decode func(dst, wire []byte) ([]byte, error)
	param  func(canon []byte) (text string, ok bool) // the value as a parameter in text, to ask for rows by key
}

// bySend returns the codec of a built-in type by the function that sends it, which names a binary format: varchar shares
// it with text.
func bySend(function string) (codec, bool) {
	switch function {
	case "int2send", "int4send", "int8send":
		return codec{family: database.Integer, decode: decodeInteger, param: paramText}, true
	case "oidsend":
		return codec{family: database.Integer, decode: decodeOID, param: paramText}, true
	case "float4send", "float8send":
		return codec{family: database.Float, decode: decodeFloat, param: paramFloat}, true
	case "numeric_send":
		return codec{family: database.Numeric, decode: decodeNumeric, param: paramText}, true
	case "boolsend":
		return codec{family: database.Boolean, decode: decodeBoolean, param: paramText}, true
	case "textsend", "varcharsend", "bpcharsend", "namesend", "citextsend":
		return codec{family: database.Text, decode: decodeText, param: paramText}, true
	case "byteasend":
		return codec{family: database.Bytes, decode: decodeBytes, param: paramText}, true
	case "date_send":
		return codec{family: database.Timestamp, decode: decodeDate, param: paramTimestamp}, true
	case "timestamp_send", "timestamptz_send":
		return codec{family: database.Timestamp, decode: decodeTimestamp, param: paramTimestamp}, true
	case "interval_send":
		return codec{family: database.Interval, decode: decodeInterval, param: paramInterval}, true
	case "json_send":
		return codec{family: database.JSONText, decode: decodeJSON}, true // it has no equality to ask by
	case "jsonb_send":
		return codec{family: database.JSONB, decode: decodeJSONB, param: paramText}, true
	case "uuid_send":
		return codec{family: database.UUID, decode: decodeUUID, param: paramText}, true
	case "enum_send":
		return codec{family: database.Enum, decode: decodeEnum, param: paramText}, true
	}
	return codec{}, false
}

// other reads any type as its text under pinned settings.
func other() codec {
	return codec{family: database.Other, cast: "::pg_catalog.text", decode: decodeOther, param: paramText}
}

// sqlType is a row of pg_type.
type sqlType struct {
	OID      uint32
	Name     string // quoted, with its schema
	Kind     string // typtype
	Base     uint32 // of a domain
	Element  uint32 // of an array
	Send     string
	Relation uint32 // of a composite
}

// types are the types of one database.
type types struct {
	byOID      map[uint32]sqlType
	attributes map[uint32][]attribute // of composites, by typrelid
}

type attribute struct {
	relation uint32
	typ      uint32
}

// loadTypes reads the types of the database. Rows of tables are types too; they matter only where a column holds one.
func loadTypes(ctx context.Context, c *pgx.Conn) (*types, error) {
	rows, err := c.Query(ctx, `
		SELECT t.oid, quote_ident(n.nspname) || '.' || quote_ident(t.typname), t.typtype::text, t.typbasetype,
		       CASE WHEN t.typsubscript = 'array_subscript_handler'::regproc THEN t.typelem ELSE 0 END, coalesce(p.proname::text, ''), t.typrelid
		FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_proc p ON p.oid = t.typsend`)
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[sqlType])
	if err != nil {
		return nil, err
	}
	ts := &types{byOID: make(map[uint32]sqlType, len(list)), attributes: map[uint32][]attribute{}}
	for _, t := range list {
		ts.byOID[t.OID] = t
	}
	rows, err = c.Query(ctx, `
		SELECT a.attrelid, a.atttypid FROM pg_attribute a
		JOIN pg_type t ON t.typrelid = a.attrelid AND t.typtype = 'c'
		WHERE a.attnum > 0 AND NOT a.attisdropped AND (a.attrelid >= 16384) ORDER BY a.attrelid, a.attnum`)
	if err != nil {
		return nil, err
	}
	var a attribute
	_, err = pgx.ForEachRow(rows, []any{&a.relation, &a.typ}, func() error {
		ts.attributes[a.relation] = append(ts.attributes[a.relation], a)
		return nil
	})
	return ts, err
}

// depth is how deep types may be nested before they are read as text.
const depth = 8

// codec returns how a type is read.
func (ts *types) codec(oid uint32) codec { return ts.nested(oid, depth) }

func (ts *types) nested(oid uint32, deep int) codec {
	t, ok := ts.byOID[oid]
	if !ok || deep == 0 {
		return other()
	}
	switch {
	case t.Kind == "d":
		return ts.nested(t.Base, deep-1)
	case t.Element != 0:
		return ts.array(t, deep)
	case t.Kind == "c":
		return ts.composite(t, deep)
	}
	if c, ok := bySend(t.Send); ok {
		return c
	}
	return other()
}

// equals writes the comparison of a column with a text, %s. It must not fail on a text that is no value of the column:
// the other side may have wider integers or other labels.
func (ts *types) equals(column string, oid uint32) string {
	t := ts.byOID[oid]
	for range depth {
		if t.Kind != "d" {
			break
		}
		t = ts.byOID[t.Base]
	}
	switch ts.codec(oid).family {
	case database.Integer:
		if t.Send == "oidsend" {
			column += "::pg_catalog.int8" // there is no comparison of the two types
		}
		return column + " = %s::pg_catalog.int8"
	case database.Float:
		return column + " = %s::pg_catalog.float8"
	case database.Enum, database.Other, database.Array:
		return column + "::pg_catalog.text = %s"
	default:
		return column + " = %s::" + t.Name
	}
}

// array reads arrays. Where the elements have no form of their own the whole array is cast element by element, which
// keeps its dimensions.
func (ts *types) array(t sqlType, deep int) codec {
	element := ts.nested(t.Element, deep-1)
	c := codec{family: database.Array}
	if element.cast != "" {
		if element.family != database.Other {
			return other()
		}
		c.cast = "::pg_catalog.text[]"
	}
	c.decode = func(dst, wire []byte) ([]byte, error) { return decodeArray(dst, wire, element) }
	return c
}

// composite reads rows as values. Their family is Other, as their fields are compared by position.
func (ts *types) composite(t sqlType, deep int) codec {
	list := ts.attributes[t.Relation]
	fields := make([]codec, len(list))
	for i, a := range list {
		fields[i] = ts.nested(a.typ, deep-1)
		if fields[i].cast != "" {
			return other()
		}
	}
	return codec{family: database.Other, decode: func(dst, wire []byte) ([]byte, error) { return decodeComposite(dst, wire, fields) }}
}

var errWire = fault.Newf(fault.Invalid, "a value is not in the binary form of its type; this is a bug in Sluice or in an extension")

func decodeInteger(dst, b []byte) ([]byte, error) {
	switch len(b) {
	case 2:
		return database.AppendInteger(dst, int64(int16(binary.BigEndian.Uint16(b)))), nil
	case 4:
		return database.AppendInteger(dst, int64(int32(binary.BigEndian.Uint32(b)))), nil
	case 8:
		return database.AppendInteger(dst, int64(binary.BigEndian.Uint64(b))), nil
	}
	return dst, errWire
}

func decodeOID(dst, b []byte) ([]byte, error) {
	if len(b) != 4 {
		return dst, errWire
	}
	return database.AppendInteger(dst, int64(binary.BigEndian.Uint32(b))), nil
}

func decodeFloat(dst, b []byte) ([]byte, error) {
	switch len(b) {
	case 4:
		return database.AppendFloat(dst, float64(math.Float32frombits(binary.BigEndian.Uint32(b)))), nil
	case 8:
		return database.AppendFloat(dst, math.Float64frombits(binary.BigEndian.Uint64(b))), nil
	}
	return dst, errWire
}

// The signs of a numeric on the wire.
const (
	numericPositive = 0x0000
	numericNegative = 0x4000
	numericNaN      = 0xC000
	numericInf      = 0xD000
	numericMinusInf = 0xF000
)

// decodeNumeric turns groups of four decimal digits, the first of weight 10000^weight, into decimal digits and a scale.
func decodeNumeric(dst, b []byte) ([]byte, error) {
	if len(b) < 8 {
		return dst, errWire
	}
	groups, weight := int(binary.BigEndian.Uint16(b)), int(int16(binary.BigEndian.Uint16(b[2:])))
	sign, scale := binary.BigEndian.Uint16(b[4:]), int(binary.BigEndian.Uint16(b[6:]))
	if len(b) != 8+2*groups {
		return dst, errWire
	}
	kind := database.NumericPositive
	switch sign {
	case numericPositive:
	case numericNegative:
		kind = database.NumericNegative
	case numericNaN:
		return database.AppendNumeric(dst, database.NumericNaN, nil, 0), nil
	case numericInf:
		return database.AppendNumeric(dst, database.NumericInfinity, nil, 0), nil
	case numericMinusInf:
		return database.AppendNumeric(dst, database.NumericMinusInfinity, nil, 0), nil
	default:
		return dst, errWire
	}
	var scratch [256]byte
	digits := scratch[:0]
	// Groups that the server leaves out, because they are zero, stand at the end or, in small numbers, at the front.
	for power := max(weight, 0); power >= -((scale + 3) / 4); power-- {
		group := 0
		if i := weight - power; i >= 0 && i < groups {
			group = int(binary.BigEndian.Uint16(b[8+2*i:]))
		}
		digits = append(digits, byte('0'+group/1000), byte('0'+group/100%10), byte('0'+group/10%10), byte('0'+group%10))
	}
	digits = digits[:len(digits)-((scale+3)/4*4-scale)]
	return database.AppendNumeric(dst, kind, digits, int32(scale)), nil
}

func decodeBoolean(dst, b []byte) ([]byte, error) {
	if len(b) != 1 {
		return dst, errWire
	}
	return database.AppendBoolean(dst, b[0] != 0), nil
}

func decodeText(dst, b []byte) ([]byte, error)  { return database.AppendText(dst, b), nil }
func decodeBytes(dst, b []byte) ([]byte, error) { return database.AppendBytes(dst, b), nil }
func decodeJSON(dst, b []byte) ([]byte, error)  { return database.AppendJSON(dst, b), nil }
func decodeEnum(dst, b []byte) ([]byte, error)  { return database.AppendEnum(dst, b), nil }
func decodeOther(dst, b []byte) ([]byte, error) { return database.AppendOther(dst, b), nil }

func decodeJSONB(dst, b []byte) ([]byte, error) {
	if len(b) == 0 || b[0] != 1 {
		return dst, errWire
	}
	return database.AppendJSONB(dst, b[1:]), nil
}

func decodeUUID(dst, b []byte) ([]byte, error) {
	if len(b) != 16 {
		return dst, errWire
	}
	return database.AppendUUID(dst, [16]byte(b)), nil
}

// epoch is 2000-01-01, from which PostgreSQL counts, in microseconds since 1970.
const epoch = 946_684_800_000_000

const dayMicros = 86_400_000_000

func decodeTimestamp(dst, b []byte) ([]byte, error) {
	if len(b) != 8 {
		return dst, errWire
	}
	v := int64(binary.BigEndian.Uint64(b))
	if v != math.MaxInt64 && v != math.MinInt64 {
		v += epoch // wraps around after the year 294246, where it still is another number for another instant
	}
	return database.AppendTimestamp(dst, v), nil
}

func decodeDate(dst, b []byte) ([]byte, error) {
	if len(b) != 4 {
		return dst, errWire
	}
	switch days := int32(binary.BigEndian.Uint32(b)); days {
	case math.MaxInt32:
		return database.AppendTimestamp(dst, math.MaxInt64), nil
	case math.MinInt32:
		return database.AppendTimestamp(dst, math.MinInt64), nil
	default:
		return database.AppendTimestamp(dst, int64(days)*dayMicros+epoch), nil
	}
}

func decodeInterval(dst, b []byte) ([]byte, error) {
	if len(b) != 16 {
		return dst, errWire
	}
	micros, days, months := binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])
	return database.AppendInterval(dst, int32(months), int32(days), int64(micros)), nil
}

// decodeArray reads dimensions and elements. The element type's OID on the wire is another one on another server.
func decodeArray(dst, b []byte, element codec) ([]byte, error) {
	if len(b) < 12 {
		return dst, errWire
	}
	n := int(binary.BigEndian.Uint32(b))
	b = b[12:]
	if n < 0 || len(b) < 8*n {
		return dst, errWire
	}
	dims := make([]database.Dimension, n)
	for i := range dims {
		dims[i] = database.Dimension{Length: int32(binary.BigEndian.Uint32(b[8*i:])), Lower: int32(binary.BigEndian.Uint32(b[8*i+4:]))}
	}
	dst = database.AppendArray(dst, element.family, dims)
	var scratch []byte
	for b = b[8*n:]; len(b) > 0; {
		value, rest, err := cut(b)
		if err != nil {
			return dst, err
		}
		if scratch, err = element.value(scratch[:0], value); err != nil {
			return dst, err
		}
		dst, b = database.AppendElement(dst, scratch), rest
	}
	return dst, nil
}

// decodeComposite reads the fields of a row that is a value, each behind the OID of its type.
func decodeComposite(dst, b []byte, fields []codec) ([]byte, error) {
	if len(b) < 4 || int(binary.BigEndian.Uint32(b)) != len(fields) {
		return dst, errWire
	}
	b = b[4:]
	dst = database.AppendComposite(dst, len(fields))
	var scratch []byte
	for _, f := range fields {
		if len(b) < 4 {
			return dst, errWire
		}
		value, rest, err := cut(b[4:])
		if err != nil {
			return dst, err
		}
		if scratch, err = f.value(scratch[:0], value); err != nil {
			return dst, err
		}
		dst, b = database.AppendElement(dst, scratch), rest
	}
	return dst, nil
}

// value decodes a value that may be null: nil, as opposed to empty.
func (c codec) value(dst, wire []byte) ([]byte, error) {
	if wire == nil {
		return database.AppendNull(dst), nil
	}
	out, err := c.decode(dst, wire)
	if err != nil {
		return out, fmt.Errorf("%w (family %s, %d bytes)", err, c.family, len(wire))
	}
	return out, nil
}

// cut takes one value behind its length off; nil where it is null.
func cut(b []byte) (value, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, errWire
	}
	n := int(int32(binary.BigEndian.Uint32(b)))
	b = b[4:]
	if n < 0 {
		return nil, b, nil
	}
	if len(b) < n {
		return nil, nil, errWire
	}
	return b[:n:n], b[n:], nil
}
