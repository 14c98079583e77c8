package wire

import (
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/sluice-cd/sluice/internal/config"
)

// Live is a configuration that follows its file: a metric provider or a secret that is added counts from the next step on,
// without a restart. While the file is broken the last good one holds.
type Live struct {
	load func() (*config.Config, error)
	log  *slog.Logger

	mu   sync.Mutex
	now  *config.Config
	seen stamp
}

// stamp is a version of a file.
type stamp struct {
	at   time.Time
	size int64
}

// NewLive loads a configuration, and loads it again after its file has changed.
func NewLive(load func() (*config.Config, error), log *slog.Logger) (*Live, error) {
	l := &Live{load: load, log: log}
	var err error
	if l.now, err = load(); err != nil {
		return nil, err
	}
	l.seen = stampOf(l.now.Path)
	return l, nil
}

// Fixed is a configuration that never changes.
func Fixed(c *config.Config) *Live { return &Live{now: c} }

func stampOf(path string) stamp {
	i, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{i.ModTime(), i.Size()}
}

// Current returns the configuration as it is now. The same pointer means that nothing has changed.
func (l *Live) Current() *config.Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.load == nil || l.now.Path == "" {
		return l.now
	}
	is := stampOf(l.now.Path)
	if is == l.seen {
		return l.now
	}
	l.seen = is
	c, err := l.load()
	if err != nil {
		l.log.Error("the changed configuration cannot be read; the one before still holds", "error", err)
		return l.now
	}
	l.log.Info("the configuration has changed", "file", c.Path)
	l.now = c
	return l.now
}
