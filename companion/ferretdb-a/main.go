// Command ferretdb-a serves the MongoDB wire protocol by FerretDB v1.17.0 on SQLite files: the older of two versions of
// a database on this machine.
package main

import (
	"context"
	"os"

	ferret "github.com/FerretDB/FerretDB/ferretdb"

	"github.com/sluice-cd/sluice/companion/ferretdb"
)

func main() { os.Exit(ferretdb.Main("ferretdb-a", start)) }

func start(socket, url string) (func(context.Context) error, error) {
	f, err := ferret.New(&ferret.Config{Listener: ferret.ListenerConfig{Unix: socket}, Handler: "sqlite", SQLiteURL: url})
	if err != nil {
		return nil, err
	}
	return f.Run, nil
}
