package fingerprint

// The classes of differing rows. Each is counted per column; the classes of whole rows have no column.
const (
	// ClassMissing is a row that only the source has.
	ClassMissing = "missing"
	// ClassExtra is a row that only the target has.
	ClassExtra = "extra"
	// ClassDuplicate is a row, or a key, that both sides have but not equally often; it counts the copies.
	ClassDuplicate = "duplicate"
	// ClassKeyChanged is a missing and an extra row that are equal in all other columns.
	ClassKeyChanged = "key changed"
	// ClassKeyRespelled is such a pair whose keys differ in spelling only: case, normal form, trailing space, scale.
	ClassKeyRespelled = "key respelled"

	// ClassValue is another value of the same type.
	ClassValue = "value"
	// ClassNull is a value that became null, or null that became a value.
	ClassNull = "null"
	// ClassType is a value of another type, whether or not it means the same.
	ClassType = "type"
	// ClassRepresentation is the same value written otherwise: 1.0 and 1.00, 0.0 and -0.0, white space in JSON, an
	// array's lower bound.
	ClassRepresentation = "representation"
	// ClassSpelling is text that differs only in case, Unicode normal form or trailing white space.
	ClassSpelling = "spelling"
	// ClassEncoding is text that was decoded wrongly: encoded as UTF-8 twice, or with U+FFFD in place of characters.
	ClassEncoding = "encoding"
	// ClassTruncated is text or bytes that were cut.
	ClassTruncated = "truncated"
	// ClassOrder is the same fields or elements in another order.
	ClassOrder = "order"
	// ClassFieldMissing is a document's field that only the source has.
	ClassFieldMissing = "field missing"
	// ClassFieldExtra is a document's field that only the target has.
	ClassFieldExtra = "field extra"
)
