package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// patience is how long an operation waits for a database that does not answer: longer than any fence stands.
const patience = 15 * time.Minute

// connecting is how long one connection may take. A pod that is gone answers nothing, not even that it is gone, so waiting
// for it would outlast the pod that came in its place.
const connecting = 3 * time.Second

// store is the shop's database.
type store struct {
	client    *mongo.Client
	orders    *mongo.Collection
	customers *mongo.Collection
	database  *mongo.Database
}

// openStore prepares the connections. It does not wait for the database.
//
// No operation carries a deadline: the driver would send it along, and FerretDB 1.17 refuses inserts that have one.
func openStore(uri string) (*store, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, errors.New("--database is not a URL") // the parser's own message would show a password
	}
	name := strings.Trim(u.Path, "/")
	if name == "" {
		return nil, errors.New("--database names no database: mongodb://HOST:PORT/shop")
	}
	c, err := mongo.Connect(options.Client().ApplyURI(uri).SetRetryWrites(false).SetServerSelectionTimeout(patience).SetConnectTimeout(connecting))
	if err != nil {
		return nil, fmt.Errorf("the database: %w", err)
	}
	db := c.Database(name)
	return &store{client: c, database: db, orders: db.Collection("orders"), customers: db.Collection("customers")}, nil
}

func (s *store) close() { _ = s.client.Disconnect(context.Background()) }

var errNone = errors.New("there is no such order")

// place keeps an order, and returns it as it is kept. The same id is the same order, however often it is sent: so a
// connection that breaks off between the write and its acknowledgement loses and doubles nothing.
func (s *store) place(ctx context.Context, o Order) (Order, error) {
	o.PlacedAt = time.Now().UTC().Truncate(time.Millisecond)
	err := again(ctx, func() error {
		_, err := s.orders.InsertOne(ctx, o)
		return err
	})
	if !mongo.IsDuplicateKeyError(err) {
		return o, err
	}
	was, err := s.read(ctx, o.ID)
	if err != nil {
		return o, err
	}
	if !was.same(o) {
		return o, fmt.Errorf("order %s exists and is another one", o.ID)
	}
	return was, nil
}

func (s *store) read(ctx context.Context, id string) (Order, error) {
	var o Order
	err := again(ctx, func() error { return s.orders.FindOne(ctx, bson.D{{Key: "_id", Value: id}}).Decode(&o) })
	if errors.Is(err, mongo.ErrNoDocuments) {
		return o, errNone
	}
	o.PlacedAt = o.PlacedAt.UTC()
	return o, err
}

// list returns some orders.
func (s *store) list(ctx context.Context, limit int64) ([]Order, error) {
	all := []Order{}
	err := again(ctx, func() error {
		c, err := s.orders.Find(ctx, bson.D{}, options.Find().SetLimit(limit))
		if err != nil {
			return err
		}
		return c.All(ctx, &all)
	})
	return all, err
}

// again repeats an operation for as long as the connection to the database is what fails: while it is moved behind its
// fence the shop's callers wait.
func again(ctx context.Context, f func() error) error {
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		err := f()
		if err == nil || !away(err) || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-t.C:
		}
	}
}

// away reports whether it was the way to the database that failed, or that of another operation, which took the driver's
// connections with it. A database that is just being stopped may still answer, with an error of its own making (code 1,
// internal error): that is no answer either.
func away(err error) bool {
	if r, ok := errors.AsType[interface {
		error
		Retryable() bool
	}](err); ok && r.Retryable() {
		return true
	}
	answered, ok := errors.AsType[mongo.ServerError](err)
	return mongo.IsNetworkError(err) || ok && answered.HasErrorCode(1)
}
