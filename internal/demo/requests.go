package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// request is one line of the log that the customers keep.
type request struct {
	At      time.Time     `json:"at"`
	Took    time.Duration `json:"took"`
	Does    string        `json:"does"`
	ID      string        `json:"id"`
	Release string        `json:"release"`
	Tries   int           `json:"tries"`
	Failed  string        `json:"failed"`
}

// traffic is how the customers fared.
type traffic struct {
	Requests    int
	Failed      map[string]int // by the release that answered; "" where none did
	Why         string         // the first failure
	Reconnected int            // requests that had to be sent again because a connection broke off
	Worst       time.Duration  // the longest that anyone waited
}

func (t traffic) failed() int {
	n := 0
	for _, f := range t.Failed {
		n += f
	}
	return n
}

// failures says who failed: "9 failed (9 by release 2-rc1)".
func (t traffic) failures() string {
	if len(t.Failed) == 0 {
		return "none failed"
	}
	var by []string
	for _, r := range slices.Sorted(maps.Keys(t.Failed)) {
		who := "by release " + r
		if r == "" {
			who = "without an answer"
		}
		by = append(by, fmt.Sprintf("%d %s", t.Failed[r], who))
	}
	return fmt.Sprintf("%d failed (%s)", t.failed(), strings.Join(by, ", "))
}

// traffic returns what the customers logged since it was asked last. It first waits until a request that began now has
// ended, so that none of the act that is over is still under way but those that will count for the next.
func (st *stage) traffic(ctx context.Context) (traffic, error) {
	t := traffic{Failed: map[string]int{}}
	if err := st.load.alive(); err != nil {
		return t, err
	}
	f, err := os.Open(st.requestsFile())
	if err != nil {
		return t, err
	}
	defer f.Close()
	if _, err := f.Seek(st.read, io.SeekStart); err != nil {
		return t, err
	}
	now := time.Now()
	within, cancel := context.WithTimeout(ctx, endWithin)
	defer cancel()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		last, err := st.readRequests(f, &t)
		if err != nil {
			return t, err
		}
		if last.After(now) {
			return t, nil
		}
		select {
		case <-within.Done():
			return t, fmt.Errorf("the customers do not order any more: %w", within.Err())
		case <-look.C:
		}
	}
}

// readRequests counts the whole lines that are there and returns when the latest of them began.
func (st *stage) readRequests(f *os.File, t *traffic) (time.Time, error) {
	var last time.Time
	in := bufio.NewReader(f)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			// Half a line is read again when it is whole.
			_, err = f.Seek(st.read, io.SeekStart)
			return last, err
		}
		if err != nil {
			return last, err
		}
		var q request
		if err := json.Unmarshal(line, &q); err != nil {
			return last, fmt.Errorf("the log of requests: %w", err)
		}
		st.read += int64(len(line))
		t.count(q)
		if q.At.After(last) {
			last = q.At
		}
	}
}

func (t *traffic) count(q request) {
	t.Requests++
	t.Worst = max(t.Worst, q.Took)
	if q.Tries > 1 {
		t.Reconnected++
	}
	if q.Failed != "" {
		if t.Failed[q.Release]++; t.Why == "" {
			t.Why = fmt.Sprintf("%s %s: %s", q.Does, q.ID, q.Failed)
		}
	}
}
