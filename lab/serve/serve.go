// Package serve runs the HTTP servers of the lab's images.
package serve

import (
	"context"
	"net"
	"net/http"
	"time"
)

// HTTP serves until the context ends, and then what is under way.
func HTTP(ctx context.Context, listen string, h http.Handler) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	return On(ctx, l, h)
}

// On is HTTP for those who listen already.
func On(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return server.Shutdown(context.WithoutCancel(ctx))
	}
}
