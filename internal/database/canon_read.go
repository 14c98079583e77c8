package database

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
)

// FamilyOf returns the family of a canonical value; ok is false where it is null or not canonical.
func FamilyOf(canon []byte) (f Family, ok bool) {
	// By tag. Typed and composite values have no family of their own.
	families := [...]Family{
		tagInteger: Integer, tagFloat: Float, tagNumeric: Numeric, tagBoolean: Boolean, tagText: Text, tagBytes: Bytes,
		tagTimestamp: Timestamp, tagInterval: Interval, tagJSON: JSONText, tagJSONB: JSONB, tagUUID: UUID, tagEnum: Enum,
		tagArray: Array, tagDocument: Document, tagOther: Other, tagTyped: Other, tagComposite: Other,
	}
	if len(canon) == 0 || int(canon[0]) >= len(families) {
		return "", false
	}
	f = families[canon[0]]
	return f, f != ""
}

// IsNull reports whether a canonical value is null.
func IsNull(canon []byte) bool { return len(canon) > 0 && canon[0] == tagNull }

// Payload returns what stands behind the tag.
func Payload(canon []byte) []byte {
	if len(canon) == 0 {
		return nil
	}
	return canon[1:]
}

// Number returns a canonical value as an exact number: integers, floats and numerics that are finite, and timestamps in
// microseconds.
func Number(canon []byte) (*big.Rat, bool) {
	f, ok := FamilyOf(canon)
	if !ok {
		return nil, false
	}
	p := canon[1:]
	switch f {
	case Integer:
		switch len(p) {
		case 8:
			return new(big.Rat).SetInt64(int64(binary.BigEndian.Uint64(p))), true
		case 9:
			return new(big.Rat).SetUint64(binary.BigEndian.Uint64(p[1:])), true
		}
	case Float:
		if len(p) == 8 {
			r := new(big.Rat).SetFloat64(math.Float64frombits(binary.BigEndian.Uint64(p)))
			return r, r != nil
		}
	case Timestamp:
		if len(p) == 9 && p[0] == 0 {
			return new(big.Rat).SetInt64(int64(binary.BigEndian.Uint64(p[1:]))), true
		}
	case Numeric:
		return numericValue(p)
	default:
	}
	return nil, false
}

// numericValue reads the payload of a numeric. Exponents beyond a few thousand are left alone: the number would not fit
// into memory, and nobody looks for a pattern among them.
func numericValue(p []byte) (*big.Rat, bool) {
	if len(p) < 5 || NumericKind(p[0]) > NumericNegative {
		return nil, false
	}
	scale := int64(int32(binary.BigEndian.Uint32(p[1:])))
	if scale > 5000 || scale < -5000 || len(p) > 5000 {
		return nil, false
	}
	digits, ok := new(big.Int).SetString("0"+string(p[5:]), 10)
	if !ok {
		return nil, false
	}
	if NumericKind(p[0]) == NumericNegative {
		digits.Neg(digits)
	}
	power := new(big.Int).Exp(big.NewInt(10), big.NewInt(max(scale, -scale)), nil)
	if scale < 0 {
		return new(big.Rat).SetInt(digits.Mul(digits, power)), true
	}
	return new(big.Rat).SetFrac(digits, power), true
}

// Elements takes an array or a composite apart. Head is what stands before the elements: family and dimensions.
func Elements(canon []byte) (head []byte, elements [][]byte, ok bool) {
	if len(canon) == 0 {
		return nil, nil, false
	}
	rest := canon[1:]
	switch canon[0] {
	case tagArray:
		n, w := binary.Uvarint(rest)
		if w <= 0 || n > uint64(len(rest)-w) {
			return nil, nil, false
		}
		rest = rest[w+int(n):]
		dims, w := binary.Uvarint(rest)
		if w <= 0 || dims > uint64(len(rest)-w)/8 {
			return nil, nil, false
		}
		rest = rest[w+8*int(dims):]
	case tagComposite:
		_, w := binary.Uvarint(rest)
		if w <= 0 {
			return nil, nil, false
		}
		rest = rest[w:]
	default:
		return nil, nil, false
	}
	elements, ok = KeyValues(rest)
	return canon[:len(canon)-len(rest)], elements, ok
}

