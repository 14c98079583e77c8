package verification

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

// shareWeight is from how much data on another pod is worth its start: as much as a million rows. It is judgement, as is the
// threshold of Jobs.
const shareWeight = 1_000_000 * fingerprint.RowWeight

// Division says how the pods of a Job share a task. Whoever starts the Job decides it, once and for all of them: the sizes that the
// catalogs tell may be others a moment later. Nobody writes to what is read, so that the pods need no snapshot in common.
type Division struct {
	Plan   string `json:"plan"`   // digest of the plan in whose order Tables is
	Shares int    `json:"shares"` // how many there are; in a comparison the last one has no table, but the checks
	Tables []int  `json:"tables"` // which share each table is of
}

// Divide shares a plan out to at most so many pods; nil where one does it all as well. The checks of a comparison are a share of
// their own, because they read every index.
func Divide(p *fingerprint.Plan, checks bool, most int) *Division {
	worth := p.Weight() / shareWeight
	if worth < 2 || most < 2 {
		return nil
	}
	if checks {
		most--
	}
	d := &Division{Plan: p.Digest()}
	d.Shares, d.Tables = p.Divide(int(min(worth, int64(most))))
	if checks {
		d.Shares++
	}
	if d.Shares == 1 {
		return nil
	}
	return d
}

// Of returns the plan of one share.
func (d *Division) Of(p *fingerprint.Plan, share int) (*fingerprint.Plan, error) {
	if p.Digest() != d.Plan {
		return nil, fault.Newf(fault.Conflict, "the work was shared out by another plan (%s) than the catalogs make here (%s): a side was changed, or jobs.image of the account is another version of Sluice",
			d.Plan, p.Digest())
	}
	if share < 0 || share >= d.Shares {
		return nil, fault.Newf(fault.Invalid, "there are %d shares, and none of number %d", d.Shares, share)
	}
	return p.Share(d.Tables, share)
}

// checks reports whether a share of a comparison is that of the checks.
func (d *Division) checks(share int) bool { return share == d.Shares-1 }

// Merge makes one answer of those of all pods.
func Merge(p *fingerprint.Plan, answers []Answer) (Answer, error) {
	if len(answers) == 1 {
		if answers[0].Report == nil {
			return Answer{}, fault.Newf(fault.Lost, "the Job that compared gave no report")
		}
		return answers[0], nil
	}
	var out Answer
	var reports []*fingerprint.Report
	for _, a := range answers {
		if a.Report != nil {
			reports = append(reports, a.Report)
		}
		out.Findings = append(out.Findings, a.Findings...)
	}
	var err error
	out.Report, err = p.Merge(reports)
	return out, err
}

// The line of a share, as Gather reads it.
const shareLine = "share %d of %d, %d rows: "

// of returns the options of one of the shares, whose lines say so.
func (o Options) of(d *Division) Options {
	read, show := &[2]atomic.Int64{}, o.Progress
	o.read, o.Progress = read, func(format string, args ...any) {
		rows := read[fingerprint.Source].Load() + read[fingerprint.Target].Load()
		show(shareLine+format, append([]any{o.Share + 1, d.Shares, rows}, args...)...)
	}
	return o
}

// Gather returns what is told the lines of all pods, and shows each with how far all of them have come. The estimate is of all
// rows that are to be read.
func Gather(estimate int64, show func(line string)) func(line string) {
	var mu sync.Mutex
	read := map[int]int64{}
	return func(line string) {
		var number, of int
		var rows int64
		if n, err := fmt.Sscanf(line, shareLine, &number, &of, &rows); err != nil || n != 3 {
			show(line)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		read[number] = max(read[number], rows)
		var all int64
		for _, n := range read {
			all += n
		}
		show(fmt.Sprintf("%s; all shares: %d%s rows", line, all, about(estimate)))
	}
}
