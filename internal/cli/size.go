package cli

import (
	"fmt"
	"strconv"
	"strings"
)

// size is a number of bytes as people write it: 64MiB, 1GiB, 500000.
type size int64

// unit is an ending of sizes.
type unit struct {
	name  string
	bytes int64
}

// units are the endings, longer ones before those that they end with.
func units() []unit {
	return []unit{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"KB", 1000}, {"MB", 1000 * 1000}, {"GB", 1000 * 1000 * 1000},
		{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"B", 1}}
}

// String implements pflag.Value.
func (s *size) String() string {
	if *s == 0 {
		return ""
	}
	return byteText(int64(*s))
}

// Type implements pflag.Value.
func (*size) Type() string { return "size" }

// Set implements pflag.Value.
func (s *size) Set(text string) error {
	number, bytes := strings.TrimSpace(text), int64(1)
	for _, u := range units() {
		if len(number) > len(u.name) && strings.EqualFold(number[len(number)-len(u.name):], u.name) {
			number, bytes = strings.TrimSpace(number[:len(number)-len(u.name)]), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > (1<<62)/bytes {
		return fmt.Errorf("%q is not a size such as 64MiB", text)
	}
	*s = size(n * bytes)
	return nil
}
