package mongodb

import (
	"context"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// The classes of findings of a check.
const (
	classNoIndex = "index missing"
	classInvalid = "damaged"
)

// Check implements database.Server.
//
// FerretDB can only be asked whether every collection still has its index of _id. Its own validate answers "valid"
// whatever is in the files, and SQLite's integrity_check cannot be reached over the wire, so whether an index holds all
// its entries is not checkable by this engine. mongod is asked to validate.
func (s *server) Check(ctx context.Context, d database.Depth, found func(database.Finding)) error {
	names, err := s.databases(ctx)
	if err != nil {
		return err
	}
	for _, db := range names {
		all, err := s.list(ctx, db, bson.D{{Key: "listCollections", Value: 1}, {Key: "filter", Value: bson.D{{Key: "type", Value: "collection"}}}})
		if err != nil {
			return s.problem(err, "list the collections of "+db)
		}
		for _, c := range all {
			name, _ := text(c, "name")
			n := database.Name{Database: db, Relation: name}
			if s.ferretdb {
				err = s.hasKey(ctx, n, found)
			} else {
				err = s.validate(ctx, n, d, found)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// hasKey looks for the index that makes _id a key.
func (s *server) hasKey(ctx context.Context, n database.Name, found func(database.Finding)) error {
	indexes, err := s.list(ctx, n.Database, bson.D{{Key: "listIndexes", Value: n.Relation}})
	if err != nil {
		return s.problem(err, "list the indexes of "+n.String())
	}
	for _, d := range indexes {
		if key, ok := d.Lookup("key").DocumentOK(); ok && keyText(key) == "_id: 1" {
			return nil
		}
	}
	found(database.Finding{Object: "relation " + n.String(), Class: classNoIndex, Message: "has no index of _id, so two documents may have one key"})
	return nil
}

// validate lets mongod compare every index with its collection.
func (s *server) validate(ctx context.Context, n database.Name, d database.Depth, found func(database.Finding)) error {
	r, err := s.run(ctx, n.Database, bson.D{{Key: "validate", Value: n.Relation}, {Key: "full", Value: d == database.Full}})
	if err != nil {
		return s.problem(err, "validate "+n.String())
	}
	if valid, ok := r.Lookup("valid").BooleanOK(); ok && valid {
		return nil
	} else if !ok {
		return fault.Newf(fault.Invalid, "validate %s: the server answered neither yes nor no", n)
	}
	message := "the server calls it invalid"
	if errors, _ := array(r.Lookup("errors")); len(errors) > 0 {
		message = fmt.Sprintf("%s (%d errors)", plain(errors[0]), len(errors))
	}
	found(database.Finding{Object: "relation " + n.String(), Class: classInvalid, Message: message})
	return nil
}
