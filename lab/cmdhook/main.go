// Command cmdhook runs commands inside a cluster for webhooks, as the image cmd-hook did for deploy files of Armory
// CD-as-a-Service: POST /cmd {"cmd": "kubectl", "arg": "scale …", "callbackURL": "…"} is answered at once, and when the
// command has ended the callback is told {"success": …, "mdMessage": …}. Only commands that begin as a line of the file of
// allowed ones run; what they may do is up to the account of the pod.
//
// One field is more than cmd-hook had: "expect" is what the output has to begin with. `kubectl wait` is content with any
// end of what it waits for, also a bad one.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/sluice-cd/sluice/lab/serve"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cmdhook:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("use: cmdhook LISTEN FILE, a file with the beginnings of the allowed commands, one a line")
	}
	file, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	h := newHook(ctx, beginnings(string(file)))
	mux := http.NewServeMux()
	mux.HandleFunc("POST /cmd", h.serve)
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	err = serve.HTTP(ctx, args[0], mux)
	h.running.Wait()
	return err
}

// beginnings are the words of every line; empty ones and comments allow nothing.
func beginnings(file string) [][]string {
	var all [][]string
	for lines := bufio.NewScanner(strings.NewReader(file)); lines.Scan(); {
		if words := strings.Fields(lines.Text()); len(words) > 0 && !strings.HasPrefix(words[0], "#") {
			all = append(all, words)
		}
	}
	return all
}
