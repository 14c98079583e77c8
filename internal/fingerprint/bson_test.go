package fingerprint

import (
	"bytes"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/database"
)

// everyType is a document with a value of every BSON type.
func everyType() bson.D {
	return bson.D{
		{Key: "double", Value: 1.5}, {Key: "string", Value: "s"}, {Key: "object", Value: bson.D{{Key: "x", Value: 1}}}, {Key: "array", Value: bson.A{1, bson.D{{Key: "x", Value: 2}, {Key: "y", Value: 3}}}},
		{Key: "binary", Value: bson.Binary{Subtype: 4, Data: []byte{1, 2}}}, {Key: "undefined", Value: bson.Undefined{}}, {Key: "id", Value: bson.NewObjectID()},
		{Key: "bool", Value: true}, {Key: "date", Value: time.Now()}, {Key: "null", Value: nil}, {Key: "regex", Value: bson.Regex{Pattern: "a", Options: "i"}},
		{Key: "pointer", Value: bson.DBPointer{DB: "a.b", Pointer: bson.NewObjectID()}}, {Key: "code", Value: bson.JavaScript("f()")}, {Key: "symbol", Value: bson.Symbol("s")},
		{Key: "scope", Value: bson.CodeWithScope{Code: "f()", Scope: bson.D{{Key: "x", Value: 1}}}}, {Key: "int", Value: int32(1)}, {Key: "timestamp", Value: bson.Timestamp{T: 1}},
		{Key: "long", Value: int64(1)}, {Key: "decimal", Value: bson.NewDecimal128(1, 2)}, {Key: "min", Value: bson.MinKey{}}, {Key: "max", Value: bson.MaxKey{}},
	}
}

func canonical(t testing.TB, d bson.D) []byte {
	raw, err := bson.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return database.AppendDocument(nil, raw)
}

// TestStripEveryType takes each field away in turn and expects what a document without it would be.
func TestStripEveryType(t *testing.T) {
	whole := everyType()
	same, err := stripDocument(nil, canonical(t, whole), []string{"nothing", "object.nothing", "array.nothing", "string.x"})
	if err != nil || !bytes.Equal(same, canonical(t, whole)) {
		t.Fatalf("a path that names nothing changed the document: %v", err)
	}
	for i, e := range whole {
		rest := append(append(bson.D{}, whole[:i]...), whole[i+1:]...)
		got, err := stripDocument(nil, canonical(t, whole), []string{e.Key})
		if err != nil || !bytes.Equal(got, canonical(t, rest)) {
			t.Errorf("without %s: %v, %v", e.Key, bson.Raw(got[1:]), err)
		}
	}
	got, err := stripDocument(nil, canonical(t, whole), []string{"array.x", "object.x"})
	if err != nil {
		t.Fatal(err)
	}
	if want := (bson.D{{Key: "array", Value: bson.A{1, bson.D{{Key: "y", Value: 3}}}}}); !bytes.Contains(got, canonical(t, want)[5:len(canonical(t, want))-1]) {
		t.Errorf("inside the array: %v", bson.Raw(got[1:]))
	}
}

// FuzzStrip holds that no bytes make stripping panic, and that what comes out can be stripped again.
func FuzzStrip(f *testing.F) {
	f.Add(canonical(f, everyType())[1:])
	f.Add([]byte{5, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		canon := database.AppendDocument(nil, raw)
		got, err := stripDocument(nil, canon, []string{"a", "object.x", "array.x"})
		if err != nil {
			return
		}
		again, err := stripDocument(nil, got, []string{"a", "object.x", "array.x"})
		if err != nil || !bytes.Equal(got, again) {
			t.Errorf("stripped twice: %x, %x, %v", got, again, err)
		}
	})
}
