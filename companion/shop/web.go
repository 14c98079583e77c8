package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// releaseHeader tells callers which release answered.
const releaseHeader = "Shop-Release"

// shop answers HTTP.
type shop struct {
	store   *store
	release string
	failing int // percent of customers whose orders it fails to take: a release with a fault
}

func web(ctx context.Context, args []string, out io.Writer) error {
	var listen, database string
	s := &shop{}
	f := flag.NewFlagSet("shop web", flag.ContinueOnError)
	f.StringVar(&listen, "listen", "127.0.0.1:0", "address to answer on")
	f.StringVar(&database, "database", "", "URL of the database")
	f.StringVar(&s.release, "release", "1", "name of this release")
	f.IntVar(&s.failing, "fail-percent", 0, "fail to take the orders of so many of a hundred customers")
	if err := f.Parse(args); err != nil {
		return err
	}
	var err error
	if s.store, err = openStore(database); err != nil {
		return err
	}
	defer s.store.close()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fmt.Fprintf(out, "shop %s listening on %s\n", s.release, l.Addr())
	return serve(ctx, l, counted(s.handler()))
}

// serve answers until ctx ends, and then finishes what it has begun.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return srv.Shutdown(context.WithoutCancel(ctx))
	}
}

func (s *shop) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "shop", s.release) })
	mux.HandleFunc("POST /orders", s.place)
	mux.HandleFunc("GET /orders/{id}", s.read)
	mux.HandleFunc("GET /orders", s.list)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(releaseHeader, s.release)
		mux.ServeHTTP(w, r)
	})
}

// fails reports whether this release has its fault with a customer. It is always the same customers, as with faults that
// hide in data; the one for whom the tests order is not among them, or the fault would not have come this far.
func (s *shop) fails(customer string) bool {
	h := fnv.New32a()
	h.Write([]byte(customer))
	return customer != testCustomer && int(h.Sum32()%100) < s.failing
}

func (s *shop) place(w http.ResponseWriter, r *http.Request) {
	var o Order
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&o); err != nil || o.ID == "" || o.Quantity < 1 {
		http.Error(w, "that is no order", http.StatusBadRequest)
		return
	}
	if s.fails(o.Customer) {
		http.Error(w, "release "+s.release+" has a fault", http.StatusInternalServerError)
		return
	}
	o.Release = s.release
	kept, err := s.store.place(r.Context(), o)
	answer(w, http.StatusCreated, kept, err)
}

func (s *shop) read(w http.ResponseWriter, r *http.Request) {
	o, err := s.store.read(r.Context(), r.PathValue("id"))
	answer(w, http.StatusOK, o, err)
}

func (s *shop) list(w http.ResponseWriter, r *http.Request) {
	limit, err := strconv.ParseInt(r.FormValue("limit"), 10, 64)
	if err != nil || limit < 1 || limit > 1000 {
		limit = 20
	}
	all, err := s.store.list(r.Context(), limit)
	answer(w, http.StatusOK, all, err)
}

func answer(w http.ResponseWriter, code int, v any, err error) {
	switch {
	case errors.Is(err, errNone):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
}
