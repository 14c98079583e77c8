// Package delivery is one run of a deploy file: its record and its state machine. It does no I/O and knows no clock.
package delivery

import "time"

// Verdict is what a check says.
type Verdict string

// The five verdicts. Only Fail rolls back by itself; the others but Pass follow onInconclusive.
const (
	Pass         Verdict = "pass"
	Fail         Verdict = "fail"
	Inconclusive Verdict = "inconclusive"
	Error        Verdict = "error"
	NoData       Verdict = "no data"
)

// Signal is something that happens to a delivery from outside. The first of a key wins.
type Signal struct {
	Key  string            `json:"key"`            // approve/<path>, callback/<token>, cancel, rollback/<target>, pause, resume, stay/<path>/<id> …
	Kind string            `json:"kind"`           // approve, reject, callback, cancel, rollback, pause, resume, retry, promote, acknowledge, stay
	Path string            `json:"path,omitempty"` // the step that is meant, "" for the delivery
	By   string            `json:"by,omitempty"`
	At   time.Time         `json:"at"`
	Data map[string]string `json:"data,omitempty"`
}
