package controller

import (
	"context"
	"sync"

	"k8s.io/client-go/util/workqueue"
)

// tenders is how many applications are looked after at the same time. To admit a delivery is a dozen requests one after
// another, most of whose time is waiting.
const tenders = 32

// due are the deliveries to look after, by application: those of one are looked after one after another, so that they have
// an order.
type due struct {
	queue workqueue.TypedRateLimitingInterface[string]
	mu    sync.Mutex
	ids   map[string][]string
}

func (d *due) add(application, id string) {
	d.mu.Lock()
	d.ids[application] = append(d.ids[application], id)
	d.mu.Unlock()
	d.queue.Add(application)
}

func (d *due) take(application string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	ids := d.ids[application]
	delete(d.ids, application)
	return ids
}

// tend admits what people have created, and lets go what has ended, until ctx ends.
func (c *controller) tend(ctx context.Context) {
	events, err := c.store.Watch(ctx)
	if err != nil {
		c.o.Log.Error("new deliveries are not admitted", "error", err)
		return
	}
	d := &due{queue: workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]()), ids: map[string][]string{}}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer d.queue.ShutDown()
	for range tenders {
		wg.Go(func() {
			for {
				application, ended := d.queue.Get()
				if ended {
					return
				}
				c.tendAll(ctx, d, application)
				d.queue.Done(application)
			}
		})
	}
	for _, id := range c.store.Untended() {
		d.add(c.store.Application(id), id)
	}
	for e := range events {
		if c.store.Tended(e.ID) {
			continue
		}
		d.add(c.store.Application(e.ID), e.ID)
	}
}

func (c *controller) tendAll(ctx context.Context, d *due, application string) {
	failed := false
	for _, id := range d.take(application) {
		err := c.store.Tend(ctx, id)
		if err == nil || ctx.Err() != nil {
			continue
		}
		c.o.Log.Warn("a delivery could not be looked after; it is tried again", "delivery", id, "error", err)
		failed = true
		d.mu.Lock()
		d.ids[application] = append(d.ids[application], id)
		d.mu.Unlock()
	}
	if failed {
		d.queue.AddRateLimited(application)
		return
	}
	d.queue.Forget(application)
}
