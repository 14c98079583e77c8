package database

import "context"

// Member is what one server of a replicated database says of itself.
type Member struct {
	Primary  bool   // it takes writes
	Position uint64 // how far its log is; a member with the higher number holds all that the other holds
	Source   string // the host that it receives from at this moment, "" for none
}

// Roler is an Engine that can ask a server which part it plays.
type Roler interface {
	Member(ctx context.Context, u URL) (Member, error)
}

// Stepdown is a Roler that can hand the part of the primary over without losing a write and without two primaries at any
// time: the old one is made a follower that is started anew, its log is compared with the other's, and only then is the
// other one promoted.
type Stepdown interface {
	Roler
	// Follow makes a server follow the one at a host: a follower at once, a primary when it starts next, and it takes no
	// writes from then on. How it reaches the host is copied from like, which follows somebody already; name is what it
	// calls itself there. Called twice it does the same.
	Follow(ctx context.Context, u, like URL, host, name string) error
	// Promote makes a follower the primary, and returns when it takes writes. A primary stays one.
	Promote(ctx context.Context, u URL) error
}
