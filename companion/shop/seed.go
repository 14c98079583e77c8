package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

// seed fills an empty shop with customers and with orders of the last weeks.
func seed(ctx context.Context, args []string, out io.Writer) error {
	var database, file string
	var n int
	f := flag.NewFlagSet("shop seed", flag.ContinueOnError)
	f.StringVar(&database, "database", "", "URL of the database")
	f.StringVar(&file, "ledger", "", "file of the ledger")
	f.IntVar(&n, "orders", 10000, "how many orders")
	if err := f.Parse(args); err != nil {
		return err
	}
	if err := required(map[string]string{"database": database, "ledger": file}); err != nil {
		return err
	}
	s, err := openStore(database)
	if err != nil {
		return err
	}
	defer s.close()
	l, err := openLedger(file)
	if err != nil {
		return err
	}
	defer l.close()
	if err := seedInto(ctx, s, l, n); err != nil {
		return err
	}
	fmt.Fprintf(out, "%d customers and %d orders\n", customers, n)
	return nil
}

func seedInto(ctx context.Context, s *store, l *ledger, n int) error {
	var people []Customer
	var lines []entry
	for i := 1; i <= customers; i++ {
		c := someCustomer(i)
		people = append(people, c)
		lines = append(lines, entry{At: time.Now().UTC(), Customer: &c})
	}
	if _, err := s.customers.InsertMany(ctx, people); err != nil {
		return fmt.Errorf("keep customers: %w", err)
	}
	if err := l.append(lines...); err != nil {
		return err
	}
	const batch = 1000
	r := rand.New(rand.NewPCG(1, uint64(n)))
	start := time.Now().UTC().Truncate(time.Millisecond).Add(-time.Duration(n) * time.Minute)
	for from := 1; from <= n; from += batch {
		var orders []Order
		var lines []entry
		for i := from; i < min(from+batch, n+1); i++ {
			o := someOrder(r, seededID(i))
			o.Release, o.PlacedAt = "1", start.Add(time.Duration(i)*time.Minute)
			orders = append(orders, o)
			lines = append(lines, entry{At: time.Now().UTC(), Order: &o})
		}
		if _, err := s.orders.InsertMany(ctx, orders); err != nil {
			return fmt.Errorf("keep orders: %w", err)
		}
		if err := l.append(lines...); err != nil {
			return err
		}
	}
	return nil
}
