// Package databasetest is the conformance suite of package database: every engine runs it against real servers.
package databasetest

import (
	"context"
	"testing"

	"github.com/sluice-cd/sluice/internal/database"
)

// Harness starts servers of one engine. Everything it starts, it stops at the end of the test that asked for it.
type Harness interface {
	// Engine returns the engine under test.
	Engine() database.Engine
	// New makes fresh volume directories and starts a server on them, as production would run.
	New(t testing.TB) Server
	// Start starts a server of production's version on copies of another server's volumes, in the same order, as Prepare
	// says that it must be launched.
	Start(t testing.TB, dirs []string, l database.Launch) Server
}

// Server is a running server. Its content is one relation, Orders of database Shop, whose key is an integer: the rows
// that Fill, Insert and the changes below made, nothing else.
type Server interface {
	// URL reaches the server as a user that may read everything and hold writers.
	URL() database.URL
	// Dirs are its volume directories.
	Dirs() []string
	// Fill makes the relation with the orders 1 to n. Two servers filled alike hold the same content.
	Fill(t testing.TB, n int)
	// Insert adds one order and returns when the server has acknowledged it. It may be called from many goroutines.
	Insert(ctx context.Context, id int64) error
	// Delay makes an order's field "placed" one hour later.
	Delay(t testing.TB, id int64)
	// Remove deletes an order.
	Remove(t testing.TB, id int64)
	// Stop ends the server cleanly, Kill at once. Both may be called on a server that has ended.
	Stop(t testing.TB)
	Kill(t testing.TB)
}

// The content of a Server.
const (
	Shop   = "shop"
	Orders = "orders"
	Placed = "placed" // the field that Delay changes
)

// Optional abilities of a Harness or a Server, found by assertion.
type (
	// Denier is a Server that knows users: it returns a URL with a wrong password, and that password.
	Denier interface {
		WrongPassword(t testing.TB) (u database.URL, password string)
	}
	// Lesser is a Server that can make a user who lacks a privilege. The URL connects as that user.
	Lesser interface {
		Lesser(t testing.TB) database.URL
	}
	// Freezer is a Server that can be stopped in its tracks, so that a plain copy of its files is an atomic cut.
	Freezer interface {
		Freeze(t testing.TB) (thaw func())
	}
)
