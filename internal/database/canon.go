package database

import (
	"encoding/binary"
	"math"
)

// Canonical bytes. An engine writes each value of a row as a tag and a payload; two values are the same exactly when
// their bytes are. A payload needs no length of its own, because a value is always one slice or stands behind a length.
//
//	null       00
//	integer    01 int64, big endian, whatever the width of the type
//	           01 00 uint64, for values above the largest int64
//	float      02 float64 bits, big endian; every NaN is 7ff8000000000000; -0.0 is not 0.0
//	numeric    03 kind [scale int32] [decimal digits without leading zeros; none for zero]
//	           kind: 00 positive, 01 negative, 02 NaN, 03 infinity, 04 -infinity; the value is digits x 10^-scale
//	boolean    04 00 | 01
//	text       05 the bytes, never folded, never normalised
//	bytes      06 the bytes
//	timestamp  07 00 microseconds since 1970 UTC as int64 | 07 01 infinity | 07 02 -infinity
//	interval   08 months int32, days int32, microseconds int64
//	json       09 the bytes as stored
//	jsonb      0a the server's canonical text
//	uuid       0b 16 bytes
//	enum       0c the label
//	array      0d family, dimensions (uvarint), per dimension lower bound and length as int32, then the elements in
//	           storage order; family and elements stand behind a uvarint length
//	document   0e the raw BSON document
//	other      0f the text under pinned settings
//	typed      10 name of an engine's own type behind a uvarint length, then its bytes
//	composite  11 number of fields (uvarint), then the fields, each behind a uvarint length
//
// All integers are big endian two's complement.
const (
	tagNull      = 0x00
	tagInteger   = 0x01
	tagFloat     = 0x02
	tagNumeric   = 0x03
	tagBoolean   = 0x04
	tagText      = 0x05
	tagBytes     = 0x06
	tagTimestamp = 0x07
	tagInterval  = 0x08
	tagJSON      = 0x09
	tagJSONB     = 0x0a
	tagUUID      = 0x0b
	tagEnum      = 0x0c
	tagArray     = 0x0d
	tagDocument  = 0x0e
	tagOther     = 0x0f
	tagTyped     = 0x10
	tagComposite = 0x11
)

const canonicalNaN = 0x7ff8000000000000

// NumericKind says which kind of number a numeric is.
type NumericKind byte

// The kinds of numerics.
const (
	NumericPositive NumericKind = iota // zero without a sign too
	NumericNegative                    // Decimal128's negative zero too
	NumericNaN
	NumericInfinity
	NumericMinusInfinity
)

// Dimension is one dimension of an array.
type Dimension struct {
	Lower  int32
	Length int32
}

// AppendNull appends the value that is no value.
func AppendNull(dst []byte) []byte { return append(dst, tagNull) }

// AppendInteger appends an integer of any width.
func AppendInteger(dst []byte, v int64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, tagInteger), uint64(v))
}

// AppendUnsigned appends an integer that may be above the largest int64; below it is the same as AppendInteger.
func AppendUnsigned(dst []byte, v uint64) []byte {
	if v <= math.MaxInt64 {
		return AppendInteger(dst, int64(v))
	}
	return binary.BigEndian.AppendUint64(append(dst, tagInteger, 0), v)
}

// AppendFloat appends a float of either width.
func AppendFloat(dst []byte, v float64) []byte {
	bits := math.Float64bits(v)
	if v != v {
		bits = canonicalNaN
	}
	return binary.BigEndian.AppendUint64(append(dst, tagFloat), bits)
}

// AppendNumber appends a float that is a whole number as that integer, and any other as a float. It is for keys that a
// server compares by value, where 1, 1L and 1.0 are one key.
func AppendNumber(dst []byte, v float64) []byte {
	if v == math.Trunc(v) && v >= -(1<<63) && v < 1<<63 {
		return AppendInteger(dst, int64(v))
	}
	return AppendFloat(dst, v)
}

// AppendNumeric appends the number digits x 10^-scale. Digits are ASCII decimal digits, leading zeros are ignored; the
// scale is kept, so that 1.0 and 1.00 differ. Digits and scale do not count for kinds that are no number.
func AppendNumeric(dst []byte, kind NumericKind, digits []byte, scale int32) []byte {
	dst = append(dst, tagNumeric, byte(kind))
	if kind > NumericNegative {
		return dst
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(scale))
	for len(digits) > 0 && digits[0] == '0' {
		digits = digits[1:]
	}
	return append(dst, digits...)
}

// AppendNumericText appends a number as servers print it: -12.50, 1E+3, NaN, Infinity. It reports false, and appends
// nothing, where the text is not such a number.
func AppendNumericText(dst []byte, text string) ([]byte, bool) {
	kind, rest := NumericPositive, text
	if len(rest) > 0 && (rest[0] == '-' || rest[0] == '+') {
		if rest[0] == '-' {
			kind = NumericNegative
		}
		rest = rest[1:]
	}
	switch rest {
	case "NaN":
		return AppendNumeric(dst, NumericNaN, nil, 0), true
	case "Infinity", "Inf", "inf", "infinity":
		return AppendNumeric(dst, NumericInfinity+kind, nil, 0), true
	}
	digits, scale, ok := splitNumber(rest)
	if !ok {
		return dst, false
	}
	return AppendNumeric(dst, kind, digits, scale), true
}

