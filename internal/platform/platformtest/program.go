package platformtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

// ProgramEnv makes a test binary be the program that the suite deploys, when its TestMain calls Program.
const ProgramEnv = "SLUICE_TEST_PROGRAM"

// Program is what the suite deploys: a server that answers with its version, its pid and its host (as broken, one that breaks off what
// it answers to /break), one that answers lines, a Job that succeeds or fails, or
// a program that cannot start. It returns false where the binary is to run tests.
func Program() bool {
	mode := os.Getenv(ProgramEnv)
	switch mode {
	case "":
		return false
	case "http", "broken":
		serveHTTP()
	case "echo":
		serveEcho()
	case "ok":
		fmt.Println("all is well")
	case "fail":
		fmt.Println("nothing is well")
		os.Exit(3)
	}
	return true
}

func told() context.Context {
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	return ctx
}

func serveHTTP() {
	l, err := net.Listen("tcp", os.Getenv("POD_IP")+":8080")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/break" && os.Getenv(ProgramEnv) == "broken" {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		host, _ := os.Hostname()
		fmt.Fprintf(w, "%s %d %s", os.Getenv("VERSION"), os.Getpid(), host)
	})}
	context.AfterFunc(told(), func() { _ = srv.Shutdown(context.Background()) })
	_ = srv.Serve(l)
}

// serveEcho answers every line with the version.
func serveEcho() {
	l, err := net.Listen("tcp", os.Getenv("POD_IP")+":7000")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	context.AfterFunc(told(), func() { l.Close() })
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 64)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
				fmt.Fprintln(c, os.Getenv("VERSION"))
			}
		}()
	}
}
