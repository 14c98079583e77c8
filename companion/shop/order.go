package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// Order is one order. Its time has whole milliseconds, as the database keeps it.
type Order struct {
	ID       string    `bson:"_id" json:"id"`
	Customer string    `bson:"customer" json:"customer"`
	Item     string    `bson:"item" json:"item"`
	Quantity int32     `bson:"quantity" json:"quantity"`
	Cents    int64     `bson:"cents" json:"cents"`
	PlacedAt time.Time `bson:"placedAt" json:"placedAt"`
	Release  string    `bson:"release" json:"release"` // of the shop that took it
}

// Customer is somebody who orders.
type Customer struct {
	ID    string `bson:"_id" json:"id"`
	Name  string `bson:"name" json:"name"`
	Email string `bson:"email" json:"email"`
}

// customers is how many customers a shop has.
const customers = 200

// same reports whether two orders are the same order, however often it was sent.
func (o Order) same(p Order) bool {
	return o.ID == p.ID && o.Customer == p.Customer && o.Item == p.Item && o.Quantity == p.Quantity && o.Cents == p.Cents
}

func customerID(n int) string { return fmt.Sprintf("c-%04d", n) }

func seededID(n int) string { return fmt.Sprintf("o-%06d", n) }

// someOrder makes up an order.
func someOrder(r *rand.Rand, id string) Order {
	items := []struct {
		name  string
		cents int64
	}{{"teapot", 2450}, {"lamp", 3990}, {"kettle", 5900}, {"blanket", 4200}, {"notebook", 650}, {"chair", 12900}, {"scarf", 1990}}
	item := items[r.IntN(len(items))]
	n := int32(1 + r.IntN(4))
	return Order{ID: id, Customer: customerID(1 + r.IntN(customers)), Item: item.name, Quantity: n, Cents: item.cents * int64(n)}
}

func someCustomer(n int) Customer {
	first := []string{"Ada", "Bela", "Chidi", "Dana", "Emil", "Fatou", "Goran", "Hana", "Ines", "Jun"}
	last := []string{"Adler", "Brandt", "Costa", "Diaz", "Eklund", "Fischer", "Garcia", "Haas", "Ito", "Jensen"}
	f, l := first[n%len(first)], last[n/len(first)%len(last)]
	return Customer{ID: customerID(n), Name: f + " " + l, Email: fmt.Sprintf("%s.%s.%d@example.com", bytes.ToLower([]byte(f)), bytes.ToLower([]byte(l)), n)}
}

// differing returns the fields of a document that are not, to the type and the last bit, what they should be. Fields that
// the document has beyond them are no difference.
func differing(want any, have bson.Raw) ([]string, error) {
	body, err := bson.Marshal(want)
	if err != nil {
		return nil, err
	}
	fields, err := bson.Raw(body).Elements()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range fields {
		v, err := have.LookupErr(f.Key())
		switch {
		case err != nil:
			out = append(out, f.Key()+" is gone")
		case !v.Equal(f.Value()):
			out = append(out, fmt.Sprintf("%s is %s, was %s", f.Key(), v, f.Value()))
		}
	}
	return out, nil
}
