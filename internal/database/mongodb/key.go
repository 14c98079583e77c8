package mongodb

import (
	"encoding/binary"
	"math"
	"math/big"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/database"
)

// The names of types that have no family, in typed canonical values.
const (
	typedObjectID  = "ObjectId"
	typedBinary    = "Binary"    // the subtype, then the data
	typedTimestamp = "Timestamp" // BSON's own, not an instant
	typedDate      = "Date"      // milliseconds that do not fit into microseconds
	typedNaN       = "NaN"       // with other bits than the usual
	typedRegex     = "RegularExpression"
	typedCode      = "Code"
	typedScope     = "CodeWithScope"
	typedPointer   = "DBPointer"
	typedUndefined = "Undefined"
	typedMin       = "MinKey"
	typedMax       = "MaxKey"
)

// identifier appends the canonical value of an _id. Two values have the same bytes exactly when the server calls them
// one key: 1, 1L, 1.0 and NumberDecimal("1.00") are one, inside documents too; a string and a symbol are one.
func identifier(dst []byte, v bson.RawValue) []byte {
	switch v.Type {
	case bson.TypeInt32, bson.TypeInt64:
		n, _ := v.AsInt64OK()
		return database.AppendInteger(dst, n)
	case bson.TypeDouble:
		f, _ := v.DoubleOK()
		return database.AppendNumber(dst, f)
	case bson.TypeDecimal128:
		d, _ := v.Decimal128OK()
		return decimalIdentifier(dst, d)
	case bson.TypeSymbol:
		s, _ := v.SymbolOK()
		return database.AppendText(dst, []byte(s))
	case bson.TypeEmbeddedDocument, bson.TypeArray:
		return nested(dst, v, identifier)
	default:
		return canonical(dst, v)
	}
}

// decimalIdentifier appends a decimal as the integer or the float that is the same number, else without trailing zeros.
func decimalIdentifier(dst []byte, d bson.Decimal128) []byte {
	switch {
	case d.IsNaN():
		return database.AppendFloat(dst, math.NaN())
	case d.IsInf() != 0:
		return database.AppendFloat(dst, math.Inf(d.IsInf()))
	}
	digits, exponent, err := d.BigInt()
	if err != nil {
		return database.AppendOther(dst, []byte(d.String()))
	}
	if digits.Sign() == 0 {
		return database.AppendInteger(dst, 0)
	}
	ten, rest := big.NewInt(10), new(big.Int)
	for {
		q, r := new(big.Int).QuoRem(digits, ten, rest)
		if r.Sign() != 0 {
			break
		}
		digits, exponent = q, exponent+1
	}
	if exponent >= 0 && exponent < 40 {
		whole := new(big.Int).Mul(digits, new(big.Int).Exp(ten, big.NewInt(int64(exponent)), nil))
		if whole.IsInt64() {
			return database.AppendInteger(dst, whole.Int64())
		}
	}
	if f, exact := asFloat(digits, exponent); exact {
		return database.AppendNumber(dst, f)
	}
	kind := database.NumericPositive
	if digits.Sign() < 0 {
		kind = database.NumericNegative
	}
	return database.AppendNumeric(dst, kind, []byte(new(big.Int).Abs(digits).String()), int32(-exponent))
}

// asFloat returns digits × 10^exponent where a float is exactly that.
func asFloat(digits *big.Int, exponent int) (float64, bool) {
	if exponent > 400 || exponent < -1100 {
		return 0, false
	}
	power := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(exponent, -exponent))), nil)
	r := new(big.Rat).SetInt(digits)
	if exponent >= 0 {
		r.Mul(r, new(big.Rat).SetInt(power))
	} else {
		r.Quo(r, new(big.Rat).SetInt(power))
	}
	f, exact := r.Float64()
	return f, exact && !math.IsInf(f, 0)
}

// nested appends a document or an array by its values.
func nested(dst []byte, v bson.RawValue, value func([]byte, bson.RawValue) []byte) []byte {
	elements, err := bson.Raw(v.Value).Elements()
	if err != nil {
		return database.AppendDocument(dst, v.Value)
	}
	if v.Type == bson.TypeArray {
		dst = database.AppendArray(dst, database.Other, []database.Dimension{{Length: int32(len(elements))}})
		for _, e := range elements {
			dst = database.AppendElement(dst, value(nil, e.Value()))
		}
		return dst
	}
	dst = database.AppendComposite(dst, 2*len(elements))
	for _, e := range elements {
		dst = database.AppendElement(dst, database.AppendText(nil, []byte(e.Key())))
		dst = database.AppendElement(dst, value(nil, e.Value()))
	}
	return dst
}

