package fingerprint

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-cd/sluice/internal/database"
)

// progressEvery is how often a caller hears of a scan.
const progressEvery = 250 * time.Millisecond

// Progress is how far a comparison has come. Rows and the estimate count the sides that the pass scans.
type Progress struct {
	Relation      database.Name
	Pass          int // 1, 2 or 3
	Rows          int64
	Total         int64 // rows of all passes until now
	Estimate      int64 // how many rows the catalogs expect; 0 where they do not know
	RowsPerSecond float64
	ETA           time.Duration // of this pass; 0 where it is not known
	SpillNeeded   int64         // bytes that the pass is about to write to the spill folder
}

// meter counts rows and tells the caller now and then.
type meter struct {
	report  func(Progress)
	rows    atomic.Int64
	total   atomic.Int64
	done    chan struct{}
	stopped sync.WaitGroup

	mu      sync.Mutex
	current Progress
	started time.Time
}

func newMeter(report func(Progress)) *meter {
	m := &meter{report: report, done: make(chan struct{})}
	if report == nil {
		return m
	}
	m.stopped.Add(1)
	go m.run()
	return m
}

func (m *meter) run() {
	defer m.stopped.Done()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-m.done:
			return
		case <-tick.C:
			m.tell()
		}
	}
}

func (m *meter) stop() {
	close(m.done)
	m.stopped.Wait()
}

// meterStep is how many rows a scan counts by itself before it tells the meter.
const meterStep = 1024

func (m *meter) add(rows int64) {
	m.rows.Add(rows)
	m.total.Add(rows)
}

// begin starts a pass over sides of a table.
func (m *meter) begin(t *Table, number int, sides ...Role) {
	m.mu.Lock()
	m.current = Progress{Relation: t.Name, Pass: number, Estimate: t.estimate(sides...)}
	m.started = time.Now()
	m.rows.Store(0)
	m.mu.Unlock()
	m.tell()
}

// spill announces how much disk the pass needs.
func (m *meter) spill(bytes int64) {
	m.mu.Lock()
	m.current.SpillNeeded = bytes
	m.mu.Unlock()
	m.tell()
}

func (m *meter) tell() {
	if m.report == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.current
	if p.Pass == 0 {
		return
	}
	p.Rows, p.Total = m.rows.Load(), m.total.Load()
	if seconds := time.Since(m.started).Seconds(); seconds > 0 {
		p.RowsPerSecond = float64(p.Rows) / seconds
	}
	if left := p.Estimate - p.Rows; left > 0 && p.RowsPerSecond > 0 {
		p.ETA = time.Duration(float64(left) / p.RowsPerSecond * float64(time.Second)).Round(time.Second)
	}
	m.report(p)
}