// KeyValues takes a key, or the elements of an array, apart into canonical values.
func KeyValues(key []byte) (values [][]byte, ok bool) {
	for len(key) > 0 {
		n, w := binary.Uvarint(key)
		if w <= 0 || n > uint64(len(key)-w) {
			return nil, false
		}
		values = append(values, key[w:w+int(n)])
		key = key[w+int(n):]
	}
	return values, true
}

// TextOf writes a canonical value as people read it. Engines that show values in their own way need not use it.
func TextOf(canon []byte) string {
	if len(canon) == 0 {
		return ""
	}
	p := canon[1:]
	switch canon[0] {
	case tagNull:
		return "NULL"
	case tagInteger:
		if r, ok := Number(canon); ok {
			return r.Num().String()
		}
	case tagFloat:
		if len(p) == 8 {
			return strconv.FormatFloat(math.Float64frombits(binary.BigEndian.Uint64(p)), 'g', -1, 64)
		}
	case tagNumeric:
		return numericText(p)
	case tagBoolean:
		return strconv.FormatBool(len(p) == 1 && p[0] == 1)
	case tagText, tagJSON, tagJSONB, tagEnum, tagOther:
		return string(p)
	case tagTimestamp:
		return timestampText(p)
	case tagInterval:
		if len(p) == 16 {
			return fmt.Sprintf("%d months %d days %v", int32(binary.BigEndian.Uint32(p)), int32(binary.BigEndian.Uint32(p[4:])),
				time.Duration(int64(binary.BigEndian.Uint64(p[8:])))*time.Microsecond)
		}
	case tagUUID:
		if len(p) == 16 {
			return fmt.Sprintf("%x-%x-%x-%x-%x", p[:4], p[4:6], p[6:8], p[8:10], p[10:])
		}
	case tagArray, tagComposite:
		return elementsText(canon)
	case tagTyped:
		if n, w := binary.Uvarint(p); w > 0 && n <= uint64(len(p)-w) {
			return string(p[w:w+int(n)]) + "(" + hex.EncodeToString(p[w+int(n):]) + ")"
		}
	}
	return `\x` + hex.EncodeToString(p)
}

func timestampText(p []byte) string {
	switch {
	case len(p) == 1 && p[0] == 1:
		return "infinity"
	case len(p) == 1 && p[0] == 2:
		return "-infinity"
	case len(p) == 9:
		return time.UnixMicro(int64(binary.BigEndian.Uint64(p[1:]))).UTC().Format("2006-01-02 15:04:05.999999Z07:00")
	}
	return `\x` + hex.EncodeToString(p)
}

func elementsText(canon []byte) string {
	_, elements, ok := Elements(canon)
	if !ok {
		return `\x` + hex.EncodeToString(canon)
	}
	parts := make([]string, len(elements))
	for i, e := range elements {
		parts[i] = TextOf(e)
	}
	if canon[0] == tagArray {
		return "{" + strings.Join(parts, ",") + "}"
	}
	return "(" + strings.Join(parts, ",") + ")"
}

func numericText(p []byte) string {
	if len(p) == 0 {
		return ""
	}
	switch NumericKind(p[0]) {
	case NumericNaN:
		return "NaN"
	case NumericInfinity:
		return "Infinity"
	case NumericMinusInfinity:
		return "-Infinity"
	case NumericPositive, NumericNegative:
	}
	if len(p) < 5 {
		return `\x` + hex.EncodeToString(p)
	}
	sign, scale, digits := "", int(int32(binary.BigEndian.Uint32(p[1:]))), string(p[5:])
	if NumericKind(p[0]) == NumericNegative {
		sign = "-"
	}
	if digits == "" {
		digits = "0"
	}
	if scale < 0 || scale > 5000 {
		return fmt.Sprintf("%s%sE%+d", sign, digits, -scale)
	}
	if scale == 0 {
		return sign + digits
	}
	if len(digits) <= scale {
		digits = strings.Repeat("0", scale-len(digits)+1) + digits
	}
	return sign + digits[:len(digits)-scale] + "." + digits[len(digits)-scale:]
}
