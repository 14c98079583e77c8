package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// damage is what a bad migration has done to one document. Only tests read it; whoever verifies the data must find it
// out alone.
type damage struct {
	Collection string `json:"collection"`
	ID         string `json:"id"`
	Field      string `json:"field,omitempty"` // "" where the document is gone
}

// migrate brings the data to release 2: it notes the release in a collection of its own, which the contract names.
// With --damage it also does what careless migrations do, and notices nothing.
func migrate(ctx context.Context, args []string, out io.Writer) error {
	var database, injected string
	var harm bool
	var number uint64
	var orders int
	f := flag.NewFlagSet("shop migrate", flag.ContinueOnError)
	f.StringVar(&database, "database", "", "URL of the database")
	f.BoolVar(&harm, "damage", false, "damage some documents without a word")
	f.Uint64Var(&number, "seed", 1, "chooses the damaged documents")
	f.IntVar(&orders, "orders", 10000, "the damaged orders are among so many first ones")
	f.StringVar(&injected, "injected", "", "file for the list of what was damaged, for tests")
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
		done, err := harmed(ctx, s, rand.New(rand.NewPCG(number, 2)), orders)
		if err != nil {
			return err
		}
		if err := writeInjected(injected, done); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "migrated to release 2")
	return nil
}

func writeInjected(path string, all []damage) error {
	if path == "" {
		return nil
	}
	body, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return os.WriteFile(path, body, 0o600)
}

// harmed shifts an even number of times by an hour (which XORs of row hashes cancel out of sight more easily than an odd
// one), swaps two customers' e-mails (which sums of a column do not see), drops one order, and turns one integer into a
// string.
func harmed(ctx context.Context, s *store, r *rand.Rand, orders int) ([]damage, error) {
	shifted := 2 + 2*r.IntN(3)
	picked := map[int]bool{}
	pick := func(below int) int {
		for {
			if n := 1 + r.IntN(below); !picked[n] {
				picked[n] = true
				return n
			}
		}
	}
	var all []damage
	for range shifted {
		o, err := s.read(ctx, seededID(pick(orders)))
		if err != nil {
			return nil, err
		}
		if err := s.set(ctx, "orders", o.ID, "placedAt", o.PlacedAt.Add(time.Hour)); err != nil {
			return nil, err
		}
		all = append(all, damage{"orders", o.ID, "placedAt"})
	}
	gone := seededID(pick(orders))
	if _, err := s.orders.DeleteOne(ctx, bson.D{{Key: "_id", Value: gone}}); err != nil {
		return nil, err
	}
	all = append(all, damage{"orders", gone, ""})
	o, err := s.read(ctx, seededID(pick(orders)))
	if err != nil {
		return nil, err
	}
	if err := s.set(ctx, "orders", o.ID, "quantity", fmt.Sprint(o.Quantity)); err != nil {
		return nil, err
	}
	all = append(all, damage{"orders", o.ID, "quantity"})
	clear(picked)
	a, b := someCustomer(pick(customers)), someCustomer(pick(customers))
	for _, c := range [][2]Customer{{a, b}, {b, a}} {
		if err := s.set(ctx, "customers", c[0].ID, "email", c[1].Email); err != nil {
			return nil, err
		}
		all = append(all, damage{"customers", c[0].ID, "email"})
	}
	return all, nil
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
