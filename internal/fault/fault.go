// Package fault gives errors a kind that retry code reads and a reason that a person can act on.
package fault

import (
	"errors"
	"fmt"
)

// Kind says what may be done about an error.
type Kind string

// The kinds of errors. Code that retries asks for Transient by name; an error without a kind is not retried.
const (
	Transient Kind = "transient" // the same call may work later
	Invalid   Kind = "invalid"   // the input is wrong; trying again is pointless
	Denied    Kind = "denied"    // a privilege is missing
	NotFound  Kind = "not found" // the thing named does not exist
	Conflict  Kind = "conflict"  // somebody else holds or changed the thing
	Lost      Kind = "lost"      // data, a lock or a connection that cannot be had back
)

// Error is an error with a kind. Remedy, when not empty, says what to do next.
type Error struct {
	Kind   Kind
	Remedy string
	Err    error
}

// Error returns what happened and, in parentheses, what to do next.
func (e *Error) Error() string {
	if e.Remedy == "" {
		return e.Err.Error()
	}
	return e.Err.Error() + " (" + e.Remedy + ")"
}

// Unwrap returns the error without its kind.
func (e *Error) Unwrap() error { return e.Err }

// Newf makes an error of a kind; %w in the format keeps the cause reachable.
func Newf(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}

// WithRemedy adds what to do next to an error and keeps its kind.
func WithRemedy(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: KindOf(err), Remedy: fmt.Sprintf(format, args...), Err: err}
}

// KindOf returns the kind of the outermost Error in the chain, or "" where there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return ""
}

// Is reports whether the error has the kind.
func Is(err error, kind Kind) bool { return KindOf(err) == kind }
