package standin

import (
	"bytes"
	"fmt"
	"math/big"
	"slices"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// batchBytes is how large an answer may grow, as mongod cuts its batches.
const batchBytes = 16 << 20

// answer runs a command.
func (s *Server) answer(raw bson.Raw) bson.Raw {
	elements, err := raw.Elements()
	if err != nil || len(elements) == 0 {
		return failure(9, "FailedToParse", "no command")
	}
	name := elements[0].Key()
	if slices.Contains(s.content.Deny, name) {
		return failure(13, "Unauthorized", "not authorized on admin to execute command "+name)
	}
	db, _ := raw.Lookup("$db").StringValueOK()
	argument, _ := elements[0].Value().StringValueOK()
	switch name {
	case "hello", "isMaster", "ismaster":
		return ok(append(bson.D{{Key: "ismaster", Value: true}, {Key: "isWritablePrimary", Value: true}, {Key: "helloOk", Value: true},
			{Key: "maxBsonObjectSize", Value: 16 << 20}, {Key: "maxMessageSizeBytes", Value: 48_000_000}, {Key: "maxWriteBatchSize", Value: 100_000},
			{Key: "minWireVersion", Value: 0}, {Key: "maxWireVersion", Value: 21}}, s.content.Hello...))
	case "buildInfo":
		return ok(bson.D{{Key: "version", Value: "7.0.0"}})
	case "serverStatus":
		return ok(bson.D{{Key: "uptimeMillis", Value: int64(60_000)}})
	case "ping", "endSessions":
		return ok(nil)
	case "listDatabases":
		var all bson.A
		for _, d := range s.content.Databases {
			all = append(all, bson.D{{Key: "name", Value: d.Name}})
		}
		return ok(bson.D{{Key: "databases", Value: all}})
	case "usersInfo":
		return ok(bson.D{{Key: "users", Value: list(s.content.Users)}})
	case "rolesInfo":
		return ok(bson.D{{Key: "roles", Value: list(s.content.Roles)}})
	case "listCollections":
		return s.listCollections(db, raw)
	case "getMore":
		return s.getMore(db, raw)
	case "killCursors":
		return s.killCursors(raw)
	}
	c, found := s.collection(db, argument)
	if !found {
		return failure(26, "NamespaceNotFound", "ns does not exist: "+db+"."+argument)
	}
	return s.onCollection(name, db, c, raw)
}

func (s *Server) onCollection(name, db string, c Collection, raw bson.Raw) bson.Raw {
	switch name {
	case "count":
		return ok(bson.D{{Key: "n", Value: len(c.Documents)}})
	case "collStats":
		size := 0
		for _, d := range c.Documents {
			size += len(d)
		}
		return ok(bson.D{{Key: "size", Value: size}, {Key: "count", Value: len(c.Documents)}})
	case "listIndexes":
		all := []bson.Raw{marshal(bson.D{{Key: "v", Value: 2}, {Key: "key", Value: bson.D{{Key: "_id", Value: 1}}}, {Key: "name", Value: "_id_"}})}
		for _, x := range c.Indexes {
			all = append(all, marshal(x))
		}
		return s.batch(db+"."+c.Name, "firstBatch", all, len(all))
	case "validate":
		message, bad := s.content.Invalid[db+"."+c.Name]
		errors := bson.A{}
		if bad {
			errors = append(errors, message)
		}
		return ok(bson.D{{Key: "valid", Value: !bad}, {Key: "errors", Value: errors}})
	case "find":
		return s.find(db, c, raw)
	}
	return failure(59, "CommandNotFound", fmt.Sprintf("no such command: '%s'", name))
}

func (s *Server) collection(db, name string) (Collection, bool) {
	for _, d := range s.content.Databases {
		if d.Name != db {
			continue
		}
		for _, c := range d.Collections {
			if c.Name == name && c.Type != "view" {
				return c, true
			}
		}
	}
	return Collection{}, false
}

func (s *Server) listCollections(db string, raw bson.Raw) bson.Raw {
	only, _ := raw.Lookup("filter", "type").StringValueOK()
	var all []bson.Raw
	for _, d := range s.content.Databases {
		for _, c := range d.Collections {
			kind := c.Type
			if kind == "" {
				kind = "collection"
			}
			if d.Name == db && (only == "" || only == kind) {
				options := c.Options
				if options == nil {
					options = bson.D{}
				}
				all = append(all, marshal(bson.D{{Key: "name", Value: c.Name}, {Key: "type", Value: kind}, {Key: "options", Value: options}}))
			}
		}
	}
	return s.batch(db+".$cmd.listCollections", "firstBatch", all, len(all))
}

// find knows no filter, _id by value, and _id in a list.
func (s *Server) find(db string, c Collection, raw bson.Raw) bson.Raw {
	documents := c.Documents
	if id, err := raw.LookupErr("filter", "_id"); err == nil {
		wanted := []bson.RawValue{id}
		if in, ok := id.DocumentOK(); ok {
			if list, ok := in.Lookup("$in").ArrayOK(); ok {
				wanted, _ = list.Values()
			}
		}
		documents = nil
		for _, d := range c.Documents {
			if slices.ContainsFunc(wanted, func(v bson.RawValue) bool { return equal(v, d.Lookup("_id")) }) {
				documents = append(documents, d)
			}
		}
	}
	if skip, ok := raw.Lookup("skip").AsInt64OK(); ok {
		documents = documents[min(int(skip), len(documents)):]
	}
	return s.batch(db+"."+c.Name, "firstBatch", documents, size(raw))
}

// equal compares ids as the server does: numbers by value, whatever their type.
func equal(a, b bson.RawValue) bool {
	x, okX := number(a)
	y, okY := number(b)
	if okX && okY {
		return x.Cmp(y) == 0
	}
	return a.Type == b.Type && bytes.Equal(a.Value, b.Value)
}

func number(v bson.RawValue) (*big.Rat, bool) {
	switch v.Type {
	case bson.TypeInt32, bson.TypeInt64:
		n, ok := v.AsInt64OK()
		return new(big.Rat).SetInt64(n), ok
	case bson.TypeDouble:
		f, _ := v.DoubleOK()
		r := new(big.Rat).SetFloat64(f)
		return r, r != nil
	case bson.TypeDecimal128:
		d, _ := v.Decimal128OK()
		return new(big.Rat).SetString(d.String())
	default:
		return nil, false
	}
}

func size(raw bson.Raw) int {
	n, ok := raw.Lookup("batchSize").AsInt64OK()
	if !ok || n <= 0 {
		n = 101
	}
	return int(n)
}

// list is never null, as a server's is not.
func list(documents []bson.D) bson.A {
	out := bson.A{}
	for _, d := range documents {
		out = append(out, d)
	}
	return out
}

// batch answers with some documents and keeps the others under a cursor.
func (s *Server) batch(ns, name string, documents []bson.Raw, n int) bson.Raw {
	count, bytes := 0, 0
	for count < min(n, len(documents)) && (count == 0 || bytes+len(documents[count]) < batchBytes) {
		bytes += len(documents[count])
		count++
	}
	id := int64(0)
	if count < len(documents) {
		s.mu.Lock()
		s.last++
		id = s.last
		s.cursors[id] = documents[count:]
		s.mu.Unlock()
	}
	all := bson.A{}
	for _, d := range documents[:count] {
		all = append(all, d)
	}
	return ok(bson.D{{Key: "cursor", Value: bson.D{{Key: name, Value: all}, {Key: "id", Value: id}, {Key: "ns", Value: ns}}}})
}

func (s *Server) getMore(db string, raw bson.Raw) bson.Raw {
	id, _ := raw.Lookup("getMore").AsInt64OK()
	collection, _ := raw.Lookup("collection").StringValueOK()
	s.mu.Lock()
	documents, found := s.cursors[id]
	delete(s.cursors, id)
	s.mu.Unlock()
	if !found {
		return failure(43, "CursorNotFound", fmt.Sprintf("cursor id %d not found", id))
	}
	return s.batch(db+"."+collection, "nextBatch", documents, size(raw))
}

func (s *Server) killCursors(raw bson.Raw) bson.Raw {
	var ids []bson.RawValue
	if list, ok := raw.Lookup("cursors").ArrayOK(); ok {
		ids, _ = list.Values()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range ids {
		id, _ := v.AsInt64OK()
		delete(s.cursors, id)
	}
	return ok(nil)
}

// KillCursors ends every cursor, as an operator or a timeout would.
func (s *Server) KillCursors() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.cursors)
}

func ok(d bson.D) bson.Raw { return marshal(append(d, bson.E{Key: "ok", Value: 1.0})) }

func failure(code int32, name, message string) bson.Raw {
	return marshal(bson.D{{Key: "ok", Value: 0.0}, {Key: "errmsg", Value: message}, {Key: "code", Value: code}, {Key: "codeName", Value: name}})
}

// marshal writes a document of this package's own, which never fails.
func marshal(d bson.D) bson.Raw {
	b, err := bson.Marshal(d)
	if err != nil {
		panic(err)
	}
	return b
}
