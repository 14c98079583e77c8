// Package serve runs the HTTP servers of the lab's images.
package serve

import (
	"context"
	"net/http"
	"time"
)

// HTTP serves until the context ends, and then what is under way.
func HTTP(ctx context.Context, listen string, h http.Handler) error {
	server := &http.Server{Addr: listen, Handler: h, ReadHeaderTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return server.Shutdown(context.WithoutCancel(ctx))
	}
}
