// Package volume is the port to copies of volumes.
//
// A Source is what production runs on: nothing in this package deletes or overwrites one. Only a Driver makes a Copy,
// and only a Copy can be deleted.
package volume

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Level says what a copy is worth.
type Level string

// The levels of consistency, best first. A fuzzy copy is refused wherever a database is to be started on it.
const (
	Application Level = "application" // writers were held across the cut
	Recoverable Level = "recoverable" // an atomic cut of everything the engine needs; its crash recovery restores every commit
	Assembled   Level = "assembled"   // put together by the engine's own backup mode
	Fuzzy       Level = "fuzzy"       // files read one after another under a writer
)

// Method says how a copy was made.
type Method string

// The methods of copying.
const (
	Snapshot Method = "btrfs snapshot" // atomic
	Reflink  Method = "reflink"        // shares blocks, file by file
	Plain    Method = "copy"           // every byte, file by file
	CSI      Method = "csi snapshot"   // atomic, by the storage behind a cluster
	Stream   Method = "stream"         // every byte, from a snapshot over the network to storage that does not have it
)

// Source is one volume of a running workload, by the claim that mounts it. Dir is where its files are, for drivers of
// directories.
type Source struct {
	Account   string `json:"account"`
	Namespace string `json:"namespace"`
	Claim     string `json:"claim"`
	Dir       string `json:"dir,omitempty"`
}

// Place is where a clone goes: the claim that will mount it. What follows the claim says how it is made, where a claim has
// more to it than a directory.
type Place struct {
	Account   string `json:"account"`
	Namespace string `json:"namespace"`
	Claim     string `json:"claim"`

	Replace bool   `json:"replace,omitempty"` // a claim there that Sluice did not make is taken out of service; its volume is kept
	Own     bool   `json:"own,omitempty"`     // the namespace is Sluice's own: it is made, and one that somebody else made is refused
	Class   string `json:"class,omitempty"`   // storage class; "" means that of the source, or the one of the same driver
	Bytes   int64  `json:"bytes,omitempty"`   // size; 0 means that of the source

	Like *corev1.PodSpec `json:"-"` // the pod that will mount the claim: a volume is made where that one can run; nil: anywhere
}

// Bare is the place without how its claim is made: two places that are equal then are one.
func (p Place) Bare() Place { return Place{Account: p.Account, Namespace: p.Namespace, Claim: p.Claim} }

// Atomicity says over how much one cut is atomic.
type Atomicity string

// The atomicities.
const (
	None      Atomicity = "none"
	PerVolume Atomicity = "per volume"
	Group     Atomicity = "group"
)

// Ability is what a driver can do for some sources.
type Ability struct {
	Atomic    Atomicity
	Method    Method
	Bytes     int64  // what a full copy would write; 0 where blocks are shared
	FreeBytes int64  // -1 where it cannot be known
	Reason    string // why this method: "ext4 has no reflink"
}

// Copy is a copy of the volumes of a Source or of another Copy. Its fields are unexported, so only a Driver makes one,
// through NewCopy.
type Copy struct{ c CopyInfo }

// CopyInfo tells about a copy. Dirs are parallel to the sources of the cut, and empty where volumes are no directories of
// this machine.
type CopyInfo struct {
	ID        string    `json:"id"`
	Owner     string    `json:"owner"` // delivery
	Dirs      []string  `json:"dirs,omitempty"`
	Sources   []Source  `json:"sources"`
	Places    []Place   `json:"places,omitempty"` // the claims that the clone was made for, parallel to the sources
	Parent    string    `json:"parent,omitempty"`
	Method    Method    `json:"method"`
	Atomic    Atomicity `json:"atomic"`
	Bytes     int64     `json:"bytes"`
	CutAt     time.Time `json:"cutAt,omitzero"`     // zero: its making was cut short
	Protected time.Time `json:"protected,omitzero"` // not deletable before this instant
}

// NewCopy is for drivers.
func NewCopy(i CopyInfo) Copy { return Copy{c: i} }

// Info tells about the copy.
func (c Copy) Info() CopyInfo { return c.c }

// ID returns the id under which the copy was made.
func (c Copy) ID() string { return c.c.ID }

// Driver makes and keeps copies. Every method with an id is idempotent by it: after a crash the same call goes on or
// returns what was made. A half-made copy is never returned by what makes copies: it is finished or removed first.
type Driver interface {
	// Probe tells how these sources would be copied, and what that costs.
	Probe(ctx context.Context, src []Source) (Ability, error)
	// Cut takes one copy of all sources. It returns at the cut, not when the copy is ready. Where the method copies
	// file by file that is the same instant: the end.
	Cut(ctx context.Context, id, owner string, src []Source) (Copy, error)
	// Ready waits until the copy can be cloned.
	Ready(ctx context.Context, c Copy) error
	// Clone makes a writable copy of a copy, bound to the claims of to (parallel to the sources).
	Clone(ctx context.Context, id, owner string, from Copy, to []Place) (Copy, error)
	// Swap binds the live claims to the copy's volumes. The old volumes come back as a Copy that is protected until then.
	// Nothing runs on either. Once anything was changed, List knows a copy of this id. What another swap has taken from the live
	// claims, or had begun to when it was cut short, can be brought back under an id of its own, however far that one came; where
	// there is nothing else to be taken out of service then, List may know no copy of that id.
	Swap(ctx context.Context, id string, live []Source, with Copy, protect time.Time) (old Copy, err error)
	// List returns the copies of an owner that lie in the driver's account; all of them with "". One whose making was cut short
	// may be among them, so that it can be deleted; its CutAt is zero.
	List(ctx context.Context, owner string) ([]Copy, error)
	// Delete removes a copy. It refuses protected ones, also where another copy's protection covers the same volumes, those bound
	// to a live claim that it did not make, and those with children.
	Delete(ctx context.Context, c Copy) error
}

// Teller is a Driver whose copies may take long.
type Teller interface {
	// Telling returns the driver that tells how far it is. It may tell from several goroutines.
	Telling(say func(line string)) Driver
}

// Binder is how a driver of directories tells the platform which directory is behind a claim. The local platform
// implements it; a bind survives restarts.
type Binder interface {
	// Bind makes the claim, creating it if need be, be the directory. A running pod keeps what it has mounted.
	Bind(ctx context.Context, p Place, dir string) error
	// Bound returns the directory behind the claim, or an error of kind NotFound.
	Bound(ctx context.Context, p Place) (dir string, err error)
	// Unbind forgets the claim. It does not delete files.
	Unbind(ctx context.Context, p Place) error
	// VolumesDir is where the platform keeps volumes; copies go beside them so that blocks can be shared.
	VolumesDir(ctx context.Context) (string, error)
}
