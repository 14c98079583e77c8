package postgres

import (
	"bufio"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-cd/sluice/internal/fault"
)

// walLine is one record as pg_waldump prints it.
var walLine = regexp.MustCompile(`^rmgr: (\S+)\s+len \(rec/tot\):\s*\d+/\s*\d+, tx:\s*(\d+), lsn: ([0-9A-F]+/[0-9A-F]+), prev ([0-9A-F]+/[0-9A-F]+), desc: (\S+) ?(.*)$`)

var (
	walBlock = regexp.MustCompile(`blkref #\d+: rel (\d+)/(\d+)/(\d+)`)
	walSubs  = regexp.MustCompile(`; subxacts:((?: \d+)+)`)
	walRels  = regexp.MustCompile(`; rels:((?: [^ ;]+)+)`)
	walTwo   = regexp.MustCompile(`^(\d+): `)
)

// walOperations are the operations that are understood, by resource manager, and whether they write what a user keeps: rows, or
// the files of a relation. Locks, pruning, freezing and what vacuum does are no writes. A manager that is not listed is one that
// an extension brings, and nobody here knows what it writes.
func walOperations() map[string]map[string]bool {
	return map[string]map[string]bool{
		"Heap": {"INSERT": true, "DELETE": true, "UPDATE": true, "HOT_UPDATE": true, "TRUNCATE": true,
			"LOCK": false, "HEAP_CONFIRM": false, "INPLACE": false},
		"Heap2": {"MULTI_INSERT": true, "PRUNE": false, "VACUUM": false, "FREEZE_PAGE": false, "VISIBLE": false, "LOCK_UPDATED": false,
			"NEW_CID": false, "REWRITE": false, "PRUNE_ON_ACCESS": false, "PRUNE_VACUUM_SCAN": false, "PRUNE_VACUUM_CLEANUP": false},
		"Sequence":    {"LOG": true},
		"Storage":     {"CREATE": true, "TRUNCATE": false},
		"Database":    {"CREATE": true, "CREATE_FILE_COPY": true, "CREATE_WAL_LOG": true, "DROP": true},
		"Transaction": {"COMMIT": false, "ABORT": false, "PREPARE": false, "COMMIT_PREPARED": false, "ABORT_PREPARED": false, "ASSIGNMENT": false, "INVALIDATION": false},
		"XLOG":        nil, "CLOG": nil, "Tablespace": nil, "MultiXact": nil, "RelMap": nil, "Standby": nil, "Btree": nil, "Hash": nil,
		"Gin": nil, "Gist": nil, "SPGist": nil, "BRIN": nil, "CommitTs": nil, "ReplicationOrigin": nil, "Generic": nil, "LogicalMessage": nil,
	}
}

// walCount counts the transactions that have committed a write.
type walCount struct {
	known    map[string]map[string]bool
	from     uint64
	last     string          // position of the last record
	shutdown bool            // the last record is the checkpoint of a clean stop
	wrote    map[uint64]bool // transactions, and parts of them, that have written and not ended
	prepared map[uint64]bool // those that wait for COMMIT PREPARED; true where what they wrote was seen
	value    int64
	atMost   bool // a transaction was prepared before the range: what it wrote is not known
}

