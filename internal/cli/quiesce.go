package cli

import (
	"github.com/spf13/cobra"

	"github.com/sluice-cd/sluice/internal/database/mongodb"
	"github.com/sluice-cd/sluice/internal/server/wire"
)

// quiesceHelper is the process that holds the writers of a database for a copy. People never call it.
func quiesceHelper() *cobra.Command {
	return &cobra.Command{Use: wire.QuiesceHelper, Hidden: true, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return mongodb.Helper(c.Context(), c.InOrStdin(), c.OutOrStdout())
	}}
}
