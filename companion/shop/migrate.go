package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// damage is what a bad migration does to one document. Only tests read it; whoever verifies the data must find it out
// alone.
type damage struct {
	Collection string `json:"collection"`
	ID         string `json:"id"`
	Field      string `json:"field,omitempty"` // "" where the document is gone
}

// migrate brings the data to release 2: it notes the release in a collection of its own, which the contract names.
// With --damage it also does what careless migrations do, and notices nothing.
func migrate(ctx context.Context, args []string, out io.Writer) error {
	var database string
	var harm bool
	var number uint64
	var orders int
	f := flag.NewFlagSet("shop migrate", flag.ContinueOnError)
	f.StringVar(&database, "database", "", "URL of the database")
	f.BoolVar(&harm, "damage", false, "damage some documents without a word")
	f.Uint64Var(&number, "seed", 1, "chooses the damaged documents")
	f.IntVar(&orders, "orders", 10000, "the damaged orders are among so many first ones")
	if err := f.Parse(args); err != nil {
		return err
	}
	s, err := openStore(database)
	if err != nil {
		return err
	}
	defer s.close()
	note := bson.D{{Key: "$set", Value: bson.D{{Key: "does", Value: "notes releases"}, {Key: "at", Value: time.Now().UTC()}}}}
	// After a way back to release 1 the note of the first attempt is still there.
	if _, err := s.database.Collection("schema_migrations").UpdateByID(ctx, int32(2), note, options.UpdateOne().SetUpsert(true)); err != nil {
		return fmt.Errorf("note the release: %w", err)
	}
	if harm {
		if err := s.harm(ctx, choose(number, orders)); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "migrated to release 2")
	return nil
}

// damages prints what migrate --damage does with a seed, for tests that look whether it was all found.
func damages(_ context.Context, args []string, out io.Writer) error {
	var number uint64
	var orders int
	f := flag.NewFlagSet("shop damages", flag.ContinueOnError)
	f.Uint64Var(&number, "seed", 1, "of the migration")
	f.IntVar(&orders, "orders", 10000, "of the migration")
	if err := f.Parse(args); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(choose(number, orders).list())
}

// chosen are the documents that a bad migration damages. They depend on the seed and on the number of orders alone.
type chosen struct {
	shifted []string // orders, an even number
	gone    string   // order
	typed   string   // order
	swapped [2]Customer
}

// choose picks what XORs of row hashes cancel out of sight more easily than an odd number (times shifted by an hour), what
// sums of a column do not see (two e-mails swapped), an order to drop, and one whose integer becomes a string.
func choose(seed uint64, orders int) chosen {
	r := rand.New(rand.NewPCG(seed, 2))
	var c chosen
	n := 2 + 2*r.IntN(3)
	picked := map[int]bool{}
	pick := func(below int) int {
		for {
			if n := 1 + r.IntN(below); !picked[n] {
				picked[n] = true
				return n
			}
		}
	}
	for range n {
		c.shifted = append(c.shifted, seededID(pick(orders)))
	}
	c.gone, c.typed = seededID(pick(orders)), seededID(pick(orders))
	clear(picked)
	c.swapped = [2]Customer{someCustomer(pick(customers)), someCustomer(pick(customers))}
	return c
}

// list is what the damage comes to.
func (c chosen) list() []damage {
	var all []damage
	for _, id := range c.shifted {
		all = append(all, damage{"orders", id, "placedAt"})
	}
	return append(all, damage{"orders", c.gone, ""}, damage{"orders", c.typed, "quantity"},
		damage{"customers", c.swapped[0].ID, "email"}, damage{"customers", c.swapped[1].ID, "email"})
}

// harm does it.
func (s *store) harm(ctx context.Context, c chosen) error {
	for _, id := range c.shifted {
		o, err := s.read(ctx, id)
		if err != nil {
			return err
		}
		if err := s.set(ctx, "orders", id, "placedAt", o.PlacedAt.Add(time.Hour)); err != nil {
			return err
		}
	}
	if _, err := s.orders.DeleteOne(ctx, bson.D{{Key: "_id", Value: c.gone}}); err != nil {
		return err
	}
	o, err := s.read(ctx, c.typed)
	if err != nil {
		return err
	}
	if err := s.set(ctx, "orders", o.ID, "quantity", fmt.Sprint(o.Quantity)); err != nil {
		return err
	}
	for i, to := range c.swapped {
		if err := s.set(ctx, "customers", to.ID, "email", c.swapped[1-i].Email); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) set(ctx context.Context, collection, id, field string, v any) error {
	res, err := s.database.Collection(collection).UpdateByID(ctx, id, bson.D{{Key: "$set", Value: bson.D{{Key: field, Value: v}}}})
	if err != nil {
		return err
	}
	if res.MatchedCount != 1 {
		return fmt.Errorf("%s %s does not exist", collection, id)
	}
	return nil
}
