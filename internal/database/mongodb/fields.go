package mongodb

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// flatten lists the fields of a document in its order. Documents and arrays are listed by what is in them; empty ones by
// themselves. Elements of an array have their index as name.
func flatten(prefix string, raw bson.Raw, out []database.Field) ([]database.Field, error) {
	if len(raw) < 5 || uint64(binary.LittleEndian.Uint32(raw)) != uint64(len(raw)) {
		return nil, fault.Newf(fault.Invalid, "a document is not valid BSON: its length is wrong")
	}
	elements, err := raw.Elements()
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "a document is not valid BSON: %w", err)
	}
	for _, e := range elements {
		path, v := prefix+e.Key(), e.Value()
		if v.Type == bson.TypeEmbeddedDocument || v.Type == bson.TypeArray {
			before := len(out)
			if out, err = flatten(path+".", v.Value, out); err != nil {
				return nil, err
			}
			if len(out) > before {
				continue
			}
		}
		out = append(out, field(path, v))
	}
	return out, nil
}

func field(path string, v bson.RawValue) database.Field {
	f := database.Field{Path: path, Type: typeName(v), Text: valueText(v), Canon: canonical(nil, v)}
	if r, ok := database.Number(f.Canon); ok {
		x, _ := r.Float64()
		if !math.IsInf(x, 0) {
			f.Number = &x
		}
	}
	return f
}

// typeName returns the type as $type names it. A binary's subtype is part of it: it says what the bytes mean.
func typeName(v bson.RawValue) string {
	switch v.Type {
	case bson.TypeDouble:
		return "double"
	case bson.TypeString:
		return "string"
	case bson.TypeEmbeddedDocument:
		return "object"
	case bson.TypeArray:
		return "array"
	case bson.TypeBinary:
		subtype, _, _ := v.BinaryOK()
		return fmt.Sprintf("binData %d", subtype)
	case bson.TypeUndefined:
		return "undefined"
	case bson.TypeObjectID:
		return "objectId"
	case bson.TypeBoolean:
		return "bool"
	case bson.TypeDateTime:
		return "date"
	case bson.TypeNull:
		return "null"
	case bson.TypeRegex:
		return "regex"
	case bson.TypeDBPointer:
		return "dbPointer"
	case bson.TypeJavaScript:
		return "javascript"
	case bson.TypeSymbol:
		return "symbol"
	case bson.TypeCodeWithScope:
		return "javascriptWithScope"
	case bson.TypeInt32:
		return "int"
	case bson.TypeTimestamp:
		return "timestamp"
	case bson.TypeInt64:
		return "long"
	case bson.TypeDecimal128:
		return "decimal"
	case bson.TypeMinKey:
		return "minKey"
	case bson.TypeMaxKey:
		return "maxKey"
	}
	return fmt.Sprintf("type %d", byte(v.Type))
}

// valueText writes a value as a person reads it in mongosh.
func valueText(v bson.RawValue) string {
	switch v.Type {
	case bson.TypeString:
		s, _ := v.StringValueOK()
		return s
	case bson.TypeInt32, bson.TypeInt64:
		n, _ := v.AsInt64OK()
		return strconv.FormatInt(n, 10)
	case bson.TypeDouble:
		f, _ := v.DoubleOK()
		return strconv.FormatFloat(f, 'g', -1, 64)
	case bson.TypeDecimal128:
		d, _ := v.Decimal128OK()
		return d.String()
	case bson.TypeBoolean:
		b, _ := v.BooleanOK()
		return strconv.FormatBool(b)
	case bson.TypeNull:
		return "null"
	case bson.TypeObjectID:
		id, _ := v.ObjectIDOK()
		return id.Hex()
	case bson.TypeDateTime:
		ms, _ := v.DateTimeOK()
		return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z07:00")
	case bson.TypeTimestamp:
		t, i, _ := v.TimestampOK()
		return fmt.Sprintf("Timestamp(%d, %d)", t, i)
	case bson.TypeBinary:
		_, data, _ := v.BinaryOK()
		return hex.EncodeToString(data)
	default:
		return v.String()
	}
}