// canonical appends a value as one that is shown and compared by itself: types that differ never have the same bytes
// together with their names, and every bit of the value counts.
func canonical(dst []byte, v bson.RawValue) []byte {
	switch v.Type {
	case bson.TypeInt32, bson.TypeInt64:
		n, _ := v.AsInt64OK()
		return database.AppendInteger(dst, n)
	case bson.TypeDouble:
		bits := binary.LittleEndian.Uint64(v.Value)
		if f := math.Float64frombits(bits); f != f && bits != math.Float64bits(math.NaN()) && bits != 0x7ff8000000000000 {
			return database.AppendTyped(dst, typedNaN, v.Value)
		}
		return database.AppendFloat(dst, math.Float64frombits(bits))
	case bson.TypeDecimal128:
		d, _ := v.Decimal128OK()
		if out, ok := database.AppendNumericText(dst, d.String()); ok {
			return out
		}
		return database.AppendOther(dst, []byte(d.String()))
	case bson.TypeString:
		s, _ := v.StringValueOK()
		return database.AppendText(dst, []byte(s))
	case bson.TypeBoolean:
		b, _ := v.BooleanOK()
		return database.AppendBoolean(dst, b)
	case bson.TypeNull:
		return database.AppendNull(dst)
	case bson.TypeDateTime:
		ms, _ := v.DateTimeOK()
		if ms > math.MaxInt64/1000-1 || ms < math.MinInt64/1000+1 {
			return database.AppendTyped(dst, typedDate, v.Value)
		}
		return database.AppendTimestamp(dst, ms*1000)
	case bson.TypeObjectID:
		return database.AppendTyped(dst, typedObjectID, v.Value)
	case bson.TypeBinary:
		subtype, data, _ := v.BinaryOK()
		if subtype == bson.TypeBinaryUUID && len(data) == 16 {
			return database.AppendUUID(dst, [16]byte(data))
		}
		return database.AppendTyped(dst, typedBinary, append([]byte{subtype}, data...))
	case bson.TypeEmbeddedDocument, bson.TypeArray:
		return database.AppendDocument(dst, v.Value)
	default:
		return database.AppendTyped(dst, rareType(v.Type), v.Value)
	}
}

// rareType names a type that has no form of its own here.
func rareType(t bson.Type) string {
	switch t {
	case bson.TypeTimestamp:
		return typedTimestamp
	case bson.TypeRegex:
		return typedRegex
	case bson.TypeJavaScript:
		return typedCode
	case bson.TypeCodeWithScope:
		return typedScope
	case bson.TypeDBPointer:
		return typedPointer
	case bson.TypeUndefined:
		return typedUndefined
	case bson.TypeMinKey:
		return typedMin
	case bson.TypeMaxKey:
		return typedMax
	default:
		return t.String()
	}
}

// point returns the _id of a key as the server can be asked for it, where that is possible. FerretDB looks for strings
// and ObjectIDs in its storage; for anything else it decodes the whole collection.
func (s *server) point(key []byte) (any, bool) {
	values, ok := database.KeyValues(key)
	if !ok || len(values) != 1 {
		return nil, false
	}
	canon := values[0]
	family, _ := database.FamilyOf(canon)
	payload := database.Payload(canon)
	if family == database.Text {
		return string(payload), true
	}
	if id, ok := strings.CutPrefix(string(payload), string(rune(len(typedObjectID)))+typedObjectID); ok && family == database.Other && len(id) == 12 {
		return bson.ObjectID([]byte(id)), true
	}
	switch {
	case s.ferretdb:
		return nil, false
	case family == database.Integer && len(payload) == 8:
		return int64(binary.BigEndian.Uint64(payload)), true
	case family == database.Float:
		return math.Float64frombits(binary.BigEndian.Uint64(payload)), true
	case family == database.UUID:
		return bson.Binary{Subtype: bson.TypeBinaryUUID, Data: payload}, true
	case family == database.Timestamp && len(payload) == 9:
		return bson.DateTime(int64(binary.BigEndian.Uint64(payload[1:])) / 1000), true
	}
	return nil, false
}
