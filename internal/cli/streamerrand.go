package cli

import (
	"context"
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"github.com/sluice-cd/sluice/internal/platform/kubernetes/errand"
	"github.com/sluice-cd/sluice/internal/volume/stream"
)

// sendErrand sends the volume that it mounts to another cluster.
func sendErrand() *cobra.Command {
	return streamErrand(stream.SendCommand, stream.Send)
}

// receiveErrand fills the volume that it mounts with what another cluster sends.
func receiveErrand() *cobra.Command {
	return streamErrand(stream.ReceiveCommand, func(ctx context.Context, t stream.Task, say stream.Say) (stream.Summary, error) {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf(":%d", stream.Port))
		if err != nil {
			return stream.Summary{}, err
		}
		return stream.Receive(ctx, t, l, say)
	})
}

func streamErrand(command string, do func(context.Context, stream.Task, stream.Say) (stream.Summary, error)) *cobra.Command {
	return &cobra.Command{Use: command, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return reported(c, func(ctx context.Context) (any, error) {
			var t stream.Task
			if _, err := errand.Told(&t); err != nil {
				return nil, err
			}
			return do(ctx, t, nowAndThen(c.OutOrStdout(), sayEvery))
		})
	}}
}
