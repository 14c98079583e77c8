package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
)

// result is what the checker found.
type result struct {
	Acknowledged int      `json:"acknowledged"` // orders and customers in the ledger
	Stored       int      `json:"stored"`       // documents in the database
	Missing      []string `json:"missing"`
	Differing    []string `json:"differing"`
}

// check reads the whole database with the plain driver and holds it against the ledger: nothing that was acknowledged
// before it began may be missing or differ. It knows nothing of fingerprints.
func check(ctx context.Context, args []string, out io.Writer) error {
	var database, file string
	f := flag.NewFlagSet("shop check", flag.ContinueOnError)
	f.StringVar(&database, "url", "", "URL of the database")
	f.StringVar(&file, "ledger", "", "file of the ledger")
	if err := f.Parse(args); err != nil {
		return err
	}
	if err := required(map[string]string{"url": database, "ledger": file}); err != nil {
		return err
	}
	s, err := openStore(database)
	if err != nil {
		return err
	}
	defer s.close()
	r, err := s.holdAgainst(ctx, file)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(r); err != nil {
		return err
	}
	if n := len(r.Missing) + len(r.Differing); n > 0 {
		return fmt.Errorf("%d acknowledged documents are missing or differ", n)
	}
	return nil
}

func (s *store) holdAgainst(ctx context.Context, file string) (result, error) {
	entries, err := readLedger(file)
	if err != nil {
		return result{}, err
	}
	if len(entries) == 0 {
		return result{}, errors.New("the ledger is empty: there is nothing to check")
	}
	r := result{Acknowledged: len(entries), Missing: []string{}, Differing: []string{}}
	orders, err := everything(ctx, s.orders)
	if err != nil {
		return r, err
	}
	people, err := everything(ctx, s.customers)
	if err != nil {
		return r, err
	}
	r.Stored = len(orders) + len(people)
	for _, e := range entries {
		switch {
		case e.Order != nil:
			err = r.hold("order "+e.Order.ID, e.Order, orders[e.Order.ID])
		case e.Customer != nil:
			err = r.hold("customer "+e.Customer.ID, e.Customer, people[e.Customer.ID])
		}
		if err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *result) hold(name string, want any, have bson.Raw) error {
	if have == nil {
		r.Missing = append(r.Missing, name)
		return nil
	}
	fields, err := differing(want, have)
	for _, f := range fields {
		r.Differing = append(r.Differing, name+": "+f)
	}
	return err
}

// everything reads a collection. Keys are strings in this shop; anything else would be missing from the result, and then
// from the ledger's point of view.
func everything(ctx context.Context, c *mongo.Collection) (map[string]bson.Raw, error) {
	cursor, err := c.Find(ctx, bson.D{})
	if err != nil {
		return nil, err
	}
	defer func() { _ = cursor.Close(ctx) }()
	all := map[string]bson.Raw{}
	for cursor.Next(ctx) {
		if id, ok := cursor.Current.Lookup("_id").StringValueOK(); ok {
			all[id] = append(bson.Raw(nil), cursor.Current...)
		}
	}
	return all, cursor.Err()
}
