package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// result is what was measured of one side.
type result struct {
	filled                time.Duration
	resident, after, peak int64
	requests              []request // while it rested
	took                  []time.Duration
}

// request is a line of the audit log.
type request struct {
	Verb       string    `json:"verb"`
	RequestURI string    `json:"requestURI"`
	At         time.Time `json:"requestReceivedTimestamp"`
	User       struct {
		Username string `json:"username"`
	} `json:"user"`
}

func (r request) reads() bool { return r.Verb == "get" || r.Verb == "list" }

// requests are those that a side's controller has begun between two instants. Each side has an account of its own, and renews a
// Lease: of one that has asked for nothing the log tells nothing.
func requests(logs, side string, since, until time.Time) (all []request, err error) {
	files, err := filepath.Glob(logs) // the API server begins a new one when it has become large
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		some, err := requestsIn(path, user(side), since, until)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("the audit log %s tells nothing of %s from %s to %s", logs, user(side), since.Format(time.TimeOnly), until.Format(time.TimeOnly))
	}
	return all, nil
}

func requestsIn(path, user string, since, until time.Time) ([]request, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []request
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		if !strings.Contains(lines.Text(), user) {
			continue
		}
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if r.User.Username == user && r.At.After(since) && r.At.Before(until) {
			out = append(out, r)
		}
	}
	return out, lines.Err()
}

func (r result) reads() int {
	n := 0
	for _, q := range r.requests {
		if q.reads() {
			n++
		}
	}
	return n
}

// report prints what was measured and says whether Sluice missed a limit.
func report(o options, names []string, found map[string]*result) (missed bool) {
	w := tabwriter.NewWriter(o.out, 0, 0, 2, ' ', 0)
	row := func(what string, value func(*result) string) {
		fmt.Fprint(w, what)
		for _, n := range names {
			fmt.Fprint(w, "\t", value(found[n]))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "%d of each\t%s\n", o.count, strings.Join(names, "\t"))
	row("until all rested", func(r *result) string { return r.filled.Round(100 * time.Millisecond).String() })
	row("resident memory at rest", func(r *result) string { return mebibytes(r.resident) })
	row("after all went on", func(r *result) string { return mebibytes(r.after) })
	row("at most", func(r *result) string { return mebibytes(r.peak) })
	row(fmt.Sprintf("reads in %s of rest", o.rest), func(r *result) string { return fmt.Sprint(r.reads()) })
	row("other requests meanwhile", func(r *result) string { return fmt.Sprint(len(r.requests) - r.reads()) })
	for _, p := range []int{50, 99, 100} {
		row(fmt.Sprintf("next step after, p%d", p), func(r *result) string { return percentile(r.took, p).Round(time.Millisecond).String() })
	}
	_ = w.Flush()
	for _, n := range names {
		fmt.Fprintf(o.out, "%s at rest asked for: %s\n", n, counted(found[n].requests))
	}
	s := found["sluice"]
	if r := found["rollouts"]; r != nil {
		fmt.Fprintf(o.out, "sluice to rollouts: memory %.2f, p99 %.3f\n", float64(s.resident)/float64(r.resident),
			float64(percentile(s.took, 99))/float64(percentile(r.took, 99)))
	}
	if s.resident > mostResident {
		missed = true
		fmt.Fprintf(o.out, "MISSED: the controller has %s resident, at most %s are allowed\n", mebibytes(s.resident), mebibytes(mostResident))
	}
	if n := s.reads(); n > mostReads {
		missed = true
		fmt.Fprintf(o.out, "MISSED: the resting controller has made %d reads, %d are allowed\n", n, mostReads)
	}
	return missed
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

func percentile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[min(len(d)-1, len(d)*p/100)]
}

// counted tells which requests there were, names left out.
func counted(all []request) string {
	n := map[string]int{}
	for _, r := range all {
		path, query, _ := strings.Cut(r.RequestURI, "?")
		if strings.Contains(query, "watch=true") {
			path += " (watch)"
		}
		n[r.Verb+" "+path]++
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(n)) {
		out = append(out, fmt.Sprintf("%d × %s", n[k], k))
	}
	if len(out) > 20 {
		out = append(out[:20], fmt.Sprintf("and %d more", len(out)-20))
	}
	return strings.Join(out, ", ")
}
