package store

import (
	"context"
	"sync"
)

// Hub tells watchers of one process about changes. A watcher that is slow gets each delivery's event once.
type Hub struct {
	mu       sync.Mutex
	watchers map[*watcher]struct{}
}

type watcher struct {
	wake    chan struct{}
	pending []string
}

// Publish tells every watcher that a delivery has changed. It never blocks.
func (h *Hub) Publish(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		w.pending = append(w.pending, id)
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// Watch sends what is published until ctx ends.
func (h *Hub) Watch(ctx context.Context) <-chan Event {
	w := &watcher{wake: make(chan struct{}, 1)}
	h.mu.Lock()
	if h.watchers == nil {
		h.watchers = map[*watcher]struct{}{}
	}
	h.watchers[w] = struct{}{}
	h.mu.Unlock()
	out := make(chan Event)
	go func() {
		defer close(out)
		defer func() {
			h.mu.Lock()
			delete(h.watchers, w)
			h.mu.Unlock()
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.wake:
			}
			h.mu.Lock()
			ids := w.pending
			w.pending = nil
			h.mu.Unlock()
			sent := map[string]bool{}
			for _, id := range ids {
				if sent[id] {
					continue
				}
				sent[id] = true
				select {
				case out <- Event{ID: id}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}
