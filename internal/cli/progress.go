package cli

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// width returns the width of the terminal behind a writer, 0 where it is none or a program reads along.
func width(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("CI") != "" || os.Getenv("TERM") == "dumb" {
		return 0
	}
	n, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return n
}

const (
	plainEvery   = 10 * time.Second // how often progress is a line of a log
	longSnapshot = 5 * time.Minute  // from when on a snapshot is a burden to the server
)

// scanProgress shows how far a comparison is: one line that is written over on a terminal, now and then a line elsewhere.
type scanProgress struct {
	w       io.Writer
	width   int
	now     func() time.Time
	started time.Time
	last    time.Time
	live    bool // the line that is written over stands
	spilled bool
	warned  bool
	rows    int64 // when it was shown last
}

func newScanProgress(w io.Writer) *scanProgress {
	now := time.Now()
	return &scanProgress{w: w, width: width(w), now: time.Now, started: now, last: now}
}

// show takes in how far it is. It is called from one goroutine at a time.
func (s *scanProgress) show(p fingerprint.Progress) {
	now := s.now()
	if p.SpillNeeded > 0 && !s.spilled {
		s.spilled = true
		s.line(fmt.Sprintf("%s: many rows differ; up to %s go to the folder for spilled rows", p.Relation, byteText(p.SpillNeeded)))
	}
	if now.Sub(s.started) > longSnapshot && !s.warned {
		s.warned = true
		s.line(fmt.Sprintf("warning: the snapshot is %s old and keeps a live server from cleaning up; --table and --workers make it shorter", longSnapshot))
	}
	text := progressText(p, s.rows)
	if s.width > 0 {
		s.rows = p.Rows
		r := []rune("  … " + text)
		if len(r) >= s.width {
			r = r[:s.width-1]
		}
		fmt.Fprintf(s.w, "\r\x1b[K%s", string(r))
		s.live = true
		return
	}
	if now.Sub(s.last) >= plainEvery {
		s.last, s.rows = now, p.Rows
		s.line(text)
	}
}

func (s *scanProgress) line(text string) {
	s.end()
	fmt.Fprintln(s.w, text)
}

// end takes the line away that is written over.
func (s *scanProgress) end() {
	if s.live {
		fmt.Fprint(s.w, "\r\x1b[K")
		s.live = false
	}
}

// progressText says how far a pass is. Once no more rows come, what was read is being told apart.
func progressText(p fingerprint.Progress, before int64) string {
	text := fmt.Sprintf("%s, pass %d: %s rows", p.Relation, p.Pass, grouped(p.Rows))
	if p.Rows > 0 && p.Rows == before {
		return text + " are read and compared"
	}
	if p.Estimate > p.Rows {
		text += fmt.Sprintf(" of about %s", grouped(p.Estimate))
	}
	text += fmt.Sprintf(", %s rows/s", grouped(int64(p.RowsPerSecond)))
	if p.ETA > 0 {
		text += ", " + p.ETA.String() + " to go"
	}
	return text
}

// grouped writes a number with its thousands apart.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func byteText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n), -1
	for f >= unit && i < 5 {
		f /= unit
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTPE"[i])
}
