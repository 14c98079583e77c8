package server

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/sluice-cd/sluice/internal/delivery"
	"github.com/sluice-cd/sluice/internal/engine"
	"github.com/sluice-cd/sluice/internal/store"
)

// frame is one line of a watch. The first one of a connection holds the specification, which never changes; later ones
// leave it out. An empty frame only says that the server is there.
type frame struct {
	Spec     *delivery.Spec   `json:"spec,omitempty"`
	Delivery *standing        `json:"delivery,omitempty"`
	Progress *engine.Progress `json:"progress,omitempty"`
	Leaving  bool             `json:"leaving,omitempty"` // the server ends as it was told to
}

// standing is a delivery without its specification.
type standing struct {
	Status   delivery.Status `json:"status"`
	Revision store.Revision  `json:"revision"`
	Signals  []store.Signal  `json:"signals,omitempty"`
}

// progress hands lines of progress to those who watch. Nobody waits for them: who is slow misses the oldest.
type progress struct {
	mu        sync.Mutex
	followers map[*follower]struct{}
}

type follower struct {
	id    string
	wake  chan struct{}
	lines []engine.Progress
}

// keptLines is how many lines wait for a slow watcher.
const keptLines = 200

func (p *progress) publish(line engine.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for f := range p.followers {
		if f.id != line.Delivery {
			continue
		}
		if f.lines = append(f.lines, line); len(f.lines) > keptLines {
			f.lines = f.lines[1:]
		}
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
}

func (p *progress) follow(id string) (f *follower, end func()) {
	f = &follower{id: id, wake: make(chan struct{}, 1)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.followers == nil {
		p.followers = map[*follower]struct{}{}
	}
	p.followers[f] = struct{}{}
	return f, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.followers, f)
	}
}

func (p *progress) take(f *follower) []engine.Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	lines := f.lines
	f.lines = nil
	return lines
}

const (
	heartbeat = 20 * time.Second // how long a watch may be silent
	stuck     = 30 * time.Second // how long a watcher may take to read one line
)

// stream writes frames.
type stream struct {
	enc  *json.Encoder
	ctrl *http.ResponseController
}

func (s stream) send(f frame) error {
	if err := s.ctrl.SetWriteDeadline(time.Now().Add(stuck)); err != nil {
		return err
	}
	if err := s.enc.Encode(f); err != nil {
		return err
	}
	return s.ctrl.Flush()
}

// watch sends the present state of a delivery and then every change and every line of progress, until it has ended.
func (s *Server) watch(w http.ResponseWriter, r *http.Request) {
	id, ctx := r.PathValue("id"), r.Context()
	events, err := s.work.Store.Watch(ctx)
	if err != nil {
		refuse(w, status(err), err)
		return
	}
	f, end := s.lines.follow(id)
	defer end()
	d, err := s.work.Store.Load(ctx, id)
	if err != nil {
		refuse(w, status(err), err)
		return
	}
	d = shown(ctx, d)
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := stream{enc: json.NewEncoder(w), ctrl: http.NewResponseController(w)}
	if out.send(frame{Spec: &d.Spec, Delivery: &standing{d.Status, d.Revision, d.Signals}}) != nil {
		return
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for !d.Status.Done {
		var frames []frame
		select {
		case <-ctx.Done():
			return
		case <-s.leaving:
			_ = out.send(frame{Leaving: true})
			return
		case <-beat.C:
			frames = append(frames, frame{})
		case <-f.wake:
			for _, l := range s.lines.take(f) {
				frames = append(frames, frame{Progress: &l})
			}
		case e, ok := <-events:
			if !ok {
				return
			}
			if e.ID != id {
				continue
			}
			if d, err = s.work.Store.Load(ctx, id); err != nil {
				s.o.Log.Error("a watch breaks off", "delivery", id, "error", err)
				return
			}
			d = shown(ctx, d)
			frames = append(frames, frame{Delivery: &standing{d.Status, d.Revision, d.Signals}})
		}
		for _, x := range frames {
			if out.send(x) != nil {
				return
			}
		}
	}
}