// splitNumber takes an unsigned decimal number apart.
func splitNumber(s string) (digits []byte, scale int32, ok bool) {
	digits = make([]byte, 0, len(s))
	fraction, i := int64(0), 0
	point := false
	for ; i < len(s) && s[i] != 'e' && s[i] != 'E'; i++ {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			digits = append(digits, c)
			if point {
				fraction++
			}
		case c == '.' && !point:
			point = true
		default:
			return nil, 0, false
		}
	}
	if len(digits) == 0 {
		return nil, 0, false
	}
	if i == len(s) {
		return digits, int32(fraction), true
	}
	exponent, ok := smallInt(s[i+1:])
	return digits, int32(fraction - exponent), ok
}

// smallInt reads a signed exponent of at most seven digits.
func smallInt(s string) (int64, bool) {
	sign := int64(1)
	if len(s) > 0 && (s[0] == '-' || s[0] == '+') {
		if s[0] == '-' {
			sign = -1
		}
		s = s[1:]
	}
	if len(s) == 0 || len(s) > 7 {
		return 0, false
	}
	n := int64(0)
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return sign * n, true
}

// AppendBoolean appends true or false.
func AppendBoolean(dst []byte, v bool) []byte {
	if v {
		return append(dst, tagBoolean, 1)
	}
	return append(dst, tagBoolean, 0)
}

// AppendText appends text as its bytes.
func AppendText(dst []byte, v []byte) []byte { return append(append(dst, tagText), v...) }

// AppendBytes appends binary data.
func AppendBytes(dst []byte, v []byte) []byte { return append(append(dst, tagBytes), v...) }

// AppendTimestamp appends an instant in microseconds since 1970 UTC. A date is its midnight, a timestamp without a zone
// is taken as UTC. The largest and the smallest int64 are infinity and -infinity.
func AppendTimestamp(dst []byte, micros int64) []byte {
	switch micros {
	case math.MaxInt64:
		return append(dst, tagTimestamp, 1)
	case math.MinInt64:
		return append(dst, tagTimestamp, 2)
	}
	return binary.BigEndian.AppendUint64(append(dst, tagTimestamp, 0), uint64(micros))
}

// AppendInterval appends an interval's three fields: '1 month' is not '30 days'.
func AppendInterval(dst []byte, months, days int32, micros int64) []byte {
	dst = binary.BigEndian.AppendUint32(append(dst, tagInterval), uint32(months))
	dst = binary.BigEndian.AppendUint32(dst, uint32(days))
	return binary.BigEndian.AppendUint64(dst, uint64(micros))
}

// AppendJSON appends a JSON text as it is stored, white space and order of fields included.
func AppendJSON(dst []byte, v []byte) []byte { return append(append(dst, tagJSON), v...) }

// AppendJSONB appends the canonical text of a binary JSON value, as the server prints it.
func AppendJSONB(dst []byte, v []byte) []byte { return append(append(dst, tagJSONB), v...) }

// AppendUUID appends a UUID.
func AppendUUID(dst []byte, v [16]byte) []byte { return append(append(dst, tagUUID), v[:]...) }

// AppendEnum appends an enum's label.
func AppendEnum(dst []byte, label []byte) []byte { return append(append(dst, tagEnum), label...) }

// AppendDocument appends a raw BSON document.
func AppendDocument(dst []byte, raw []byte) []byte { return append(append(dst, tagDocument), raw...) }

// AppendOther appends the text of a value whose type has no form of its own here.
func AppendOther(dst []byte, text []byte) []byte { return append(append(dst, tagOther), text...) }

// AppendTyped appends a value of an engine's own type, such as an ObjectID, by the type's name and its bytes.
func AppendTyped(dst []byte, name string, raw []byte) []byte {
	dst = appendLengthString(append(dst, tagTyped), name)
	return append(dst, raw...)
}

// AppendArray begins an array; AppendElement adds its elements in storage order. An empty array has no dimensions.
func AppendArray(dst []byte, element Family, dims []Dimension) []byte {
	dst = appendLengthString(append(dst, tagArray), string(element))
	dst = binary.AppendUvarint(dst, uint64(len(dims)))
	for _, d := range dims {
		dst = binary.BigEndian.AppendUint32(dst, uint32(d.Lower))
		dst = binary.BigEndian.AppendUint32(dst, uint32(d.Length))
	}
	return dst
}

// AppendComposite begins a composite value; AppendElement adds its fields in order.
func AppendComposite(dst []byte, fields int) []byte {
	return binary.AppendUvarint(append(dst, tagComposite), uint64(fields))
}

// AppendElement appends one canonical value behind its length.
func AppendElement(dst []byte, canon []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(canon))), canon...)
}

// AppendKey appends the canonical values of a key, each behind its length, so that ('a','bc') is not ('ab','c').
func AppendKey(dst []byte, values ...[]byte) []byte {
	for _, v := range values {
		dst = AppendElement(dst, v)
	}
	return dst
}

func appendLengthString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}