// countWAL reads the output of pg_waldump from a position on. It refuses what it does not understand and what is not complete.
func countWAL(r io.Reader, from string) (*walCount, error) {
	start, err := parseLSN(from)
	if err != nil {
		return nil, err
	}
	w := &walCount{known: walOperations(), from: start, wrote: map[uint64]bool{}, prepared: map[uint64]bool{}}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20) // a commit names every message that invalidates a cache
	for lines.Scan() {
		if w.last == "" && strings.HasPrefix(lines.Text(), "first record is after ") {
			continue
		}
		if err := w.record(lines.Text()); err != nil {
			return nil, err
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if w.last == "" {
		return nil, fault.Newf(fault.Lost, "the log holds no record from %s on", from)
	}
	if len(w.prepared) > 0 {
		return nil, fault.Newf(fault.Invalid, "%d prepared transaction(s) wait for a decision: whether they are writes is not known", len(w.prepared))
	}
	return w, nil
}

func parseLSN(s string) (uint64, error) {
	high, low, ok := strings.Cut(s, "/")
	h, err := strconv.ParseUint(high, 16, 32)
	l, err2 := strconv.ParseUint(low, 16, 32)
	if !ok || err != nil || err2 != nil {
		return 0, fault.Newf(fault.Invalid, "%q is no position of a log", s)
	}
	return h<<32 | l, nil
}

func (w *walCount) record(line string) error {
	m := walLine.FindStringSubmatch(line)
	if m == nil {
		return fault.Newf(fault.Invalid, "a line of pg_waldump is not understood: %.200q", line)
	}
	manager, position, previous, operation, rest := m[1], m[3], m[4], strings.TrimSuffix(m[5], "+INIT"), m[6]
	if err := w.follows(position, previous); err != nil {
		return err
	}
	xid, err := strconv.ParseUint(m[2], 10, 32)
	if err != nil {
		return err
	}
	known, ok := w.known[manager]
	writes, listed := known[operation]
	if !ok || known != nil && !listed {
		return fault.Newf(fault.Invalid, "the log holds an operation %s of %s, which is not known", operation, manager)
	}
	w.shutdown = manager == "XLOG" && operation == "CHECKPOINT_SHUTDOWN"
	if manager == "Transaction" {
		return w.transaction(xid, operation, rest)
	}
	if writes && xid != 0 && touchesUser(manager, operation, rest) {
		w.wrote[xid] = true
	}
	return nil
}

// follows holds that no record is missing between the last one and this one, or before the first.
func (w *walCount) follows(position, previous string) error {
	at, err := parseLSN(position)
	if err != nil {
		return err
	}
	before, err := parseLSN(previous)
	if err != nil {
		return err
	}
	var last uint64
	if w.last != "" {
		if last, err = parseLSN(w.last); err != nil {
			return err
		}
	}
	if w.last == "" && (at < w.from || before >= w.from) || w.last != "" && before != last {
		return fault.Newf(fault.Lost, "the log is not complete: the record at %s follows one at %s, which was not read", position, previous)
	}
	w.last = position
	return nil
}

// touchesUser tells whether a record is about something that is no system catalog. What large objects hold is in catalogs.
func touchesUser(manager, operation, rest string) bool {
	switch {
	case manager == "Database" || manager == "Heap" && operation == "TRUNCATE":
		return true
	case manager == "Storage":
		return userFile(strings.Fields(rest + " ")[0])
	}
	for _, b := range walBlock.FindAllStringSubmatch(rest, -1) {
		const global, largeObjects, theirOwners = "1664", "2613", "2995"
		if b[1] != global && (userNumber(b[3]) || b[3] == largeObjects || b[3] == theirOwners) {
			return true
		}
	}
	return false
}

// userFile tells whether a file is of a relation that is neither a system catalog nor temporary ("t3_16400").
func userFile(file string) bool {
	number, _, _ := strings.Cut(path.Base(file), "_")
	return userNumber(number)
}

func userNumber(s string) bool {
	const firstNormal = 16384
	n, err := strconv.ParseUint(s, 10, 32)
	return err == nil && n >= firstNormal
}

func (w *walCount) transaction(xid uint64, operation, rest string) error {
	switch operation {
	case "COMMIT_PREPARED", "ABORT_PREPARED":
		m := walTwo.FindStringSubmatch(rest)
		if m == nil {
			return fault.Newf(fault.Invalid, "a record %s is not understood: %.200q", operation, rest)
		}
		var err error
		if xid, err = strconv.ParseUint(m[1], 10, 32); err != nil {
			return err
		}
	case "COMMIT", "ABORT":
	case "PREPARE":
		w.prepared[xid] = true
		return nil
	default:
		return nil
	}
	all := []uint64{xid}
	if m := walSubs.FindStringSubmatch(rest); m != nil {
		for s := range strings.FieldsSeq(m[1]) {
			n, err := strconv.ParseUint(s, 10, 32)
			if err != nil {
				return err
			}
			all = append(all, n)
		}
	}
	writes := slices.ContainsFunc(all, func(x uint64) bool { return w.wrote[x] })
	if m := walRels.FindStringSubmatch(rest); m != nil {
		writes = writes || slices.ContainsFunc(strings.Fields(m[1]), userFile)
	}
	if operation == "COMMIT_PREPARED" && !w.prepared[xid] {
		writes, w.atMost = true, true
	}
	if writes && strings.HasPrefix(operation, "COMMIT") {
		w.value++
	}
	for _, x := range all {
		delete(w.wrote, x)
	}
	delete(w.prepared, xid)
	return nil
}
