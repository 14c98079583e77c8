package postgres

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
)

// Values of keys as parameters in text, which the server casts to the column's type.

// paramText is for families whose text for people is the server's own.
func paramText(canon []byte) (string, bool) {
	f, ok := database.FamilyOf(canon)
	if !ok {
		return "", false
	}
	if f == database.Bytes {
		return `\x` + hex.EncodeToString(database.Payload(canon)), true
	}
	return database.TextOf(canon), true
}

func paramFloat(canon []byte) (string, bool) {
	p := database.Payload(canon)
	if len(p) != 8 {
		return "", false
	}
	switch v := math.Float64frombits(binary.BigEndian.Uint64(p)); {
	case math.IsInf(v, 1):
		return "Infinity", true
	case math.IsInf(v, -1):
		return "-Infinity", true
	default:
		return strconv.FormatFloat(v, 'g', -1, 64), true
	}
}

// paramTimestamp writes an instant as the server reads it, years before Christ included. Instants that the common form
// cannot hold are not asked for by key.
func paramTimestamp(canon []byte) (string, bool) {
	p := database.Payload(canon)
	switch {
	case len(p) == 1 && p[0] == 1:
		return "infinity", true
	case len(p) == 1:
		return "-infinity", true
	case len(p) != 9:
		return "", false
	}
	t := time.UnixMicro(int64(binary.BigEndian.Uint64(p[1:]))).UTC()
	year, suffix := t.Year(), ""
	if year <= 0 {
		year, suffix = 1-year, " BC"
	}
	if suffix != "" && year > 4713 {
		return "", false // wrapped around
	}
	return fmt.Sprintf("%04d-%02d-%02d %02d:%02d:%02d.%06d+00%s", year, t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond()/1000,
		suffix), true
}

func paramInterval(canon []byte) (string, bool) {
	p := database.Payload(canon)
	if len(p) != 16 {
		return "", false
	}
	micros, sign := int64(binary.BigEndian.Uint64(p[8:])), ""
	if micros < 0 {
		sign = "-"
	}
	u := uint64(micros)
	if micros < 0 {
		u = -u
	}
	return fmt.Sprintf("%d mons %d days %s%d.%06d secs", int32(binary.BigEndian.Uint32(p)), int32(binary.BigEndian.Uint32(p[4:])),
		sign, u/1e6, u%1e6), true
}
