// Command ferretdb-b serves the MongoDB wire protocol by FerretDB v1.24.2 on SQLite files: the newer of two versions of
// a database on this machine.
package main

import (
	"context"
	"log/slog"
	"os"

	ferret "github.com/FerretDB/FerretDB/ferretdb"

	"github.com/sluice-cd/sluice/companion/ferretdb"
)

func main() { os.Exit(ferretdb.Main("ferretdb-b", start)) }

func start(socket, url string) (func(context.Context) error, error) {
	f, err := ferret.New(&ferret.Config{
		Listener: ferret.ListenerConfig{Unix: socket}, Handler: "sqlite", SQLiteURL: url,
		// A client that goes away is a warning to FerretDB; here it is everyday life.
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		return nil, err
	}
	return f.Run, nil
}
