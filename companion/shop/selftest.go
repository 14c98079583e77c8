package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
)

// testCustomer is for whom the tests order.
const testCustomer = "c-0001"

// test is the shop's integration test: it runs as a Job beside a release and exits with 0 where the release works.
func test(ctx context.Context, args []string, out io.Writer) error {
	var url string
	var n int
	f := flag.NewFlagSet("shop test", flag.ContinueOnError)
	f.StringVar(&url, "url", "", "URL of the shop")
	f.IntVar(&n, "orders", 20, "how many orders are placed")
	if err := f.Parse(args); err != nil {
		return err
	}
	if err := required(map[string]string{"url": url}); err != nil {
		return err
	}
	c := newClient(url)
	run := make([]byte, 4)
	_, _ = rand.Read(run) // never fails
	r := mathrand.New(mathrand.NewPCG(mathrand.Uint64(), 5))
	for i := range n {
		o := someOrder(r, fmt.Sprintf("t-%s-%04d", hex.EncodeToString(run), i))
		o.Customer = testCustomer
		if err := placeAndRead(ctx, c, o); err != nil {
			return err
		}
	}
	// An order of long ago must still be readable, and one that was never placed must not be.
	rep, err := c.read(ctx, seededID(1))
	if err := rep.must(http.StatusOK, err); err != nil {
		return fmt.Errorf("read an old order: %w", err)
	}
	rep, err = c.read(ctx, "no-such-order")
	if err := rep.must(http.StatusNotFound, err); err != nil {
		return fmt.Errorf("read an order that does not exist: %w", err)
	}
	fmt.Fprintf(out, "%d orders placed and read\n", n)
	return nil
}

func placeAndRead(ctx context.Context, c *client, o Order) error {
	placed, err := c.place(ctx, o)
	if err := placed.must(http.StatusCreated, err); err != nil {
		return fmt.Errorf("place %s: %w", o.ID, err)
	}
	repeated, err := c.place(ctx, o)
	if err := repeated.must(http.StatusCreated, err); err != nil {
		return fmt.Errorf("place %s once more: %w", o.ID, err)
	}
	read, err := c.read(ctx, o.ID)
	if err := read.must(http.StatusOK, err); err != nil {
		return fmt.Errorf("read %s: %w", o.ID, err)
	}
	if !placed.Order.same(o) || repeated.Order != placed.Order || read.Order != placed.Order {
		return fmt.Errorf("order %+v was placed as %+v, repeated as %+v and read as %+v", o, placed.Order, repeated.Order, read.Order)
	}
	return nil
}
