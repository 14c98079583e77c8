package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	mathrand "math/rand/v2"
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
	// An order of long ago must still be readable.
	if rep, err := c.read(ctx, seededID(1)); err != nil || rep.Code != 200 {
		return fmt.Errorf("an old order cannot be read: %d %s (%v)", rep.Code, rep.Text, err)
	}
	if rep, err := c.read(ctx, "no-such-order"); err != nil || rep.Code != 404 {
		return fmt.Errorf("an order that does not exist: the answer is %d %s (%v)", rep.Code, rep.Text, err)
	}
	fmt.Fprintf(out, "%d orders placed and read\n", n)
	return nil
}

func placeAndRead(ctx context.Context, c *client, o Order) error {
	placed, err := c.place(ctx, o)
	if err != nil || placed.Code != 201 || !placed.Order.same(o) {
		return fmt.Errorf("place %s: %d %s (%v)", o.ID, placed.Code, placed.Text, err)
	}
	repeated, err := c.place(ctx, o)
	if err != nil || repeated.Order != placed.Order {
		return fmt.Errorf("place %s once more: %d %s (%v)", o.ID, repeated.Code, repeated.Text, err)
	}
	read, err := c.read(ctx, o.ID)
	if err != nil || read.Order != placed.Order {
		return fmt.Errorf("read %s: %d %s (%v)", o.ID, read.Code, read.Text, err)
	}
	return nil
}
