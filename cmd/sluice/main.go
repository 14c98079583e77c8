// Command sluice delivers applications that have data.
package main

import (
	"os"

	"github.com/sluice-cd/sluice/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
