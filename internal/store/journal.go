package store

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"
)

// Seal returns the text of a record of a journal, without its hash, and its hash: that of the text, which holds the hash of
// the record before.
func Seal(r Record) (body, hash string, err error) {
	r.Hash = ""
	r.At = r.At.UTC().Truncate(time.Nanosecond)
	text, err := json.Marshal(r)
	sum := sha256.Sum256(text)
	return string(text), hex.EncodeToString(sum[:]), err
}
